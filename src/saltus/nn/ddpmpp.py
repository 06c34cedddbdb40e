"""The U-Net of DDPM++ as EDM trains it on CIFAR-10, with two time inputs.

Beyond the papers are the second time and the features of the times, which are not multiplied by 1000; the
output is zero at the start. There is no dropout.

References:
    Song et al., "Score-based generative modeling through stochastic differential equations", 2020,
    arXiv 2011.13456 (DDPM++).
    Karras et al., "Elucidating the design space of diffusion-based generative models", 2022,
    arXiv 2206.00364 (its form and size here).
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.nn.attention import attention
from saltus.nn.embeddings import Conditioning, Readout, check_condition, check_input, sinusoidal
from saltus.nn.inherit import copied
from saltus.nn.ladder import Rung, check_levels, ladder
from saltus.tensors import like
from saltus.typing import Condition, Output

__all__ = ["DDPMpp"]

ROOT = math.sqrt(0.5)
"""What a sum of a shortcut and its branch is multiplied by."""


def _conv(enter: int, leave: int, side: int, gain: float = 1.0) -> nn.Conv2d:
    """A convolution with uniform weights by Xavier's rule, times ``gain``, and no bias at the start."""
    made = nn.Conv2d(enter, leave, side, padding=side // 2)
    nn.init.xavier_uniform_(made.weight, gain)
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(min(32, channels // 4), channels), channels, eps=1e-6)


class _Attention(nn.Module):
    """Attention of pixels to each other, in one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = _conv(channels, 3 * channels, 1, math.sqrt(0.2))
        self.leave = _conv(channels, channels, 1, 1e-5)

    def forward(self, h: Tensor) -> Tensor:
        qkv: Tensor = self.qkv(self.norm(h))
        q, k, v = qkv.flatten(2).mT.chunk(3, dim=-1)
        y = attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1)
        left: Tensor = self.leave(y.mT.reshape(h.shape))
        return (h + left) * ROOT


class _Block(nn.Module):
    """Two convolutions beside a shortcut; the embedding shifts the channels between them."""

    def __init__(self, rung: Rung, down: bool, embedding: int) -> None:
        super().__init__()
        enter, leave = rung.enter, rung.leave
        self.down, self.resample = down, rung.resample
        self.norm0, self.norm1 = _norm(enter), _norm(leave)
        self.conv0, self.conv1 = _conv(enter, leave, 3), _conv(leave, leave, 3, 1e-5)
        self.shift = nn.Linear(embedding, leave)
        self.shortcut = _conv(enter, leave, 1) if enter != leave or rung.resample else None
        self.attention = _Attention(leave) if rung.attends else None

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        y = F.silu(self.norm0(h))
        if self.resample:
            h, y = self._resampled(h), self._resampled(y)
        y = self.conv0(y)
        y = self.conv1(F.silu(self.norm1(y + like(self.shift(c), y))))
        h = ((h if self.shortcut is None else self.shortcut(h)) + y) * ROOT
        return h if self.attention is None else self.attention(h)

    def _resampled(self, h: Tensor) -> Tensor:
        return F.avg_pool2d(h, 2) if self.down else F.interpolate(h, scale_factor=2.0)


class DDPMpp(nn.Module):
    """U-Net on images [C, H, W] with a skip connection from every block; the size cifar10 is the published.

    Args:
        shape: (C, H, W).
        channels: before the first block.
        multipliers: of the channels at each resolution, halved from one to the next.
        depth: blocks at each resolution on the way down; one more on the way up.
        attention: the resolutions (heights) that have attention; the lowest has it once in any case.
        classes: number of labels, None without.
        heads: names of second outputs of x's shape.
        guidance: whether ``cond.w`` is an input.
    """

    SIZES = {
        "tiny": {"channels": 16, "multipliers": (1, 2), "depth": 1, "attention": (4,)},
        "small": {"channels": 32, "multipliers": (1, 2), "depth": 2, "attention": (4,)},
        "cifar10": {"channels": 128, "multipliers": (2, 2, 2), "depth": 4, "attention": (16,)},
    }

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 32,
        multipliers: tuple[int, ...] = (1, 2),
        depth: int = 2,
        attention: tuple[int, ...] = (16,),
        classes: int | None = None,
        heads: tuple[str, ...] = (),
        guidance: bool = False,
    ) -> None:
        super().__init__()
        check_levels("DDPM++", shape, len(multipliers))
        self.shape = tuple(shape)
        width, sizes = 4 * channels, [channels * m for m in multipliers]
        self.conditioning = Conditioning(
            width, partial(sinusoidal, size=channels), channels, classes, guidance
        )
        self.stem = _conv(shape[0], channels, 3)
        down, up = ladder(channels, sizes, depth, attention, shape[1], every=False)
        self.turn, self.joins = len(down), [rung.joins for rung in up]
        self.blocks = nn.ModuleList(
            [*(_Block(rung, True, width) for rung in down), *(_Block(rung, False, width) for rung in up)]
        )
        self.norm = _norm(sizes[0])
        self.out = Readout(lambda: nn.Conv2d(sizes[0], shape[0], 3, padding=1), heads)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads: x [B, C, H, W], s and t [B] -> [B, C, H, W]."""
        check_input(x, s, t, self.shape)
        check_condition(cond, label=self.conditioning.label is not None)
        c = self.conditioning(x, s, t, cond)
        h = self.stem(x)
        skips, blocks = [h], list(self.blocks)
        for block in blocks[: self.turn]:
            h = block(h, c)
            skips.append(h)
        for block, joins in zip(blocks[self.turn :], self.joins, strict=True):
            h = block(torch.cat([h, skips.pop()], dim=1) if joins else h, c)
        out: Output = self.out(F.silu(self.norm(h)), lambda y: y.to(x.dtype))
        return out

    def inherit(self, teacher: nn.Module) -> None:
        """Start as the teacher: the output at (s, t) is its output at (s, s), for every t."""
        copied(self, teacher)
        self.conditioning.forget_gap()
