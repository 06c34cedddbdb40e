"""The 2-Wasserstein distance of two samples: exact, and sliced.

References:
    Rabin, Peyre, Delon and Bernot, "Wasserstein barycenter and its application to texture mixing",
    2011 (sliced). Crouse, "On implementing 2D rectangular assignment algorithms", 2016 (the solver
    in SciPy).
"""

from __future__ import annotations

import torch
from torch import Tensor

from saltus.couplings import MinibatchOT
from saltus.metrics.map_error import rmse
from saltus.metrics.pairs import as_points
from saltus.streams import Streams
from saltus.typing import Batch

__all__ = ["directions", "line_wasserstein2", "sliced_wasserstein", "wasserstein"]

_MOST = 1 << 22  # numbers in memory at once, for each of a few temporaries


def directions(count: int, dim: int, seed: int = 0) -> Tensor:
    """``count`` unit vectors, [count, dim], float64: random orthonormal frames, the last one cut.

    Each vector alone is uniform on the sphere; within a frame they spread evenly, so if ``dim``
    divides ``count``, the mean of (direction . v)^2 is |v|^2 / dim without any sampling error.
    """
    if count < 1 or dim < 1:
        raise ValueError(f"directions: expected positive numbers, got count={count} and dim={dim}")
    frames = Streams(seed=seed, index=torch.arange(-(-count // dim)), dtype=torch.float64)
    q, r = torch.linalg.qr(frames.normal("directions", dim, dim))
    q = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)  # QR alone is not uniform in sign
    vectors: Tensor = q.transpose(1, 2).reshape(-1, dim)
    return vectors[:count]


def line_wasserstein2(x: Tensor, y: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance on the line of each row: x [P, n], y [P, m] -> [P].

    It is the integral of (F^-1 - G^-1)^2 over levels, exact for any n and m: both quantile
    functions are constant between the levels i / n and j / m, which are held as integers over n m.
    """
    n, m = x.shape[1], y.shape[1]
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n])
    levels = torch.unique(steps).to(x.device)  # sorted
    width = torch.diff(levels, prepend=levels.new_zeros(1)).to(x) / (n * m)
    gap = x.sort(dim=1).values[:, (levels - 1) // m] - y.sort(dim=1).values[:, (levels - 1) // n]
    return (gap.square() * width).sum(dim=1)


def sliced_wasserstein(x: Tensor, y: Tensor, onto: Tensor | None = None) -> Tensor:
    """The root of the mean, over directions, of the squared distance of the projections. 0-d, float64.

    For a shift v of one law it is |v| / sqrt(D).

    Args:
        x, y: samples [n, ...] and [m, ...], of any sizes.
        onto: unit vectors [P, D]; by default 256 fixed ones (one on the line), so that values
            compare between calls.
    """
    x, y = as_points(x, y)
    dim = x.shape[1]
    onto = directions(1 if dim == 1 else 256, dim) if onto is None else onto
    if onto.ndim != 2 or onto.shape[1] != dim:
        raise ValueError(f"onto: expected directions [P, {dim}], got {list(onto.shape)}; see directions")
    few = max(1, _MOST // (len(x) + len(y)))  # directions at a time
    found = [line_wasserstein2(d @ x.T, d @ y.T) for d in torch.split(onto.to(x), few)]
    return torch.cat(found).mean().sqrt()


def wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """The exact 2-Wasserstein distance of two samples of one size n, by optimal assignment.

    min over permutations p of sqrt(mean_i |x_i - y_p(i)|^2). Time grows as n^3 and memory as n^2:
    some seconds for n = 2,000. It needs SciPy. 0-d, float64.

    Raises:
        ValueError: if the sizes differ, or SciPy is missing.
    """
    x, y = as_points(x, y)
    if len(x) != len(y):
        raise ValueError(
            f"wasserstein: expected samples of one size, got {len(x)} and {len(y)}; "
            "cut the longer one, or use sliced_wasserstein"
        )
    return rmse(x[MinibatchOT()(Batch(x0=x, x1=y))], y)
