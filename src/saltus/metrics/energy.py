"""The energy distance of two samples.

References:
    Szekely and Rizzo, "Energy statistics: a class of statistics based on distances", 2013.
"""

from __future__ import annotations

from torch import Tensor

from saltus.metrics.pairs import as_points, mean_over_pairs

__all__ = ["energy_distance"]


def energy_distance(x: Tensor, y: Tensor, unbiased: bool = True) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'|, in units of x; zero only for equal laws. 0-d, float64.

    Some authors take its root. On the line it is 2 int (F - G)^2 for the distribution functions.

    Args:
        x, y: samples [n, ...] and [m, ...].
        unbiased: leave out the pairs of a point with itself, so that the mean over samples is the
            distance of the laws (it may be negative); otherwise the V-statistic, which is the
            distance of the two empirical laws, never negative, and too large by
            E|x - x'| / n + E|y - y'| / m on average.

    >>> import torch
    >>> energy_distance(torch.zeros(2, 1), torch.ones(3, 1))
    tensor(2., dtype=torch.float64)
    """
    x, y = as_points(x, y, least=2)
    across, within, other = (mean_over_pairs(lambda d: d, *p) for p in ((x, y), (x,), (y,)))
    if not unbiased:
        within, other = within * (len(x) - 1) / len(x), other * (len(y) - 1) / len(y)
    return 2.0 * across - within - other
