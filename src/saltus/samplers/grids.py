"""Grids of times for samplers: k + 1 increasing float64 numbers in [0, 1] for k steps.

Samplers take any such tensor; these are the usual ones. A grid in float64 is cast to the dtype of
the state's times when it is used.

References:
    Karras et al., "Elucidating the design space of diffusion-based generative models", 2022,
    arXiv 2206.00364, equation 5 (the grid of noise levels).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.tensors import full_like_rows

__all__ = ["as_grid", "cosine", "karras", "uniform"]


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected an int of at least 1, got {steps!r}; one step goes from 0 to 1")


def uniform(steps: int, start: float = 0.0, end: float = 1.0) -> Tensor:
    """``steps`` equal intervals of [start, end]: [steps + 1].

    >>> uniform(4)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    _check_steps(steps)
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def cosine(steps: int, start: float = 0.0, end: float = 1.0) -> Tensor:
    """(1 - cos(pi i / steps)) / 2 on [start, end]: finer at both ends, where velocities turn fastest.

    >>> cosine(2)
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    return start + (end - start) * (1.0 - torch.cos(math.pi * uniform(steps))) / 2.0


def karras(
    steps: int, interpolant: Interpolant, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """The grid of EDM on any interpolant: sigma_i^(1/rho) is equally spaced from sigma_max to sigma_min.

    The noise level of a time is sigma = alpha_t / beta_t, which falls with t; it is inverted by
    bisection. The two ends are put at 0 and 1, so that the grid starts at the prior and ends at data.

    >>> from saltus.interpolants import Linear
    >>> karras(2, Linear(), rho=1.0)  # sigma = 40.001 in the middle, t = 1 / (1 + sigma)
    tensor([0.0000, 0.0244, 1.0000], dtype=torch.float64)
    """
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(f"karras: expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    high, low = sigma_max ** (1.0 / rho), sigma_min ** (1.0 / rho)
    sigma = (high + uniform(steps) * (low - high)) ** rho
    below, above = torch.zeros_like(sigma), torch.ones_like(sigma)
    for _ in range(60):  # 2^-60 is below the spacing of float64 in [0, 1]
        middle = (below + above) / 2.0
        c = interpolant(middle)
        noisier = c.alpha > sigma * c.beta
        below, above = torch.where(noisier, middle, below), torch.where(noisier, above, middle)
    grid = (below + above) / 2.0
    grid[0], grid[-1] = 0.0, 1.0
    return grid


def as_grid(grid: Tensor | int, x: Tensor, either_way: bool = False) -> Tensor:
    """The grid that a sampler walks from the state x [B, ...], checked and in the dtype of x's times.

    Args:
        grid: times [k + 1], or one grid a row [k + 1, B], or a number of equal steps from 0 to 1.
        x: the state; half-precision states keep float32 times.
        either_way: accept decreasing grids too (integration back to noise).

    Raises:
        ValueError: unless the grid is floating, in [0, 1], and strictly increasing after the cast.
    """
    times = grid if isinstance(grid, Tensor) else uniform(grid)
    if not times.is_floating_point():
        raise ValueError(f"grid: expected floating times, got {times.dtype}; pass an int for equal steps")
    shape = list(times.shape)
    if times.ndim not in (1, 2) or shape[0] < 2 or (times.ndim == 2 and shape[1] != x.shape[0]):
        raise ValueError(
            f"grid: expected [k + 1] times with k >= 1, or one grid a row [k + 1, {x.shape[0]}], got {shape}"
        )
    times = times.to(full_like_rows(0.0, x))
    if not bool(((times >= 0.0) & (times <= 1.0)).all()):
        raise ValueError(
            f"grid: expected times in [0, 1] (0 is noise, 1 is data), got {times.min():g} to {times.max():g}"
        )
    gaps = times.diff(dim=0)
    if bool((gaps > 0).all()) or (either_way and bool((gaps < 0).all())):
        return times
    want = "increasing or strictly decreasing" if either_way else "increasing"
    forward = gaps[0].sign() if either_way else torch.ones_like(gaps[0])
    worst = int((~(gaps * forward > 0)).reshape(len(gaps), -1).any(dim=1).nonzero()[0])
    pair = times[worst : worst + 2].tolist()
    raise ValueError(f"grid: expected strictly {want} times, got {pair} in interval {worst}; sort the grid")
