"""The kernel distance of two samples in a feature space.

References:
    Binkowski, Sutherland, Arbel and Gretton, "Demystifying MMD GANs", 2018, arXiv 1801.01401.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saltus.metrics.pairs import as_points
from saltus.streams import Streams

__all__ = ["KID", "kernel_mean", "kid", "kid_by_subsets"]

CHUNK = 2048


class KID(NamedTuple):
    """Attributes:
    value: the mean over subsets.
    spread: their standard deviation, which is that of one subset and not an error of the mean.
    """

    value: float
    spread: float


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    k = torch.addmm(x.new_ones(()), x, y.T, alpha=1.0 / x.shape[1])
    return k * k * k


def _chunks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(x), CHUNK):
        rows = slice(start, min(start + CHUNK, len(x)))
        yield rows, _kernel(x[rows], y)


def _across(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Weighted mean of k(x_i, y_j) over all pairs, for every row of weights w [B, n]: [B]."""
    total = w.new_zeros(len(w))
    for rows, k in _chunks(x, y):
        total += w[:, rows] @ k.mean(dim=1)
    return total / w.sum(dim=1)


def _within(x: Tensor, w: Tensor) -> Tensor:
    """Weighted mean of k(x_i, x_j) over pairs i != j, for every row of weights w [B, n]: [B]."""
    total = w.new_zeros(len(w))
    for rows, k in _chunks(x, x):
        k.diagonal(offset=rows.start).zero_()
        total += ((w[:, rows] @ k) * w).sum(dim=1)
    return total / (w.sum(dim=1).square() - w.square().sum(dim=1))


def kernel_mean(y: Tensor) -> Tensor:
    """The part of :func:`kid` that is y's alone, the mean of k over its pairs, 0-d: the same for every x."""
    (y,) = as_points(y, least=2)
    return _within(y, y.new_ones(1, len(y))).squeeze(0)


def kid(x: Tensor, y: Tensor, weights: Tensor | None = None, own: Tensor | None = None) -> Tensor:
    """The unbiased squared discrepancy of two samples of features under k(a, b) = (a.b / D + 1)^3.

    Over all pairs of different rows, a chunk at a time: it does not depend on their order, its mean over
    samples is the discrepancy of the laws at every size, and for equal laws it is as often negative as not.

    Args:
        x, y: features [n, D] and [m, D], at least two rows each.
        weights: of the rows of x, [B, n]; gives [B] values in place of one. A row may count several times
            but makes no pair with itself, so resampled rows leave the value unbiased.
        own: the :func:`kernel_mean` of y, if it is known already.

    Returns:
        0-d, or [B], float64.

    >>> float(kid(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [1.0]])))  # 1 + 8 - 2 (1 + 8) / 2
    0.0
    """
    x, y = as_points(x, y, least=2)
    w = x.new_ones(1, len(x)) if weights is None else weights.to(x)
    own = kernel_mean(y) if own is None else own
    found = _within(x, w) + own - 2.0 * _across(x, y, w)
    return found.squeeze(0) if weights is None else found


def kid_by_subsets(x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> KID:
    """The same as tables print it: over so many pairs of random subsets, which costs less for large samples.

    Args:
        x, y: features [n, D] and [m, D], at least ``size`` rows each.
        subsets, size: the paper's.
        seed: of the subsets, each without repetition.
    """
    if not 2 <= size <= min(len(x), len(y)) or subsets < 2:
        raise ValueError(
            f"KID: expected at least 2 subsets of 2 to {min(len(x), len(y))} rows, got {subsets} of {size}"
        )
    found = []
    for k in range(subsets):
        one, two = (Streams(seed, step=k, index=torch.arange(len(z))) for z in (x, y))
        rows = one.permutation("x")[:size], two.permutation("y")[:size]
        found.append(kid(x[rows[0].to(x.device)], y[rows[1].to(y.device)]))
    values = torch.stack(found)
    return KID(float(values.mean()), float(values.std()))
