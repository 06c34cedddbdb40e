"""Adapter guidance distillation (AGD): the network stays as it is, and small parts beside it learn guidance.

    L = E | u_{t,t}(x_t; c, w) - b^w_t(x_t) |^2,   b^w = b(x) + w (b(x; c) - b(x))

at the states x_t that the guided teacher itself visits on its way from the prior, which are not the
states of data: guidance leads away from them. Each trajectory has one noise, one label and one strength and
takes a step between n jittered nodes 0 = t_0 < t_1 < ... < 1; the velocity that the step needs is the target.
So no data are read, and a row costs the teacher's two calls. The student is its teacher's network in
:class:`saltus.nn.GuidanceAdapters`, of which only the adapters train, about 2 % of the parameters.

Use it where the network is large: the optimiser and the file hold the adapters alone, and taking them out
gives the network back. Groups of n rows share noise and label, so the batch must be a multiple of n.

References:
    Jensen and Sadat, "Efficient distillation of classifier-free guidance using adapters", 2025,
    arXiv 2503.07274. Second-hand: 16 jittered nodes made while training, where the paper stores
    trajectories of all steps; w uniform on [1, 5]; low-rank adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from saltus.games import Game, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Tableau
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal
from saltus.slots import Data
from saltus.times import linear_time
from saltus.trajectories import Nodes, TrajectoryStates, share
from saltus.typing import Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Adapter guidance distillation (AGD)",
    paper="Jensen and Sadat 2025, arXiv 2503.07274",
    needs=frozenset({Need.TEACHER, Need.LABELS}),
    sampler=Sampler.ODE,
    steps=(1, 2, 4, 8, 16, 32, 64),
    two_times=False,
    cost=Cost(live=1.0, teacher=2.0),
    threshold=None,
    quick_threshold=None,
    second_hand=("16 jittered nodes", "w uniform on [1, 5]", "low-rank adapters"),
)


def guidance_adapters(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    time: Callable[[Tensor], Tensor] = linear_time,
    nodes: int = 16,
    tableau: Tableau | None = None,
    weight: Weight = Squared(),
    guidance: GuidanceInput = GuidanceInput(5.0),
) -> Game:
    """Adapter guidance distillation.

    Args:
        student: the flow map whose velocity learns, on a network in :class:`saltus.nn.GuidanceAdapters`;
            whatever in it requires gradients is trained.
        teacher: the velocity on the interpolant's path, which must know labels and their absence.
        interpolant: the path between prior and data.
        time: noise-to-signal ratio -> time of that interpolant.
        nodes: states of one trajectory, and rows that share a noise, a label and a strength.
        tableau: the method of the teacher's steps; None is DDIM, which costs nothing beside the target.
        weight: error -> loss.
        guidance: the law of w.

    A batch without labels is a ValueError at the first step.
    """
    if nodes < 1:
        raise ValueError(f"guidance_adapters: expected at least 1 node, got {nodes}; 16 are usual")
    loss = Diagonal(
        student,
        interpolant=interpolant,
        states=TrajectoryStates(guided(teacher, guidance), nodes, tableau),
        velocity=Data(),
        weight=weight,
        guidance=replace(guidance, group=nodes),
        nodes=Nodes(nodes, 1.0, time),
    )
    return Game((student_move(student, loss),), prepare=partial(share, group=nodes))
