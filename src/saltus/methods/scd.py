"""Simplified continuous-time consistency distillation (sCM/sCD): sCM with a teacher's velocity.

    L = E exp(-w) (1/tan a) | F - sg( F + n((2/pi) cos(a) e) ) |^2 + w,
    e = u_{s,1}(I_s) - sg( b_s + r (1-s)(d_s u + grad u b_s)(I_s) ),   b the teacher

with the noise angle a, the network's F, the normalisation n, the warm-up r and the learned log-variance w of
:mod:`saltus.methods.scm`, which has the data's velocity in place of b.

Use it for one- and two-step models of a teacher. Sample one step, or several by re-noising; never
compose jumps.

References:
    Lu and Song, "Simplifying, stabilizing and scaling continuous-time consistency models", 2024,
    arXiv 2410.11081 (constants as in scm).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from saltus.autodiff import Derivative, TwoPass
from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear, Trigonometric
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.slots import Teacher
from saltus.tangents import simplified
from saltus.times import Lognormal, Ramp, ToEnd, linear_time, trigonometric_time
from saltus.typing import Objective, Schedule, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Continuous-time consistency distillation (sCM/sCD)",
    paper="Lu and Song 2024, arXiv 2410.11081",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.JVP}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=1.0, stopped_jvp=1.0, teacher=1.0),
    threshold=0.28,
    quick_threshold=0.45,
    plain={"weight": Squared(), "interpolant": Linear(), "time": linear_time, "warm_up": None, "mean": -1.0},
    second_hand=("length of the warm-up as a share of the run", "the warm-up's form before it ends"),
)


def scd(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Trigonometric(),
    time: Callable[[Tensor], Tensor] = trigonometric_time,
    coupling: Coupling = Independent(),
    mean: float = -1.0 - math.log(0.5),
    std: float = 1.4,
    near: Derivative = TwoPass(),
    warm_up: Schedule | None = Ramp(0.1),
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
) -> Objective:
    """Continuous-time consistency distillation.

    Args:
        student: the flow map of which X_{s,1} learns; maps.Trigonometric is the paper's.
        teacher: the velocity b on the interpolant's path; ``predictions.Converted`` takes one there
            from another path.
        interpolant: the path between prior and data.
        time: noise-to-signal ratio -> time of that interpolant.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        mean: of the logarithm of the noise-to-signal ratio alpha/beta, which is tan(a).
        std: of the same.
        near: how the derivative is taken; it carries no gradient.
        warm_up: the factor on the derivative; None for 1.
        weight: error -> loss; None is the paper's, whose log-variance games.as_game has learned beside the
            student.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    velocity = Teacher(guided(teacher, guidance))
    return Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=ToEnd(Lognormal(mean, std, time)),
        near=near,
        tangent=velocity,
        velocity=velocity,
        warm_up=warm_up,
        weight=simplified(interpolant, next(student.parameters()).device) if weight is None else weight,
        guidance=guidance,
    )
