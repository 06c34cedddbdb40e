"""AnyFlow: a flow map from data, then the law of its own walks of any number of steps set right.

First stage, MeanFlow with a central difference along the path, no derivative of the network:

    e = u_{s,t}(I_s) - sg( dI_s + (t - s)( u_{s+h,t}(I_{s+h}) - u_{s-h,t}(I_{s-h}) )/(2h) ),
    L = E (1 - s) s^(1/2) |e|^2 / sg(|e|^2/D + c),   |e|^2 alone at s = t,

half of the rows with s = t, a quarter with t = 1. Second stage, beside the same loss: the samples of a walk
through n steps, three live jumps 0 -> t_i -> t_{i+1} -> 1 of which stand for all n, follow the teacher's law,

    gradient E[ c Delta . dX ],  Delta = v(I_r) - b(I_r),  X = X_{t_{i+1},1}(X_{t_i,t_{i+1}}(X_{0,t_i}(x0))),

with v the critic, which learns the velocity of these samples, and c DMD's normaliser. On an exact map the
three jumps are one, whatever n is: so no number of steps is favoured, and more steps stay better.

Use it where one model is to be sampled in one step or in fifty.

References:
    "AnyFlow", 2026, arXiv 2605.13724 (h = 0.005, times of a clock shifted by 5, n in {2, 4, 8, 16, 50}, one
    move of the critic a step; 6,000 steps at a learning rate of 5e-5, then 1,200 at 2e-6). There the teacher
    has strength 3, CFG(b, 3.0), and the first stage learns the guided map: velocity=Mixed(3.0, 0.0) is its
    like here. A loss off the diagonal is scaled to the mean on the diagonal; here to 1 a dimension.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from saltus.autodiff import FiniteDifference
from saltus.couplings import Coupling, Independent
from saltus.games import Artifact, Game, Move, Stage, Stages, student_move
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Distribution, Eulerian, OnSamples, Part, PerResidual, Sum
from saltus.samples import CellStops, Chain, Stops
from saltus.slots import Data, Slot
from saltus.times import Earliest, Law, LogitNormal, Shifted, ToEnd, Triangle, Uniform
from saltus.typing import Velocity
from saltus.weights import AdaptivePower, Scaled, Span, Squared, Weight

CARD = Card(
    title="AnyFlow",
    paper="AnyFlow 2026, arXiv 2605.13724",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.CRITIC}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped=1.0),
    threshold=0.62,
    quick_threshold=0.65,
    bias="the central difference: O(d^2) in its half-width d; rows divided by their own error move the fixed "
    "point in low dimension",
    plain={"weight": Squared(), "times": LogitNormal(0.8, 1.0)},
    second_hand=(
        "the scale of the loss off the diagonal",
        "guidance in the first stage by the target, not by the prediction",
        "the critic's levels and learning rate, the student's",
    ),
)


def by_time(span: Span) -> Tensor:
    """(1 - s) s^(1/2), [n]."""
    return (1.0 - span.s) * span.s.sqrt()


def anyflow(
    student: NetworkMap,
    *,
    teacher: Velocity,
    critic: NetworkMap,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    diagonal: float = 0.5,
    to_end: float = 0.25,
    times: Law = Shifted(Uniform(), 5.0),
    eps: float = 5e-3,
    velocity: Slot = Data(),
    stops: Stops = CellStops(shift=5.0),
    levels: Law = Shifted(Uniform(), 5.0),
    second: float = 0.2,
    rate: float = 0.04,
    weight: Weight | None = None,
    dropout: LabelDropout | None = None,
) -> Stages:
    """AnyFlow.

    Args:
        student: the flow map that learns.
        teacher: the velocity b whose law the second stage follows, guided already if it is to be.
        critic: another flow map, that of the student's samples; start it from the teacher's weights.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        diagonal: the share of rows with s = t in the first loss.
        to_end: the share of rows with t = 1.
        times: the law of each time; the two draws are ordered.
        eps: the half-width h of the difference.
        velocity: the tangent and the target.
        stops: the law of (0, t_i, t_{i+1}).
        levels: the law of the level r at which samples are compared.
        second: steps of the second stage for one of the first.
        rate: the student's learning rate there, beside that of the first stage.
        weight: error -> loss of the first loss, in all of its parts; None is the paper's.
        dropout: label dropout in the first loss.
    """
    start, off = Earliest(times), weight or Scaled(AdaptivePower(1.0, 1e-5, True), factor=by_time)
    at_once = Diagonal(
        student,
        None,
        interpolant,
        coupling,
        times=start,
        velocity=velocity,
        weight=weight or Scaled(Squared(), factor=by_time),
        guidance=dropout,
    )
    jump, last = (
        Eulerian(
            student,
            interpolant=interpolant,
            coupling=coupling,
            times=law,
            near=FiniteDifference(eps, stopped=True),
            tangent=velocity,
            velocity=velocity,
            weight=off,
            guidance=dropout,
        )
        for law in (Triangle(times), ToEnd(start))
    )
    rest = 1.0 - diagonal - to_end
    first = Sum(
        (
            Part("diagonal", at_once, diagonal, diagonal),
            Part("eulerian", jump, rest, rest),
            Part("to_end", last, to_end, to_end),
        )
    )

    def beside(artifacts: Mapping[str, Artifact]) -> Game:
        walk = Chain(stops)
        law = Distribution(
            student,
            teacher,
            critic,
            interpolant,
            levels,
            maker=walk,
            scale=PerResidual(interpolant),
        )
        both = Sum((Part("flow map", first), Part("distribution", law, weight=0.5)))
        samples = OnSamples(student, Diagonal(critic, interpolant=interpolant), interpolant, maker=walk)
        return Game((student_move(student, both, rate=rate), Move("critic", critic, samples)))

    return Stages((Stage("flow map", lambda artifacts: first), Stage("on-policy", beside, second)))
