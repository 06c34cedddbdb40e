"""PyTorch's optimisers as values: options first, parameters later.

A move or a run takes any function parameters -> optimiser; these are the usual ones with the
fastest implementation that the parameters allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["AdamW", "OptimizerFactory", "RAdam"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Parameters -> optimiser."""


def _check(lr: float, weight_decay: float) -> None:
    if not lr > 0.0:
        raise ValueError(f"lr: expected a rate above 0, got {lr}; 1e-3 suits a small network")
    if not weight_decay >= 0.0:
        raise ValueError(f"weight_decay: expected at least 0, got {weight_decay}; 0 turns it off")


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, which is off by default (then it is plain Adam).

    Loshchilov and Hutter, 2019 (arXiv 1711.05101).

    Attributes:
        lr: the rate that the schedule multiplies.
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: weights shrink by lr * weight_decay a step.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters, fused into one kernel where PyTorch has one."""
        ours = list(parameters)
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in ours)
        return torch.optim.AdamW(ours, self.lr, self.betas, self.eps, self.weight_decay, fused=fused)


@dataclass(frozen=True)
class RAdam:
    """Rectified Adam, the choice of consistency training: it needs no warm-up.

    Liu et al., 2020 (arXiv 1908.03265). Attributes as for :class:`AdamW`.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters; weight decay is decoupled."""
        return torch.optim.RAdam(
            list(parameters), self.lr, self.betas, self.eps, self.weight_decay, decoupled_weight_decay=True
        )
