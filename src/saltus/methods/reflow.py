"""Reflow: flow matching on the pairs that a flow made, so that its trajectories become straighter.

    L = E | u_{t,t}(I_t) - (x1 - x0) |^2,   x1 = X_{0,1}(x0) by n Runge-Kutta steps of the teacher

The flow of the law of such lines I_t = alpha_t x0 + beta_t x1 takes noise to the same data as the teacher's,
and where the lines do not cross it is the lines themselves: one Euler step is then exact. ``instaflow`` goes
on to distil, |u_{0,1}(x0) - (x1 - x0)|^2 on the same pairs, which sends each x0 where the teacher did.

With the ``shape`` of a sample there are stages: pairs are made and learned from, kept, and learned from
again; a run keeps them with its state and goes on with them. Without it every row's pair is made anew.

Use it to make a model's sampling cheap at two to eight steps of an ordinary solver; with ``instaflow``, at
one. What it learns is not the teacher's flow but a straighter one, and so are jumps between other times.

References:
    Liu et al., "Flow straight and fast", 2022, arXiv 2209.03003.
    Liu et al., "InstaFlow", 2023, arXiv 2309.06380 (reflow, then distillation). Second-hand: 32 Heun steps,
    65,536 pairs, the shares of the stages; InstaFlow's second phase, by a perceptual distance, is ``weight``.
"""

from __future__ import annotations

from collections.abc import Mapping

from saltus.games import Artifact, Stage, Stages
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import HEUN, Tableau
from saltus.lessons import FlowPairs, lessons_on_pairs
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Method, Need, Sampler
from saltus.objectives import Diagonal, Endpoint
from saltus.times import Law, Uniform
from saltus.typing import Objective, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Reflow (2-rectified flow)",
    paper="Liu et al. 2022, arXiv 2209.03003",
    needs=frozenset({Need.TEACHER}),
    sampler=Sampler.ODE,
    steps=(1, 2, 4, 8, 16, 32, 64),
    two_times=False,
    cost=Cost(live=1.0, teacher=64.0),
    threshold=None,
    quick_threshold=None,
    bias="the flow of the teacher's pairs, straighter than the teacher's own",
    rectifies=True,
    second_hand=("32 steps of Heun's method", "65,536 pairs", "the shares of the stages"),
)

INSTAFLOW = Card(
    title="InstaFlow",
    paper="Liu et al. 2023, arXiv 2309.06380",
    needs=frozenset({Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(1,),
    two_times=False,
    cost=Cost(live=1.0, teacher=64.0),
    threshold=0.19,
    quick_threshold=0.29,
    bias="the flow of the teacher's pairs, straighter than the teacher's own",
    rectifies=True,
    second_hand=("32 steps of Heun's method", "65,536 pairs", "the shares of the stages"),
)


def reflow(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    tableau: Tableau = HEUN,
    solver_steps: int = 32,
    times: Law = Uniform(),
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
    shape: tuple[int, ...] | None = None,
    pairs: int = 65_536,
    making: float = 0.25,
) -> Stages:
    """Reflow.

    Args:
        student: the flow map whose velocity u_{t,t} learns; its weights may start as the teacher's.
        teacher: the velocity on the interpolant's path.
        interpolant: the path between prior and data.
        tableau: the method of the teacher's steps.
        solver_steps: their number, of equal length.
        times: the law of t.
        weight: error -> loss.
        guidance: learn the guided teacher, its strength an input of the network; pairs are then not kept.
        shape: of one sample, where pairs are to be kept.
        pairs: so many are kept.
        making: the part of the reflow in which pairs are made.
    """
    asked = guided(teacher, guidance)
    made = FlowPairs(asked, interpolant, tableau, solver_steps, shape, pairs, making, guidance)
    diagonal = Diagonal(student, interpolant=interpolant, times=times, weight=weight)
    return lessons_on_pairs(student, made, _lesson("reflow", diagonal, 1.0))


def instaflow(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    tableau: Tableau = HEUN,
    solver_steps: int = 32,
    times: Law = Uniform(),
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
    shape: tuple[int, ...] | None = None,
    pairs: int = 65_536,
    making: float = 0.25,
    distil: float = 0.5,
) -> Stages:
    """InstaFlow: reflow, then distillation of the pairs into one jump.

    Args:
        student: the flow map that learns, in the end its X_{0,1}; its weights may start as the teacher's.
        teacher: the velocity on the interpolant's path.
        interpolant: the path between prior and data.
        tableau: the method of the teacher's steps.
        solver_steps: their number, of equal length.
        times: the law of t in the reflow.
        weight: error -> loss.
        guidance: learn the guided teacher, its strength an input of the network; pairs are then not kept.
        shape: of one sample, where pairs are to be kept.
        pairs: so many are kept.
        making: the part of the reflow in which pairs are made.
        distil: the part of the steps for the distillation.
    """
    if not 0.0 < distil < 1.0:
        raise ValueError(
            f"instaflow: expected a part of the steps to distil in, above 0 and below 1, got {distil}; "
            "reflow does without"
        )
    asked = guided(teacher, guidance)
    made = FlowPairs(asked, interpolant, tableau, solver_steps, shape, pairs, making, guidance)
    diagonal = Diagonal(student, interpolant=interpolant, times=times, weight=weight)
    jump = Endpoint(student, interpolant=interpolant, weight=weight)
    both = _lesson("reflow", diagonal, 1.0 - distil), _lesson("distil", jump, distil)
    return lessons_on_pairs(student, made, *both)


def _lesson(name: str, objective: Objective, share: float) -> Stage:
    def build(artifacts: Mapping[str, Artifact]) -> Objective:
        return objective

    return Stage(name, build, share)


VARIANTS = (Method("instaflow", instaflow, INSTAFLOW),)
