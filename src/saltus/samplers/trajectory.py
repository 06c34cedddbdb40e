"""The states that a sampler went through, and the fold that every sampler is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Trajectory", "fold"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Attributes:
    times: the grid, [k + 1], or [k + 1, B] where rows have their own.
    states: x at those times, [k + 1, B, ...]; ``states[0]`` is the start.
    """

    times: Tensor
    states: Tensor

    @property
    def end(self) -> Tensor:
        """The last state, [B, ...]: what the sampler returns when it does not record."""
        return self.states[-1]


def fold(
    leg: Callable[[int, Tensor, Tensor, Tensor], Tensor], x: Tensor, grid: Tensor, record: bool
) -> Tensor | Trajectory:
    """Walk the grid: x <- leg(i, x, t_i, t_{i+1}) for each interval i; times are given to the leg as [B]."""
    rows = grid if grid.ndim == 2 else grid.unsqueeze(1).expand(-1, x.shape[0])
    states = [x]
    for i in range(len(rows) - 1):
        x = leg(i, x, rows[i], rows[i + 1])
        if record:
            states.append(x)
    return Trajectory(grid, torch.stack(states)) if record else x
