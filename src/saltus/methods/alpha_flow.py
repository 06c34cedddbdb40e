"""AlphaFlow: from trajectory flow matching to MeanFlow by shrinking the step from all to almost none.

    u_T = alpha dI_s + (1 - alpha) sg u_{m,t}(I_m),   m = s + alpha (t - s)
    L = E w( u_{s,t}(I_s) - u_T ) / alpha

alpha falls along a sigmoid of progress from 1, where u_T is the data velocity, to the floor; as
alpha -> 0 it is MeanFlow's target. Dividing by alpha makes the gradient that of the rescaled error
u - y, y = u + (u_T - u)/alpha, which is what :class:`saltus.objectives.Eulerian` measures. That is the
plain form, w(e) = |e|^2. The default is the authors' adaptive weight, with l = |u - u_T|^2 and D dimensions

    alpha l / sg(l/D + c),   and at the floor |e|^2 / sg(|e|^2/D + c).

Use it where MeanFlow is unstable early. With finite alpha it is biased towards the mean.

References:
    Zhang et al., "AlphaFlow: understanding and improving MeanFlow models", 2025, arXiv 2510.20771
    and the authors' code (rate 25, alpha below 0.005 taken as 0, c = 0.001, half of the rows on the diagonal
    without guidance). At the floor this file keeps the finite step, as their discrete training does; by
    default they take the derivative there, with the weight above. They clamp u_T to +-4, in latent units,
    which is not done here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Line
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Eulerian, Part, Sum
from saltus.times import Fraction, Law, LogitNormal, SigmoidAnneal, StepLaw, Triangle, Uniform
from saltus.typing import FlowMap, Objective
from saltus.weights import AdaptivePower, Scaled, Span, Squared, Weight

CARD = Card(
    title="AlphaFlow",
    paper="Zhang et al. 2025, arXiv 2510.20771",
    needs=frozenset({Need.DATA}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped=0.5),
    threshold=None,
    quick_threshold=0.68,
    bias="finite steps along the line of a pair: O(alpha); the adaptive weight in low dimension",
    plain={"weight": Squared(), "times": Uniform()},
    second_hand=("c = 0.001, from forks of the authors' code", "targets are not clamped"),
)


FLOOR = 0.005


def fraction(span: Span) -> Tensor:
    """alpha = d/(t - s), [n], and 1 on the diagonal and at the floor: from the rescaled error to u - u_T."""
    if span.d is None:
        return span.s * 0.0 + 1.0
    alpha = span.d / (span.t - span.s).clamp(min=1e-12)
    return torch.where(alpha > 1.01 * FLOOR, alpha, 1.0)


def alpha_flow(
    student: FlowMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    diagonal: float = 0.5,
    times: Law = LogitNormal(0.4, 1.0),
    step: StepLaw = Fraction(SigmoidAnneal(floor=FLOOR)),
    weight: Weight = Scaled(AdaptivePower(p=1.0, c=1e-3, per_dimension=True), scale=fraction),
    dropout: LabelDropout | None = None,
) -> Objective:
    """AlphaFlow.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        diagonal: the share of rows with s = t.
        times: the law of each time; the two draws are ordered.
        step: the finite step.
        weight: error -> loss.
        dropout: label dropout.
    """
    at_once = Diagonal(student, None, interpolant, coupling, times=times, weight=weight, guidance=dropout)
    jump = Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=Triangle(times),
        step=step,
        leg=Line(),
        weight=weight,
        guidance=dropout,
    )
    rest = 1.0 - diagonal
    return Sum((Part("diagonal", at_once, diagonal, diagonal), Part("eulerian", jump, rest, rest)))
