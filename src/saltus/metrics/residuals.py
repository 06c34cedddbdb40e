"""How far a flow map is from the three identities, over the triangle of times: heat maps.

References:
    Boffi, Albergo and Vanden-Eijnden, 2025, arXiv 2505.18825, proposition 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.identities import eulerian, lagrangian, semigroup
from saltus.metrics.map_error import rmse
from saltus.tensors import full_like_rows
from saltus.typing import Condition, FlowMap, Velocity

__all__ = ["Residuals", "residuals"]


@dataclass(frozen=True, eq=False)
class Residuals:
    """Root mean square residuals at start s = times[i] and end t = times[j], NaN where s > t.

    Attributes:
        times: [k].
        lagrangian: of d_t X_{s,t} = b_t(X_{s,t}), in units of x per unit time, [k, k].
        eulerian: of d_s X_{s,t} + grad X_{s,t} b_s = 0, in units of x per unit time, [k, k].
        semigroup: of X_{m,t}(X_{s,m}) = X_{s,t} with m = (s + t) / 2, in units of x, [k, k].
    """

    times: Tensor
    lagrangian: Tensor
    eulerian: Tensor
    semigroup: Tensor


@torch.no_grad()
def residuals(
    flow_map: FlowMap,
    times: Tensor,
    states: Tensor,
    velocity: Velocity | None = None,
    cond: Condition | None = None,
) -> Residuals:
    """The residuals of a map on all pairs s <= t of some times, on given states.

    The mean is over rows, the square summed over dimensions, as in :func:`saltus.metrics.rmse`.
    On the diagonal the semigroup's vanishes and the other two are the error of u_{t,t} itself.

    Args:
        flow_map: X_{s,t}.
        times: [k], increasing.
        states: where the map is tried at each starting time, [k, B, ...]: points I_s of data paths,
            or a recorded trajectory.
        velocity: b_t; the map's own u_{t,t} by default, which tests whether the map agrees with itself.
        cond: of the B rows.
    """
    if times.ndim != 1 or len(times) != len(states):
        raise ValueError(
            f"residuals: expected times [k] and states [k, B, ...], got shapes {list(times.shape)} "
            f"and {list(states.shape)}; give one batch of states for each time"
        )
    b = flow_map.velocity if velocity is None else velocity
    k = len(times)
    found = torch.full((3, k, k), float("nan"), dtype=torch.float64)
    for i, x in enumerate(states):
        zero = torch.zeros_like(x)
        s = full_like_rows(float(times[i]), x)
        for j in range(i, k):
            t = full_like_rows(float(times[j]), x)
            found[0, i, j] = rmse(lagrangian(flow_map, b, x, s, t, cond), zero)
            found[1, i, j] = rmse(eulerian(flow_map, b, x, s, t, cond), zero)
            found[2, i, j] = rmse(semigroup(flow_map, x, s, torch.lerp(s, t, 0.5), t, cond), zero)
    return Residuals(times, *found)
