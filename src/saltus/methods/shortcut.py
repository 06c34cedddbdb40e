"""Shortcut models: a flow map on a dyadic grid, by making one jump equal to two half jumps.

    L = (1-q) E | u_{t,t}(I_t) - dI_t |^2
      +   q   E | u_{s,t}(I_s) - sg (u'_{s,m}(I_s) + u'_{m,t}(X'_{s,m}(I_s)))/2 |^2,
    t - s = 2^-j,  s a multiple of it,  m the middle

The half jumps are those of a moving average u' of the student. The diagonal stands for the smallest step: its
times lie on the grid of 128 cells, and half jumps of one cell ask u'_{s,s} and u'_{m,m}.

Use it where no derivative can be taken and power-of-two step counts suffice.

References:
    Frans et al., "One step diffusion via shortcut models", 2024, arXiv 2410.12557 (q = 1/8 in the
    code, moving average 0.999, states and targets clipped to +-4 in latent units).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.games import Follow, Game, student_move
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Composition, Diagonal, Part, Sum
from saltus.tensors import like
from saltus.times import Dyadic, Grid, Midpoint
from saltus.typing import Condition, FlowMap, Output
from saltus.weights import Squared, Weight


@dataclass(frozen=True, eq=False)
class Resolved:
    """A flow map whose average velocity over ``least`` or less is that at the start.

    Attributes:
        student: the flow map.
        least: the smallest step that it has learned to tell from none.
    """

    student: FlowMap
    least: float

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """x + (t - s) u_{s,t}(x)."""
        return x + like(t - s, x) * self.average(x, s, t, cond)

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{s,t}(x), or u_{s,s}(x)."""
        return self.evaluate(x, s, t, cond).u

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """b_t(x)."""
        return self.student.velocity(x, t, cond)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x), or u_{s,s}(x), and the second heads there."""
        return self.student.evaluate(x, s, torch.where(t - s > 1.01 * self.least, t, s), cond)


CARD = Card(
    title="Shortcut models",
    paper="Frans et al. 2024, arXiv 2410.12557",
    needs=frozenset({Need.DATA, Need.TARGET}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped=0.25),
    threshold=0.48,
    quick_threshold=0.84,
    bias="half jumps of one cell in 128 are Euler steps",
    plain={"clip": None, "decay": 0.95, "euler": False},
)


def shortcut(
    student: NetworkMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    bootstrap: float = 0.125,
    levels: int = 8,
    euler: bool = True,
    decay: float = 0.999,
    clip: float | None = 4.0,
    weight: Weight = Squared(),
    dropout: LabelDropout | None = None,
) -> Game:
    """Shortcut models.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        bootstrap: the share q of rows that learn from two half jumps.
        levels: jumps have length 2^-j, j < levels - 1; the diagonal is the last level, of 2^(levels - 1)
            cells.
        euler: whether half jumps of one cell are Euler steps, u_{s,s}, as in the paper. If not, the network
            is asked for u_{s,t}, which no row learns there, but whose stationary point is exact.
        decay: of the moving average that makes the half jumps.
        clip: bound on every entry of middle states and targets; None for data of another scale.
        weight: error -> loss.
        dropout: label dropout on the diagonal.
    """
    if levels < 2:
        raise ValueError(f"shortcut: expected at least 2 levels, the diagonal and one of jumps, got {levels}")
    target = deepcopy(student).requires_grad_(False)
    cells = 2 ** (levels - 1)
    smallest = Diagonal(
        student,
        None,
        interpolant,
        coupling,
        times=Grid(cells),
        weight=weight,
        guidance=dropout,
    )
    jump = Composition(
        student,
        Resolved(target, 1.0 / cells) if euler else target,
        interpolant,
        coupling,
        times=Dyadic(levels - 1),
        split=Midpoint(),
        clip=clip,
        weight=weight,
    )
    rest = 1.0 - bootstrap
    loss = Sum((Part("diagonal", smallest, rest, rest), Part("composition", jump, bootstrap, bootstrap)))
    return Game((student_move(student, loss, after=(Follow(target, student, decay),)),))
