"""rCM: a continuous consistency model whose samples are also moved to the teacher's law.

    L = lambda_C E | F - sg( F + n( cos(a) |ds/da| e ) ) |^2  +  gradient 2 E[ c Delta . dX ],

    e = u_{s,1}(I_s) - sg( b_s + r (1 - s)(d_s u + grad u b_s)(I_s) ),   n(g) = g/(|g| + 0.1),
    Delta = v(I_t) - b(I_t),   X = the last of up to four steps of the student's, re-noised in between,

b the teacher, v a critic that learns the velocity of the samples X, c DMD's normaliser, a the noise angle
and F the direction of the student's turn (:class:`saltus.tangents.AngleTangents`). The first loss is
simplified consistency distillation (``scd``) without its learned log-variance and prior weight; it covers all
modes and blurs what is fine. The second seeks modes and sharpens. Only the last step of X is live.

Use it for large guided teachers in one to four steps. Sample by re-noising; never compose jumps.

References:
    Zheng et al., "Large scale diffusion distillation via score-regularized continuous-time consistency",
    2025, arXiv 2510.08431, and the authors' code (c = 0.1 in n, lambda_C = 100, log tan(a) ~ N(-0.8, 1.6^2)
    for e and N(0, 1.6^2) for Delta, four critic moves a step, up to four random stops, each no earlier than
    the one before).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.autodiff import Derivative, TwoPass
from saltus.couplings import Coupling, Independent
from saltus.games import Game, Move, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear, Trigonometric
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Distribution, Eulerian, OnSamples, Part, PerResidual, Sum
from saltus.samples import RandomStops, Renoising, Stops
from saltus.slots import Teacher
from saltus.streams import Streams
from saltus.tangents import AngleTangents
from saltus.times import Law, Lognormal, Ramp, ToEnd, linear_time, trigonometric_time
from saltus.typing import Schedule, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Score-regularised continuous consistency (rCM)",
    paper="Zheng et al. 2025, arXiv 2510.08431",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.CRITIC, Need.JVP}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=3.0, stopped=4.0, stopped_jvp=1.0, teacher=2.0),
    threshold=0.25,
    quick_threshold=0.45,
    plain={
        "weight": Squared(),
        "interpolant": Linear(),
        "time": linear_time,
        "warm_up": None,
        "mean": -1.0,
        "std": 1.4,
        "stops": RandomStops(2),
        "critic_moves": 1,
    },
    second_hand=(
        "the warm-up's length and its form before it ends",
        "rows leave a roll-out at stops of their own, where the authors' leave together",
        "the second loss and the critic learn from the beginning, where the authors' wait for the warm-up",
        "levels of noise without the shift by 5 of the authors' video models",
    ),
)


@dataclass(frozen=True)
class RisingStops:
    """0, and of ``count`` - 1 draws of a law the latest so far each time, of each row its own."""

    count: int
    law: Law

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"stops: expected at least 2, the prior and one more, got {self.count}")

    def __call__(self, rng: Streams) -> Tensor:
        drawn = self.law(rng.uniform("stops", self.count - 1)).clamp(0.0, 1.0)
        return torch.cat([drawn.new_zeros(len(drawn), 1), drawn.cummax(dim=1).values], dim=1)


def rcm(
    student: NetworkMap,
    *,
    teacher: Velocity,
    critic: NetworkMap,
    interpolant: Interpolant = Trigonometric(),
    time: Callable[[Tensor], Tensor] = trigonometric_time,
    coupling: Coupling = Independent(),
    mean: float = -0.8,
    std: float = 1.6,
    mean_level: float = 0.0,
    stops: Stops | None = None,
    consistency: float = 100.0,
    critic_moves: int = 4,
    near: Derivative = TwoPass(),
    warm_up: Schedule | None = Ramp(0.1),
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
) -> Game:
    """Score-regularised continuous consistency.

    Args:
        student: the flow map of which X_{s,1} learns; maps.Trigonometric is the paper's.
        teacher: the velocity b on the interpolant's path.
        critic: another flow map, that of the student's samples; start it from the teacher's weights.
        interpolant: the path between prior and data.
        time: noise-to-signal ratio -> time of that interpolant.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        mean: of the logarithm of the noise-to-signal ratio in the first loss.
        std: of the same, in both.
        mean_level: of the same in the second loss and for the critic.
        stops: the times of the steps that make samples; each row leaves at one of them. None is the authors',
            0 and the latest so far of each of three draws of the second loss's law.
        consistency: lambda_C.
        critic_moves: of the critic in a step, each after the first on noise of its own.
        near: how the derivative is taken; it carries no gradient. FiniteDifference(1e-4) is the authors'
            other way.
        warm_up: the factor r on the derivative; None for 1.
        weight: error -> loss in both; None is the paper's.
        guidance: learn the map of the guided teacher, its strength an input of student and critic.
    """
    if critic_moves < 1:
        raise ValueError(f"rcm: expected at least one move of the critic, got {critic_moves}")
    b = guided(teacher, guidance)
    velocity, levels = Teacher(b), Lognormal(mean_level, std, time)
    paper = AngleTangents(interpolant, 0.1, prior=False, per_dimension=False)
    along = Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=ToEnd(Lognormal(mean, std, time)),
        near=near,
        tangent=velocity,
        velocity=velocity,
        warm_up=warm_up,
        weight=weight or paper,
        guidance=guidance,
    )
    maker = Renoising(stops or RisingStops(4, levels))
    law = Distribution(
        student,
        b,
        critic,
        interpolant,
        levels,
        weight or Squared(),
        guidance,
        maker,
        PerResidual(interpolant),
    )
    both = Sum((Part("consistency", along, weight=consistency), Part("distribution", law)))
    match = Diagonal(critic, interpolant=interpolant, times=levels)
    follow = OnSamples(student, match, interpolant, guidance, maker)
    moves = (student_move(student, both), Move("critic", critic, follow, when=lambda step: critic_moves))
    return Game(moves)
