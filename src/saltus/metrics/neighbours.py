"""Nearest neighbours: how close samples are to a set, the training set above all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saltus.metrics.pairs import as_points, blocks

__all__ = ["Nearest", "nearest", "radii"]


class Nearest(NamedTuple):
    """Attributes:
    distance: to the nearest point of the set, [n], float64, in units of the samples.
    place: which point that is, int64 [n].
    """

    distance: Tensor
    place: Tensor


def nearest(x: Tensor, among: Tensor) -> Nearest:
    """The nearest of ``among`` [m, ...] to each of x [n, ...], by Euclidean distance.

    Near zero for all of x means copies of the training set; compare with held-out data.

    >>> nearest(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]])).place
    tensor([1])
    """
    x, among = as_points(x, among)
    place = torch.cat([d.argmin(dim=1) for _, d in blocks(x, among)])
    return Nearest((x - among[place]).norm(dim=1), place)  # again, for a copy to be at exactly 0


def radii(x: Tensor, k: int) -> Tensor:
    """The distance of each of x [n, ...] to its k-th nearest other point of x, [n], float64."""
    (x,) = as_points(x)
    if not 1 <= k < len(x):
        raise ValueError(f"k: expected from 1 to {len(x) - 1} for {len(x)} samples, got {k}")
    found = []
    for rows, d in blocks(x, x):
        d.diagonal(offset=rows.start).fill_(float("inf"))
        found.append(d.kthvalue(k, dim=1).values)
    return torch.cat(found)
