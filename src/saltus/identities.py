"""What a flow map satisfies, as residuals: no stop-gradient, no weight, zero at the exact map.

With X_{s,t}(x) = x + (t - s) u_{s,t}(x) and h = t - s:

    tangent      u_{t,t}(x) - b_t(x)
    Lagrangian   d_t X_{s,t}(x) - b_t(X_{s,t}(x)),        d_t X = u + h d_t u
    Eulerian     d_s X_{s,t}(x) + grad X_{s,t}(x) b_s(x),  = -u + b + h (d_s u + grad u b)
    semigroup    X_{m,t}(X_{s,m}(x)) - X_{s,t}(x)

Any one of the last three, with the first, characterises the flow map of b.

References:
    Boffi, Albergo and Vanden-Eijnden, 2025, arXiv 2505.18825, prop. 2.2;
    the same authors, "Flow map matching", 2024, arXiv 2406.07507.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saltus.autodiff import Derivative, Forward, derivative
from saltus.tensors import like
from saltus.typing import Condition, FlowMap, Velocity

__all__ = ["along", "eulerian", "in_end", "lagrangian", "semigroup", "tangent"]


def in_end(
    flow_map: FlowMap,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    cond: Condition | None = None,
    how: Derivative | None = None,
) -> tuple[Tensor, Tensor]:
    """u_{s,t}(x) and its derivative d_t u in the end time, each [B, ...]."""
    return derivative(
        lambda end: flow_map.average(x, s, end, cond), (t,), (torch.ones_like(t),), how or Forward()
    )


def along(
    flow_map: FlowMap,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    w: Tensor,
    cond: Condition | None = None,
    how: Derivative | None = None,
) -> tuple[Tensor, Tensor]:
    """u_{s,t}(x) and its derivative d_s u + grad u w when the start moves along w [B, ...]."""
    return derivative(
        lambda state, start: flow_map.average(state, start, t, cond),
        (x, s),
        (w, torch.ones_like(s)),
        how or Forward(),
    )


def tangent(
    flow_map: FlowMap, velocity: Velocity, x: Tensor, t: Tensor, cond: Condition | None = None
) -> Tensor:
    """u_{t,t}(x) - b_t(x), [B, ...]."""
    return flow_map.velocity(x, t, cond) - velocity(x, t, cond)


def lagrangian(
    flow_map: FlowMap,
    velocity: Velocity,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    cond: Condition | None = None,
    how: Derivative | None = None,
) -> Tensor:
    """d_t X_{s,t}(x) - b_t(X_{s,t}(x)), [B, ...]: the end of a jump moves with the flow."""
    u, du = in_end(flow_map, x, s, t, cond, how)
    h = like(t - s, x)
    return u + h * du - velocity(x + h * u, t, cond)


def eulerian(
    flow_map: FlowMap,
    velocity: Velocity,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    cond: Condition | None = None,
    how: Derivative | None = None,
) -> Tensor:
    """d_s X_{s,t}(x) + grad X_{s,t}(x) b_s(x), [B, ...]: the end of a jump does not notice that its
    start moves along the flow."""
    b = velocity(x, s, cond)
    u, du = along(flow_map, x, s, t, b, cond, how)
    return b - u + like(t - s, x) * du


def semigroup(
    flow_map: FlowMap, x: Tensor, s: Tensor, m: Tensor, t: Tensor, cond: Condition | None = None
) -> Tensor:
    """X_{m,t}(X_{s,m}(x)) - X_{s,t}(x), [B, ...]: two jumps are one."""
    return flow_map(flow_map(x, s, m, cond), m, t, cond) - flow_map(x, s, t, cond)
