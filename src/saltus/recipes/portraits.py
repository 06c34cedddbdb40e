"""What a map looks like while it trains: samples on one noise, their ways in the plane, its residuals.

    grids/000500.png      samples by the averaged weights after 500 steps, at every step count of the card
    trajectories.json     points in the plane and the ways of some of them
    residuals.json        how far the map is from agreeing with its own velocity, over s <= t

The noise is a function of the seed alone, so pictures of different steps show the same samples improve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from saltus.interpolants import path
from saltus.legs import EULER
from saltus.maps import NetworkMap
from saltus.methods import Sampler
from saltus.metrics import Residuals, residuals
from saltus.recipes.evaluate import OWN, STEPS, samplers
from saltus.recipes.experiment import Experiment
from saltus.recipes.folder import whole
from saltus.recipes.show import picture, shown
from saltus.recipes.system import asked
from saltus.samplers import integrate, jumps, prior
from saltus.streams import Streams
from saltus.tensors import full_like_rows

__all__ = [
    "GRIDS",
    "PANELS",
    "RESIDUALS",
    "TRAJECTORIES",
    "evaluated",
    "grid",
    "grid_file",
    "own_residuals",
    "reach_of",
    "write_residuals",
    "write_trajectories",
]

GRIDS, TRAJECTORIES, RESIDUALS = "grids", "trajectories.json", "residuals.json"
PANELS: dict[str, Callable[[Residuals], Tensor]] = {
    "Lagrangian": lambda found: found.lagrangian,
    "Eulerian": lambda found: found.eulerian,
    "semigroup": lambda found: found.semigroup,
}
"""The residuals by the names that pictures and pages give them."""
POINTS, WAYS, MOMENTS = 1000, 40, 16
"""Samples of a panel, those of them whose way is kept, and the points of a way along t."""


def evaluated(made: Experiment) -> str:
    """The weights that are drawn and measured, in words: the first average."""
    return f"ema {made.training.ema[0]:g}"


def grid_file(folder: Path, done: int) -> Path:
    """Where the grid after ``done`` steps of the run in ``folder`` is.

    >>> grid_file(Path("run"), 500).as_posix()
    'run/grids/000500.png'
    """
    return folder / GRIDS / f"{done:06d}.png"


def _noise(made: Experiment, model: NetworkMap, n: int) -> tuple[Tensor, Tensor | None, Streams]:
    """The states at t = 0 that all pictures of a run show, their labels, and the rows' streams; where the
    model is."""
    rng = Streams(made.training.seed, index=torch.arange(n), device=next(model.parameters()).device)
    classes = made.system.classes
    labels = None if classes is None else (torch.arange(n) % classes).to(rng.device)
    return prior(rng, made.system.shape, made.interpolant), labels, rng


@torch.no_grad()
def grid(made: Experiment, model: NetworkMap, folder: Path, done: int) -> Path:
    """Draw samples by the method's own sampler at 1, 2, 4 and 8 steps, as its card allows; where they are."""
    x0, labels, rng = _noise(made, model, shown(made.system.shape))
    rows = samplers(model, made.method.card, x0, asked(labels), rng, made.interpolant, STEPS)
    parts = [(row.label, made.system.seen(row.sample()).cpu()) for row in rows if row.group == OWN]
    where = grid_file(folder, done)
    where.parent.mkdir(exist_ok=True)
    heads = None if labels is None else labels.cpu()
    plane = made.system.shape == (2,)
    reach = reach_of(_real(made)) if plane else None  # of the data: the same square at every step
    drawn = picture(f"{made.name} after {done:,} steps", parts, heads, reach)
    with whole(where) as draft:
        drawn.save(draft, optimize=True)
    return where


def _real(made: Experiment) -> Tensor:
    """What samples should look like, [POINTS, ...]: data, or samples of the teacher."""
    return made.reference(Streams(made.training.seed, index=torch.arange(POINTS)).named("picture")).data()


def own_residuals(made: Experiment, model: NetworkMap, rows: int) -> Residuals:
    """How far the map is from agreeing with its own velocity, over all s <= t, on points of data paths."""
    device = next(model.parameters()).device
    batch = made.reference(Streams(made.training.seed, index=torch.arange(rows)))
    x0, x1 = batch.x0.to(device), batch.data().to(device)
    cond = None if batch.cond is None else batch.cond.to(device)
    times = torch.linspace(0.0, 1.0, 11)
    states = [path(made.interpolant, x0, x1, full_like_rows(float(t), x0))[0] for t in times]
    return residuals(model, times, torch.stack(states), cond=cond)


def write_residuals(made: Experiment, model: NetworkMap, folder: Path, done: int, rows: int) -> None:
    """Write the residuals, if the map has two times to compare."""
    if not made.method.card.two_times:
        return
    found = own_residuals(made, model, rows)
    panels = {name: _plain(panel(found), 5) for name, panel in PANELS.items()}
    times = [round(float(t), 6) for t in found.times]
    about = {"step": done, "weights": evaluated(made), "rows": rows}
    _write(folder / RESIDUALS, {**about, "times": times, "panels": panels})


def reach_of(points: Tensor) -> float:
    """Half the width of a square around 0 that holds all but outliers of points [n, 2], and a margin."""
    return 1.15 * float(points.abs().quantile(0.999))


@torch.no_grad()
def write_trajectories(made: Experiment, model: NetworkMap, folder: Path, done: int) -> None:
    """Write samples at every step count and their ways, if the run is in the plane: by jumps, by Euler steps
    of a velocity, and for a map with two times also along t, X_{0,t}(x0)."""
    if made.system.shape != (2,):
        return
    x0, _, rng = _noise(made, model, POINTS)
    few = x0[:WAYS]
    card = made.method.card
    panels: list[dict[str, object]] = []
    for row in samplers(model, card, x0, None, rng, made.interpolant, STEPS):
        if row.group == OWN:
            panels.append({"name": row.label, "points": _plain(row.sample(), 3)})
            if card.sampler is Sampler.JUMPS:
                panels[-1]["ways"] = _ways(jumps(model, few, row.steps, record=True).states)
            if card.sampler is Sampler.ODE:
                way = integrate(model.velocity, few, row.steps, EULER, record=True)
                panels[-1]["ways"] = _ways(way.states)
    if card.two_times:
        times = torch.linspace(0.0, 1.0, MOMENTS + 1)
        zero = full_like_rows(0.0, few)
        curve = torch.stack([model(few, zero, full_like_rows(float(t), few)) for t in times])
        ends = model(x0, full_like_rows(0.0, x0), full_like_rows(1.0, x0))
        panels.append({"name": "X from 0 to t", "points": _plain(ends, 3), "ways": _ways(curve)})
    real = _real(made)
    panels.append({"name": "data" if made.teacher is None else "teacher", "points": _plain(real, 3)})
    about = {"step": done, "weights": evaluated(made), "reach": round(reach_of(real), 3)}
    _write(folder / TRAJECTORIES, {**about, "panels": panels})


def _write(path: Path, value: object) -> None:
    """JSON on one line, whole at every moment."""
    with whole(path) as draft:
        draft.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")


def _ways(states: Tensor) -> object:
    """Recorded states [k + 1, n, 2] as n ways of k + 1 points."""
    return _plain(states.transpose(0, 1), 3)


def _plain(values: Tensor, digits: int) -> object:
    """As lists of rounded numbers; what is not finite is None."""

    def rounded(value: object) -> object:
        if isinstance(value, list):
            return [rounded(v) for v in value]
        assert isinstance(value, float)
        return round(value, digits) if math.isfinite(value) else None

    return rounded(values.double().tolist())
