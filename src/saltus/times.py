"""Laws of times: of one time t, of pairs (s, t), of triples (s, m, t), and of the finite step d.

A law of one time is its quantile function, U(0, 1) -> t, so every law can be stratified. A pair law
draws (s, t) with s <= t; a split gives gamma = (m - s)/(t - s); a step gives d = the distance of the
split from its end as a function of (s, t, progress), computed inside the loss.

A source whose time runs from data to noise has its law mirrored here: logit-normal(m, sd) in its
time is LogitNormal(-m, sd) in ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from saltus.streams import Streams

__all__ = [
    "Cells",
    "Constant",
    "Dyadic",
    "Earliest",
    "Fraction",
    "FromStart",
    "Gaps",
    "Grid",
    "Karras",
    "Law",
    "LogitNormal",
    "Lognormal",
    "Midpoint",
    "PairLaw",
    "Ramp",
    "Restricted",
    "Shifted",
    "SigmoidAnneal",
    "Split",
    "StepLaw",
    "ToEnd",
    "Triangle",
    "UShaped",
    "Uniform",
    "UniformSplit",
    "linear_time",
    "resolved",
    "shifted",
    "trigonometric_time",
]


class Law(Protocol):
    """The law of one time as its quantile function: uniform numbers [B] -> times [B] in [0, 1]."""

    def __call__(self, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Uniform:
    """t ~ U[low, high]."""

    low: float = 0.0
    high: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(z), z ~ N(mean, std^2) (Esser et al., 2024, arXiv 2403.03206)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


def linear_time(sigma: Tensor) -> Tensor:
    """The time of the linear interpolant at noise-to-signal ratio sigma = (1 - t)/t."""
    return 1.0 / (1.0 + sigma)


def trigonometric_time(sigma: Tensor) -> Tensor:
    """The time of the trigonometric interpolant at noise-to-signal ratio sigma = cot(pi t / 2)."""
    return 1.0 - torch.atan(sigma) * (2.0 / math.pi)


@dataclass(frozen=True)
class Lognormal:
    """The noise-to-signal ratio sigma = alpha_t/beta_t is exp(z), z ~ N(mean, std^2) (EDM).

    Attributes:
        time: sigma -> t for the interpolant in use.
    """

    mean: float
    std: float
    time: Callable[[Tensor], Tensor] = linear_time

    def __call__(self, u: Tensor) -> Tensor:
        return self.time(torch.exp(self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class Karras:
    """Uniform on the rho-clock of EDM: sigma^(1/rho) ~ U between sigma_max and sigma_min.

    References:
        Karras et al., 2022, arXiv 2206.00364, eq. (5).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    time: Callable[[Tensor], Tensor] = linear_time

    def _roots(self) -> tuple[float, float]:
        return math.pow(self.sigma_max, 1.0 / self.rho), math.pow(self.sigma_min, 1.0 / self.rho)

    def sigma(self, u: Tensor) -> Tensor:
        """The ratio at place u of the clock: sigma_max at 0, sigma_min at 1."""
        high, low = self._roots()
        return (high + u * (low - high)) ** self.rho

    def place(self, sigma: Tensor) -> Tensor:
        """The inverse of :meth:`sigma`."""
        high, low = self._roots()
        return (sigma ** (1.0 / self.rho) - high) / (low - high)

    def __call__(self, u: Tensor) -> Tensor:
        return self.time(self.sigma(u))


@dataclass(frozen=True)
class Grid:
    """t uniform on {0, 1/cells, ..., 1 - 1/cells}."""

    cells: int = 128

    def __call__(self, u: Tensor) -> Tensor:
        return (u * self.cells).floor().clamp(max=self.cells - 1) / self.cells


@dataclass(frozen=True)
class UShaped:
    """The density proportional to cosh(a (t - 1/2)), which is symmetric and has its weight at both ends
    (Lee et al., "Improving the training of rectified flows", 2024, arXiv 2405.20320, a = 4):
    t = 1/2 + arsinh((2u - 1) sinh(a/2))/a.
    """

    a: float = 4.0

    def __call__(self, u: Tensor) -> Tensor:
        return 0.5 + torch.asinh((2.0 * u - 1.0) * math.sinh(0.5 * self.a)) / self.a


@dataclass(frozen=True)
class Earliest:
    """The least of ``of`` independent draws of ``law``: the start of an ordered pair, of which the end is
    fixed or forgotten. Its quantile is law(1 - (1 - u)^(1/of)).

    >>> Earliest(Uniform())(torch.tensor([0.75]))
    tensor([0.5000])
    """

    law: Law
    of: int = 2

    def __call__(self, u: Tensor) -> Tensor:
        return self.law(1.0 - (1.0 - u) ** (1.0 / self.of))


@dataclass(frozen=True)
class Shifted:
    """The times of ``law`` on a clock that ``shift`` > 1 slows down at the noise, as large pictures and clips
    need: with w = 1 - t, w' = shift w/(1 + (shift - 1) w) (Esser et al., 2024, arXiv 2403.03206, eq. 23).

    >>> Shifted(Uniform(), 3.0)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.2500, 1.0000])
    """

    law: Law
    shift: float

    def __post_init__(self) -> None:
        if not self.shift > 0.0:
            raise ValueError(f"shift of the clock: expected a number above 0, got {self.shift}; 1 is none")

    def __call__(self, u: Tensor) -> Tensor:
        return shifted(self.law(u), self.shift)


def shifted(t: Tensor, shift: float) -> Tensor:
    """The time on the slowed clock: 0 at 0 and 1 at 1."""
    return t / (t + shift * (1.0 - t))


def _draw(law: Law, rng: Streams, name: str, stratified: bool) -> Tensor:
    return law(rng.stratified(name) if stratified else rng.uniform(name)).clamp(0.0, 1.0)


class PairLaw(Protocol):
    """Draws (s, t), each [B], with s <= t."""

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Triangle:
    """Two independent draws of ``law``, ordered: the whole triangle s <= t."""

    law: Law = Uniform()

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        a, b = _draw(self.law, rng, "a", False), _draw(self.law, rng, "b", False)
        return torch.minimum(a, b), torch.maximum(a, b)


@dataclass(frozen=True)
class ToEnd:
    """t = 1 and s ~ law: consistency models."""

    law: Law = Uniform()
    stratified: bool = False

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        s = _draw(self.law, rng, "s", self.stratified)
        return s, torch.ones_like(s)


@dataclass(frozen=True)
class FromStart:
    """s = 0 and t ~ law: maps from the prior."""

    law: Law = Uniform()
    stratified: bool = False

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        t = _draw(self.law, rng, "t", self.stratified)
        return torch.zeros_like(t), t


@dataclass(frozen=True)
class Gaps:
    """t - s ~ gap and s ~ U[0, 1 - (t - s)] (Align Your Flow, arXiv 2506.14603)."""

    gap: Law

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        gap = _draw(self.gap, rng, "gap", False)
        s = rng.uniform("s") * (1.0 - gap)
        return s, (s + gap).clamp(max=1.0)


@dataclass(frozen=True)
class Restricted:
    """s ~ U[0, 1] and t ~ U[s, min(1, s + span)]: maps valid for steps of at most ``span``; or, ``relative``,
    t ~ U[s, s + span (1 - s)]."""

    span: float
    relative: bool = False

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        s = rng.uniform("s")
        rest = self.span * (1.0 - s) if self.relative else torch.clamp(1.0 - s, max=self.span)
        t = s + rest * rng.uniform("gap")
        return s, t.clamp(max=1.0)  # by rounding s + (1 - s) may pass 1


@dataclass(frozen=True)
class Cells:
    """One cell of the grid of ``cells`` equal ones: s uniform on {0, 1/cells, ...} and t = s + 1/cells."""

    cells: int

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise ValueError(f"cells: expected at least 1, got {self.cells}; one is the whole of the way")

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        cell = rng.integers("cell", self.cells).to(rng.dtype)
        return cell / self.cells, (cell + 1.0) / self.cells


@dataclass(frozen=True)
class Dyadic:
    """t - s = 2^-j with j uniform in {0, ..., levels - 1}, and s a multiple of t - s.

    References:
        Frans et al., "One step diffusion via shortcut models", 2024, arXiv 2410.12557.
    """

    levels: int = 7

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        cells = 2 ** rng.integers("level", self.levels)
        s = (rng.uniform("cell") * cells).floor().clamp(max=cells - 1) / cells
        return s, s + 1.0 / cells


class Split(Protocol):
    """Draws gamma = (m - s)/(t - s) in (0, 1), [B]."""

    def __call__(self, rng: Streams, like: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class UniformSplit:
    """gamma ~ U(low, high), by default U(0, 1)."""

    low: float = 0.0
    high: float = 1.0

    def __call__(self, rng: Streams, like: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * rng.uniform("gamma").to(like)


@dataclass(frozen=True)
class Midpoint:
    """gamma = 1/2."""

    def __call__(self, rng: Streams, like: Tensor) -> Tensor:
        return torch.full_like(like, 0.5)


class StepLaw(Protocol):
    """The finite step d in [0, t - s], [B], from (s, t) [B] and progress (0-d); 0 only by rounding."""

    def __call__(self, s: Tensor, t: Tensor, progress: Tensor) -> Tensor: ...


def resolved(d: Tensor) -> tuple[Tensor, Tensor]:
    """The steps, none shorter than 16 roundings of 1, and which rows were that long, [B] and bool [B].

    Times near 1 are whole multiples of a rounding, and two draws of a pair law may be equal: over a shorter
    step a difference quotient is noise, over none it is 0/0. Such rows say nothing and are left out.

    >>> resolved(torch.tensor([0.0, 0.5]))[1]
    tensor([False,  True])
    """
    least = 16.0 * torch.finfo(d.dtype).eps
    return d.clamp(min=least), d >= least


@dataclass(frozen=True)
class Constant:
    """d = min(step, t - s)."""

    step: float

    def __call__(self, s: Tensor, t: Tensor, progress: Tensor) -> Tensor:
        return torch.clamp(t - s, max=self.step)


@dataclass(frozen=True)
class Fraction:
    """d = alpha(progress) (t - s)."""

    alpha: Callable[[Tensor], Tensor]

    def __call__(self, s: Tensor, t: Tensor, progress: Tensor) -> Tensor:
        return self.alpha(progress).to(s) * (t - s)


@dataclass(frozen=True)
class SigmoidAnneal:
    """A schedule from 1 down to ``floor``: alpha = sigmoid(-rate (progress - middle)), at least ``floor``,
    and exactly 1 once within ``floor`` of it.

    References:
        Zhang et al., "AlphaFlow", 2025, arXiv 2510.20771 (rate 25, floor 0.005).
    """

    rate: float = 25.0
    middle: float = 0.5
    floor: float = 0.005

    def __call__(self, progress: Tensor) -> Tensor:
        alpha = torch.sigmoid(-self.rate * (progress - self.middle))
        return torch.where(alpha > 1.0 - self.floor, torch.ones_like(alpha), alpha.clamp(min=self.floor))


@dataclass(frozen=True)
class Ramp:
    """A schedule min(top, progress/until): a warm-up."""

    until: float = 0.1
    top: float = 1.0

    def __call__(self, progress: Tensor) -> Tensor:
        return torch.clamp(progress / self.until, max=self.top)
