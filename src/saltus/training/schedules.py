"""Learning-rate schedules: progress in [0, 1] -> a factor on each optimiser's own rate.

They are ordinary :data:`saltus.typing.Schedule` values, so anything that maps a 0-d tensor to a
0-d tensor serves in their place, and they serve wherever a schedule is asked for. Lengths are
fractions of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Constant", "Cosine", "InverseSqrt"]


def _ramp(progress: Tensor, warmup: float) -> Tensor:
    """min(1, progress / warmup): a linear rise from 0."""
    return (progress / warmup).clamp(max=1.0) if warmup > 0.0 else torch.ones_like(progress)


def _fraction(value: float, name: str) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name}: expected a part of the run in [0, 1), got {value}; divide by the steps")


@dataclass(frozen=True)
class Constant:
    """1 after a linear rise over the fraction ``warmup`` of the run.

    >>> Constant(warmup=0.1)(torch.tensor(0.05))
    tensor(0.5000)
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _fraction(self.warmup, "warmup")

    def __call__(self, progress: Tensor) -> Tensor:
        return _ramp(progress, self.warmup)


@dataclass(frozen=True)
class Cosine:
    """floor + (1 - floor) (1 + cos(pi q))/2 with q the progress since the warm-up, 0 to 1.

    The linear rise multiplies it. Loshchilov and Hutter, 2017 (arXiv 1608.03983).

    >>> Cosine(floor=0.2)(torch.tensor(0.5))
    tensor(0.6000)
    """

    warmup: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _fraction(self.warmup, "warmup")
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor: expected a factor in [0, 1], got {self.floor}; it multiplies the rate")

    def __call__(self, progress: Tensor) -> Tensor:
        q = ((progress - self.warmup) / (1.0 - self.warmup)).clamp(0.0, 1.0)
        fall = self.floor + (1.0 - self.floor) * 0.5 * (1.0 + torch.cos(math.pi * q))
        return _ramp(progress, self.warmup) * fall


@dataclass(frozen=True)
class InverseSqrt:
    """1/sqrt(max(1, progress/hold)): constant up to ``hold``, then falling with the root of time.

    The linear rise multiplies it. Karras et al., 2024 (arXiv 2312.02696) hold for 70,000 steps of 2,048
    images and warm up over 10 million images; Boffi et al., 2025 (arXiv 2505.18825) hold for 35,000 steps.
    :meth:`in_steps` takes such counts.

    Attributes:
        hold: where the fall begins, above 0; from 1 on there is none.
        warmup: fraction of the run.

    >>> InverseSqrt(hold=0.1)(torch.tensor(0.4))
    tensor(0.5000)
    """

    hold: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _fraction(self.warmup, "warmup")
        if not self.hold > 0.0:
            raise ValueError(f"hold: expected a part of the run above 0, got {self.hold}; divide by steps")

    @classmethod
    def in_steps(cls, steps: int, hold: int, warmup: int = 0) -> InverseSqrt:
        """min(1, k/warmup)/sqrt(max(k/hold, 1)) at step k of a run of ``steps``.

        >>> InverseSqrt.in_steps(steps=150_000, hold=35_000)(torch.tensor(140_000 / 150_000))
        tensor(0.5000)
        """
        if steps < 1:
            raise ValueError(f"steps: expected at least one, got {steps}; give the length of the run")
        return cls(hold / steps, warmup / steps)

    def __call__(self, progress: Tensor) -> Tensor:
        return _ramp(progress, self.warmup) * (progress / self.hold).clamp(min=1.0).rsqrt()
