"""The squared maximum mean discrepancy of two samples.

References:
    Gretton, Borgwardt, Rasch, Schoelkopf and Smola, "A kernel two-sample test", 2012, JMLR 13.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from saltus.metrics.pairs import as_points, distances, mean_over_pairs
from saltus.radial import RBF, Laplace

__all__ = ["RBF", "Laplace", "mmd", "scaled"]


_RBF = RBF()


def scaled(y: Tensor, factors: tuple[float, ...] = (0.5, 1.0, 2.0)) -> tuple[float, ...]:
    """Bandwidths as multiples of the median distance of pairs of y [m, ...] (its first 1,000 rows)."""
    (points,) = as_points(y[:1000], least=2)
    row, column = torch.triu_indices(len(points), len(points), offset=1)
    median = float(distances(points, points)[row, column].median())
    return tuple(f * median for f in factors)


def mmd(
    x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor] = _RBF, unbiased: bool = True
) -> Tensor:
    """E k(x, x') + E k(y, y') - 2 E k(x, y): the *squared* discrepancy, 0-d, float64.

    Args:
        x, y: samples [n, ...] and [m, ...].
        kernel: distances -> kernel values, elementwise; :func:`scaled` gives bandwidths from data.
        unbiased: leave out the pairs of a point with itself (the value may be negative); otherwise
            the V-statistic, never negative.

    >>> float(mmd(torch.zeros(2, 1), torch.full((2, 1), 100.0)))  # two laws far apart: 1 + 1 - 0
    2.0
    """
    x, y = as_points(x, y, least=2)
    across, within, other = (mean_over_pairs(kernel, *p) for p in ((x, y), (x,), (y,)))
    if not unbiased:
        itself = kernel(torch.zeros(1, dtype=x.dtype, device=x.device)).double().squeeze()
        within = within + (itself - within) / len(x)
        other = other + (itself - other) / len(y)
    return within + other - 2.0 * across
