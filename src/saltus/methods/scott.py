"""Stochastic consistency distillation: consistency distillation whose neighbour is reached along an SDE.

    L = E | X_{s,1}(I_s) - sg X'_{m,1}(x_m) |^2,   x_m = ``solver_steps`` noisy steps of the teacher from I_s,

with m = s + 0.024, X' a moving average of the student, and steps along the reverse diffusion whose noise is
scaled by eta: fresh noise at every step mends some errors of the steps before. At eta = 0 it is consistency
distillation with DDIM steps. Above 0 the flow's end is not its fixed point any more: at eta = 1 that is the
mean of the data given I_s, and between it lies between. The paper holds this off with a small eta, a short
step and a discriminator that has to like the samples,

    + lambda E[ -D(X_{s,1}(I_s)) ],   L_D = E[ max(0, 1 - D(x1)) + max(0, 1 + D(X_{s,1}(I_s))) ].

By default there is none here: then keep eta small.

Use it to learn what noise in the teacher's steps does; for a flow map take eta = 0. Sample one step, or
several by re-noising; never compose jumps.

References:
    Liu et al., "SCott: accelerating diffusion models with stochastic consistency distillation", 2024, arXiv
    2403.01505. No code is public; all constants are from notes on the paper.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

from torch import nn

from saltus.adversaries import Adversary, Hinge
from saltus.couplings import Coupling, Independent
from saltus.games import Follow, Game, Move, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Discrimination, Eulerian, Real
from saltus.sde import ReverseSDE
from saltus.slots import Teacher
from saltus.times import Constant, Law, StepLaw, ToEnd, Uniform
from saltus.typing import Velocity
from saltus.weights import InStates, Squared, Weight

CARD = Card(
    title="Stochastic consistency distillation (SCott)",
    paper="Liu et al. 2024, arXiv 2403.01505",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.TARGET}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0, teacher=3.0),
    threshold=0.26,
    quick_threshold=1.42,
    bias="DDIM steps of the teacher: O(d); above eta = 0 the fixed point moves towards the posterior mean",
    plain={"eta": 0.0, "weight": Squared()},
    second_hand=(
        "all constants: eta 0.3, three steps over 24 of 1000 times, decay, lambda, squared error",
        "the squared error is the paper's formula, a sum over entries; with the mean over them that training "
        "codes take, the same lambda counts D times as much: PerEntry(Squared()) inside of InStates",
    ),
)


def scott(
    student: NetworkMap,
    *,
    teacher: Velocity,
    discriminator: nn.Module | None = None,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: Law = Uniform(),
    step: StepLaw = Constant(24.0 / 1000.0),
    solver_steps: int = 3,
    eta: float = 0.3,
    decay: float = 0.95,
    adversarial: float = 0.4,
    weight: Weight = InStates(Squared()),
    guidance: GuidanceInput | None = None,
) -> Game:
    """Stochastic consistency distillation.

    Args:
        student: the flow map of which X_{s,1} learns.
        teacher: the velocity on the interpolant's path that the neighbour is reached with.
        discriminator: for the adversarial term (a :class:`saltus.adversaries.Discriminator`); it is trained.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of s.
        step: the distance of the neighbour.
        solver_steps: the teacher's steps on the way there.
        eta: their noise, from 0, none, to 1, the reverse of the diffusion.
        decay: of the moving average that jumps from the neighbour.
        adversarial: lambda, where there is a discriminator.
        weight: error in velocities -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    target = deepcopy(student).requires_grad_(False)
    velocity = Teacher(guided(teacher, guidance))
    adversary = None if discriminator is None else Adversary(discriminator, Hinge(), weight=adversarial)
    loss = Eulerian(
        student,
        target,
        interpolant,
        coupling,
        times=ToEnd(times, stratified=True),
        step=step,
        leg=ReverseSDE(velocity, eta, solver_steps),
        tangent=velocity,
        velocity=velocity,
        weight=weight,
        guidance=guidance,
        adversary=adversary,
    )
    learns = student_move(student, loss, after=(Follow(target, student, decay),))
    if discriminator is None or adversary is None:
        return Game((learns,))
    telling = Discrimination(replace(loss, adversary=None), adversary, Real.DATA)
    return Game((learns, Move("discriminator", discriminator, telling)))
