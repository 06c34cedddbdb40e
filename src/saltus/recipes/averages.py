"""The averages of the weights that a run keeps, their names in its files, and the choice of one of them.

    kept = averages(training, student)
    for step in fit(...):
        for average in kept.values():
            average.update()
        snapshot(training, kept, folder, step.index + 1, world)
    save_weights(folder / WEIGHTS, modules(kept, student), {..., "weights": table(training)})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from saltus.recipes.options import Flag, Training
from saltus.training import EMA, PowerProfile, World, gathered, save_snapshots

__all__ = [
    "AVERAGES",
    "EVALUATED",
    "RAW",
    "Choice",
    "averages",
    "due",
    "known_weights",
    "modules",
    "said",
    "snapshot",
    "snapshot_file",
    "snapshot_files",
    "table",
]

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


def snapshot(training: Training, kept: Mapping[str, EMA], folder: Path, done: int, world: World) -> None:
    """Store the power-function averages after ``done`` steps, if it is time; all processes call this.

    A file is a function of the run's options and the step: one that is there from before a crash is written
    again with the same content.
    """
    if not due(training, done):
        return
    found: dict[float, nn.Module] = {}
    for average in kept.values():
        if isinstance(average.decay, PowerProfile):
            whole = gathered(average.module, world, torch.device("cpu"))
            if whole is not None:
                found[average.decay.sigma_rel] = whole
    if world.leads:
        path = snapshot_file(folder, done)
        path.parent.mkdir(exist_ok=True)
        save_snapshots(path, found, done)


@dataclass(frozen=True)
class Choice:
    """Which of a run's weights; without a choice the average that is evaluated by default."""

    ema: float | None = None
    """The average with this decay, of those that the run kept."""
    raw: Flag = False
    """The last weights instead of their moving average."""
    sigma_rel: float | None = None
    """The power-function average of this width, formed from what a run with --power-ema stored."""

    def name(self, known: Mapping[str, Mapping[str, float]], origin: Path) -> str | None:
        """Its name among the weights of a file, or None if it has to be formed from a run's snapshots.

        Args:
            known: as :func:`table`; the default comes first.
            origin: the file's path, for messages.

        Raises:
            ValueError: for a choice of two, or one that the file does not hold.
        """
        choices = {"ema": self.ema, "sigma_rel": self.sigma_rel, RAW: self.raw or None}
        asked = [name for name, value in choices.items() if value is not None]
        if len(asked) > 1:
            raise ValueError(f"weights: expected one choice, got {' and '.join(asked)}; drop all but one")
        if not asked:
            return next(iter(known))
        if self.raw and RAW in known:
            return RAW
        says = {} if self.ema is None else {"decay": self.ema}
        says |= {} if self.sigma_rel is None else {"sigma_rel": self.sigma_rel}
        for name, facts in known.items():
            if says and says == facts:
                return name
        if self.sigma_rel is not None:
            return None
        held = ", ".join(said(name, facts) for name, facts in known.items())
        raise ValueError(
            f"{origin}: expected {said(RAW, says)} in it, got {held}; choose one of these, or train again "
            "with --ema and every decay that is wanted"
        )


def said(name: str, facts: Mapping[str, float]) -> str:
    """Weights of a file in words.

    >>> said("ema_0_99", {"decay": 0.99}), said("power", {"sigma_rel": 0.13}), said("raw", {})
    ('ema 0.99', 'power 0.13', 'raw')
    """
    words = {"decay": "ema", "sigma_rel": "power"}
    return next((f"{words[key]} {value:.12g}" for key, value in facts.items()), name)


def known_weights(meta: Mapping[str, object], origin: Path) -> dict[str, dict[str, float]]:
    """What a weights file says of its weights; files of earlier versions held an average and the last ones.

    Raises:
        ValueError: for anything but a table of names and decays or widths.
    """
    found = meta.get("weights", {EVALUATED: {}, RAW: {}})

    def fits(name: object, facts: object) -> bool:
        return (
            isinstance(name, str)
            and "." not in name
            and isinstance(facts, dict)
            and facts.keys() <= {"decay", "sigma_rel"}
            and len(facts) < 2
            and all(type(v) in (int, float) and 0.0 <= v < 1.0 for v in facts.values())
        )

    if not isinstance(found, dict) or not found or not all(fits(n, f) for n, f in found.items()):
        raise ValueError(
            f"{origin}: expected the decay or width of each average in it, got {str(found)[:80]}; the file "
            "is damaged"
        )
    return found


def snapshot_files(folder: Path) -> list[Path]:
    """The files of :func:`snapshot` in the order of their steps, or a ValueError if there are none."""
    found = sorted((folder / AVERAGES).glob("step-*.safetensors"))
    if not found:
        raise ValueError(
            f"{folder / AVERAGES}: expected stored averages, found none; train with --power-ema 0.05 0.1"
        )
    return found
