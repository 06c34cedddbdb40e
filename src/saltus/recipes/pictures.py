"""Pictures of a finished run that need matplotlib: its losses, its samples with their ways, its residuals."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from saltus.interpolants import path
from saltus.maps import NetworkMap
from saltus.metrics import residuals
from saltus.plots import Series, heat, lines, scatter
from saltus.recipes.evaluate import STEPS
from saltus.recipes.experiment import Experiment
from saltus.recipes.folder import METRICS
from saltus.recipes.sampling import draw
from saltus.recipes.show import said
from saltus.samplers import jumps, prior
from saltus.streams import Streams
from saltus.tensors import full_like_rows

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
        terms = {name: [row["terms"][name] for row in rows] for name in rows[0].get("terms", {})}
        return [row["step"] for row in rows], terms or {"loss": [row["loss"] for row in rows]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as wrong:
        raise ValueError(
            f"{folder / METRICS}: expected the log of a finished run, got {type(wrong).__name__}: {wrong}; "
            "train again"
        ) from wrong


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
    for k in (k for k in STEPS if k in card.steps):
        name = said(k)
        panels[name] = draw(model, card, x0, k, None, rng, made.interpolant)
        if card.two_times:
            ways[name] = jumps(model, x0[:WAYS], k, record=True).states
    panels["data"] = made.system.source(rng.named("picture")).data()
    reach = 1.15 * float(panels["data"].abs().quantile(0.999))
    where = folder / "points.png"
    scatter(panels, reach, where, made.name, ways)
    return where


def _residuals(made: Experiment, model: NetworkMap, folder: Path) -> Path:
    """How far the map is from agreeing with its own velocity, over all s <= t."""
    batch = made.system.source(Streams(made.training.seed, index=torch.arange(min(256, made.training.batch))))
    times = torch.linspace(0.0, 1.0, 11)
    states = torch.stack(
        [path(made.interpolant, batch.x0, batch.data(), full_like_rows(float(t), batch.x0))[0] for t in times]
    )
    found = residuals(model, times, states, cond=batch.cond)
    where = folder / "residuals.png"
    panels = {
        "Lagrangian  |∂t X − b(X)|": found.lagrangian,
        "Eulerian  |∂s X + ∇X b|": found.eulerian,
        "semigroup  |X∘X − X|": found.semigroup,
    }
    heat(panels, times, where, f"{made.name}: residuals against its own velocity, RMS")
    return where
