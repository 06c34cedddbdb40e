"""SANA-Sprint: continuous consistency distillation beside a discriminator on the teacher's features.

    L = L_sCM( u_{s,1}(I_s) ) + lambda E[ -D( J_t, t ) ],   J_t = X_{s,1}(I_s) noised anew to the level t,
    L_D = E max(0, 1 - D(x1 noised to t)) + max(0, 1 + D(J_t)),

L_sCM simplified consistency distillation (``scd``: tangents normalised, a learned log-variance), D heads on
frozen features of the teacher. Half of the jumps that D judges begin at the prior, where one-step samples do.
The first loss gives every noise its own picture, the second makes it sharp.

A flow-matching teacher on the linear path serves as it is: ``predictions.Converted`` takes its velocity to
the trigonometric path exactly.

Use it to turn a text-to-image flow model into one of one to four steps. Sample by re-noising; never compose
jumps.

References:
    Chen et al., "SANA-Sprint: one-step diffusion with continuous-time consistency distillation", 2025,
    arXiv 2503.09641, and their code: sigma ~ log-normal(0.2, 1.6^2), for D (-0.6, 1), tan(a) = sigma/0.5;
    half of the adversarial rows at the prior, hinge loss, lambda = 0.5, strengths 4, 4.5 and 5 as an input
    (guidance=GuidanceInput(5.0) draws 1 to 5). Their network gets a denser embedding of
    time and normalised queries and keys first: a matter of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saltus.adversaries import AdversarialLoss, Adversary, Hinge
from saltus.autodiff import Derivative, TwoPass
from saltus.couplings import Coupling, Independent
from saltus.games import Game, Move, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear, Trigonometric
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Adversarial, Discrimination, Eulerian, Part, Sum
from saltus.samples import OneJump
from saltus.slots import Teacher
from saltus.tangents import simplified
from saltus.times import Law, Lognormal, Ramp, ToEnd, linear_time, trigonometric_time
from saltus.typing import Schedule, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="SANA-Sprint",
    paper="Chen et al. 2025, arXiv 2503.09641",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.DISCRIMINATOR, Need.JVP}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=2.0, stopped=1.0, stopped_jvp=1.0, teacher=1.0),
    threshold=0.25,
    quick_threshold=0.45,
    plain={
        "weight": Squared(),
        "interpolant": Linear(),
        "time": linear_time,
        "warm_up": None,
        "mean": -1.0,
        "std": 1.4,
        "mean_level": 0.0,
        "std_level": 1.4,
    },
    second_hand=(
        "length of the warm-up as a share of the run, and its form before it ends",
        "lambda; the laws of times, from their code",
        "the discriminator's learning rate and turns, the student's",
    ),
)


@dataclass(frozen=True)
class FromStartOr:
    """0 for a ``share`` of the rows, ``law`` for the others."""

    law: Law
    share: float

    def __call__(self, u: Tensor) -> Tensor:
        late = ((u - self.share) / (1.0 - self.share)).clamp(min=torch.finfo(u.dtype).tiny)
        return torch.where(u < self.share, torch.zeros_like(u), self.law(late))


def sana_sprint(
    student: NetworkMap,
    *,
    teacher: Velocity,
    discriminator: nn.Module,
    interpolant: Interpolant = Trigonometric(),
    time: Callable[[Tensor], Tensor] = trigonometric_time,
    coupling: Coupling = Independent(),
    mean: float = 0.2 - math.log(0.5),
    std: float = 1.6,
    prior: float = 0.5,
    mean_level: float = -0.6 - math.log(0.5),
    std_level: float = 1.0,
    adversarial: float = 0.5,
    loss: AdversarialLoss = Hinge(),
    r1: float = 0.0,
    near: Derivative = TwoPass(),
    warm_up: Schedule | None = Ramp(0.1),
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
) -> Game:
    """SANA-Sprint.

    Args:
        student: the flow map of which X_{s,1} learns; maps.Trigonometric is the paper's.
        teacher: the velocity on the interpolant's path.
        discriminator: D (a :class:`saltus.adversaries.Discriminator`), trained; ``nn.heads_on`` the teacher's
            network is the paper's kind.
        interpolant: the path between prior and data.
        time: noise-to-signal ratio -> time of that interpolant.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        mean: of the logarithm of the noise-to-signal ratio in the first loss, and of jumps in the second
            that begin at data.
        std: of the same.
        prior: the share of the jumps in the second loss that begin at the prior.
        mean_level: of the logarithm of the noise-to-signal ratio at which D looks.
        std_level: of the same.
        adversarial: lambda.
        loss: of student and discriminator.
        r1: weight of the discriminator's gradient penalty.
        near: how the derivative is taken; it carries no gradient.
        warm_up: the factor on the derivative; None for 1.
        weight: error -> loss of the first loss; None is the paper's, its log-variance learned.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    if not 0.0 <= prior < 1.0:
        raise ValueError(f"sana_sprint: expected a share of jumps from the prior in [0, 1), got {prior}")
    velocity, law = Teacher(guided(teacher, guidance)), Lognormal(mean, std, time)
    consistency = Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=ToEnd(law),
        near=near,
        tangent=velocity,
        velocity=velocity,
        warm_up=warm_up,
        weight=simplified(interpolant, next(student.parameters()).device) if weight is None else weight,
        guidance=guidance,
    )
    levels = Lognormal(mean_level, std_level, time)
    adversary = Adversary(discriminator, loss, levels, interpolant, weight=adversarial, r1=r1)
    fooling = Adversarial(student, adversary, interpolant, OneJump(times=FromStartOr(law, prior)), guidance)
    both = Sum((Part("consistency", consistency), Part("adversarial", fooling)))
    telling = Discrimination(fooling, adversary)
    return Game((student_move(student, both), Move("discriminator", discriminator, telling)))
