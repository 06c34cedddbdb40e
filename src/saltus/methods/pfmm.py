"""Progressive flow map matching: jumps grow twice as long, stage by stage, each student teaching the next.

    L = E | X_{s,t}(I_s) - X'_{m,t}(X'_{s,m}(I_s)) |^2 / (t-s)^2,   t - s <= 2 tau,  m the middle

X' is a map that holds for jumps of at most tau. It begins as one Euler step of the teacher,
X'_{s,t}(x) = x + (t-s) b_s(x), with tau = 1/cells; after each stage it is the student, frozen, and tau
has doubled. Divided by (t-s)^2 the loss is one of average velocities. It is progressive distillation
off the grid: s is any time, and every shorter jump is learned in every stage.

With ``own``, eq. (31), the student itself, stopped, is X' after the first stage, and half of the rows go
on with the first stage's loss: alone, a map that composes itself is held by nothing and drifts without
bound. On the reference mixture this halves the error at four steps, so it is the default.

Use it for a map of any number of steps where neither the student nor the teacher can be differentiated.
The last map is that of the teacher's Euler steps of length 1/cells at best.

References:
    Boffi, Albergo and Vanden-Eijnden, "How to build a consistency model: learning flow maps via
    self-distillation", 2025, arXiv 2505.18825, eqs. (30), (31); "Flow map matching", 2024,
    arXiv 2406.07507. Second-hand: the middle as the split, 16 cells, the lengths of the stages; in (31)
    the rows that hold the student, and tau doubling by stages where the paper lets it grow smoothly.
"""

from __future__ import annotations

from collections.abc import Mapping

from saltus.couplings import Coupling, Independent
from saltus.games import Artifact, Freeze, Stage, Stages
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.maps import EulerMap, NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Composition, Part, Sum
from saltus.times import Midpoint, Restricted
from saltus.typing import FlowMap, Objective, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Progressive flow map matching (PFMM)",
    paper="Boffi, Albergo and Vanden-Eijnden 2025, arXiv 2505.18825",
    needs=frozenset({Need.DATA, Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, teacher=2.0),
    threshold=0.45,
    quick_threshold=0.61,
    bias="Euler steps of the teacher in the first stage: O(d) in their length d",
    second_hand=("m the middle", "16 cells", "lengths of the stages", "form of (31)"),
)

def pfmm(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    cells: int = 16,
    own: bool = True,
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
) -> Stages:
    """Progressive flow map matching.

    Args:
        student: the flow map that learns; each stage goes on with its weights.
        teacher: the velocity on the interpolant's path.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        cells: one over the length of the teacher's first steps, a power of two.
        own: whether later stages ask the student as it is, beside the teacher, instead of a frozen copy.
        weight: error -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    count = cells.bit_length() - 1
    if count < 1 or 1 << count != cells:
        raise ValueError(f"pfmm: expected a number of cells in 2, 4, 8, ..., got {cells}; tau doubles to 1/2")
    start = EulerMap(guided(teacher, guidance))

    def jump(k: int, target: FlowMap | None) -> Composition:
        return Composition(
            student,
            target,
            interpolant,
            coupling,
            times=Restricted((1 << k) / cells),
            split=Midpoint(),
            weight=weight,
            guidance=guidance,
        )

    def stage(k: int) -> Stage:
        def build(artifacts: Mapping[str, Artifact]) -> Objective:
            if own and k > 1:
                return Sum((Part("start", jump(1, start), 0.5, 0.5), Part("grown", jump(k, None), 0.5, 0.5)))
            target = artifacts.get("teacher", start)
            assert isinstance(target, FlowMap)
            return jump(k, target)

        return Stage(f"span {1 << k}/{cells}", build, produce={} if own else {"teacher": Freeze(student)})

    return Stages(tuple(stage(k) for k in range(1, count + 1)))
