"""Kernels of the distance of two points, k(|x - y|), elementwise in distances.

References:
    Gretton, Borgwardt, Rasch, Schoelkopf and Smola, "A kernel two-sample test", 2012, JMLR 13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["RBF", "Kernel", "Laplace", "Quadratic"]


class Kernel(Protocol):
    """Distances -> values of the same shape."""

    def __call__(self, d: Tensor) -> Tensor: ...


def _check(bandwidths: tuple[float, ...]) -> None:
    if not bandwidths or min(bandwidths) <= 0.0:
        raise ValueError(f"bandwidths: expected positive numbers, at least one, got {bandwidths}")


def _mean(values: list[Tensor]) -> Tensor:
    return sum(values[1:], values[0]) / len(values)


@dataclass(frozen=True)
class RBF:
    """k(d) = mean over h of exp(-d^2 / (2 h^2)), with bandwidths h in units of the samples."""

    bandwidths: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        _check(self.bandwidths)

    def __call__(self, d: Tensor) -> Tensor:
        return _mean([torch.exp(d.square() / (-2.0 * h * h)) for h in self.bandwidths])

    def log(self, d: Tensor) -> Tensor:
        """log k(d), finite where k itself is 0 by rounding."""
        logs = torch.stack([d.square() / (-2.0 * h * h) for h in self.bandwidths])
        return torch.logsumexp(logs, dim=0) - math.log(len(self.bandwidths))


@dataclass(frozen=True)
class Laplace:
    """k(d) = mean over h of exp(-d / h), with Euclidean distance d: heavier tails than :class:`RBF`."""

    bandwidths: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        _check(self.bandwidths)

    def __call__(self, d: Tensor) -> Tensor:
        return _mean([torch.exp(-d / h) for h in self.bandwidths])

    def log(self, d: Tensor) -> Tensor:
        """log k(d), finite where k itself is 0 by rounding."""
        logs = torch.stack([-d / h for h in self.bandwidths])
        return torch.logsumexp(logs, dim=0) - math.log(len(self.bandwidths))


@dataclass(frozen=True)
class Quadratic:
    """k(d) = -d^2/2, which sees the means of two laws and nothing else of them."""

    def __call__(self, d: Tensor) -> Tensor:
        return -0.5 * d.square()
