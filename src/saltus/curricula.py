"""Curricula and cuts of the time axis: finite steps that shrink as training goes on, segments that a jump
must not leave, laws that look at one stretch of noise levels only.

As in :mod:`saltus.times`, everything is a function of tensors: of (s, t) and of progress, a 0-d tensor, so
that a compiled loss needs no recompilation as a curriculum moves on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.streams import Streams
from saltus.times import Karras, Law, Uniform, linear_time

__all__ = [
    "DoublingGap",
    "Falling",
    "KarrasGap",
    "LogHyperbolic",
    "Phases",
    "Segments",
    "SigmoidGap",
]


def _one_cell(clock: Karras, cells: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """How far from s the place one of so many cells further on the clock is, at most t - s."""
    place = clock.place((1.0 - s) / s.clamp(min=1e-6)) + 1.0 / cells
    m = torch.where(place < 1.0, linear_time(clock.sigma(place.clamp(max=1.0))), t)
    return torch.minimum(m - s, t - s)


@dataclass(frozen=True)
class KarrasGap:
    """One cell further on the Karras clock of the linear interpolant, of n - 1 cells, n growing:

    n(progress) = ceil( sqrt( progress ((last + 1)^2 - first^2) + first^2 ) - 1 ) + 1,

    the curriculum of consistency training; with last = first - 1 it stays at n = first. Every state has a
    neighbour, on the grid or off it, and the last cell ends at t = 1.

    References:
        Song et al., "Consistency models", 2023, arXiv 2303.01469, appendix C.
    """

    clock: Karras = Karras()
    first: int = 2
    last: int = 150

    def __call__(self, s: Tensor, t: Tensor, progress: Tensor) -> Tensor:
        square = progress * ((self.last + 1) ** 2 - self.first**2) + self.first**2
        cells = torch.ceil(torch.sqrt(square) - 1.0).to(s)
        return _one_cell(self.clock, cells, s, t)


@dataclass(frozen=True)
class DoublingGap:
    """One cell further on the Karras clock of the linear interpolant, whose number of cells doubles
    from ``first`` to ``last`` in stages of equal length:

    cells(progress) = min(first 2^floor(stages progress), last),  stages = 1 + log2(last/first).

    References:
        Song and Dhariwal, "Improved techniques for training consistency models", 2023, arXiv 2310.14189,
        sec. 3.4 (10 to 1280, eight stages).
    """

    clock: Karras = Karras()
    first: int = 10
    last: int = 1280

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ValueError(
                f"cells: expected first and last with 1 <= first <= last, got {self.first} and {self.last}"
            )

    def __call__(self, s: Tensor, t: Tensor, progress: Tensor) -> Tensor:
        stages = math.floor(math.log2(self.last // self.first)) + 1
        stage = torch.clamp(torch.floor(progress * stages), max=stages - 1.0).to(s)
        return _one_cell(self.clock, (self.first * 2.0**stage).clamp(max=float(self.last)), s, t)


@dataclass(frozen=True)
class SigmoidGap:
    """The step of easy consistency tuning on the EDM clock sigma = (1 - t)/t of the linear interpolant.

    r = max(0, sigma (1 - q^-(stage + 1) n(sigma))), n(sigma) = 1 + k sigmoid(-b sigma), and
    d = t(r) - t(sigma). The stage rises ``stages`` times over the run, from 0 to stages - 1.

    References:
        Geng et al., "Consistency models made easy", 2024, arXiv 2406.14548.
    """

    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    stages: int = 8

    def __call__(self, s: Tensor, t: Tensor, progress: Tensor) -> Tensor:
        stage = torch.clamp(torch.floor(progress * self.stages), max=self.stages - 1.0).to(s)
        sigma = (1.0 - s) / s.clamp(min=1e-6)
        n = 1.0 + self.k * torch.sigmoid(-self.b * sigma)
        r = torch.clamp(sigma * (1.0 - self.q ** -(stage + 1.0) * n), min=0.0)
        return torch.minimum(linear_time(r) - s, t - s)


@dataclass(frozen=True)
class Phases:
    """s ~ law, and t the end of the phase that s lies in, of ``count`` equal ones.

    A map that learns these pairs alone jumps from anywhere to the end of its phase, and is sampled with
    ``count`` jumps from edge to edge. With one phase it is :class:`saltus.times.ToEnd`.

    >>> Phases(4)(Streams(0, index=torch.arange(3)))[1]
    tensor([0.5000, 1.0000, 1.0000])
    """

    count: int
    law: Law = Uniform()
    stratified: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"phases: expected at least 1, got {self.count}; 1 ends at the data")

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        s = self.law(rng.stratified("s") if self.stratified else rng.uniform("s")).clamp(0.0, 1.0)
        return s, _edge(s, self.count)


@dataclass(frozen=True)
class Segments:
    """s ~ law, and t uniform between s and the end of its segment, of ``count`` equal ones."""

    count: int
    law: Law = Uniform()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"segments: expected at least 1, got {self.count}; 1 is the whole way")

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        s = self.law(rng.uniform("s")).clamp(0.0, 1.0)
        return s, torch.lerp(s, _edge(s, self.count), rng.uniform("t"))


def _edge(s: Tensor, count: int) -> Tensor:
    """The end of the cell of 1/count that s lies in, 1 for s = 1."""
    return ((s * count).floor() + 1.0).clamp(max=float(count)) / count


@dataclass(frozen=True)
class LogHyperbolic:
    """log sigma with the density 1/sqrt(df + z^2), z = (log sigma - mean)/std, for sigma in [low, high]:
    z = sqrt(df) sinh(w), w uniform.

    It is Student's t cut off at both ends, in the limit of few degrees of freedom: their densities' ratio
    is proportional to (1 + z^2/df)^(-df/2), which for df = 0.01, std = 0.2 and sigma up to 80 falls from 1
    to 0.95.

    Attributes:
        time: sigma = alpha_t/beta_t -> t for the interpolant in use.
    """

    mean: float
    std: float
    df: float
    low: float
    high: float
    time: Callable[[Tensor], Tensor] = linear_time

    def __post_init__(self) -> None:
        if not (0.0 < self.low < self.high and self.std > 0.0 and self.df > 0.0):
            raise ValueError(
                f"noise levels: expected 0 < low < high, std > 0 and df > 0, got low={self.low}, "
                f"high={self.high}, std={self.std}, df={self.df}"
            )

    def __call__(self, u: Tensor) -> Tensor:
        scale = self.std * math.sqrt(self.df)
        a, b = (math.asinh((math.log(sigma) - self.mean) / scale) for sigma in (self.low, self.high))
        log_sigma = self.mean + scale * torch.sinh(b + (a - b) * u)
        return self.time(torch.exp(log_sigma).clamp(self.low, self.high))


@dataclass(frozen=True)
class Falling:
    """A schedule max(0, 1 - progress/until): something fades out.

    >>> Falling(0.5)(torch.tensor([0.0, 0.25, 0.75]))
    tensor([1.0000, 0.5000, 0.0000])
    """

    until: float = 1.0

    def __call__(self, progress: Tensor) -> Tensor:
        return torch.clamp(1.0 - progress / self.until, min=0.0)
