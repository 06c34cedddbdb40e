"""What a bad situation is, and what those in ``bad_runs.py`` and ``bad_files.py`` share.

``docs/faults.py`` writes the table of all of them, ``test_faults.py`` runs those that are quick.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kit import PATIENCE, Kit, Ran, Started

__all__ = ["Situation", "Told", "group", "kept", "nothing_begun", "nothing_there", "until", "words"]

EMPTY = "nothing: the folder is as it was before"


@dataclass(frozen=True)
class Told:
    """What became of a situation.

    Attributes:
        ran: the command that met it.
        lost: in words; what they say was found to be so.
        command: as a reader would type it; None is that of ``ran``.
    """

    ran: Ran
    lost: str
    command: str | None = None


@dataclass(frozen=True)
class Situation:
    """A bad situation.

    Attributes:
        title: in words.
        group: what it is about.
        quick: whether it is tested in CI.
        act: brings it about.
        needs: why it cannot be brought about here; empty if it can.
    """

    title: str
    group: str
    quick: bool
    act: Callable[[Kit], Told]
    needs: Callable[[], str]


Act = Callable[[Kit], Told]


def group(name: str, found: list[Situation]) -> Callable[..., Callable[[Act], Act]]:
    """A decorator for the situations of a group: ``@of_the_group("title")``.

    Args:
        name: of the group.
        found: gets them.
    """

    def situation(
        title: str, quick: bool = True, needs: Callable[[], str] = lambda: ""
    ) -> Callable[[Act], Act]:
        def register(act: Act) -> Act:
            found.append(Situation(title, name, quick, act, needs))
            return act

        return register

    return situation


TELLS = {
    "run/environment.json": "environment.json tells of this start too",
    "run/report.html": "the page is drawn anew",
}
"""What a start that fails may change: nothing that cannot be made again."""


def kept(kit: Kit, before: dict[str, str]) -> str:
    """That every file is there and as it was, but for those that tell of this start."""
    after = kit.hashes()
    changed = {name for name, digest in before.items() if after.get(name) != digest}
    assert changed <= TELLS.keys() & after.keys(), changed
    return "; ".join(
        ["nothing: every file is as it was", *(text for name, text in TELLS.items() if name in changed)]
    )


def until(started: Started, there: Path) -> None:
    """Wait for a file that a command writes."""
    last = time.monotonic() + PATIENCE
    while not there.exists():
        assert time.monotonic() < last, started.err.read_text()
        assert Path(f"/proc/{started.pid}/cmdline").read_bytes(), f"it has ended: {started.err.read_text()}"
        time.sleep(0.01)


def nothing_there(kit: Kit, name: str = "run") -> str:
    """That a command left no folder behind."""
    assert not (kit.at / name).exists(), list((kit.at / name).iterdir())
    return EMPTY


def nothing_begun(kit: Kit) -> str:
    """That a command left nothing at all behind."""
    assert not list(kit.at.iterdir()), list(kit.at.iterdir())
    return "nothing: nothing was begun"


def words(command: str) -> list[str]:
    """The words of a command line."""
    return command.split()
