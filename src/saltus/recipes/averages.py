"""The averages of the weights that a run keeps, their names in its files, and the choice of one of them.

    kept = averages(training, student)
    for step in fit(...):
        for average in kept.values():
            average.update()
        snapshot(training, kept, folder, step.index + 1)
    save_weights(folder / WEIGHTS, modules(kept, student), {..., "weights": table(training)})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from saltus.recipes.options import Training
from saltus.training import EMA, PowerProfile, save_snapshots

__all__ = ["AVERAGES", "EVALUATED", "RAW", "averages", "due", "modules", "snapshot", "snapshot_file", "table"]

AVERAGES = "averages"
"""The folder of a run that holds the snapshots of its power-function averages."""
EVALUATED, RAW = "ema", "raw"
"""Names in a weights file: of the first average, which is evaluated by default, and of the last weights."""


def _rates(training: Training) -> dict[str, float]:
    """The decay of each exponential average by its name, which has no dots."""
    first, *others = training.ema
    return {EVALUATED: first, **{f"{EVALUATED}_{decay}".replace(".", "_"): decay for decay in others}}


def averages(training: Training, student: nn.Module) -> dict[str, EMA]:
    """Every average that a run keeps, by name, as it is before the first step.

    The exponential ones come first, then the power-function ones. All of them belong into a checkpoint, and
    all take every step.
    """
    kept = {name: EMA(student, decay) for name, decay in _rates(training).items()}
    widths = {f"power_{width}".replace(".", "_"): width for width in training.power_ema}
    return kept | {name: EMA(student, PowerProfile(width)) for name, width in widths.items()}


def modules(kept: Mapping[str, EMA], student: nn.Module) -> dict[str, nn.Module]:
    """What a finished run's weights file holds: the exponential averages and the last weights, by name."""
    found = {name: e.module for name, e in kept.items() if not isinstance(e.decay, PowerProfile)}
    return {**found, RAW: student}


def table(training: Training) -> dict[str, dict[str, float]]:
    """What a weights file says of its weights: the decay of each average by name; the default comes first."""
    return {**{name: {"decay": decay} for name, decay in _rates(training).items()}, RAW: {}}


def due(training: Training, done: int) -> bool:
    """Whether snapshots are stored after ``done`` steps: evenly, and at the end.

    >>> [k for k in range(1, 11) if due(Training(steps=10, power_ema=(0.1,), power_snapshots=4), k)]
    [3, 5, 8, 10]
    """
    count, steps = training.power_snapshots, training.steps
    return bool(training.power_ema) and done * count // steps > (done - 1) * count // steps


def snapshot_file(folder: Path, done: int) -> Path:
    """Where the snapshots after ``done`` steps of the run in ``folder`` are."""
    return folder / AVERAGES / f"step-{done:08d}.safetensors"


def snapshot(training: Training, kept: Mapping[str, EMA], folder: Path, done: int) -> None:
    """Store the power-function averages after ``done`` steps, if it is time.

    A file is a function of the run's options and the step: one that is there from before a crash is written
    again with the same content.
    """
    if not due(training, done):
        return
    path = snapshot_file(folder, done)
    path.parent.mkdir(exist_ok=True)
    save_snapshots(path, [e for e in kept.values() if isinstance(e.decay, PowerProfile)])
