"""Pictures of a finished run that need matplotlib: its losses, its samples with their ways, its residuals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saltus.maps import NetworkMap
from saltus.plots import Series, heat, lines, scatter
from saltus.recipes.evaluate import STEPS
from saltus.recipes.experiment import Experiment
from saltus.recipes.folder import METRICS
from saltus.recipes.portraits import own_residuals, reach_of
from saltus.recipes.sampling import draw
from saltus.recipes.show import said
from saltus.samplers import jumps, prior
from saltus.streams import Streams

__all__ = ["draw_all", "logged"]

POINTS, WAYS = 4000, 40


def draw_all(made: Experiment, model: NetworkMap, folder: Path) -> list[Path]:
    """Draw what suits the run into its folder; the paths of what was drawn."""
    drawn = [_losses(made, folder)]
    if made.system.shape == (2,):
        drawn.append(_points(made, model, folder))
    if made.method.card.two_times:
        drawn.append(_residuals(made, model, folder))
    return drawn


def logged(folder: Path) -> tuple[list[int], dict[str, list[float]]]:
    """The steps that a run logged, and each term of its loss there.

    Raises:
        ValueError: if the log is absent or damaged.
    """
    try:
        rows = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
        found = [_terms(row) for row in rows]
        terms = {name: [t.get(name, math.nan) for t in found] for name in found[-1]}
        return [row["step"] for row in rows], terms
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as wrong:
        raise ValueError(
            f"{folder / METRICS}: expected the log of a finished run, got {type(wrong).__name__}: {wrong}; "
            "train again"
        ) from wrong


def _terms(row: dict[str, Any]) -> dict[str, float]:
    """The terms of a logged step by name; of several players by "player/name"."""
    if "moves" in row:
        return {f"{who}/{n}": v for who, move in row["moves"].items() for n, v in move["terms"].items()}
    return dict(row["terms"] or {"loss": row["loss"]})


def _losses(made: Experiment, folder: Path) -> Path:
    """Every term of the loss over the steps."""
    x, terms = logged(folder)
    series = [Series(name, x, y) for name, y in terms.items()]
    where = folder / "losses.png"
    lines({f"{made.name}: terms of the loss": series}, where, "step")
    return where


def _points(made: Experiment, model: NetworkMap, folder: Path) -> Path:
    """Samples at every step count, and the way of some of them."""
    card = made.method.card
    rng = Streams(made.training.seed, index=torch.arange(POINTS))
    x0 = prior(rng, made.system.shape, made.interpolant)
    panels: dict[str, Tensor] = {}
    ways: dict[str, Tensor] = {}
    for k in [k for k in STEPS if k in card.steps] or [min(card.steps)]:
        name = said(k)
        panels[name] = draw(model, card, x0, k, None, rng, made.interpolant)
        if card.two_times:
            ways[name] = jumps(model, x0[:WAYS], k, record=True).states
    name = "data" if made.teacher is None else "teacher"
    panels[name] = made.reference(rng.named("picture")).data()
    where = folder / "points.png"
    scatter(panels, reach_of(panels[name]), where, made.name, ways)
    return where


def _residuals(made: Experiment, model: NetworkMap, folder: Path) -> Path:
    """How far the map is from agreeing with its own velocity, over all s <= t."""
    found = own_residuals(made, model, min(256, made.training.batch))
    where = folder / "residuals.png"
    panels = {
        "Lagrangian  |∂t X − b(X)|": found.lagrangian,
        "Eulerian  |∂s X + ∇X b|": found.eulerian,
        "semigroup  |X∘X − X|": found.semigroup,
    }
    heat(panels, found.times, where, f"{made.name}: residuals against its own velocity, RMS")
    return where
