"""The usual densities of the plane, as samplers, and how a sampler becomes a source of batches.

A *density* is any callable ``Streams -> x1 [B, 2]``; a *source* is any callable ``Streams -> Batch``,
which is what training takes. All densities here are centred and a few units wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from saltus.streams import Streams
from saltus.typing import Batch, Condition

__all__ = [
    "Checkerboard",
    "Source",
    "circles",
    "eight_gaussians",
    "from_density",
    "from_mixture",
    "pinwheel",
    "swiss_roll",
    "two_moons",
]


class Sampled(Protocol):
    """A law with samples x1 [B, ...] and their labels, such as :class:`saltus.exact.Mixture`."""

    def sample(self, rng: Streams) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Source:
    """Batches of fresh samples, x0 ~ N(0, prior^2 I) and x1 from ``sample``.

    Attributes:
        sample: streams -> x1 [B, ...] and its labels, int64 [B], or None.
        prior: the standard deviation of x0.

    >>> batch = from_density(two_moons)(Streams(seed=0, index=torch.arange(5)))
    >>> batch.x0.shape, batch.x1.shape
    (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    sample: Callable[[Streams], tuple[Tensor, Tensor | None]]
    prior: float = 1.0

    def __call__(self, rng: Streams) -> Batch:
        x1, label = self.sample(rng)
        x0 = self.prior * rng.normal_like("x0", x1)
        return Batch(x0, x1, None if label is None else Condition(label=label))


def from_density(density: Callable[[Streams], Tensor], prior: float = 1.0) -> Source:
    """A source without labels."""
    return Source(lambda rng: (density(rng), None), prior)


def from_mixture(mixture: Sampled, prior: float = 1.0) -> Source:
    """A source of a mixture's samples; if its components have labels, the batches carry them."""
    return Source(mixture.sample, prior)


@dataclass(frozen=True)
class Checkerboard:
    """Uniform on every second square of a board over [-1, 1]^2, the lower left one among them.

    Its density is 1/2 on the filled squares and 0 elsewhere, 4 x 4 squares by default.

    References:
        Boffi, Albergo and Vanden-Eijnden, "How to build a consistency model", 2025,
        arXiv 2505.18825 (the board of its two-dimensional experiments).

    >>> board = Checkerboard()
    >>> board.density(torch.tensor([[-0.9, -0.9], [-0.9, -0.4], [1.2, 0.0]]))
    tensor([0.5000, 0.0000, 0.0000])
    """

    squares: int = 4

    def __post_init__(self) -> None:
        if self.squares < 2 or self.squares % 2:
            raise ValueError(f"squares: expected an even number a side, got {self.squares}")

    def __call__(self, rng: Streams) -> Tensor:
        """Samples x1, [B, 2]."""
        n = self.squares
        which = rng.integers("square", n * n // 2)
        row = which // (n // 2)
        column = 2 * (which % (n // 2)) + row % 2
        corner = torch.stack([column, row], dim=1)
        return (corner + rng.uniform("x1", 2)) * (2.0 / n) - 1.0

    def density(self, x: Tensor) -> Tensor:
        """rho_1(x) per unit of area, [B]."""
        inside = ((x >= -1.0) & (x < 1.0)).all(dim=1)
        square = torch.floor((x + 1.0) * (self.squares / 2.0)).sum(dim=1)
        return torch.where(inside & (square.remainder(2.0) == 0.0), 0.5, 0.0).to(x.dtype)

    def cells(self, count: int) -> Tensor:
        """The exact probability of each cell of a count x count grid over [-1, 1]^2, float64.

        Entry (i, j) belongs to the i-th cell along the first coordinate, the j-th along the second.
        """
        edges = torch.linspace(-1.0, 1.0, count + 1, dtype=torch.float64)
        sides = torch.linspace(-1.0, 1.0, self.squares + 1, dtype=torch.float64)
        overlap = torch.minimum(edges[1:, None], sides[1:]) - torch.maximum(edges[:-1, None], sides[:-1])
        overlap = overlap.clamp(min=0.0)
        number = torch.arange(self.squares)
        filled = ((number[:, None] + number) % 2 == 0).double()
        return 0.5 * overlap @ filled @ overlap.T


def two_moons(rng: Streams) -> Tensor:
    """Two interleaved half circles of radius 1.5 with noise of s.d. 0.075, [B, 2]."""
    angle = math.pi * rng.uniform("angle")
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    lower = torch.stack([0.5 - angle.cos(), 0.25 - angle.sin()], dim=1)
    moon = torch.where(rng.integers("moon", 2).unsqueeze(1) == 0, upper, lower)
    return 1.5 * (moon + 0.05 * rng.normal("noise", 2))


def circles(rng: Streams) -> Tensor:
    """Two circles of radius 1 and 2 with equal probability and noise of s.d. 0.08, [B, 2]."""
    radius = 1.0 + rng.integers("circle", 2).to(rng.dtype)
    angle = 2.0 * math.pi * rng.uniform("angle")
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    return radius.unsqueeze(1) * ring + 0.08 * rng.normal("noise", 2)


def swiss_roll(rng: Streams) -> Tensor:
    """The spiral r = angle / 6 for angles from 1.5 pi to 4.5 pi, with noise of s.d. 0.06, [B, 2]."""
    angle = 1.5 * math.pi * (1.0 + 2.0 * rng.uniform("angle"))
    spiral = torch.stack([angle.cos(), angle.sin()], dim=1)
    return (angle / 6.0).unsqueeze(1) * spiral + 0.06 * rng.normal("noise", 2)


def pinwheel(rng: Streams) -> Tensor:
    """Five bent arms (Johnson et al., 2016, arXiv 1603.06277), [B, 2].

    A point (r, a) of N((1, 0), diag(0.3^2, 0.1^2)) is turned by 2 pi k / 5 + exp(r) / 4 and doubled.
    """
    z = rng.normal("point", 2)
    r, a = 1.0 + 0.3 * z[:, 0], 0.1 * z[:, 1]
    angle = (2.0 * math.pi / 5.0) * rng.integers("arm", 5) + 0.25 * r.exp()
    c, s = angle.cos(), angle.sin()
    return 2.0 * torch.stack([r * c - a * s, r * s + a * c], dim=1)


def eight_gaussians(rng: Streams) -> Tensor:
    """Eight equal Gaussians of s.d. 0.15 on the circle of radius 2, the law of ``exact.ring``, [B, 2]."""
    angle = (math.pi / 4.0) * rng.integers("component", 8)
    centre = torch.stack([angle.cos(), angle.sin()], dim=1).to(rng.dtype)
    return 2.0 * centre + 0.15 * rng.normal("noise", 2)
