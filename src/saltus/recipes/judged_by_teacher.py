"""How a student is judged by its teacher: where the teacher's own ODE sends the same noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.metrics import energy_distance, rmse
from saltus.recipes.system import Drawn, Judge, asked
from saltus.recipes.teacher import TeacherRun, guided_between
from saltus.samplers import prior
from saltus.streams import Streams
from saltus.tensors import full_like_rows
from saltus.typing import Condition

__all__ = ["NEAR", "OFF", "TeacherTruth"]

OFF, NEAR = "off teacher", "energy to it"
"""The distance to where the teacher sends the same noise, in units of its samples' spread; and the energy
distance between the student's samples and the teacher's from other noise."""

MOST = 4096
"""Samples that the teacher solves its ODE for."""
OTHER = 2**41
"""First index of the streams of the teacher's other noise."""


@dataclass(frozen=True, eq=False)
class TeacherTruth:
    """Figures of samples beside the teacher's, and then those of the system's own judge.

    Attributes:
        teacher: the run that taught.
        onto: the student's path.
        own: the system's judge.
        interval: the times between which guidance applies.
        kept: what the teacher makes of the last noise and of the other one, by strength.
    """

    teacher: TeacherRun
    onto: Interpolant
    own: Judge
    interval: tuple[float, float] | None = None
    kept: dict[float | None, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def judge(self) -> Judge:
        """The judge of a student."""
        counts = tuple(k for k in self.own.counts if k <= 4)
        return replace(self.own, figures=self.figures, counts=counts)

    def cond(self, label: Tensor | None, w: float | None, rows: Tensor) -> Condition | None:
        """What is asked of the teacher for these rows."""
        strength = None if w is None else full_like_rows(w, rows)
        return guided_between(asked(label, strength), self.interval)

    def figures(self, drawn: Drawn) -> dict[str, float]:
        """OFF and NEAR, then the system's."""
        sent, others = self._taught(drawn)
        x = drawn.x[:MOST]
        spread = (sent - sent.mean(dim=0)).flatten(1).square().sum(dim=1).mean().sqrt()
        beside = {OFF: float(rmse(x, sent) / spread), NEAR: float(energy_distance(x, others))}
        return beside | self.own.figures(drawn)

    def _taught(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """What the teacher makes of this noise and of other noise, kept for the next sampler."""
        found = self.kept.get(drawn.w)
        if found is None or found[0] is not drawn.x0:
            x0 = drawn.x0[:MOST]
            label = None if drawn.label is None else drawn.label[:MOST]
            cond = self.cond(label, drawn.w, x0)
            rng = Streams(0, index=torch.arange(OTHER, OTHER + len(x0)))
            other = prior(rng, tuple(x0.shape[1:]), self.onto)
            sent, others = (self._sends(noise, cond) for noise in (x0, other))
            found = self.kept[drawn.w] = (drawn.x0, sent, others)
        return found[1], found[2]


    def _sends(self, noise: Tensor, cond: Condition | None) -> Tensor:
        """Where the teacher sends noise, as many rows at a time as the system's judge says."""
        parts = torch.split(torch.arange(len(noise)), self.own.batch or len(noise))
        found = [
            self.teacher.sends(noise[rows], self.onto, None if cond is None else cond.rows(rows))
            for rows in parts
        ]
        return found[0] if len(found) == 1 else torch.cat(found)


def alone(count: int, classes: int | None) -> Callable[[], Judge]:
    """The judge of a system that is known by its teacher alone."""
    labels = None if classes is None else torch.arange(count) % classes
    return lambda: Judge(count, labels, lambda drawn: {}, dict, (1, 2, 4))
