"""Progressive distillation: the number of steps is halved, stage by stage, each student teaching the next.

With n = N/2, N/4, ..., 1 steps of length 1/n, s on the grid of n cells, t = s + 1/n and m the middle,

    L = E w( u_{s,t}(I_s) - sg (u'_{s,m}(I_s) + u'_{m,t}(X'_{s,m}(I_s)))/2 ).

In the first stage X' is one Euler step of the teacher, X'_{s,m}(x) = x + (m-s) b_s(x), which on the linear
interpolant is DDIM's; afterwards it is the student of the stage before, frozen. The paper's w is
"truncated SNR": max(SNR, 1) times the squared error of the data estimate, that x1 which the DDIM step
from x_s to x_t holds fixed. Its error is e h alpha_s/(alpha_s beta_t - alpha_t beta_s), e the error in u, so

    w = max(alpha_s^2, beta_s^2) (h/(alpha_s beta_t - alpha_t beta_s))^2 |e|^2,

which is max(1-s, s)^2 |e|^2 on the linear interpolant. The last student's map is that of the teacher's N
steps at best.

Use it to see what the field began with, or to stop at a few steps, which ``last`` does. Each stage forgets
the longer grids slowly, so sample with ``last`` steps.

References:
    Salimans and Ho, "Progressive distillation for fast sampling of diffusion models", 2022,
    arXiv 2202.00512, algorithm 2 and sec. 4 (twice as long for the stages of 2 steps and of 1). N = 8192
    there on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.games import Artifact, Freeze, Stage, Stages
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.maps import EulerMap, NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Composition
from saltus.times import Cells, Midpoint
from saltus.typing import FlowMap, Objective, Velocity
from saltus.weights import Scaled, Span, Squared, Weight

CARD = Card(
    title="Progressive distillation",
    paper="Salimans and Ho 2022, arXiv 2202.00512",
    needs=frozenset({Need.DATA, Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(1,),
    two_times=False,
    cost=Cost(live=1.0, teacher=2.0),
    threshold=0.33,
    quick_threshold=0.94,
    bias="Euler steps of the teacher in the first stage: O(d) in their length d",
    plain={"weight": Squared()},
    second_hand=("N = 16", "a first stage three times as long"),
)

FIRST = 3.0
"""The share of the first stage: here the student need not start from its teacher."""


def truncated_snr(interpolant: Interpolant) -> Callable[[Span], Tensor]:
    """From the squared error in u to the paper's loss: Span -> [n]; s < t strictly."""

    def factor(span: Span) -> Tensor:
        a, b = interpolant(span.s), interpolant(span.t)
        reach = (span.t - span.s) / (a.alpha * b.beta - b.alpha * a.beta)
        return torch.maximum(a.alpha.square(), a.beta.square()) * reach.square()

    return factor


def progressive(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    cells: int = 16,
    last: int = 1,
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
) -> Stages:
    """Progressive distillation.

    Args:
        student: the flow map that learns; each stage goes on with its weights.
        teacher: the velocity on the interpolant's path.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        cells: the steps N that the teacher takes, a power of two times ``last``.
        last: the steps that the last student takes.
        weight: error -> loss; None is the paper's.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    count = (cells // last).bit_length() - 1 if last >= 1 else 0
    if count < 1 or last << count != cells:
        raise ValueError(
            f"progressive: expected cells to be last times 2, 4, 8, ..., got cells={cells}, last={last}; "
            "the number of steps is halved in every stage"
        )
    start = EulerMap(guided(teacher, guidance))
    loss = Scaled(Squared(), factor=truncated_snr(interpolant)) if weight is None else weight

    def stage(steps: int) -> Stage:
        def build(artifacts: Mapping[str, Artifact]) -> Objective:
            target = artifacts.get("teacher", start)
            assert isinstance(target, FlowMap)
            times, split = Cells(steps), Midpoint()
            return Composition(
                student,
                target,
                interpolant,
                coupling,
                times=times,
                split=split,
                weight=loss,
                guidance=guidance,
            )

        share = FIRST if 2 * steps == cells else 2.0 if steps <= 2 else 1.0
        return Stage(f"{steps} steps", build, share, {"teacher": Freeze(student)})

    return Stages(tuple(stage(last << k) for k in reversed(range(count))))
