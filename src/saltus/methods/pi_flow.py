"""pi-Flow: one call names a policy for a whole segment, which has the teacher's velocity wherever it leads.

    L = E mean_j | pi(x_j, r_j) - b(x_j, r_j) |^2,   x_1 = x_s,   x_{j+1} from x_j by the policy

with s the start of one of N equal segments, r_1 = s, r_2, ... in the segment and pi from a single call of the
student's network at (x_s, s); no gradient runs through the states. At first the teacher leads from state to
state, later the policy, so that it is corrected where it errs. States at the starts of later segments are
the student's own: no data are read.

The policy is a Gaussian mixture in each place (:class:`saltus.policies.MixtureMap`) or estimates of the data
on a grid of times (:class:`saltus.policies.GridMap`). The network needs their heads: ``saltus`` gives them
with the parametrisations "mixture-policy", the default, and "grid-policy". On data that are a mixture of as
many components the mixture policy can be exact in one call. Another flow map learns too, as a policy that
does not look at the state, by a derivative and more calls.

Use it to distil a teacher to N calls without data, where trajectories are curved. Sample with N steps.

References:
    Chen et al., "pi-Flow: policy-based few-step generation via imitation distillation", 2025,
    arXiv 2510.14974 (its data-free form). Second-hand: 8 components, 4 visits, their law, the mixed path and
    its schedule; N = 1; windows over which velocities are averaged are left out.
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
    title="pi-Flow",
    paper="Chen et al. 2025, arXiv 2510.14974",
    needs=frozenset({Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(1,),
    two_times=False,
    cost=Cost(live=1.0, teacher=4.0),
    threshold=None,
    quick_threshold=0.12,
    parametrisation="mixture-policy",
    second_hand=("8 components", "4 visits and their law", "the mixed path and its schedule", "one segment"),
)


def pi_flow(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    segments: int = 1,
    visits: int = 4,
    mix: Schedule | None = Falling(0.2),
    substeps: int = 4,
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
) -> Objective:
    """pi-Flow.

    Args:
        student: the flow map that learns, best one of policies, of which X_{k/N,(k+1)/N} are valid.
        teacher: the velocity on the interpolant's path.
        interpolant: the path between prior and data; also that of the student's policies.
        segments: N, which is the number of steps to sample with; the card is that of one.
        visits: states of the way that the teacher is asked about.
        mix: the share of the way that the teacher leads, as a function of progress; None is none.
        substeps: of the policy from one visit to the next.
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
        substeps=substeps,
        weight=weight,
        guidance=guidance,
    )
