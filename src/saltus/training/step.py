"""What one step of training leaves behind, fetched from the device when somebody looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moved", "NonFiniteLoss", "Reading", "Step"]


class NonFiniteLoss(ValueError):
    """A loss, a term or a gradient became NaN or infinite."""


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
    """

    index: int
    progress: Tensor
    moved: Mapping[str, Moved]
    stage: str = ""

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
        readings = {}
        for player, m in self.moved.items():
            loss, norm, *terms = (next(numbers) for _ in range(len(m.values)))
            faults = [int(next(numbers)) for _ in range(len(m.faults))]
            _refuse(player, m.names, faults)
            readings[player] = Reading(loss, norm, m.lr, dict(zip(m.names, terms, strict=True)))
        return readings


def _refuse(player: str, names: tuple[str, ...], faults: list[int]) -> None:
    """Raise NonFiniteLoss for the earliest fault; a term explains the loss, the loss the gradient."""
    loss, norm, *terms = faults
    what = [*(f"term {name!r}" for name in names), "the loss", "the gradient"]
    found = [(step, rank) for rank, step in enumerate([*terms, loss, norm]) if step >= 0]
    if found:
        step, rank = min(found)
        raise NonFiniteLoss(
            f"step {step}: {what[rank]} of move {player!r} was expected to be finite and is NaN or infinite; "
            "go on from an earlier checkpoint with a lower learning rate, a clipped gradient or float32"
        )
