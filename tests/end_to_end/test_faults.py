"""Bad situations: what is said, the exit status, and that nothing is lost. ``make faults`` runs all of them;
here are those that are quick."""

from __future__ import annotations

from collections.abc import Iterator

import bad_files
import bad_runs
import pytest
from kit import Kit, tolerant_remove
from situations import Situation

QUICK = [s for s in (*bad_runs.ALL, *bad_files.ALL) if s.quick]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    root = tmp_path_factory.mktemp("faults")
    made = Kit(root / "kit")
    yield made
    made.close()
    tolerant_remove(root)


@pytest.mark.parametrize("one", QUICK, ids=lambda one: one.title.replace(" ", "_"))
def test_a_bad_situation(one: Situation, kit: Kit) -> None:
    why = one.needs()
    if why:
        pytest.skip(why)
    kit.fresh()
    one.act(kit)
