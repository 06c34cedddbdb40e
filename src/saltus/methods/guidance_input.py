"""Guidance distillation: one network call for a guided velocity, its strength an input of the network.

    L = E | u_{t,t}(I_t; c, w) - [ b_t(I_t) + w (b_t(I_t; c) - b_t(I_t)) ] |^2,   w ~ U[1, high]

b is the teacher with a label c and without. The student's velocity is then integrated like any other, at
half the teacher's cost a step; it is also a teacher for every method here that makes jumps of it. Those
that take ``guidance`` do both at once.

Use it before another distillation, or alone where only the double call of guidance is to be saved.

References:
    Meng et al., "On distillation of guided diffusion models", 2022, arXiv 2210.03142, stage one (their
    strength is w - 1, uniform up to 4). Their loss has the weight of truncated SNR; here it is the squared
    error of the velocity, with t uniform.
"""

from __future__ import annotations

from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal
from saltus.slots import Teacher
from saltus.times import Law, Uniform
from saltus.typing import FlowMap, Objective, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Guidance distillation (w as an input)",
    paper="Meng et al. 2022, arXiv 2210.03142",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.LABELS}),
    sampler=Sampler.ODE,
    steps=(1, 2, 4, 8, 16, 32, 64),
    two_times=False,
    cost=Cost(live=1.0, teacher=2.0),
    threshold=None,
    quick_threshold=None,
    second_hand=("squared error of the velocity at uniform times",),
)


def guidance_input(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: Law = Uniform(),
    weight: Weight = Squared(),
    guidance: GuidanceInput = GuidanceInput(5.0),
) -> Objective:
    """Guidance distillation.

    Args:
        student: the flow map whose velocity learns; its network takes ``cond.w``.
        teacher: the velocity on the interpolant's path, which must know labels and their absence.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of t.
        weight: error -> loss.
        guidance: the law of w.

    A batch without labels is a ValueError at the first step.
    """
    return Diagonal(
        student,
        None,
        interpolant,
        coupling,
        times=times,
        velocity=Teacher(guided(teacher, guidance)),
        weight=weight,
        guidance=guidance,
    )
