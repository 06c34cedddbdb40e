"""The figures of the README at their full budgets: ``make test-all`` only (about 20 minutes)."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from saltus.cli import main
from saltus.methods import discover

SEEDS = (0, 1, 2)
BOUNDED = tuple(name for name, method in discover().items() if method.card.threshold is not None)


@pytest.mark.all
def test_bounded_methods_on_the_reference_mixture(tmp_path: Path) -> None:
    """One-step map RMSE within each card's bound, the mean of three seeds; more steps are better."""
    out = tmp_path / "bench.jsonl"
    seeds = [str(seed) for seed in SEEDS]
    assert main(["bench", "mixture", "--methods", *BOUNDED, "--seeds", *seeds, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for name in BOUNDED:
        found = [row["rmse"] for row in rows if row["method"] == name]
        assert len(found) == len(SEEDS)
        if discover()[name].card.two_times:
            one, four = (statistics.fmean(f[k] for f in found) for k in ("1", "4"))
            assert four < one, f"{name}: {four:.3f} at four steps, {one:.3f} at one"


@pytest.mark.all
def test_checkerboard_in_one_step(tmp_path: Path) -> None:
    """KL of one jump at most 0.5, where an independent small reproduction of the paper has 0.458."""
    out = tmp_path / "board"
    assert main(["run", "checkerboard-lsd", "--out", str(out), "--quiet"]) == 0
    lines = json.loads((out / "evaluation.json").read_text())["lines"]
    (one,) = (m["figures"]["KL"] for m in lines if m["group"] == "own" and m["steps"] == 1)
    assert one <= 0.5
