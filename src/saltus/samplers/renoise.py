"""Stochastic multistep sampling of a flow map: jump ahead towards data, re-noise back to the grid.

With m = t + gamma (1 - t), one step from s to the next grid time t is

    y = X_{s,m}(x_s),    x_t = (beta_t / beta_m) y + sqrt(alpha_t^2 - (beta_t alpha_m / beta_m)^2) z,

z ~ N(0, I). If y has the law of I_m = alpha_m x0 + beta_m x1 with x0 normal and independent of x1,
x_t has the law of I_t. gamma = 1 jumps to t = 1 each time, which is all that a consistency model
can do; gamma = 0 adds no noise and is :func:`saltus.samplers.jumps`; between them, fresh noise
corrects some of the errors that a two-time map accumulates.

References:
    Song et al., "Consistency models", 2023, arXiv 2303.01469, algorithm 1 (gamma = 1).
    Kim et al., "Consistency trajectory models", 2023, arXiv 2310.02279 (gamma sampling, with the
    intermediate noise level sqrt(1 - gamma^2) sigma_t in place of the intermediate time).
    Zheng et al., "Trajectory consistency distillation", 2024, arXiv 2402.19159 (the time
    (1 - gamma) t, with t = 0 at data, which is m here).
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.samplers.grids import as_grid
from saltus.samplers.trajectory import Trajectory, fold
from saltus.streams import Streams
from saltus.tensors import like
from saltus.typing import Condition, FlowMap

__all__ = ["renoise"]


@overload
def renoise(
    flow_map: FlowMap,
    x: Tensor,
    grid: Tensor | int,
    interpolant: Interpolant,
    rng: Streams,
    gamma: float = 1.0,
    cond: Condition | None = None,
    record: Literal[False] = False,
) -> Tensor: ...
@overload
def renoise(
    flow_map: FlowMap,
    x: Tensor,
    grid: Tensor | int,
    interpolant: Interpolant,
    rng: Streams,
    gamma: float = 1.0,
    cond: Condition | None = None,
    *,
    record: Literal[True],
) -> Trajectory: ...
@torch.no_grad()
def renoise(
    flow_map: FlowMap,
    x: Tensor,
    grid: Tensor | int,
    interpolant: Interpolant,
    rng: Streams,
    gamma: float = 1.0,
    cond: Condition | None = None,
    record: bool = False,
) -> Tensor | Trajectory:
    """Jump ahead and re-noise along a grid, without gradient: k evaluations of the map for k steps.

    On a grid that ends at 1 the last step adds no noise.

    Args:
        flow_map: X_{s,t}(x); with gamma = 1 only t = 1 is asked of it.
        x: the state at the grid's first time, [B, ...].
        grid: increasing times [k + 1] or [k + 1, B], or a number of equal steps from 0 to 1.
        interpolant: whose law of I_t the re-noising restores; x0 must be a standard normal.
        rng: noise of the B samples, so that a sample does not depend on its batch.
        gamma: how far ahead of the grid to jump, from 0 (not at all) to 1 (to the data).
        cond: passed to every jump.
        record: return the :class:`Trajectory` (after re-noising) instead of its end.
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma: expected a number in [0, 1], got {gamma}; 1 re-noises from the data")
    if len(rng.index) != x.shape[0]:
        raise ValueError(f"rng: expected {x.shape[0]} rows like x, got {len(rng.index)}; use rng.rows(index)")

    def leg(i: int, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        m = torch.lerp(t, torch.ones_like(t), gamma)  # exactly 1 at gamma = 1, exactly t at gamma = 0
        y = flow_map(x, s, m, cond)
        near, far = interpolant(t), interpolant(m)
        keep = near.beta / far.beta
        fresh = torch.sqrt((near.alpha**2 - (keep * far.alpha) ** 2).clamp(min=0.0))
        z = rng.normal_like(f"renoise/{i}", x).to(x)
        return (like(keep, x) * y + like(fresh, x) * z).to(x.dtype)

    return fold(leg, x, as_grid(grid, x), record)
