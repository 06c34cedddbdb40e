"""Flow-anchored consistency models: a consistency model that keeps learning the velocity it leans on.

    L = E ( |u_{t,t}(I_t) - v|^2 + D (1 - cos(u_{t,t}(I_t), v)) )
      + E cos(pi s/2) n( r clamp(u_{s,1}(I_s) - sg y) ),   y = v + (1 - s)(d_s u + grad u v)(I_s),

    n(e) = |e|^2 / sg(|e|^2/D + c)^(1/2),   r = 1 - s^p,

v the teacher's velocity, or without a teacher the data's, D the number of dimensions and cos a mean over
places. The first term, the anchor, is flow matching; the second bends the target towards the shortcut, by all
of the clamped error at the prior and by none at the data. Both have the network in common: where it forgets
the velocity, the derivative along it is worth nothing.

The data's velocities are noisy, and so is y; cosine, clamp and the power 1/2 do not average noise, so without
a teacher the fixed point is not the flow map, unless the weight is a square.

Use it to turn a trained flow into a model of one or two steps where plain continuous consistency losses are
unstable. Sample one step, or several by re-noising; never compose jumps.

References:
    Peng et al., "Flow-anchored consistency models", 2025, arXiv 2507.03738, and the authors' code
    (p = 0.5, c = 1e-3, the clamp at 1, 1 - (2/pi) atan(sigma) for a time with log sigma ~ N(-0.8, 1.6^2) on
    the linear path). Their two terms share a state; here each draws its own, which asks the teacher twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saltus.autodiff import Derivative, TwoPass
from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Eulerian, Part, Sum
from saltus.slots import Data, Slot, Teacher
from saltus.times import Law, Lognormal, ToEnd, trigonometric_time
from saltus.typing import FlowMap, Objective, Velocity
from saltus.weights import AdaptivePower, Clipped, Directed, Scaled, Span, Squared, Weight

CARD = Card(
    title="Flow-anchored consistency models (FACM)",
    paper="Peng et al. 2025, arXiv 2507.03738",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.JVP}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=2.0, stopped_jvp=1.0, teacher=2.0),
    threshold=0.30,
    quick_threshold=0.45,
    bias="without a teacher the clamp, p = 1/2 and the direction of noisy targets move the fixed point; with "
    "one there is none",
    plain={"weight": Squared()},
)


def relaxed(span: Span) -> Tensor:
    """r = 1 - s^p with p = 1/2, [n]."""
    return 1.0 - span.s.sqrt()


def faded(span: Span) -> Tensor:
    """cos(pi s/2), [n]."""
    return torch.cos(0.5 * math.pi * span.s)


ANCHOR = Directed(Squared())
SHORTCUT = Scaled(Clipped(AdaptivePower(0.5, 1e-3, per_dimension=True), scale=relaxed), factor=faded)


def facm(
    student: FlowMap,
    *,
    teacher: Velocity | None = None,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: Law = Lognormal(-0.8, 1.6, trigonometric_time),
    near: Derivative = TwoPass(),
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
) -> Objective:
    """Flow-anchored consistency models.

    Args:
        student: the flow map of which u_{t,t} and X_{s,1} learn.
        teacher: the velocity v on the interpolant's path; None is the data's, which makes y noisy and, with
            the paper's weights, moves the fixed point.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        times: the law of t in the first term and of s in the second.
        near: how the derivative is taken; it carries no gradient.
        weight: error -> loss in both terms; None is the paper's.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    if teacher is None and guidance is not None:
        raise ValueError("facm: expected a teacher to guide, got guidance alone; give one or drop guidance")
    velocity: Slot = Data() if teacher is None else Teacher(guided(teacher, guidance))
    anchor = Diagonal(
        student,
        None,
        interpolant,
        coupling,
        times=times,
        velocity=velocity,
        weight=weight or ANCHOR,
        guidance=guidance,
    )
    shortcut = Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=ToEnd(times),
        near=near,
        tangent=velocity,
        velocity=velocity,
        weight=weight or SHORTCUT,
        guidance=guidance,
    )
    return Sum((Part("diagonal", anchor), Part("eulerian", shortcut)))
