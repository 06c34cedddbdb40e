"""The moving average of weights that samples are drawn from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["EMA"]


class EMA:
    """m <- d m + (1 - d) w after each step, with d_k = min(decay, (1 + k)/(10 + k)) at update k = 0, 1, ...

    The rising d_k forgets the initial weights: after K updates their share is the product of all
    d_k. Without it (``warmup=False``) d = decay from the first update. Buffers are copied.

    Attributes:
        module: the average, a copy in evaluation mode that takes no gradient.
        count: the updates so far, a 0-d int64 tensor that stays on the CPU.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> ema = EMA(net, decay=0.75, warmup=False)
    >>> _ = nn.init.constant_(net.weight, 1.0), nn.init.constant_(ema.module.weight, 0.0)
    >>> ema.update()
    >>> ema.module.weight.item()
    0.25
    """

    module: nn.Module
    count: Tensor

    def __init__(self, module: nn.Module, decay: float, warmup: bool = True) -> None:
        """Start from the weights that ``module`` has now.

        Raises:
            ValueError: unless 0 <= decay < 1.
        """
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay}; 0.999 averages 1,000 steps")
        self.decay = decay
        self.warmup = warmup
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.count = torch.zeros((), dtype=torch.int64)
        self._pairs = list(zip(self.module.parameters(), module.parameters(), strict=True))
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        k = int(self.count)
        decay = min(self.decay, (1 + k) / (10 + k)) if self.warmup else self.decay
        torch._foreach_lerp_([a for a, _ in self._pairs], [w for _, w in self._pairs], 1.0 - decay)
        for average, current in self._buffers:
            average.copy_(current)
        self.count += 1
