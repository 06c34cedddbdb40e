"""Terminal velocity matching: match the velocity at the end of a jump, and the data's on the diagonal.

    L = E | d_t X_{s,t}(I_s) - sg u'_{t,t}(X_{s,t}(I_s)) |^2 + E | u_{r,r}(I_r) - dI_r |^2

The velocity at the end is that of a moving average u' of the student; the gradient passes through the
time derivative. The jump's length t - s is logit-normal and its end t logit-normal among the times after
that; r has that law without the condition. It is Lagrangian self-distillation with both terms on every row
and a lagged end.

Use it like LSD, at twice its cost and with one more copy of the weights.

References:
    Zhou et al., "Terminal velocity matching", 2025, arXiv 2511.19797, and the authors' code
    (decay 0.99; gap logit-normal(-0.8, 1), times logit-normal(-0.4, 1) in their time, where noise is at 1).
    Their scaled parametrisation and guidance input are not built.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.autodiff import Derivative, Forward
from saltus.couplings import Coupling, Independent
from saltus.games import Follow, Game, student_move
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Lagrangian, Part, Sum
from saltus.streams import Streams
from saltus.times import Law, LogitNormal, PairLaw, Triangle, Uniform
from saltus.weights import Squared, Weight

CARD = Card(
    title="Terminal velocity matching (TVM)",
    paper="Zhou et al. 2025, arXiv 2511.19797",
    needs=frozenset({Need.DATA, Need.JVP, Need.TARGET}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, live_jvp=1.0, stopped=1.0),
    threshold=0.40,
    quick_threshold=0.71,
    plain={"pairs": Triangle(), "times": Uniform()},
)


@dataclass(frozen=True)
class EndAfterGap:
    """t - s ~ gap, and t logit-normal conditioned on t > t - s, so that s is after the prior."""

    gap: Law
    mean: float
    std: float

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        gap = self.gap(rng.uniform("gap"))
        below = torch.special.ndtr((torch.logit(gap) - self.mean) / self.std)
        t = LogitNormal(self.mean, self.std)(torch.lerp(below, torch.ones_like(below), rng.uniform("t")))
        return (t - gap).clamp(min=0.0), torch.maximum(t, gap)


def tvm(
    student: NetworkMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    pairs: PairLaw = EndAfterGap(LogitNormal(-0.8, 1.0), 0.4, 1.0),
    times: Law = LogitNormal(0.4, 1.0),
    decay: float = 0.99,
    near: Derivative = Forward(),
    weight: Weight = Squared(),
    dropout: LabelDropout | None = None,
) -> Game:
    """Terminal velocity matching.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        pairs: the law of (s, t) of a jump.
        times: the law of r.
        decay: of the moving average that gives the velocity at the end.
        near: how the derivative in time is taken.
        weight: error -> loss.
        dropout: label dropout on the diagonal.
    """
    target = deepcopy(student).requires_grad_(False)
    start = Diagonal(student, None, interpolant, coupling, times=times, weight=weight, guidance=dropout)
    end = Lagrangian(student, target, interpolant, coupling, times=pairs, near=near, weight=weight)
    loss = Sum((Part("diagonal", start), Part("lagrangian", end)))
    return Game((student_move(student, loss, after=(Follow(target, student, decay),)),))
