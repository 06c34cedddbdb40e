"""Flows of several resolutions: the time axis in stages, the first ones coarse, with a rise in between.

Stage i of K owns the times [i/K, (i+1)/K] and the resolution of blocks of b_i cells a side, b_0 >= ... >= 1.
Let P_i replace every block by its mean, V_i be the number of cells of a block, x0 the prior's noise at full
resolution and n_i = sqrt(V_i) P_i x0, which is standard noise of the coarse resolution. Then

    start_i = a_i P_{i-1} x1 + (1 - a_i) n_i,    end_i = c_i P_i x1 + (1 - c_i) n_i,    a_i = i/K,

and within the stage the path is the line from the one to the other. What is finer than the stage plays no
part yet: the state carries it along as the noise (1 - P_i) x0, so that all states have one shape. From the
end y of one stage to the start of the next leads the rise: coarse levels shrink by a/c, and the finer
level's noise, carried along so far, enters in proportion,

    start_i = (a_i/c_{i-1}) P_{i-1} y + (1 - a_i) sqrt(V_i) (P_i - P_{i-1}) y + (1 - P_i) y.

It is linear, needs no fresh noise, and is exact for c_{i-1} = r a_i/(1 - a_i + r a_i), r^2 = V_{i-1}/V_i; the
last c is 1. With blocks all alike it does nothing, and the path is the linear interpolant. So a sample is a
function of x0: K jumps, each a rise and a flow, and the last one ends at the data.

References:
    Jin et al., "Pyramidal flow matching for efficient video generative modeling", 2024, arXiv 2410.05954: in
    two dimensions and with blocks that halve, c = 2 a/(1 + a), and the noise that they draw anew, whose
    correlation in a block is -1/3, has the law of (1 - P) x0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.legs import RALSTON3, Along, Tableau
from saltus.slots import Own, Slot
from saltus.states import State
from saltus.tensors import like
from saltus.typing import Batch, Condition, FlowMap

__all__ = ["Climb", "EdgeStates", "Pyramid", "PyramidStates"]


@dataclass(frozen=True)
class Pyramid:
    """Stages and their resolutions.

    Rows [B, D] and [B, C, L] have blocks along their last axis, rows [B, C, H, W] along their last two.

    Attributes:
        blocks: the cells of a block a side, for each stage: (4, 2, 1) begins at a quarter of the resolution.

    >>> Pyramid((2, 1)).rise(torch.tensor([[1.0, -1.0], [1.0, 3.0]]), torch.tensor([0.0, 0.5]))
    tensor([[ 1.0000, -1.0000],
            [ 1.2071,  2.2071]])
    """

    blocks: tuple[int, ...] = (2, 1)

    def __post_init__(self) -> None:
        b = self.blocks
        if not b or b[-1] != 1 or any(i < 1 or j < 1 or i % j for i, j in zip(b, b[1:], strict=False)):
            raise ValueError(
                f"pyramid: expected block sizes that end at 1, each a multiple of the next, got {b}; "
                "(4, 2, 1), say"
            )

    def levels(self, x: Tensor) -> tuple[Tensor, ...]:
        """P_0 x and (P_i - P_{i-1}) x for the stages after the first; they add to x."""
        means = [self._mean(x, b) for b in self.blocks]
        return (means[0], *(b - a for a, b in zip(means, means[1:], strict=False)))

    def ends(self, stage: int, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """start and end of a stage for the pair (x0, x1), with what is finer carried along."""
        noise, data = self.levels(x0), self.levels(x1)
        a, c, scale = self._start(stage), self._end(stage, x0), self._scale(stage, x0)
        start, end = torch.zeros_like(x0), torch.zeros_like(x0)
        for j, (n, d) in enumerate(zip(noise, data, strict=True)):
            if j > stage:
                start, end = start + n, end + n
                continue
            start = start + (1.0 - a) * scale * n + (a * d if j < stage else 0.0)
            end = end + (1.0 - c) * scale * n + c * d
        return start, end

    def rise(self, y: Tensor, s: Tensor) -> Tensor:
        """From the state y at an edge s [B], where one stage has ended, to where the next one starts; at
        s = 0 from the prior's noise."""
        found = torch.zeros_like(y)
        stage = torch.round(s * len(self.blocks))
        for i in range(len(self.blocks)):
            a = self._start(i)
            kept = a / self._end(i - 1, y) if i else 1.0
            risen = torch.zeros_like(y)
            for j, level in enumerate(self.levels(y)):
                new = (1.0 - a) * self._scale(i, y)
                risen = risen + (kept if j < i else new if j == i else 1.0) * level
            found = torch.where(like(stage == i, y), risen, found)
        return found

    def _start(self, stage: int) -> float:
        """a."""
        return stage / len(self.blocks)

    def _end(self, stage: int, x: Tensor) -> float:
        """c."""
        if stage + 1 == len(self.blocks):
            return 1.0
        a, r = self._start(stage + 1), self._scale(stage, x) / self._scale(stage + 1, x)
        return r * a / (1.0 - a + r * a)

    def _scale(self, stage: int, x: Tensor) -> float:
        """sqrt(V): the standard deviation that a block's mean has lost."""
        return math.sqrt(self.blocks[stage] ** len(self._axes(x)))

    def _axes(self, x: Tensor) -> tuple[int, ...]:
        return (2, 3) if x.ndim == 4 else (x.ndim - 1,)

    def _mean(self, x: Tensor, block: int) -> Tensor:
        """P x."""
        for axis in self._axes(x):
            if x.shape[axis] % block:
                raise ValueError(
                    f"pyramid: expected axis {axis} to be a multiple of {block}, got shape {list(x.shape)}; "
                    "take smaller blocks"
                )
            cut = torch.unflatten(x, axis, (-1, block))
            x = cut.mean(axis + 1, keepdim=True).expand_as(cut).flatten(axis, axis + 1)
        return x


@dataclass(frozen=True)
class PyramidStates:
    """States on the paths of pairs within the stages, and their velocity: what a velocity of all stages
    learns from (:class:`saltus.objectives.Diagonal`). A time at an edge belongs to the later stage.

    Attributes:
        pyramid: the stages; the interpolant that an objective gives is not asked.
    """

    pyramid: Pyramid

    def __call__(self, batch: Batch, interpolant: Interpolant, s: Tensor, order: Tensor | None) -> State:
        x0, x1 = batch.x0 if order is None else batch.x0[order], batch.data()
        count = len(self.pyramid.blocks)
        stage = torch.floor(s * count).clamp(max=count - 1.0)
        x, velocity = torch.zeros_like(x1), torch.zeros_like(x1)
        for i in range(count):
            start, end = self.pyramid.ends(i, x0, x1)
            here = like(stage == i, x)
            x = torch.where(here, torch.lerp(start, end, like(s * count - i, start)), x)
            velocity = torch.where(here, count * (end - start), velocity)
        return State(x, velocity)


@dataclass(frozen=True)
class EdgeStates:
    """States at the edges: x0 at s = 0, the end of the stage before at s = i/K, before the rise.

    Attributes:
        pyramid: the stages.
    """

    pyramid: Pyramid

    def __call__(self, batch: Batch, interpolant: Interpolant, s: Tensor, order: Tensor | None) -> State:
        x0, x1 = batch.x0 if order is None else batch.x0[order], batch.data()
        edge = torch.round(s * len(self.pyramid.blocks))
        x = x0
        for i in range(1, len(self.pyramid.blocks)):
            x = torch.where(like(edge == i, x), self.pyramid.ends(i - 1, x0, x1)[1], x)
        return State(x)


@dataclass(frozen=True, eq=False)
class Climb:
    """A leg over a whole stage: the rise at its edge, then equal Runge-Kutta steps along a velocity.

    No stage of the default tableau is at the end, where a velocity would be that of the next stage.

    Attributes:
        pyramid: the stages.
        velocity: who supplies it; it must be that of the pyramid's path.
        tableau: the method of a step.
        steps: their number.
    """

    pyramid: Pyramid
    velocity: Slot = Own()
    tableau: Tableau = RALSTON3
    steps: int = 4

    def __call__(
        self,
        own: FlowMap,
        state: State,
        interpolant: Interpolant,
        s: Tensor,
        m: Tensor,
        cond: Condition | None,
    ) -> Tensor:
        start = State(self.pyramid.rise(state.x, s))
        return Along(self.velocity, self.tableau, self.steps)(own, start, interpolant, s, m, cond)
