"""Consistency trajectory models: a jump equals some steps of a teacher followed by a shorter jump.

    L = E | X'_{t,1}(X_{s,t}(I_s)) - sg X'_{t,1}(X'_{m,t}(x_m)) |^2 + lambda E | u_{t,t}(I_t) - dI_t |^2

for s <= m <= t, x_m where ``solver_steps`` Heun steps of the teacher lead from I_s, and X' a moving average
of the student. Both ends are carried on to the data by X', through which the gradient passes, and
compared there: errors count by what they do to samples. The second term is denoising score matching,
written for velocities.

The paper adds a discriminator, with which the student passes its teacher; this is the method without it.

Use it for a model that may take any number of steps and whose teacher is trusted over long stretches:
m close to t makes it direct regression on the teacher's ends, m close to s consistency distillation.

References:
    Kim et al., "Consistency trajectory models: learning probability flow ODE trajectory of diffusion",
    2023, arXiv 2310.02279, eqs. (9) to (11) and sec. 3. The paper's solver walks the grid of 18 levels
    from s to m, up to 17 Heun steps; here the number of steps is fixed. Its lambda is the ratio of the norms
    of the two gradients, which falls as the jumps are learned; here it is 0.1. At 1 the noise of the
    second term dominates: on the reference mixture the one-step error is 0.32 against 0.21.
"""

from __future__ import annotations

from copy import deepcopy

from saltus.couplings import Coupling, Independent
from saltus.games import Follow, Game, student_move
from saltus.guidance import GuidanceInput, LabelDropout, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import HEUN, Along, Jump, Leg, Tableau
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Composition, Diagonal, Part, Sum
from saltus.slots import Teacher
from saltus.times import Karras, Law, Lognormal, PairLaw, Split, Triangle, UniformSplit
from saltus.typing import Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Consistency trajectory models (CTM, without the discriminator)",
    paper="Kim et al. 2023, arXiv 2310.02279",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.TARGET}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=2.0, stopped=3.0, teacher=8.0),
    threshold=0.28,
    quick_threshold=0.41,
    bias="Heun steps of the teacher over a leg of any length: O(d^2) in the length d of a step",
    plain={"decay": 0.95},
    second_hand=("a fixed number of solver steps", "a fixed lambda"),
)


def ctm(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: PairLaw = Triangle(Karras()),
    split: Split = UniformSplit(),
    solver_steps: int = 4,
    tableau: Tableau = HEUN,
    push: Leg | None = Jump(),
    decay: float = 0.999,
    matching: float = 0.1,
    diagonal: Law = Lognormal(-1.2, 1.2),
    weight: Weight = Squared(),
    dropout: LabelDropout | None = None,
    guidance: GuidanceInput | None = None,
) -> Game:
    """Consistency trajectory models.

    Args:
        student: the flow map that learns; maps.EDM is the paper's.
        teacher: the velocity on the interpolant's path.
        interpolant: the path between prior and data; the default laws of times are for the linear one.
        coupling: how noise and data are paired.
        times: the law of (s, t).
        split: the law of gamma, m = s + gamma (t - s).
        solver_steps: the teacher's steps from s to m.
        tableau: the method of each.
        push: how both ends reach the data; None compares average velocities at t.
        decay: of the moving average.
        matching: lambda.
        diagonal: the law of t in the second term.
        weight: error -> loss.
        dropout: label dropout in the second term.
        guidance: learn the map of the guided teacher, its strength an input of the network; the second term
            has strength 1.
    """
    target = deepcopy(student).requires_grad_(False)
    velocity = Teacher(guided(teacher, guidance))
    jump = Composition(
        student,
        target,
        interpolant,
        coupling,
        times=times,
        split=split,
        leg=Along(velocity, tableau, solver_steps),
        push=push,
        weight=weight,
        guidance=guidance,
    )
    match = Diagonal(student, None, interpolant, coupling, times=diagonal, weight=weight, guidance=dropout)
    loss = Sum((Part("diagonal", match, weight=matching), Part("composition", jump)))
    return Game((student_move(student, loss, after=(Follow(target, student, decay),)),))
