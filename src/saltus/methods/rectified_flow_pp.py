"""Rectified flow++: one reflow, trained where it is hard, with an error that outliers do not rule.

    L = E t (sqrt(|u_{t,t}(I_t) - (x1 - x0)|^2 + (c D)^2) - c D)/D      (c = 0.00054)
      + E |phi(I_t + (1 - t) u_{t,t}(I_t)) - phi(x1)|^2 / (1 - t)       (with a feature map phi)

on pairs of the teacher's flow, t of a density proportional to cosh(4 (t - 1/2)): most at both ends, where the
lines of pairs bunch. One reflow is enough, for the lines of a flow's pairs hardly cross; the default without
phi has the first line alone.

With the ``shape`` of a sample pairs are made once and kept, as in ``reflow``. Use it for one or two steps of
an ordinary solver. Start the student from its teacher's weights (``saltus distill`` does, also for a teacher
on another path).

References:
    Lee, Lin and Fanti, "Improving the training of rectified flows", 2024, arXiv 2405.20320 (LPIPS for phi;
    pairs of data carried back to noise and their sampler's update are left out). Second-hand: the error
    with its weights t and 1/(1 - t), from the released code; 32 Heun steps, 65,536 pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.games import Artifact, Stage, Stages
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import HEUN, Tableau
from saltus.lessons import FlowPairs, lessons_on_pairs
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Part, Sum
from saltus.tensors import like
from saltus.times import Law, UShaped
from saltus.typing import Objective, Velocity
from saltus.weights import InFeatures, PseudoHuber, Span, Squared, Weight

CARD = Card(
    title="Rectified flow++ (2-RF++)",
    paper="Lee, Lin and Fanti 2024, arXiv 2405.20320",
    needs=frozenset({Need.TEACHER}),
    sampler=Sampler.ODE,
    steps=(1, 2, 4, 8, 16, 32, 64),
    two_times=False,
    cost=Cost(live=1.0, teacher=64.0),
    threshold=0.24,
    quick_threshold=None,
    bias="the flow of the teacher's pairs, straighter than the teacher's own",
    rectifies=True,
    plain={"weight": Squared()},
    second_hand=("weights of the error, from the released code", "32 steps of Heun's method", "65,536 pairs"),
)


@dataclass(frozen=True)
class HuberPerDimension:
    """t (sqrt(|e|^2 + (c D)^2) - c D)/D, D the number of dimensions of a row."""

    c: float = 0.00054

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        size = error[0].numel() if len(error) else 1
        return span.t * PseudoHuber(self.c * size)(error, span) / size


@dataclass(frozen=True, eq=False)
class AtData:
    """inner of the jump's end if the velocity held to t = 1, over 1 - t: linear interpolant, error on the
    diagonal."""

    inner: Weight
    least: float = 1e-3

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        rest = (1.0 - span.t).clamp(min=self.least)
        value = self.inner(error, span._replace(s=1.0 - rest, t=torch.ones_like(span.t)))
        return value / like(rest, value)


def rectified_flow_pp(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    tableau: Tableau = HEUN,
    solver_steps: int = 32,
    times: Law = UShaped(4.0),
    weight: Weight | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
    guidance: GuidanceInput | None = None,
    shape: tuple[int, ...] | None = None,
    pairs: int = 65_536,
    making: float = 0.25,
) -> Stages:
    """Rectified flow++.

    Args:
        student: the flow map whose velocity u_{t,t} learns.
        teacher: the velocity on the interpolant's path.
        interpolant: the path between prior and data; linear where there are features.
        tableau: the method of the teacher's steps.
        solver_steps: their number, of equal length.
        times: the law of t.
        weight: error -> loss; None is the paper's.
        features: phi: [n, ...] -> [n, ...], row by row, such as a perceptual network; None leaves it out.
        guidance: learn the guided teacher, its strength an input of the network; pairs are then not kept.
        shape: of one sample, where pairs are to be kept.
        pairs: so many are kept.
        making: the part of the steps in which pairs are made.
    """
    if features is not None and not isinstance(interpolant, Linear):
        raise ValueError(
            f"rectified_flow_pp: expected the linear interpolant with features, whose velocity leads to the "
            f"data in one step, got {interpolant}; leave out the features"
        )
    made = FlowPairs(
        guided(teacher, guidance), interpolant, tableau, solver_steps, shape, pairs, making, guidance
    )
    loss = HuberPerDimension() if weight is None else weight

    def straighten(artifacts: Mapping[str, Artifact]) -> Objective:
        own = Diagonal(student, interpolant=interpolant, times=times, weight=loss)
        if features is None:
            return own
        seen = AtData(InFeatures(Squared(), features))
        of_ends = Diagonal(student, interpolant=interpolant, times=times, weight=seen)
        return Sum((Part("velocities", own), Part("features", of_ends)))

    return lessons_on_pairs(student, made, Stage("reflow", straighten))
