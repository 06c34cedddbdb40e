"""Objectives on pairs that a flow has made: x1 is where it carries x0, so that straight lines hardly cross.

A flow matching of such pairs (reflow) learns a velocity whose trajectories are straighter than those of the
flow that made them, with the same law at both ends; the endpoint loss on them is knowledge distillation.
:class:`OnFlow` has a teacher make each row's pair on the way, :class:`OnStored` takes pairs made before.
:class:`Renewed` mixes fresh noise into the pairs' own, less and less: from independent pairs to those of the
flow. :class:`Continued` goes on with the progress of a stage before. Each wraps another objective and changes
what it sees, the batch.

References:
    Liu et al., "Flow straight and fast" (rectified flow), 2022, arXiv 2209.03003.
    Zhu et al., "SlimFlow", 2024, arXiv 2407.12718 (annealed noise).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from saltus.guidance import GuidanceInput
from saltus.interpolants import Interpolant, Linear
from saltus.legs import HEUN, Tableau
from saltus.streams import Streams
from saltus.trajectories import carried
from saltus.typing import Batch, Condition, Draws, Objective, Schedule, Term, Velocity

__all__ = ["Continued", "OnFlow", "OnStored", "Renewed", "Wrapped"]


class Wrapped(Protocol):
    """An objective that changes what another one sees."""

    @property
    def objective(self) -> Objective:
        """The other one."""
        ...

    def inside(self, batch: Batch, draws: Draws) -> tuple[Batch, Draws]:
        """What the other one is called with."""
        ...


def _drawn(draws: Draws, name: str) -> Tensor:
    found = draws[name]
    assert isinstance(found, Tensor)
    return found


def _of(draws: Draws) -> Draws:
    found = draws["of"]
    assert isinstance(found, dict)
    return found


@dataclass(frozen=True, eq=False)
class OnFlow:
    """Another objective with pairs that a teacher's flow makes anew for every row.

    Attributes:
        teacher: the velocity that carries x0 to x1.
        objective: what is minimised on the pairs; its coupling must leave them alone.
        interpolant: the path between prior and data.
        tableau: the method of the teacher's steps.
        steps: their number, of equal length.
        guidance: strengths as an input of the network, with which the teacher is guided, or None.
    """

    teacher: Velocity
    objective: Objective
    interpolant: Interpolant = Linear()
    tableau: Tableau = HEUN
    steps: int = 32
    guidance: GuidanceInput | None = None

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The ends of x0 [B, ...], the guidance's numbers, and under ``of`` what the objective draws. The
        teacher is asked here, outside what is compiled."""
        draws: Draws = {} if self.guidance is None else {"guidance": self.guidance.draw(rng)}
        cond = self._told(batch, draws)
        ends = carried(self.teacher, batch.x0, self.interpolant, self.tableau, self.steps, cond)
        seen = replace(batch, x1=ends, cond=cond)
        return {**draws, "ends": ends, "of": self.objective.draw(seen, rng)}

    def _told(self, batch: Batch, draws: Draws) -> Condition | None:
        if self.guidance is None:
            return batch.cond
        return self.guidance.apply(batch.cond, _drawn(draws, "guidance"))

    def inside(self, batch: Batch, draws: Draws) -> tuple[Batch, Draws]:
        """The batch with each x0's end as its x1."""
        return replace(batch, x1=_drawn(draws, "ends"), cond=self._told(batch, draws)), _of(draws)

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The objective's own terms."""
        return self.objective(*self.inside(batch, draws))


@dataclass(frozen=True, eq=False)
class OnStored:
    """Another objective with pairs from a store, drawn with replacement; the batch gives their number alone.

    Attributes:
        objective: what is minimised on the pairs; its coupling must leave them alone.
        noise: the x0 of each pair, [N, ...], on the device of the batch.
        ends: where it went, [N, ...].
        labels: of each pair, int64 [N], or None.
    """

    objective: Objective
    noise: Tensor
    ends: Tensor
    labels: Tensor | None = None

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """Which pair each row is, int64 [B], and under ``of`` what the objective draws."""
        rows = rng.integers("pair", len(self.noise))
        return {"pair": rows, "of": self.objective.draw(self._seen(batch, rows), rng)}

    def _seen(self, batch: Batch, rows: Tensor) -> Batch:
        cond = None if self.labels is None else Condition(label=self.labels[rows])
        kind = batch.x0.dtype
        return replace(batch, x0=self.noise[rows].to(kind), x1=self.ends[rows].to(kind), cond=cond)

    def inside(self, batch: Batch, draws: Draws) -> tuple[Batch, Draws]:
        """The batch of the pairs drawn."""
        return self._seen(batch, _drawn(draws, "pair")), _of(draws)

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The objective's own terms."""
        return self.objective(*self.inside(batch, draws))


@dataclass(frozen=True, eq=False)
class Renewed:
    """Another objective with x0 sqrt(1 - b^2) + b n for x0, n fresh noise: still normal, and for b = 1
    independent of x1.

    Attributes:
        objective: what is minimised.
        renewal: b in [0, 1] as a function of progress.
    """

    objective: Objective
    renewal: Schedule

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The noise n [B, ...], and under ``of`` what the objective draws."""
        return {"noise": rng.normal_like("renewed", batch.x0), "of": self.objective.draw(batch, rng)}

    def inside(self, batch: Batch, draws: Draws) -> tuple[Batch, Draws]:
        """The batch with mixed noise."""
        b = self.renewal(batch.progress).to(batch.x0)
        kept = torch.sqrt((1.0 - b.square()).clamp(min=0.0))
        return replace(batch, x0=kept * batch.x0 + b * _drawn(draws, "noise")), _of(draws)

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The objective's own terms."""
        return self.objective(*self.inside(batch, draws))


@dataclass(frozen=True, eq=False)
class Continued:
    """Another objective whose progress goes from ``first`` to ``last`` in the stage, for one of its schedules
    that goes on over several stages.

    Attributes:
        objective: what is minimised.
        first, last: progress at the stage's beginning and end.
    """

    objective: Objective
    first: float
    last: float

    def _at(self, batch: Batch) -> Batch:
        return replace(batch, progress=self.first + (self.last - self.first) * batch.progress)

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """Under ``of`` what the objective draws."""
        return {"of": self.objective.draw(self._at(batch), rng)}

    def inside(self, batch: Batch, draws: Draws) -> tuple[Batch, Draws]:
        """The batch with the progress of the whole."""
        return self._at(batch), _of(draws)

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The objective's own terms."""
        return self.objective(*self.inside(batch, draws))
