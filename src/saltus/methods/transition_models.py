"""Transition models: MeanFlow with a central difference along the path, and a loss that knows the time.

    L = E w(s, t) l / sg(l/D + c),   l = |e|^2 + D (1 - cos(u, y)),   e = u - sg y,   u = u_{s,t}(I_s),
    y = dI_s + (t - s)( u_{s+h,t}(I_s + h dI_s) - u_{s-h,t}(I_s - h dI_s) )/(2h),
    w = (tan(1 - s) - tan(1 - t) + 1)^(-1/2)

The difference needs no derivative of the network, so any attention kernel and any sharding will do. A share
of the rows has s = t, where this is flow matching with w = 1; another has t = 1. Times are ordered draws of a
logit-normal law.

Use it where MeanFlow is wanted and forward-mode derivatives are not to be had: two more calls without
gradient take the place of one with its derivative.

References:
    Wang et al., "Transition models: rethinking the generative learning objective", 2025, arXiv 2509.04394,
    and the authors' code (h = 0.005, c = 1e-5, half of the rows at s = t and a tenth at t = 1,
    logit-normal(-0.4, 1) in their time, s.d. of the data 1, the linear path). Their alignment with features
    of another network is not built here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saltus.autodiff import FiniteDifference
from saltus.couplings import Coupling, Independent
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Eulerian, Part, Sum
from saltus.slots import Data, Slot
from saltus.times import Earliest, Law, LogitNormal, ToEnd, Triangle
from saltus.typing import FlowMap, Objective
from saltus.weights import AdaptivePower, Directed, Scaled, Span, Squared, Weight

CARD = Card(
    title="Transition models (TiM)",
    paper="Wang et al. 2025, arXiv 2509.04394",
    needs=frozenset({Need.DATA}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped=1.0),
    threshold=0.45,
    quick_threshold=0.63,
    bias="the central difference: O(d^2) in its half-width d; rows divided by their own error, and the "
    "direction of noisy targets, move the fixed point in low dimension",
    plain={"weight": Squared()},
)


def by_tangents(span: Span) -> Tensor:
    """w(s, t), [n]: 1 at s = t, less the longer the jump and the nearer to the prior."""
    return torch.rsqrt(torch.tan(1.0 - span.s) - torch.tan(1.0 - span.t) + 1.0)


def transition_models(
    student: FlowMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    diagonal: float = 0.5,
    to_end: float = 0.1,
    times: Law = LogitNormal(0.4, 1.0),
    eps: float = 5e-3,
    velocity: Slot = Data(),
    weight: Weight = Scaled(AdaptivePower(1.0, 1e-5, True, Directed(Squared())), factor=by_tangents),
    dropout: LabelDropout | None = None,
) -> Objective:
    """Transition models.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        diagonal: the share of rows with s = t.
        to_end: the share of rows with t = 1.
        times: the law of each time; the two draws are ordered.
        eps: the half-width h of the difference.
        velocity: the tangent and the target; ``slots.Mixed(w, k)`` mixes guidance into it.
        weight: error -> loss.
        dropout: label dropout.
    """
    start = Earliest(times)
    at_once = Diagonal(
        student, None, interpolant, coupling, times=start, velocity=velocity, weight=weight, guidance=dropout
    )
    jump, last = (
        Eulerian(
            student,
            interpolant=interpolant,
            coupling=coupling,
            times=law,
            near=FiniteDifference(eps, stopped=True),
            tangent=velocity,
            velocity=velocity,
            weight=weight,
            guidance=dropout,
        )
        for law in (Triangle(times), ToEnd(start))
    )
    rest = 1.0 - diagonal - to_end
    return Sum(
        (
            Part("diagonal", at_once, diagonal, diagonal),
            Part("eulerian", jump, rest, rest),
            Part("to_end", last, to_end, to_end),
        )
    )
