"""Two samples as matrices, and sums over their pairs that never hold all pairs at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["as_points", "blocks", "distances", "mean_over_pairs"]

_EXACT_DIM = 32  # above it, distances by a matrix product are faster by more than their rounding costs


def as_points(*samples: Tensor, least: int = 1) -> tuple[Tensor, ...]:
    """Samples [n, ...] as points [n, D] in float64, checked to be finite and of one dimension D.

    Raises:
        ValueError: for fewer than ``least`` rows, different shapes of one sample, or NaN.
    """
    first = samples[0]
    for i, x in enumerate(samples):
        if x.ndim < 2 or x.shape[0] < least or x.shape[1:] != first.shape[1:] or x.numel() == 0:
            raise ValueError(
                f"sample {i}: expected at least {least} rows of shape {list(first.shape[1:])}, "
                f"got shape {list(x.shape)}; pass [n, ...] with one row a sample"
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"sample {i}: expected finite numbers, got NaN or infinity; drop those rows")
    return tuple(x.detach().reshape(x.shape[0], -1).double() for x in samples)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances of points x [n, D] and y [m, D]: [n, m], exact to rounding in low dimension.

    >>> distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([[5.]])
    """
    if x.shape[1] <= _EXACT_DIM:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")


def blocks(x: Tensor, y: Tensor, chunk: int = 1024) -> Iterator[tuple[slice, Tensor]]:
    """The distances of x to all of y, ``chunk`` rows at a time: (rows, [rows, m])."""
    for start in range(0, len(x), chunk):
        rows = slice(start, min(start + chunk, len(x)))
        yield rows, distances(x[rows], y)


def mean_over_pairs(
    f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor | None = None, chunk: int = 1024
) -> Tensor:
    """The mean of f(|x_i - y_j|) over all pairs; without y, of f(|x_i - x_j|) over pairs i != j.

    >>> mean_over_pairs(torch.square, torch.tensor([[0.0], [1.0], [3.0]]))  # (1 + 9 + 4) / 3
    tensor(4.6667, dtype=torch.float64)
    """
    other = x if y is None else y
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows, d in blocks(x, other, chunk):
        values = f(d).double()
        if y is None:
            values.diagonal(offset=rows.start).zero_()
        total += values.sum()
    return total / (len(x) * (len(other) - int(y is None)))
