"""MeanFlow: a flow map from data alone, by the Eulerian identity with data velocities.

    L = E w( u_{s,t}(I_s) - sg( dI_s + (t - s)(d_s u + grad u dI_s) ) ),   w(e) = |e|^2 / sg(|e|^2 + c)^p

The derivative is linear in its tangent, so the data velocity dI_s may stand for b_s: the target is
unbiased, though noisy. The two times are ordered draws of a logit-normal law. A share of the rows
keeps the earlier one alone, s = t, where this is flow matching.

Use it as the plain one-network recipe at scale. In low dimension take the squared error: with p = 1
every row is divided by its own noisy error, which moves the fixed point.

References:
    Geng et al., "Mean flows for one-step generative modeling", 2025, arXiv 2505.13447 (p = 1, c = 0.01,
    logit-normal(-0.4, 1) in their time, s = t on 75 % of the rows: their ImageNet code).
"""

from __future__ import annotations

from saltus.autodiff import Derivative, TwoPass
from saltus.couplings import Coupling, Independent
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Eulerian, Part, Sum
from saltus.slots import Data, Slot
from saltus.times import Earliest, Law, LogitNormal, Triangle, Uniform
from saltus.typing import FlowMap, Objective
from saltus.weights import AdaptivePower, Squared, Weight

CARD = Card(
    title="MeanFlow",
    paper="Geng et al. 2025, arXiv 2505.13447",
    needs=frozenset({Need.DATA, Need.JVP}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped_jvp=0.25),
    threshold=0.40,
    quick_threshold=0.57,
    bias="p = 1 divides rows by their own error, which moves the fixed point in low dimension",
    plain={"weight": Squared(), "times": Uniform()},
)


def mean_flow(
    student: FlowMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    diagonal: float = 0.75,
    times: Law = LogitNormal(0.4, 1.0),
    near: Derivative = TwoPass(),
    velocity: Slot = Data(),
    weight: Weight = AdaptivePower(p=1.0, c=1e-2),
    dropout: LabelDropout | None = None,
) -> Objective:
    """MeanFlow.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        diagonal: the share of rows with s = t, the earlier of two draws.
        times: the law of each time; the two draws are ordered.
        near: how the derivative is taken; it carries no gradient.
        velocity: the tangent and the target; ``slots.Mixed(w, k)`` mixes guidance into it.
        weight: error -> loss.
        dropout: label dropout.
    """
    at_once = Diagonal(
        student,
        None,
        interpolant,
        coupling,
        times=Earliest(times),
        velocity=velocity,
        weight=weight,
        guidance=dropout,
    )
    jump = Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=Triangle(times),
        near=near,
        tangent=velocity,
        velocity=velocity,
        weight=weight,
        guidance=dropout,
    )
    rest = 1.0 - diagonal
    return Sum((Part("diagonal", at_once, diagonal, diagonal), Part("eulerian", jump, rest, rest)))
