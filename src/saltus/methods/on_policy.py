"""On-policy distillation: the flow map of a teacher, learned where the student itself arrives.

    L = E | d_t X_{s,t}(x_s) - b_t(sg X_{s,t}(x_s)) |^2,   x_s = sg X_{0,s}(x0)            (Lagrangian)
    L = E | u_{s,t}(x_s) - sg( b_s + (t - s)(d_s u + grad u b_s) ) |^2                     (Eulerian)

with b the teacher's velocity. A share of rows starts at s = 0: those jumps are learned at the prior, the
others where those jumps lead. No data is read.

Use it where there is no data and jumps from any time are wanted: states are those that sampling meets.
With the states of the teacher's own trajectories it is ``tbcm``.

References:
    The identities: Boffi, Albergo and Vanden-Eijnden, "Flow map matching", 2024, arXiv 2406.07507. States of
    the student's own: Agarwal et al., "On-policy distillation of language models", 2023, arXiv 2306.13649.
    Second-hand: their union is no published system; the share of starts at s = 0 is ours.
"""

from __future__ import annotations

from enum import Enum

from saltus.autodiff import Derivative, Forward
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian, Lagrangian
from saltus.slots import Teacher
from saltus.times import PairLaw, Triangle
from saltus.trajectories import RollOut, Started
from saltus.typing import FlowMap, Gradient, Objective, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="On-policy distillation",
    paper="after Boffi, Albergo and Vanden-Eijnden 2024, arXiv 2406.07507",
    needs=frozenset({Need.TEACHER, Need.JVP}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live_jvp=1.0, stopped=1.0, teacher=1.0),
    threshold=0.28,
    quick_threshold=0.34,
    second_hand=("the union of its parts", "a quarter of the rows starts at s = 0"),
)


class Identity(Enum):
    """Which of the two differential identities of a flow map the loss asks for."""

    LAGRANGIAN = "lagrangian"
    EULERIAN = "eulerian"


def on_policy(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    identity: Identity = Identity.LAGRANGIAN,
    jumps: int = 1,
    times: PairLaw = Started(Triangle(), 0.25),
    gradient: Gradient | None = None,
    near: Derivative = Forward(),
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
) -> Objective:
    """On-policy distillation.

    Args:
        student: the flow map that learns.
        teacher: its velocity on this interpolant.
        interpolant: the path between prior and data.
        identity: what is asked of the jump.
        jumps: how many lead from the prior to the state.
        times: the law of (s, t); some rows must start at s = 0.
        gradient: how far it reaches; None is TIME for the Lagrangian identity, through the derivative in
            time, and TARGET for the Eulerian.
        near: how the derivative is taken.
        weight: error -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    velocity, states = Teacher(guided(teacher, guidance)), RollOut(student, jumps)
    if identity is Identity.EULERIAN:
        return Eulerian(
            student,
            interpolant=interpolant,
            states=states,
            times=times,
            near=near,
            tangent=velocity,
            velocity=velocity,
            gradient=gradient or Gradient.TARGET,
            weight=weight,
            guidance=guidance,
        )
    return Lagrangian(
        student,
        interpolant=interpolant,
        states=states,
        times=times,
        near=near,
        end=velocity,
        gradient=gradient or Gradient.TIME,
        weight=weight,
        guidance=guidance,
    )
