"""Restricted MeanFlow: MeanFlow whose jumps are never longer than R, for models of 1/R steps and more.

    L = E w( u_{s,t}(I_s) - sg( v + (t - s)(d_s u + grad u v) ) ),   t - s <= R,   and flow matching at s = t,

v the velocity of the data, or of a teacher. Long jumps are the hardest to learn and teach nothing to short
ones; without them the network spends all of its capacity on the steps that are taken.

Use it where a handful of steps is what you will take. A longer jump than R is outside of what it has learned.

References:
    "DisCa: accelerating video diffusion with a distillation-compatible learnable feature cache", 2026,
    arXiv 2602.05449. There R = 0.2, here 1/4, of which four steps are a whole number. Its first stage
    distils guidance (``guidance_input`` here), its last trains a small network that predicts features of
    the large one, which is not built here.
"""

from __future__ import annotations

from saltus.autodiff import Derivative, TwoPass
from saltus.couplings import Coupling, Independent
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Eulerian, Part, Sum
from saltus.slots import Data, Slot
from saltus.times import Law, Restricted, Uniform
from saltus.typing import FlowMap, Objective
from saltus.weights import AdaptivePower, Squared, Weight

CARD = Card(
    title="Restricted MeanFlow (DisCa)",
    paper="DisCa 2026, arXiv 2602.05449",
    needs=frozenset({Need.DATA, Need.JVP}),
    sampler=Sampler.JUMPS,
    steps=(4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped_jvp=0.25),
    threshold=0.25,
    quick_threshold=0.31,
    bias="p = 1 divides rows by their own error, which moves the fixed point in low dimension",
    plain={"weight": Squared()},
    second_hand=(
        "the whole of it: notes of the paper, whose code is not public",
        "R = 1/4, the paper's 0.2",
        "the law of times and the share of rows at s = t",
        "the weight, MeanFlow's",
    ),
)


def restricted_mean_flow(
    student: FlowMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    span: float = 0.25,
    diagonal: float = 0.75,
    times: Law = Uniform(),
    near: Derivative = TwoPass(),
    velocity: Slot = Data(),
    weight: Weight = AdaptivePower(p=1.0, c=1e-2),
    dropout: LabelDropout | None = None,
) -> Objective:
    """Restricted MeanFlow.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        span: the longest jump R; sample with at least 1/R steps. The card's steps are those of 1/4.
        diagonal: the share of rows with s = t.
        times: the law of t on those rows; elsewhere s is uniform, and t - s up to R.
        near: how the derivative is taken; it carries no gradient.
        velocity: the tangent and the target; ``slots.Teacher(b)`` learns from a teacher.
        weight: error -> loss.
        dropout: label dropout.
    """
    if not 0.0 < span <= 1.0:
        raise ValueError(
            f"restricted_mean_flow: expected a span in (0, 1], got {span}; 1/span steps are taken"
        )
    at_once = Diagonal(
        student, None, interpolant, coupling, times=times, velocity=velocity, weight=weight, guidance=dropout
    )
    jump = Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=Restricted(span),
        near=near,
        tangent=velocity,
        velocity=velocity,
        weight=weight,
        guidance=dropout,
    )
    rest = 1.0 - diagonal
    return Sum((Part("diagonal", at_once, diagonal, diagonal), Part("eulerian", jump, rest, rest)))
