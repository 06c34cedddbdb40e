"""Simplified continuous-time consistency models (sCM), trained from data (sCT).

In TrigFlow's terms, with a the noise angle, f = cos(a) x - sin(a) F the jump to the data and
g = cos(a) df/da its derivative along the data velocity,

    L = E exp(-w) (1/tan a) | F - sg( F + n(g) ) |^2 + w,   n(g) = g/(|g|/sqrt(D) + c),

inside a learned log-variance w. In ours df/da = (2/pi) e, e the Eulerian error of u_{s,1} and
a = (pi/2)(1 - s); :class:`saltus.tangents.AngleTangents` makes the loss of it. The warm-up r multiplies
the derivative of u; the paper's multiplies that of F, which is the same at r = 1 but starts elsewhere.

Use it for one- and two-step models of the best published quality in this family. Sample one step, or
several by re-noising; never compose jumps.

References:
    Lu and Song, "Simplifying, stabilizing and scaling continuous-time consistency models", 2024,
    arXiv 2410.11081 (c = 0.1, sd tan(a) log-normal(-1, 1.4^2) with sd = 0.5, so that log tan(a) has the
    mean -1 - log(0.5) at any scale of the data, warm-up 10,000 steps: here as the share of the run that it
    was of 100,000).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from saltus.autodiff import Derivative, TwoPass
from saltus.couplings import Coupling, Independent
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear, Trigonometric
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.slots import Data
from saltus.tangents import simplified
from saltus.times import Lognormal, Ramp, ToEnd, linear_time, trigonometric_time
from saltus.typing import Objective, Schedule
from saltus.weights import Squared, Weight

CARD = Card(
    title="Continuous-time consistency training (sCM/sCT)",
    paper="Lu and Song 2024, arXiv 2410.11081",
    needs=frozenset({Need.DATA, Need.JVP}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=1.0, stopped_jvp=1.0),
    threshold=0.38,
    quick_threshold=0.59,
    bias="normalised tangents of noisy rows move the fixed point in low dimension",
    plain={"weight": Squared(), "interpolant": Linear(), "time": linear_time, "warm_up": None, "mean": -1.0},
    second_hand=("length of the warm-up as a share of the run", "the warm-up's form before it ends"),
)


def scm(
    student: NetworkMap,
    *,
    interpolant: Interpolant = Trigonometric(),
    time: Callable[[Tensor], Tensor] = trigonometric_time,
    coupling: Coupling = Independent(),
    mean: float = -1.0 - math.log(0.5),
    std: float = 1.4,
    near: Derivative = TwoPass(),
    warm_up: Schedule | None = Ramp(0.1),
    weight: Weight | None = None,
    dropout: LabelDropout | None = None,
) -> Objective:
    """Continuous-time consistency training.

    Args:
        student: the flow map of which X_{s,1} learns; maps.Trigonometric is the paper's.
        interpolant: the path between prior and data.
        time: noise-to-signal ratio -> time of that interpolant.
        coupling: how noise and data are paired.
        mean: of the logarithm of the noise-to-signal ratio alpha/beta, which is tan(a).
        std: of the same.
        near: how the derivative is taken; it carries no gradient.
        warm_up: the factor on the derivative; None for 1.
        weight: error -> loss; None is the paper's, whose log-variance games.as_game has learned beside the
            student.
        dropout: label dropout.
    """
    return Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=ToEnd(Lognormal(mean, std, time)),
        near=near,
        tangent=Data(),
        velocity=Data(),
        warm_up=warm_up,
        weight=simplified(interpolant, next(student.parameters()).device) if weight is None else weight,
        guidance=dropout,
    )
