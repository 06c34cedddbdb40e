"""The figures of the README at their full budgets: ``make test-all`` only (about 90 minutes of one core)."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from saltus.cli import main
from saltus.methods import Need, discover
from saltus.recipes.trials import FULL, MIXTURE

RESULTS = Path(__file__).resolve().parents[2] / "runs" / "bench-mixture.jsonl"
"""Kept between runs: what was measured with this code already is not trained again."""


NAMES = [name for name, method in discover().items() if Need.LABELS not in method.card.needs]


@pytest.mark.all
@pytest.mark.parametrize("name", NAMES)
def test_every_method_on_the_reference_mixture(name: str) -> None:
    """Within its card's bound and 1.5 times the figures of the independent reproduction, the mean of three
    seeds; for maps of two times whose stationary point is the exact one, more steps are better. ``saltus
    bench mixture`` shows all of it."""
    assert main(["bench", "mixture", "--methods", name, "--fresh", "--out", str(RESULTS)]) == 0
    rows: dict[int, dict[str, dict[str, float]]] = {}
    for row in map(json.loads, RESULTS.read_text().splitlines()):  # a later line of the same replaces it
        if (row["method"], row["steps"], row["lr"]) == (name, *FULL):
            rows[row["seed"]] = row
    card = discover()[name].card
    exact = card.bias is None and card.threshold is not None
    if card.two_times and exact and {1, 4} <= set(card.steps):
        one, four = (statistics.fmean(rows[seed]["rmse"][k] for seed in MIXTURE.seeds) for k in ("1", "4"))
        assert four < one, f"{name}: {four:.3f} at four steps, {one:.3f} at one"


@pytest.mark.all
def test_checkerboard_in_one_step(tmp_path: Path) -> None:
    """KL of one jump at most 0.5, where an independent small reproduction of the paper has 0.458."""
    out = tmp_path / "board"
    assert main(["run", "checkerboard-lsd", "--out", str(out), "--quiet"]) == 0
    lines = json.loads((out / "evaluation.json").read_text())["lines"]
    (one,) = (m["figures"]["KL"] for m in lines if m["group"] == "own" and m["steps"] == 1)
    assert one <= 0.5
