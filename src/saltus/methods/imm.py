"""Inductive moment matching: jumps from neighbouring times end in one law, groups of particles compared.

For groups of M pairs at the same times s < m < t, with X_j = X_{s,t}(I_s) and Y_j = sg X_{m,t}(I_m),

    L = E w(s) [ mean_{jk} k(X_j, X_k) + mean_{jk} k(Y_j, Y_k) - 2 mean_{jk} k(X_j, Y_k) ],

k(x, y) = exp(-|x - y|/(D (t - s))) the Laplace kernel in units of the average velocity. m is where the noise
ratio sigma = (1 - s)/s has fallen by a fixed amount, a 2^-12 part of its range. Pairs are compared across
the group, not each with its own continuation alone: it is the laws at t that agree, step by step towards the
data, and with that no teacher and no moving average is needed. With one particle it is consistency training.

Use it to train from data alone for one to eight steps. Sample by composing jumps.

References:
    Zhou, Ermon and Song, "Inductive moment matching", 2025, arXiv 2503.07565, eq. (12) and appendix
    (M = 4; times from 0.994 of noise; the flow matching path). w(s) is its evidence-bound weight,
    1/2 sigmoid(b - l) (dl/ds) s^a/(s^2 + (1 - s)^2) with the log-SNR l = 2 log(s/(1 - s)) of that path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.guidance import LabelDropout
from saltus.legs import Leg, Line
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Moments
from saltus.radial import RBF, Kernel, Laplace
from saltus.times import PairLaw, Restricted, StepLaw
from saltus.typing import FlowMap, Objective
from saltus.weights import Scaled, Span, Squared, Weight

CARD = Card(
    title="Inductive moment matching (IMM)",
    paper="Zhou, Ermon and Song 2025, arXiv 2503.07565",
    needs=frozenset({Need.DATA}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8),
    two_times=True,
    cost=Cost(live=1.0, stopped=1.0),
    threshold=None,
    quick_threshold=0.7,
    bias="finite steps along the line of a pair: O(d)",
    plain={"weight": Squared(), "kernel": RBF((0.5,))},
    second_hand=(
        "a = 2, b = 4, the gap of 2^-12 and the kernel's width, from notes",
        "the law of (s, t): s uniform and t uniform between s and 1",
    ),
)

LAST = 0.994
"""The noisiest time of the paper, 1 - s."""


@dataclass(frozen=True)
class Descent:
    """The noise ratio (1 - s)/s falls by a fixed part of its range, from (1 - s)/s at 0.994 of noise to 0.

    Attributes:
        part: of the range.
    """

    part: float = 2.0**-12

    def __call__(self, s: Tensor, t: Tensor, progress: Tensor) -> Tensor:
        noisiest = LAST / (1.0 - LAST)
        ratio = torch.clamp((1.0 - s) / s.clamp(min=1e-6), max=noisiest)
        m = 1.0 / (1.0 + torch.clamp(ratio - self.part * noisiest, min=0.0))
        return torch.minimum(m - s, t - s)


def per_velocity(span: Span) -> Tensor:
    """1/(t - s), [n]: a distance of ends in units of the average velocity."""
    return 1.0 / (span.t - span.s).clamp(min=1e-4)


@dataclass(frozen=True)
class Evidence:
    """w(s) = sigmoid(b - l) s^(a - 1)/((1 - s)(s^2 + (1 - s)^2)), [n], with l = 2 log(s/(1 - s))."""

    a: float = 2.0
    b: float = 4.0

    def __call__(self, span: Span) -> Tensor:
        s = span.s.clamp(1.0 - LAST, 1.0 - 1e-3)
        log_snr = 2.0 * torch.log(s / (1.0 - s))
        return torch.sigmoid(self.b - log_snr) * s ** (self.a - 1.0) / ((1.0 - s) * (s**2 + (1.0 - s) ** 2))


def imm(
    student: FlowMap,
    *,
    coupling: Coupling = Independent(),
    times: PairLaw = Restricted(1.0),
    step: StepLaw = Descent(),
    leg: Leg = Line(),
    kernel: Kernel = Laplace((1.0,)),
    particles: int = 4,
    weight: Weight = Scaled(Squared(), factor=Evidence()),
    dropout: LabelDropout | None = None,
) -> Objective:
    """Inductive moment matching on the linear interpolant.

    Args:
        student: the flow map that learns.
        coupling: how noise and data are paired.
        times: the law of (s, t).
        step: the distance of the neighbour.
        leg: how the start moves by it; the line of the pair is the paper's, a teacher's step works too.
        kernel: of distances in velocities over their number of dimensions.
        particles: M.
        weight: root of the discrepancy -> loss.
        dropout: label dropout.
    """
    return Moments(
        student,
        coupling=coupling,
        times=times,
        step=step,
        leg=leg,
        kernel=kernel,
        scale=per_velocity,
        per_dimension=True,
        particles=particles,
        weight=weight,
        guidance=dropout,
    )
