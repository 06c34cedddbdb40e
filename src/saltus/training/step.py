"""What one step of training leaves behind, fetched from the device when somebody looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moved", "NonFiniteLoss", "Reading", "Step"]


class NonFiniteLoss(ValueError):
    """A loss, a term or a gradient became NaN or infinite.

    Attributes:
        step: in which it was seen first, from 0.
        player: whose it is.
        what: "term 'name'", "the loss" or "the gradient".
    """

    def __init__(self, message: str, step: int, player: str, what: str) -> None:
        super().__init__(message)
        self.step, self.player, self.what = step, player, what


@dataclass(frozen=True, eq=False)
class Moved:
    """The last turn of one player in a step.

    Attributes:
        names: of the loss terms.
        values: the loss, the norm of the gradient before clipping, the mean of each term; on the
            device, [2 + len(names)].
        faults: for each value the first step of the run at which it was not finite, or -1.
        lr: the learning rate of the optimiser's first group.
    """

    names: tuple[str, ...]
    values: Tensor
    faults: Tensor
    lr: float


@dataclass(frozen=True)
class Reading:
    """The numbers of one :class:`Moved`, on the host.

    Attributes:
        loss: the sum of weight * mean over the terms.
        grad_norm: before clipping.
        lr: the learning rate.
        terms: the mean of each term.
    """

    loss: float
    grad_norm: float
    lr: float
    terms: dict[str, float]


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a run. Nothing in it has been waited for; :meth:`fetch` waits once.

    Attributes:
        index: of the step, from 0.
        progress: of the run or, if it has stages, of the stage; 0-d, in [0, 1).
        moved: what each player did that moved in this step.
        stage: the name of the stage, empty in a run of a single game.
        skipped: moves that the run has left out so far because they were not finite.
        complete: whether this step left out none.
    """

    index: int
    progress: Tensor
    moved: Mapping[str, Moved]
    stage: str = ""
    skipped: int = 0
    complete: bool = True

    @property
    def terms(self) -> dict[str, Tensor]:
        """The mean of each loss term, 0-d; named "player/term" where several players moved."""
        several = len(self.moved) > 1
        return {
            f"{player}/{name}" if several else name: value
            for player, m in self.moved.items()
            for name, value in zip(m.names, m.values[2:].unbind(), strict=True)
        }

    @property
    def loss(self) -> Tensor:
        """The sum of the players' losses, 0-d."""
        return sum((m.values[0] for m in self.moved.values()), start=torch.zeros_like(self.progress))

    @property
    def grad_norm(self) -> Tensor:
        """The norm of the players' gradients together, before clipping, 0-d."""
        squares = (m.values[1].square() for m in self.moved.values())
        return sum(squares, start=torch.zeros_like(self.progress)).sqrt()

    @property
    def lr(self) -> float:
        """The learning rate of the first player that moved; 0 if none did."""
        return next((m.lr for m in self.moved.values()), 0.0)

    def fetch(self) -> dict[str, Reading]:
        """The numbers of each player that moved, in one transfer from the device.

        Raises:
            NonFiniteLoss: if any of them has not been finite in this step or an earlier one.
        """
        if not self.moved:
            return {}
        # float64 holds a step count exactly
        parts = [x.double() for m in self.moved.values() for x in (m.values, m.faults)]
        numbers = iter(torch.cat(parts).tolist())
        readings: dict[str, Reading] = {}
        found: list[tuple[int, int, int, str, str]] = []
        for player, m in self.moved.items():
            loss, norm, *terms = (next(numbers) for _ in range(len(m.values)))
            faults = [int(next(numbers)) for _ in range(len(m.faults))]
            found += _faults(len(readings), player, m.names, faults)
            readings[player] = Reading(loss, norm, m.lr, dict(zip(m.names, terms, strict=True)))
        if found:
            step, _, _, player, what = min(found)
            raise NonFiniteLoss(
                f"step {step}: {what} of move {player!r} was expected to be finite and is NaN or infinite; "
                "go on from an earlier checkpoint with a lower learning rate, a clipped gradient or float32",
                step,
                player,
                what,
            )
        return readings


def _faults(
    place: int, player: str, names: tuple[str, ...], faults: list[int]
) -> list[tuple[int, int, int, str, str]]:
    """(step, place of the player, rank, player, what) of every fault: the earliest explains the others, and
    within a step a term explains the loss, the loss the gradient."""
    loss, norm, *terms = faults
    what = [*(f"term {name!r}" for name in names), "the loss", "the gradient"]
    ranked = enumerate([*terms, loss, norm])
    return [(step, place, rank, player, what[rank]) for rank, step in ranked if step >= 0]
