"""ArcFlow: a mixture of momentum modes bends the jump, integrated in closed form.

    pi(t) = sum_k w_k mu_k exp(l_k (t - s)),   u_{s,t} = sum_k w_k mu_k phi(l_k (t - s))
    L = E mean_j | pi(r_j) - b(x_j, r_j) |^2

with phi(z) = (e^z - 1)/z and velocities mu_k, weights w_k and rates l_k, l_0 = 0, from a single call at
(x_s, s), s the start of one of N equal segments; the states x_j lie on the way, led by the teacher at first
and by the policy later. One mode is an Euler step. Nothing is read but noise.

The network needs the heads of :class:`saltus.policies.MomentumMap`: ``saltus`` gives them with the
parametrisation "momentum", this method's own. Another flow map learns too, by a derivative and more calls.

Use it to distil a teacher to N calls without data; with adapters at little cost. Sample with N steps: one
segment is harder for the modes than two.

References:
    Yang et al., "ArcFlow: unleashing 2-step text-to-image generation via high-precision non-linear flow
    distillation", 2026, arXiv 2602.09014, and the authors' code (N = 2, 16 modes, 4 states, the mixed path
    over the first 1,000 steps). Second-hand: 6 modes by default here; the law of the visits; windows over
    which velocities are averaged and dropped modes are left out.
"""

from __future__ import annotations

from saltus.curricula import Falling
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Imitation
from saltus.slots import Teacher
from saltus.states import PriorStates
from saltus.times import Cells
from saltus.trajectories import Relay
from saltus.typing import FlowMap, Objective, Schedule, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="ArcFlow",
    paper="Yang et al. 2026, arXiv 2602.09014",
    needs=frozenset({Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(2,),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0, teacher=4.0),
    threshold=None,
    quick_threshold=0.31,
    parametrisation="momentum",
    second_hand=("6 modes", "the law of the visits", "the schedule's fifth of the run"),
)


def arcflow(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    segments: int = 2,
    visits: int = 4,
    mix: Schedule | None = Falling(0.2),
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
) -> Objective:
    """ArcFlow.

    Args:
        student: the flow map that learns, best one of momentum modes; X_{k/N,(k+1)/N} are valid.
        teacher: the velocity on the interpolant's path.
        interpolant: the path between prior and data.
        segments: N, which is the number of steps to sample with; the card is that of two.
        visits: states of the way that the teacher is asked about.
        mix: the share of the way that the teacher leads, as a function of progress; None is none.
        weight: error -> loss.
        guidance: learn the guided teacher, its strength an input of the network.
    """
    return Imitation(
        student,
        end=Teacher(guided(teacher, guidance)),
        interpolant=interpolant,
        states=PriorStates() if segments == 1 else Relay(student, segments),
        times=Cells(segments),
        visits=visits,
        mix=mix,
        weight=weight,
        guidance=guidance,
    )
