"""Layers that keep the mean square of their activations: the parts of the EDM2 network.

A weight is used as w / rms(w) over each output's inputs, over the root of their number: uncorrelated inputs
of unit variance leave with unit variance. Its own length means nothing, and grows as it is trained, so after
every step it is brought back to rms 1 (:meth:`MPLayer.project`), which keeps the rate effective.

The published 1/(rms + 1e-4) is here 1/sqrt(rms^2 + 1e-8), smooth everywhere; the two agree to 1e-4.

References:
    Karras et al., "Analyzing and improving the training dynamics of diffusion models", 2023,
    arXiv 2312.02696 (configuration G).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.tensors import upcast

__all__ = ["MPConv", "MPLayer", "MPLinear", "mp_cat", "mp_silu", "mp_sum", "positional", "unit"]


def unit(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x over its root mean square along ``dims``.

    >>> unit(torch.tensor([[3.0, -3.0]]), (1,))
    tensor([[ 1., -1.]])
    """
    wide = upcast(x)
    return (wide * torch.rsqrt(wide.square().mean(dims, keepdim=True) + 1e-8)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x)/0.596, of unit mean square where x is standard normal."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, balance: float | Tensor = 0.5) -> Tensor:
    """((1 - t) a + t b)/sqrt((1 - t)^2 + t^2) with the balance t: uncorrelated a and b keep their variance.

    >>> mp_sum(torch.tensor(3.0), torch.tensor(5.0), 0.0)
    tensor(3.)
    """
    if isinstance(balance, Tensor):
        rest = 1.0 - balance
        return (a * rest + b * balance) * torch.rsqrt(rest.square() + balance.square())
    size = math.hypot(1.0 - balance, balance)
    return a * ((1.0 - balance) / size) + b * (balance / size)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """a and b [B, C, ...] side by side, each weighed so that they contribute alike."""
    m, n = a.shape[1], b.shape[1]
    size = math.sqrt((m + n) / 2.0)
    return torch.cat([a * (size / math.sqrt(m)), b * (size / math.sqrt(n))], dim=1)


def positional(a: Tensor, size: int) -> Tensor:
    """sqrt(2) (cos f_i a, sin f_i a) with f_i = 10000^(-2i/size), i = 0, ..., size/2 - 1: [B] -> [B, size].

    Of mean square 1 at every a. Times are not multiplied by 1000: the fastest wave is cos a.

    >>> positional(torch.zeros(1), 4)
    tensor([[1.4142, 1.4142, 0.0000, 0.0000]])
    """
    half = size // 2
    frequency = 10000.0 ** (torch.arange(half, dtype=a.dtype, device=a.device) / -half)
    angle = a.unsqueeze(-1) * frequency
    return math.sqrt(2.0) * torch.cat([angle.cos(), angle.sin()], dim=-1)


class MPLayer(nn.Module):
    """A weight of which only the direction counts, output by output.

    Args:
        shape: of the weight, outputs first.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self._inputs = tuple(range(1, len(shape)))
        self.fan_in = math.prod(shape[1:])

    def used(self, gain: float | Tensor = 1.0) -> Tensor:
        """The weight as it multiplies its input, of norm ``gain`` for each output."""
        return unit(self.weight, self._inputs) * (gain / math.sqrt(self.fan_in))

    @torch.no_grad()
    def project(self) -> None:
        """Bring the weight back to mean square 1 for each output; what the layer computes stays the same."""
        self.weight.copy_(unit(self.weight, self._inputs))


class MPLinear(MPLayer):
    """A linear layer without bias.

    Args:
        enter: number of inputs.
        leave: number of outputs.
    """

    def __init__(self, enter: int, leave: int) -> None:
        super().__init__((leave, enter))
        self.in_features, self.out_features = enter, leave

    def forward(self, h: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """[B, ..., enter] -> [B, ..., leave]."""
        return F.linear(h, self.used(gain).to(h.dtype))

    def column(self, index: Tensor) -> Tensor:
        """The layer's value at sqrt(enter) times a unit vector, by its index, int64 [B]: [B, leave]."""
        return F.embedding(index, unit(self.weight, self._inputs).mT)


class MPConv(MPLayer):
    """A convolution without bias that keeps the size of the picture.

    Args:
        enter: channels.
        leave: channels.
        side: of the kernel, odd.
    """

    def __init__(self, enter: int, leave: int, side: int) -> None:
        super().__init__((leave, enter, side, side))
        self.padding = side // 2

    def forward(self, h: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """[B, enter, H, W] -> [B, leave, H, W]."""
        return F.conv2d(h, self.used(gain).to(h.dtype), padding=self.padding)
