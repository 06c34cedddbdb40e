"""Trajectory-backward consistency models (TBCM): sCM distilled at the states of the teacher's own
trajectories.

From each x0 the teacher takes one DDIM step between n jittered nodes 0 = s_0 < s_1 < ... < 1, and every
state that it visits is a row. The velocity that the step needed is the tangent, so a row costs one call
of the teacher. With e the Eulerian error of u_{s,1} along it and a = atan(alpha_s/beta_s) the angle of
the noise, the loss is that of sCM (``scm``), written for any interpolant by
:class:`saltus.tangents.AngleTangents`:

    L = E exp(-w) (1/tan a) | n(cos(a) |ds/da| e) + F - sg F |^2 + w.

Its weight is 0 at s = 0, so with it the first node is only where the walk begins; with another weight the
row learns.

Use it where there is a teacher and no data, and one step is wanted. Several steps re-noise; never
compose jumps. A group of n rows shares its noise and its condition, so the batch must be a multiple of n.

References:
    Tang et al., "Image-free timestep distillation via continuous-time consistency with
    trajectory-sampled pairs", 2025, arXiv 2511.20410 (16 nodes, shift 2.5).
    Lu and Song, 2024, arXiv 2410.11081 (the loss, c = 0.1). Second-hand: the jitter within half a cell; the
    warm-up as a tenth of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from saltus.autodiff import Derivative, TwoPass
from saltus.games import Game, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Tableau
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.slots import Data
from saltus.tangents import simplified
from saltus.times import Ramp, linear_time
from saltus.trajectories import Nodes, TrajectoryStates, share
from saltus.typing import Schedule, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Trajectory-backward consistency models (TBCM)",
    paper="Tang et al. 2025, arXiv 2511.20410",
    needs=frozenset({Need.TEACHER, Need.JVP}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=1.0, stopped_jvp=1.0, teacher=1.0),
    threshold=0.28,
    quick_threshold=1.29,
    plain={"weight": Squared(), "warm_up": None, "shift": 1.0},
    second_hand=("the jitter", "length of the warm-up as a share of the run"),
)


def tbcm(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    time: Callable[[Tensor], Tensor] = linear_time,
    nodes: int = 16,
    shift: float = 2.5,
    tableau: Tableau | None = None,
    near: Derivative = TwoPass(),
    warm_up: Schedule | None = Ramp(0.1),
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
) -> Game:
    """Trajectory-backward consistency distillation.

    Args:
        student: the flow map of which X_{s,1} learns.
        teacher: its velocity on this interpolant.
        interpolant: the path between prior and data.
        time: noise-to-signal ratio -> time of that interpolant.
        nodes: states of one trajectory, and rows that share a noise and a condition.
        shift: of the nodes towards the noise; 1 spaces them evenly.
        tableau: the method of the teacher's steps; None is DDIM, which costs nothing beside the tangent.
        near: how the derivative is taken; it carries no gradient.
        warm_up: the factor on the derivative; None for 1.
        weight: error -> loss; None is the paper's, whose log-variance learns beside the student.
        guidance: learn the map of the guided teacher, its strength an input of the network; each trajectory
            has one.
    """
    if nodes < 1 or not 0.0 < shift < math.inf:
        raise ValueError(f"tbcm: expected at least 1 node and a shift above 0, got {nodes} and {shift}")
    if weight is None:
        weight = simplified(interpolant, next(student.parameters()).device)
    loss = Eulerian(
        student,
        interpolant=interpolant,
        states=TrajectoryStates(guided(teacher, guidance), nodes, tableau),
        times=Nodes(nodes, shift, time),
        near=near,
        tangent=Data(),
        velocity=Data(),
        warm_up=warm_up,
        weight=weight,
        guidance=None if guidance is None else replace(guidance, group=nodes),
    )
    return Game((student_move(student, loss),), prepare=partial(share, group=nodes))
