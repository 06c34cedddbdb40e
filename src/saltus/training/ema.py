"""Moving averages of weights, which samples are drawn from.

Several rates at once are several averages of one module; each is one fused call a step and holds one
copy of the weights:

    averages = {decay: EMA(net, decay) for decay in (0.99, 0.999, 0.9999)}
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from saltus.training.sharding import local

__all__ = ["EMA", "Profile"]

Profile = Callable[[int], float]
"""Update k = 0, 1, ... -> the share, in [0, 1], that the weights of that update take in the average."""


class EMA:
    """m <- m + a_k (w - m) in update k = 0, 1, ..., after each step.

    For a number ``decay`` it is the exponential average, a_k = 1 - min(decay, (1 + k)/(10 + k)). The
    rising decay forgets the initial weights: after K updates their share is the product of all
    1 - a_k. Without it (``warmup=False``) a_k = 1 - decay from the first update. A :data:`Profile`
    gives any other a_k; with :class:`saltus.training.PowerProfile` it is the power-function average.
    Buffers are copied.

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

    def __init__(self, module: nn.Module, decay: float | Profile, warmup: bool = True) -> None:
        """Start from the weights that ``module`` has now.

        Args:
            module: whose weights are averaged.
            decay: the share that the average keeps in a step, or a profile of shares.
            warmup: whether a number ``decay`` is approached from 0.1; a profile is taken as it is.

        Raises:
            ValueError: unless 0 <= decay < 1.
        """
        if not callable(decay) and not 0.0 <= decay < 1.0:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay}; 0.999 averages 1,000 steps")
        self.decay = decay
        self.warmup = warmup
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.count = torch.zeros((), dtype=torch.int64)
        self._source = (module,)
        self._lists: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        if self._lists is None:  # not before: sharding replaces the parameters of a module
            (source,) = self._source
            self._lists = (
                list(self.module.parameters()),
                list(source.parameters()),
                list(self.module.buffers()),
                list(source.buffers()),
            )
        averages, weights, copies, buffers = self._lists
        share = self.share(int(self.count))
        # Of sharded weights every process averages its own pieces.
        averages, weights = [local(x) for x in averages], [local(x) for x in weights]
        # A share of one copies, also over weights that are not finite.
        moved = zip(averages + copies, weights + buffers, strict=True)
        if share != 1.0:
            torch._foreach_lerp_(averages, weights, share)
            moved = zip(copies, buffers, strict=True)
        for average, current in moved:
            average.copy_(current)
        self.count += 1

    def share(self, k: int) -> float:
        """a_k, what the weights of update k take."""
        if callable(self.decay):
            return self.decay(k)
        return 1.0 - (min(self.decay, (1 + k) / (10 + k)) if self.warmup else self.decay)

    def lookback(self, steps: int) -> float:
        """The mean number of steps between the last of ``steps`` updates and the weights in the average.

        With w(1), ..., w(K) the weights of K updates and c_i their shares in the average, it is the sum of
        c_i (K - i); those that the average began with count as w(0). It is decay / (1 - decay) for a decay
        that has long been reached.

        >>> round(EMA(nn.Linear(1, 1), 0.9, warmup=False).lookback(200), 6)
        9.0
        """
        age = 0.0
        for k in range(steps):
            age = (1.0 - self.share(k)) * (age + 1.0)
        return age
