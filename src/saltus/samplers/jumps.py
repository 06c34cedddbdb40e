"""k-step sampling of a flow map: X_{t_{k-1}, t_k} o ... o X_{t_0, t_1}.

Each jump lands on the trajectory of the flow itself, so on an exact map any number of jumps gives
the same result. A map learned for t = 1 alone (a consistency model) cannot be composed:
:func:`saltus.samplers.renoise` samples it.

References:
    Boffi, Albergo and Vanden-Eijnden, "How to build a consistency model: learning flow maps via
    self-distillation", 2025, arXiv 2505.18825.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from saltus.samplers.grids import as_grid
from saltus.samplers.trajectory import Trajectory, fold
from saltus.typing import Condition, FlowMap

__all__ = ["jumps"]


@overload
def jumps(
    flow_map: FlowMap,
    x: Tensor,
    grid: Tensor | int,
    cond: Condition | None = None,
    record: Literal[False] = False,
) -> Tensor: ...
@overload
def jumps(
    flow_map: FlowMap, x: Tensor, grid: Tensor | int, cond: Condition | None = None, *, record: Literal[True]
) -> Trajectory: ...
@torch.no_grad()
def jumps(
    flow_map: FlowMap, x: Tensor, grid: Tensor | int, cond: Condition | None = None, record: bool = False
) -> Tensor | Trajectory:
    """Compose the jumps of a grid, without gradient: k evaluations of the map.

    Args:
        flow_map: X_{s,t}(x).
        x: the state at the grid's first time, [B, ...].
        grid: increasing times [k + 1] or [k + 1, B], or a number of equal steps from 0 to 1.
        cond: passed to every jump.
        record: return the :class:`Trajectory` instead of its end.
    """

    def leg(i: int, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return flow_map(x, s, t, cond)

    return fold(leg, x, as_grid(grid, x), record)
