"""A diffusion transformer with two time inputs: DiT and SiT in their published sizes, and smaller ones.

Published sizes have the blocks of the DiT (layer norm, GELU, the label added behind the two layers of the
time). The sizes tiny to large have RMS norm and SiLU, which cost less in a derivative. Beyond the papers are
the second time, the normalised queries and keys, and times that are not multiplied by 1000.

References:
    Peebles and Xie, "Scalable diffusion models with transformers", 2022, arXiv 2212.09748 (adaLN-zero).
    Ma et al., "SiT: exploring flow and diffusion-based generative models with scalable interpolant
        transformers", 2024, arXiv 2401.08740 (the same network with a velocity).
    Chen et al., "PixArt-alpha", 2023, arXiv 2310.00426 (attention to a text, between a block's two parts).
    Dehghani et al., "Scaling vision transformers to 22 billion parameters", 2023, arXiv 2302.05442
        (normalised queries and keys).
    Heo et al., "Rotary position embedding for vision transformer", 2024, arXiv 2403.13298 (rotary positions
        in two dimensions).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.nn.attention import CrossAttention, SelfAttention, rotary
from saltus.nn.embeddings import (
    Conditioning,
    LayerNorm,
    Readout,
    RMSNorm,
    check_condition,
    check_input,
    sinusoidal,
    zeroed,
)
from saltus.nn.inherit import copied
from saltus.nn.text import Text
from saltus.typing import Condition, Output

__all__ = ["DiT"]

POSITIONS = {"learned": False, "rotary": True}
"""Kinds of positions, and whether tokens are turned by them."""


_GELU = partial(F.gelu, approximate="tanh")


def _modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return h * (1.0 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def _norm(width: int, published: bool) -> nn.Module:
    return LayerNorm() if published else RMSNorm(width, learned=False)


class _Block(nn.Module):
    """Attention and a two-layer network, each entered by a norm that the conditioning c scales and
    shifts, and left through a gate that c opens; the gates are closed at the start."""

    def __init__(self, width: int, heads: int, published: bool, text: bool) -> None:
        super().__init__()
        self.norm = _norm(width, published)
        self.attention = SelfAttention(width, heads)
        self.cross = CrossAttention(width, heads) if text else None
        self.enter = nn.Linear(width, 4 * width)
        self.leave = nn.Linear(4 * width, width)
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.activation: Callable[[Tensor], Tensor] = _GELU if published else F.silu

    def forward(
        self,
        h: Tensor,
        c: Tensor,
        angle: Tensor | None = None,
        text: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(c).chunk(6, dim=-1)
        h = h + gate1.unsqueeze(1) * self.attention(_modulate(self.norm(h), scale1, shift1), angle)
        if self.cross is not None and text is not None:
            h = h + self.cross(h, text, mask)
        y = self.leave(self.activation(self.enter(_modulate(self.norm(h), scale2, shift2))))
        h = h + gate2.unsqueeze(1) * y
        return h


class DiT(nn.Module):
    """Transformer on patches of an image [C, H, W].

    A text enters by attention of every block to its tokens, ``cond.tokens``; the network has a token of its
    own for rows without one.

    Args:
        shape: (C, H, W).
        width: of a token.
        depth: number of blocks.
        attention_heads: of each block.
        patch: side of a patch; divides H and W.
        classes: number of labels, None without.
        heads: names of second outputs of x's shape.
        guidance: whether ``cond.w`` is an input.
        positions: "learned", a vector a token, or "rotary", in two dimensions.
        tokens: size of a token of ``cond.tokens``; None is a network without.
        pooled: size of ``cond.pooled``; None is a network without.
        published: whether norm, activation and the place of the label are those of the DiT (see above).
    """

    SIZES = {
        "tiny": {"width": 64, "depth": 2, "attention_heads": 2},
        "small": {"width": 192, "depth": 4, "attention_heads": 3},
        "base": {"width": 384, "depth": 12, "attention_heads": 6},
        "large": {"width": 768, "depth": 12, "attention_heads": 12},
        "s": {"width": 384, "depth": 12, "attention_heads": 6, "published": True},
        "b": {"width": 768, "depth": 12, "attention_heads": 12, "published": True},
        "l": {"width": 1024, "depth": 24, "attention_heads": 16, "published": True},
        "xl": {"width": 1152, "depth": 28, "attention_heads": 16, "published": True},
    }

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 192,
        depth: int = 4,
        attention_heads: int = 3,
        patch: int = 2,
        classes: int | None = None,
        heads: tuple[str, ...] = (),
        guidance: bool = False,
        positions: str = "learned",
        tokens: int | None = None,
        pooled: int | None = None,
        published: bool = False,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or patch < 1 or shape[1] % patch or shape[2] % patch:
            raise ValueError(
                f"DiT: expected a shape (C, H, W) with H and W divisible by the patch {patch}, got "
                f"{tuple(shape)}; change the patch or the image size"
            )
        if positions not in POSITIONS:
            raise ValueError(f"positions: expected one of {', '.join(POSITIONS)}, got {positions!r}")
        if POSITIONS[positions] and width % (4 * attention_heads):
            raise ValueError(
                f"rotary positions: expected heads of a size divisible by 4, got a width of {width} in "
                f"{attention_heads} heads; use learned positions"
            )
        self.shape = tuple(shape)
        self.patch = patch
        self.grid = (shape[1] // patch, shape[2] // patch)
        count, size = self.grid[0] * self.grid[1], shape[0] * patch * patch
        waves = 256 if published else 64
        features = partial(sinusoidal, size=waves)
        self.conditioning = Conditioning(width, features, waves, classes, guidance, pooled, late=published)
        self.text = None if tokens is None else Text(tokens, width)
        self.stem = nn.Linear(size, width)
        self.turn = width // attention_heads if POSITIONS[positions] else None
        self.position = None if POSITIONS[positions] else nn.Parameter(0.02 * torch.randn(count, width))
        self.blocks = nn.ModuleList(
            _Block(width, attention_heads, published, text=tokens is not None) for _ in range(depth)
        )
        self.norm = _norm(width, published)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.out = Readout(lambda: nn.Linear(width, size), heads)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads: x [B, C, H, W], s and t [B] -> [B, C, H, W]."""
        check_input(x, s, t, self.shape)
        conditioning = self.conditioning
        check_condition(
            cond, conditioning.label is not None, self.text is not None, conditioning.pooled is not None
        )
        c = conditioning(x, s, t, cond)
        h = self.stem(self._patches(x))
        if self.position is not None:
            h = h + self.position
        angle = None if self.turn is None else rotary(*self.grid, self.turn, x)
        text, mask = (None, None) if self.text is None else self.text(x, cond)
        for block in self.blocks:
            h = block(h, c, angle, text, mask)
        scale, shift = self.modulation(c).chunk(2, dim=-1)
        out: Output = self.out(_modulate(self.norm(h), scale, shift), lambda y: self._image(y).to(x.dtype))
        return out

    def inherit(self, teacher: nn.Module) -> None:
        """Start as the teacher: the output at (s, t) is its output at (s, s), for every t."""
        copied(self, teacher)
        self.conditioning.forget_gap()

    def _patches(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, tokens, C * patch * patch]."""
        (channels, height, width), p = self.shape, self.patch
        x = x.reshape(-1, channels, height // p, p, width // p, p)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _image(self, y: Tensor) -> Tensor:
        """The inverse of :meth:`_patches`."""
        (channels, height, width), p = self.shape, self.patch
        y = y.reshape(-1, height // p, width // p, channels, p, p)
        return y.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)
