"""The path of a model of discrete times: a smooth curve through a table.

For a model of N times, k = N (1 - t) - 1 is its index at our time t: t = 0 is k = N - 1, and t = 1 is the
data, k = -1. Between the indices beta_t = sqrt(alphas_cumprod) is the cubic spline through the table and
through beta = 1 at k = -1, and alpha_t = sqrt(1 - beta_t^2): the table's numbers at the indices, twice
continuously differentiable between them, and a table that ends in pure noise (zero terminal signal-to-noise
ratio) is nothing special. All is computed in float64.

References:
    Fritsch and Carlson, "Monotone piecewise cubic interpolation", 1980.
    Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", 2020, arXiv 2006.11239.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from saltus.interpolants import Coefficients
from saltus.tensors import sg

__all__ = ["Tabulated"]

_BISECTIONS, _ITERATIONS = 5, 8
"""Of the search in a piece: a 32nd of it, and then for smooth tables three would do."""


@dataclass(frozen=True, eq=False)
class Tabulated:
    """The variance-preserving interpolant through a table of alphas_cumprod (see the module).

    As with :class:`saltus.interpolants.VP`, dalpha is infinite at t = 1, where alpha = 0.

    Attributes:
        alphas_cumprod: the products of 1 - beta_j over j = 0..k, [N], falling from below 1 to at least 0.

    Raises:
        ValueError: for a table that does not fall.

    >>> path = Tabulated(torch.tensor([0.9, 0.5, 0.1]))
    >>> path(torch.tensor([1 / 3])).beta ** 2
    tensor([0.5000])
    """

    alphas_cumprod: Tensor
    _placed: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        table = self.alphas_cumprod.detach().double().cpu()
        knots = torch.cat([torch.ones(1, dtype=torch.float64), table.clamp(min=0.0).sqrt()])
        if table.ndim != 1 or len(table) < 3 or not bool((table >= 0).all() & (knots.diff() < 0).all()):
            raise ValueError(
                "alphas_cumprod: expected at least three numbers that fall from below 1 to at least 0, got "
                f"{len(table)} from {float(table.flatten()[0]):.4g} to {float(table.flatten()[-1]):.4g}; "
                "check the scheduler's betas"
            )
        self._placed[torch.device("cpu")] = _pieces(knots)

    def __len__(self) -> int:
        """N, the number of discrete times."""
        return len(self.alphas_cumprod)

    def __call__(self, t: Tensor) -> Coefficients:
        n = len(self)
        j = n * (1.0 - t.double())  # the index plus one: 0 is the data
        piece = sg(j).floor().clamp(0, n - 1)
        a, b, c, d = self._on(t.device)[piece.long()].unbind(-1)
        u = j - piece
        beta = a + u * (b + u * (c + u * d))
        dbeta = -n * (b + u * (2.0 * c + 3.0 * u * d))
        alpha = torch.sqrt((1.0 - beta) * (1.0 + beta))
        return Coefficients(*(v.to(t.dtype) for v in (alpha, beta, -beta * dbeta / alpha, dbeta)))

    @torch.no_grad()
    def time_of(self, alpha: Tensor, beta: Tensor) -> Tensor:
        """The time of the ratio beta/alpha, or the nearer end: float64 in the shape of alpha, a constant.

        The piece is looked up; within it some bisections leave so little of the cubic that it is almost a
        line, for Newton's method.
        """
        n = len(self)
        pieces = self._on(alpha.device)
        wanted = beta.double() / torch.hypot(alpha.double(), beta.double())
        wanted = wanted.maximum(pieces[-1].sum())  # the end of the last piece
        piece = (torch.searchsorted(-pieces[:, 0].contiguous(), -wanted, right=True) - 1).clamp(0, n - 1)
        a, b, c, d = pieces[piece].unbind(-1)
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(_BISECTIONS):
            u = 0.5 * (low + high)
            early = a + u * (b + u * (c + u * d)) > wanted
            low, high = torch.where(early, u, low), torch.where(early, high, u)
        u = 0.5 * (low + high)
        for _ in range(_ITERATIONS):
            over = a + u * (b + u * (c + u * d)) - wanted
            u = (u - over / (b + u * (2.0 * c + 3.0 * u * d))).clamp(low, high)
        return 1.0 - (piece + u) / n

    def _on(self, device: torch.device) -> Tensor:
        """The pieces on a device, copied there once."""
        found = self._placed.get(device)
        if found is None:
            found = self._placed[device] = self._placed[torch.device("cpu")].to(device)
        return found


def _pieces(y: Tensor) -> Tensor:
    """The cubics a + b u + c u^2 + d u^3, u in [0, 1], between falling values y [n + 1] at equal distances,
    as [n, 4].

    The slopes are those of the cubic spline, with three continuous derivatives at the last knot before either
    end, but held between a tenth and 2.5 times that of the flatter neighbour, so that every piece falls
    (Fritsch and Carlson, 1980): tables of a smooth schedule are not touched by that.
    """
    n = len(y) - 1
    middle = torch.arange(1, n)
    matrix = torch.eye(n + 1, dtype=y.dtype)
    matrix[middle, middle], matrix[middle, middle - 1], matrix[middle, middle + 1] = 4.0, 1.0, 1.0
    matrix[0, :3] = matrix[n, n - 2 :] = torch.tensor([1.0, -2.0, 1.0], dtype=y.dtype)
    right = torch.zeros_like(y)
    right[1:n] = 3.0 * (y[2:] - 2.0 * y[1:-1] + y[:-2])
    half_bend = torch.linalg.solve(matrix, right)
    rise = y.diff()
    slope = torch.cat([rise - (2.0 * half_bend[:-1] + half_bend[1:]) / 3.0, rise[-1:]])
    slope[n] = rise[-1] + (half_bend[n - 1] + 2.0 * half_bend[n]) / 3.0
    flatter = torch.maximum(torch.cat([rise[:1], rise]), torch.cat([rise, rise[-1:]]))
    slope = torch.minimum(torch.maximum(slope, 2.5 * flatter), 0.1 * flatter)
    start, end = slope[:-1], slope[1:]
    return torch.stack([y[:-1], start, 3.0 * rise - 2.0 * start - end, start + end - 2.0 * rise], dim=1)
