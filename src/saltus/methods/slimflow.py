"""SlimFlow: reflow for a small student that does not start from its teacher, then distillation to one jump.

First, flow matching on the teacher's pairs with noise that is fresh at the beginning and the pairs' at last,

    L = E | u_{t,t}(I_t) - (x1 - z_b) |^2,   z_b = sqrt(1 - b^2) x0 + b n,   b = 1 -> 0,

which leads from a flow that any network can learn (independent pairs, b = 1) to the straight one. Then the
student, frozen, is the teacher b' of its own one jump, in two steps of which the first is the jump's own,

    L = E | u_{0,1}(x0) - (x1 - x0) |^2
      + E | u_{0,1}(x0) - sg( m u_{0,1}(x0) + (1 - m) b'_m(x0 + m u_{0,1}(x0)) ) |^2,   m ~ U[0.2, 0.8],

one half of the rows for each. With the ``shape`` of a sample pairs are made once and kept, as in ``reflow``.

Use it to distil into a network smaller than the teacher's, at one step.

References:
    Zhu, Liu and Liu, "SlimFlow: training smaller one-step diffusion models with rectified flow", 2024,
    arXiv 2407.12718 (LPIPS in the distillation is ``weight``). Second-hand: the student's own midpoint,
    from the released code; b falls to 0 at half of the reflow; halves for stages and rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from saltus.curricula import Falling
from saltus.games import Artifact, Freeze, Stage, Stages
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import HEUN, Along, Tableau
from saltus.lessons import FlowPairs, lessons_on_pairs
from saltus.maps import EulerMap, NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Composition, Diagonal, Endpoint, Part, Renewed, Sum
from saltus.slots import Chord
from saltus.times import FromStart, Law, Uniform, UniformSplit
from saltus.typing import FlowMap, Objective, Schedule, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="SlimFlow",
    paper="Zhu, Liu and Liu 2024, arXiv 2407.12718",
    needs=frozenset({Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(1,),
    two_times=False,
    cost=Cost(live=1.0, teacher=64.0),
    threshold=0.21,
    quick_threshold=0.31,
    bias="the flow of the teacher's pairs, straighter than the teacher's own",
    rectifies=True,
    second_hand=("the student's own midpoint", "b = 0 from half of the reflow on", "shares", "65,536 pairs"),
)


def slimflow(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    tableau: Tableau = HEUN,
    solver_steps: int = 32,
    times: Law = Uniform(),
    renewal: Schedule = Falling(0.5),
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
    shape: tuple[int, ...] | None = None,
    pairs: int = 65_536,
    making: float = 0.25,
    distil: float = 0.5,
) -> Stages:
    """SlimFlow: annealing reflow, then flow-guided distillation.

    Args:
        student: the flow map that learns, in the end its X_{0,1}.
        teacher: the velocity on the interpolant's path.
        interpolant: the path between prior and data.
        tableau: the method of the teacher's steps.
        solver_steps: their number, of equal length.
        times: the law of t in the reflow.
        renewal: b as a function of the reflow's progress; it must end at 0.
        weight: error -> loss.
        guidance: learn the guided teacher, its strength an input of the network; pairs are then not kept.
        shape: of one sample, where pairs are to be kept.
        pairs: so many are kept.
        making: the part of the reflow in which pairs are made.
        distil: the part of the steps for the distillation.
    """
    if not 0.0 < distil < 1.0:
        raise ValueError(
            f"slimflow: expected a part of the steps to distil in, above 0 and below 1, got {distil}; reflow "
            "does without"
        )
    end = renewal(torch.ones((), dtype=torch.float64))
    if bool(end != 0.0):
        raise ValueError(
            f"slimflow: expected a renewal of the noise that ends at 0, got {float(end):g}; pairs are lost"
        )
    asked = guided(teacher, guidance)
    made = FlowPairs(asked, interpolant, tableau, solver_steps, shape, pairs, making, guidance)

    def straighten(artifacts: Mapping[str, Artifact]) -> Objective:
        return Renewed(Diagonal(student, interpolant=interpolant, times=times, weight=weight), renewal)

    def jump(artifacts: Mapping[str, Artifact]) -> Objective:
        straight = artifacts.get("straight")
        assert straight is None or isinstance(straight, FlowMap)
        known: Velocity = asked if straight is None else straight.velocity
        one = FromStart(Uniform(1.0, 1.0))
        by_pairs = Endpoint(student, interpolant=interpolant, times=one, weight=weight)
        by_flow = Composition(
            student,
            EulerMap(known),
            interpolant,
            times=one,
            split=UniformSplit(0.2, 0.8),
            leg=Along(Chord(student)),
            weight=weight,
        )
        return Sum((Part("pairs", by_pairs, 0.5, 0.5), Part("flow", by_flow, 0.5, 0.5)))

    return lessons_on_pairs(
        student,
        made,
        Stage("reflow", straighten, 1.0 - distil, {"straight": Freeze(student)}),
        Stage("distil", jump, distil),
    )
