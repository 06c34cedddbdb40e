"""Hyper-SD's trajectory segmented consistency distillation: jumps within segments that merge.

    L = E | X_{s,t}(I_s) - sg X'_{m,t}(x_m) |^2,   s < m <= t <= e, the end of the segment that s lies in,

with x_m one DDIM step of the teacher from I_s, X' a moving average of the student and t uniform between s
and e. The segments number 8, 4, 2 and at last 1: short jumps are learned first, and long ones are begun from
them. In one segment it is a consistency trajectory model's loss whose teacher takes one short step, and
trajectory consistency distillation's.

The paper goes on with an adversarial loss beside the squared one, with feedback of reward models and, for
one step, with distribution matching; this is what comes before.

Use it for a model of any small number of steps where the whole way at once is learned badly.

References:
    Ren et al., "Hyper-SD: trajectory segmented consistency model for efficient image synthesis", 2024, arXiv
    2404.13686, sec. 3.1. No training code is public. The segments are equal in the time of the interpolant
    in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from itertools import pairwise

from saltus.couplings import Coupling, Independent
from saltus.curricula import Segments
from saltus.games import Artifact, Follow, Game, Stage, Stages, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Slide
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.slots import Teacher
from saltus.times import Constant, Law, StepLaw, Uniform
from saltus.typing import Velocity
from saltus.weights import InStates, Squared, Weight

CARD = Card(
    title="Hyper-SD (trajectory segmented consistency distillation)",
    paper="Ren et al. 2024, arXiv 2404.13686",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.TARGET}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8),
    two_times=True,
    cost=Cost(live=1.0, stopped=1.0, teacher=1.0),
    threshold=0.5,
    quick_threshold=1.55,
    bias="a DDIM step of the teacher: O(d)",
    plain={"weight": Squared()},
    second_hand=("decay 0.95 and a step of 1/50, as in latent consistency models", "stages of equal length"),
)


def hyper_sd(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    segments: tuple[int, ...] = (8, 4, 2, 1),
    times: Law = Uniform(),
    step: StepLaw = Constant(1.0 / 50.0),
    decay: float = 0.95,
    weight: Weight = InStates(Squared()),
    guidance: GuidanceInput | None = None,
) -> Stages:
    """Trajectory segmented consistency distillation.

    Args:
        student: the flow map that learns; each stage goes on with its weights.
        teacher: the velocity on the interpolant's path that the neighbour is reached with.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        segments: their number in each stage; it falls. If it ends above 1, sample with that many steps; the
            card's steps are those of stages that end at 1.
        times: the law of s.
        step: the distance of the neighbour.
        decay: of the moving average that jumps from it.
        weight: error in velocities -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    if not segments or any(a <= b for a, b in pairwise(segments)):
        raise ValueError(f"hyper_sd: expected numbers of segments that fall, such as 8 4 2 1, got {segments}")
    target = deepcopy(student).requires_grad_(False)
    velocity = Teacher(guided(teacher, guidance))

    def stage(count: int) -> Stage:
        loss = Eulerian(
            student,
            target,
            interpolant,
            coupling,
            times=Segments(count, times),
            step=step,
            leg=Slide(velocity),
            tangent=velocity,
            velocity=velocity,
            weight=weight,
            guidance=guidance,
        )

        def build(artifacts: Mapping[str, Artifact]) -> Game:
            return Game((student_move(student, loss, after=(Follow(target, student, decay),)),))

        return Stage(f"{count} segment{'s' * (count > 1)}", build)

    return Stages(tuple(stage(count) for count in segments))
