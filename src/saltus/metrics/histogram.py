"""The Kullback-Leibler divergence of a target from the histogram of a sample, on the plane.

The protocol of the checkerboard tables: 64,000 samples, 50 x 50 equal bins on [-1, 1]^2, and the
target's bin masses by quadrature of its density.

References:
    Boffi, Albergo and Vanden-Eijnden, 2025, arXiv 2505.18825, table 1. The paper does not say what it
    does with bins that no sample fell into, nor with samples outside; here both are stated below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saltus.metrics.pairs import as_points

__all__ = ["HistogramKL", "bin_masses", "histogram_kl"]


class HistogramKL(NamedTuple):
    """A divergence and what is needed to read it.

    Attributes:
        value: the divergence in nats, 0-d float64.
        floor: what perfect samples would give on average with as many samples, to leading order:
            (number of bins with mass - 1) / (2 n). Differences below it mean nothing.
        empty: how many bins with mass no sample fell into.
        outside: the fraction of samples outside the box.
    """

    value: Tensor
    floor: float
    empty: int
    outside: float


def bin_masses(
    density: Callable[[Tensor], Tensor], bins: int = 50, low: float = -1.0, high: float = 1.0, nodes: int = 8
) -> Tensor:
    """The mass of a density on the plane in each bin of [low, high]^2, [bins, bins], float64.

    Gauss-Legendre quadrature with ``nodes`` x ``nodes`` points a bin. An even number keeps points
    off the middle of a bin and shares them evenly about it, so a density that jumps on edges or
    middles of bins, as the checkerboard's does, is integrated exactly.

    Args:
        density: points [n, 2] in float64 -> densities [n].
        bins: a side.
        low, high: the box.
        nodes: a side of one bin.

    >>> bin_masses(lambda x: torch.full((len(x),), 0.25), bins=2)
    tensor([[0.2500, 0.2500],
            [0.2500, 0.2500]], dtype=torch.float64)
    """
    place, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
    side = (high - low) / bins
    centre = low + side * (torch.arange(bins, dtype=torch.float64) + 0.5)
    axis = (centre.unsqueeze(1) + 0.5 * side * place).flatten()
    x = torch.cartesian_prod(axis, axis)
    value = density(x).double().reshape(bins, nodes, bins, nodes)
    return torch.einsum("aibj,i,j->ab", value, weight, weight) * (side / 2.0) ** 2


def histogram_kl(
    x: Tensor, masses: Tensor, low: float = -1.0, high: float = 1.0, empty: float = 0.5
) -> HistogramKL:
    """sum over bins of p log(p / q), with p the target's masses and q = (samples in the bin) / n.

    * A bin with p = 0 adds nothing; samples in it count only through what they take from others.
    * A bin with p > 0 and no sample counts as ``empty`` of a sample (by default one half), where the
      divergence itself would be infinite. Bins that hold samples are not smoothed.
    * Everything outside the box is one bin more, of target mass 1 - sum(masses); n counts all samples.

    Args:
        x: samples of the plane, [n, 2]; the tables use n = 64,000.
        masses: p of each bin, [bins, bins], first axis along x[:, 0]; see :func:`bin_masses`.
        low, high: the box [low, high]^2.
        empty: samples that an empty bin stands for.
    """
    (x,) = as_points(x)
    p = masses.double().to(x.device)
    bins = p.shape[0]
    if x.shape[1] != 2 or p.shape != (bins, bins):
        shapes = f"{list(x.shape)} and {list(p.shape)}"
        raise ValueError(f"histogram: expected points [n, 2] and masses [bins, bins], got {shapes}")
    total = float(p.sum())
    if bool((p < 0).any()) or total > 1.0 + 1e-6:
        raise ValueError(f"masses: expected probabilities, got a sum of {total:.6g}; normalise the density")
    if empty <= 0.0:
        raise ValueError(f"empty: expected a positive fraction of a sample, got {empty}")
    inside = ((x >= low) & (x <= high)).all(dim=1)
    place = torch.floor((x[inside] - low) * (bins / (high - low))).long()
    place.clamp_(max=bins - 1)  # the upper edge belongs to the last bin
    count = torch.bincount(place[:, 0] * bins + place[:, 1], minlength=bins * bins).double()
    beyond = len(x) - int(inside.sum())
    rest = 1.0 - total if total < 1.0 - 1e-9 else 0.0  # rounding of the masses is not a mass
    p = torch.cat([p.flatten(), p.new_tensor([rest])])
    count = torch.cat([count, count.new_tensor([beyond])])
    filled = torch.where(count > 0, count, torch.full_like(count, empty))
    value = torch.special.xlogy(p, p * len(x) / filled).sum()
    massive = p > 0
    return HistogramKL(
        value=value,
        floor=(int(massive.sum()) - 1) / (2.0 * len(x)),
        empty=int((massive & (count == 0)).sum()),
        outside=beyond / len(x),
    )
