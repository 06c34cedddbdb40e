"""Lagrangian map distillation: the end of a jump moves with the teacher's velocity.

    L = E | d_t X_{s,t}(I_s) - b_t(X_{s,t}(I_s)) |^2,   s < t uniform on the triangle, b the teacher

With gradient=FULL the gradient passes through the teacher at the end of the jump, by its spatial Jacobian:
the least-squares loss itself. With TIME the teacher's velocity is a constant; with TARGET the
derivative in time is one too, and the loss is a regression,

    | u_{s,t}(I_s) - sg( b_t(X_{s,t}(I_s)) - (t-s) d_t u_{s,t}(I_s) ) |^2,

which keeps nothing of the teacher's memory either. TIME is the default: any callable can be the teacher,
no pass back through it is needed, and the residual is still acted on from u and from its slope.

There is no diagonal part: at s = t the loss is | u_{s,s} - b_s |^2 without noise, and short jumps, of which
the triangle has the most, learn it by themselves.

Use it to make a flow map of any number of steps from a teacher, where data are at hand to say where to
look. Nothing is differentiated in space except, with FULL, the teacher.

References:
    Boffi, Albergo and Vanden-Eijnden, "Flow map matching", 2024, arXiv 2406.07507, and "How to build a
    consistency model: learning flow maps via self-distillation", 2025, arXiv 2505.18825, eqs. (26)
    (FULL) and (27) (TIME).
"""

from __future__ import annotations

from saltus.autodiff import Derivative, Forward
from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Lagrangian
from saltus.slots import Teacher
from saltus.times import PairLaw, Triangle
from saltus.typing import FlowMap, Gradient, Objective, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Lagrangian map distillation (LMD)",
    paper="Boffi, Albergo and Vanden-Eijnden 2024, arXiv 2406.07507",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.JVP}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live_jvp=1.0, teacher=1.0),
    threshold=0.28,
    quick_threshold=0.36,
)


def lmd(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: PairLaw = Triangle(),
    gradient: Gradient = Gradient.TIME,
    near: Derivative = Forward(),
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
) -> Objective:
    """Lagrangian map distillation.

    Args:
        student: the flow map that learns.
        teacher: the velocity b on the interpolant's path. With FULL its parameters must not require
            gradients, or they collect them.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of (s, t).
        gradient: FULL, TIME or TARGET.
        near: how the derivative in time is taken.
        weight: error -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    return Lagrangian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=times,
        near=near,
        end=Teacher(guided(teacher, guidance)),
        gradient=gradient,
        weight=weight,
        guidance=guidance,
    )
