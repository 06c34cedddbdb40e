"""Knowledge distillation of the sampler: one jump goes where the teacher's ODE ends.

    L = E | X_{0,1}(x0) - x_1 |^2,   x_1 = the end of n Runge-Kutta steps of the teacher from x0

The end is worked out anew for every row. Where the teacher is dear, let it make the pairs once
(:func:`saltus.samplers.integrate`) and train ``objectives.Endpoint(student)`` on them as data
(:class:`saltus.data.Pairs`): that is the same loss, and asks no teacher.

Use it for the most exact one-step map of a teacher that is cheap to integrate. It says nothing of
other times: sample one step only.

References:
    Luhman and Luhman, "Knowledge distillation in iterative generative models for improved sampling
    speed", 2021, arXiv 2101.02388 (stored pairs, DDIM). Second-hand: pairs made on the way, by Heun's
    method.
"""

from __future__ import annotations

from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import HEUN, Along, Tableau
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Endpoint
from saltus.slots import Teacher
from saltus.states import PriorStates
from saltus.times import FromStart, PairLaw, Uniform
from saltus.typing import FlowMap, Objective, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Knowledge distillation of endpoints (KD)",
    paper="Luhman and Luhman 2021, arXiv 2101.02388",
    needs=frozenset({Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(1,),
    two_times=False,
    cost=Cost(live=1.0, teacher=64.0),
    threshold=0.17,
    quick_threshold=0.24,
    bias="the teacher's Heun steps: O(d^2)",
    second_hand=("pairs made on the way", "32 steps of Heun's method"),
)


def endpoint(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    tableau: Tableau = HEUN,
    solver_steps: int = 32,
    times: PairLaw = FromStart(Uniform(1.0, 1.0)),
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
) -> Objective:
    """Knowledge distillation of the teacher's endpoints.

    Args:
        student: the flow map of which X_{0,1} learns.
        teacher: its velocity on this interpolant.
        interpolant: the path between prior and data.
        tableau: the method of the teacher's steps.
        solver_steps: their number, of equal length.
        times: the law of (s, t), s = 0 < t; the default is t = 1.
        weight: error in velocities -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    return Endpoint(
        student,
        interpolant=interpolant,
        states=PriorStates(),
        times=times,
        leg=Along(Teacher(guided(teacher, guidance)), tableau, solver_steps),
        weight=weight,
        guidance=guidance,
    )
