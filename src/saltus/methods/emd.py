"""Eulerian map distillation: the end of a jump stays where it is as its start moves with the teacher.

    L = E | d_s X_{s,t}(I_s) + grad X_{s,t}(I_s) b_s(I_s) |^2,   s < t uniform on the triangle, b the teacher

With gradient=DERIVATIVE this is differentiated as it stands, and is convex in X. With TIME the
transport grad X b is a constant. With TARGET everything but u is,

    | u_{s,t}(I_s) - sg( b_s + (t-s)(d_s u + grad u b_s)(I_s) ) |^2,

the form of Align Your Flow and of continuous consistency models. No diagonal part: at s = t the loss
is | u_{s,s} - b_s |^2.

Use it as lmd where the teacher should be asked on the data's path only, never at the student's jumps.
TIME repeats d_s X <- -grad X b, which amplifies what is rough (see esd); TARGET and DERIVATIVE act
on both sides.

References:
    Boffi, Albergo and Vanden-Eijnden, "Flow map matching", 2024, arXiv 2406.07507, and "How to build a
    consistency model: learning flow maps via self-distillation", 2025, arXiv 2505.18825, eqs. (28)
    (DERIVATIVE), (29) (TIME) and (38) (TARGET).
"""

from __future__ import annotations

from saltus.autodiff import Derivative, Forward
from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.slots import Teacher
from saltus.times import PairLaw, Triangle
from saltus.typing import FlowMap, Gradient, Objective, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Eulerian map distillation (EMD)",
    paper="Boffi, Albergo and Vanden-Eijnden 2024, arXiv 2406.07507",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.JVP}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live_jvp=1.0, teacher=1.0),
    threshold=0.28,
    quick_threshold=0.37,
)


def emd(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: PairLaw = Triangle(),
    gradient: Gradient = Gradient.DERIVATIVE,
    near: Derivative = Forward(),
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
) -> Objective:
    """Eulerian map distillation.

    Args:
        student: the flow map that learns.
        teacher: the velocity b on the interpolant's path; the tangent and the target.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of (s, t).
        gradient: DERIVATIVE, TIME or TARGET; FULL is DERIVATIVE here, for the states are data.
        near: how the derivative is taken; with TwoPass the gradient is TARGET's whatever is asked.
        weight: error -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    velocity = Teacher(guided(teacher, guidance))
    return Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=times,
        near=near,
        tangent=velocity,
        velocity=velocity,
        gradient=gradient,
        weight=weight,
        guidance=guidance,
    )
