"""A small U-Net with two time inputs.

References:
    Ronneberger, Fischer and Brox, "U-Net", 2015, arXiv 1505.04597.
    Dhariwal and Nichol, "Diffusion models beat GANs", 2021, arXiv 2105.05233 (adaptive group norm).
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.nn.attention import SelfAttention
from saltus.nn.embeddings import Conditioning, Readout, check_condition, check_input, sinusoidal
from saltus.nn.inherit import copied
from saltus.tensors import like
from saltus.typing import Condition, Output

__all__ = ["UNet"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class _Residual(nn.Module):
    """Two convolutions on a shortcut; c scales and shifts the second norm (FiLM)."""

    def __init__(self, enter: int, leave: int, conditioning: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(enter), _norm(leave)
        self.conv1 = nn.Conv2d(enter, leave, 3, padding=1)
        self.conv2 = nn.Conv2d(leave, leave, 3, padding=1)
        self.film = nn.Linear(conditioning, 2 * leave)
        self.shortcut = nn.Identity() if enter == leave else nn.Conv2d(enter, leave, 1)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(c).chunk(2, dim=-1)
        y = self.norm2(self.conv1(F.silu(self.norm1(h))))
        y = self.conv2(F.silu(y * (1.0 + like(scale, y)) + like(shift, y)))
        out: Tensor = self.shortcut(h) + y
        return out


class _Stage(nn.Module):
    """Residual blocks at one resolution, with attention after them if asked."""

    def __init__(self, enter: int, leave: int, depth: int, conditioning: int, attention: bool) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(
            _Residual(enter if i == 0 else leave, leave, conditioning) for i in range(depth)
        )
        self.norm = _norm(leave) if attention else None
        self.attention = SelfAttention(leave, max(1, leave // 32)) if attention else None

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        for residual in self.residuals:
            h = residual(h, c)
        if self.attention is not None and self.norm is not None:
            tokens = self.norm(h).flatten(2).transpose(1, 2)
            h = h + self.attention(tokens).transpose(1, 2).reshape(h.shape)
        return h


class UNet(nn.Module):
    """Convolutional network on images [C, H, W] with one skip connection a resolution.

    Args:
        shape: (C, H, W).
        channels: at full resolution.
        multipliers: of the channels at each resolution, halved from one to the next.
        depth: residual blocks at each resolution, on the way down and on the way up.
        attention: whether the lowest resolution has self-attention.
        classes: number of labels, None without.
        heads: names of second outputs of x's shape.
        guidance: whether ``cond.w`` is an input.
    """

    SIZES = {
        "tiny": {"channels": 16, "multipliers": (1, 2), "depth": 1},
        "small": {"channels": 32, "multipliers": (1, 2), "depth": 1},
        "base": {"channels": 64, "multipliers": (1, 2, 2), "depth": 2},
        "large": {"channels": 128, "multipliers": (1, 2, 2), "depth": 3},
    }

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 32,
        multipliers: tuple[int, ...] = (1, 2),
        depth: int = 1,
        attention: bool = True,
        classes: int | None = None,
        heads: tuple[str, ...] = (),
        guidance: bool = False,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(multipliers) - 1)
        if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"UNet: expected a shape (C, H, W) with H and W divisible by {factor}, got {tuple(shape)}; "
                "pad the images or use fewer multipliers"
            )
        self.shape = tuple(shape)
        self.levels = len(multipliers)
        width, sizes = 4 * channels, [channels * m for m in multipliers]
        self.conditioning = Conditioning(width, partial(sinusoidal, size=64), 64, classes, guidance)
        self.stem = nn.Conv2d(shape[0], channels, 3, padding=1)
        stage = partial(_Stage, depth=depth, conditioning=width)
        low = self.levels - 1
        down = [
            stage(enter, leave, attention=attention and i == low)
            for i, (enter, leave) in enumerate(zip([channels, *sizes[:-1]], sizes, strict=True))
        ]
        middle = stage(sizes[-1], sizes[-1], attention=attention)
        below = [*sizes[1:], sizes[-1]]
        up = [
            stage(below[i] + sizes[i], sizes[i], attention=attention and i == low)
            for i in reversed(range(self.levels))
        ]
        self.blocks = nn.ModuleList([*down, middle, *up])
        self.norm = _norm(channels * multipliers[0])
        self.out = Readout(lambda: nn.Conv2d(sizes[0], shape[0], 3, padding=1), heads)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads: x [B, C, H, W], s and t [B] -> [B, C, H, W]."""
        check_input(x, s, t, self.shape)
        check_condition(cond, label=self.conditioning.label is not None)
        c = self.conditioning(x, s, t, cond)
        h, skips = self.stem(x), []
        blocks = list(self.blocks)
        for i, block in enumerate(blocks[: self.levels]):
            h = block(h if i == 0 else F.avg_pool2d(h, 2), c)
            skips.append(h)
        h = blocks[self.levels](h, c)
        for i, block in enumerate(blocks[self.levels + 1 :]):
            h = h if i == 0 else F.interpolate(h, scale_factor=2.0)
            h = block(torch.cat([h, skips.pop()], dim=1), c)
        out: Output = self.out(F.silu(self.norm(h)), lambda y: y.to(x.dtype))
        return out

    def inherit(self, teacher: nn.Module) -> None:
        """Start as the teacher: the output at (s, t) is its output at (s, s), for every t."""
        copied(self, teacher)
        self.conditioning.forget_gap()
