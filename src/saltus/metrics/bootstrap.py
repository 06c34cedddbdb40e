"""How sure a figure is: intervals by resampling its rows, or from several independent values of it.

References:
    Efron, "Bootstrap methods: another look at the jackknife", 1979.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from saltus.streams import Streams

__all__ = ["Interval", "bootstrap", "from_seeds", "resamples"]


class Interval(NamedTuple):
    """Attributes:
    value: of the figure.
    low, high: of the interval.
    """

    value: float
    low: float
    high: float


def _check(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a confidence between 0 and 1, got {level}; 0.95 is usual")


def resamples(count: int, repeats: int, seed: int = 0) -> Tensor:
    """How often each of ``count`` rows is drawn in each repeat of the bootstrap, float64 [repeats, count].

    >>> resamples(5, 3).sum(dim=1)
    tensor([5., 5., 5.], dtype=torch.float64)
    """
    if repeats < 2:
        raise ValueError(f"resamples: expected at least 2, got {repeats}")
    drawn = Streams(seed, index=torch.arange(repeats)).integers("bootstrap", count, count)
    return torch.zeros(repeats, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(1, 1, dtype=torch.float64).expand(repeats, count)
    )


def bootstrap(
    statistic: Callable[[Tensor], Tensor],
    count: int,
    level: float = 0.95,
    repeats: int = 200,
    seed: int = 0,
) -> Interval:
    """The figure of a sample, and an interval for its mean over other samples of this size.

    The interval is value -+ z sd, with sd the standard deviation over resamples and z the normal
    quantile. It is centred at the value: a Frechet distance of resampled rows is larger by about what
    that of the sample is too large already, so quantiles over resamples would miss it. What depends on the
    size of the sample (the bias) is no part of the interval.

    Args:
        statistic: weights of the rows [B, count] -> values [B]; all ones is the sample itself.
        count: rows.
        level: confidence.
        repeats: resamples.
        seed: of the resamples.
    """
    _check(level)
    value = float(statistic(torch.ones(1, count, dtype=torch.float64)).squeeze(0))
    reach = NormalDist().inv_cdf(0.5 + 0.5 * level) * float(statistic(resamples(count, repeats, seed)).std())
    return Interval(value, value - reach, value + reach)


def from_seeds(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of independent values, and Student's interval for what they have in common.

    >>> mean, low, high = from_seeds([1.0, 2.0, 3.0], 0.95)
    >>> mean, round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    _check(level)
    n = len(values)
    if n < 2:
        raise ValueError(f"seeds: expected at least two values, got {n}")
    mean = math.fsum(values) / n
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    reach = _student(0.5 + 0.5 * level, n - 1) * sd / math.sqrt(n)
    return Interval(mean, mean - reach, mean + reach)


def _student(p: float, freedom: int) -> float:
    """The quantile p > 1/2 of Student's t: bisection on its distribution function, by Simpson's rule in the
    angle, where t = sqrt(freedom) tan(angle) has density proportional to cos(angle)^(freedom - 1)."""
    nodes = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64)
    simpson = torch.full_like(nodes, 2.0)
    simpson[1::2], simpson[0], simpson[-1] = 4.0, 1.0, 1.0

    def mass(angle: float) -> float:
        return angle * float((simpson * (angle * nodes).cos().pow(freedom - 1)).sum())

    low, high = 0.0, math.pi / 2
    wanted = (2.0 * p - 1.0) * mass(high)
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if mass(middle) < wanted else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
