"""A small diffusion transformer with two time inputs.

References:
    Peebles and Xie, "Scalable diffusion models with transformers", 2022, arXiv 2212.09748 (adaLN-zero).
    Dehghani et al., "Scaling vision transformers to 22 billion parameters", 2023, arXiv 2302.05442
        (normalised queries and keys).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.nn.attention import SelfAttention
from saltus.nn.embeddings import Conditioning, Readout, RMSNorm, check_input, sinusoidal, zeroed
from saltus.nn.inherit import copied
from saltus.typing import Condition, Output

__all__ = ["DiT"]


def _modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return h * (1.0 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class _Block(nn.Module):
    """Attention and a two-layer network, each entered by a norm that the conditioning c scales and
    shifts, and left through a gate that c opens; the gates are closed at the start."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, learned=False)
        self.attention = SelfAttention(width, heads)
        self.enter = nn.Linear(width, 4 * width)
        self.leave = nn.Linear(4 * width, width)
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(c).chunk(6, dim=-1)
        h = h + gate1.unsqueeze(1) * self.attention(_modulate(self.norm(h), scale1, shift1))
        y = self.leave(F.silu(self.enter(_modulate(self.norm(h), scale2, shift2))))
        h = h + gate2.unsqueeze(1) * y
        return h


class DiT(nn.Module):
    """Transformer on patches of an image [C, H, W], with learned positions.

    Args:
        shape: (C, H, W).
        width: of a token.
        depth: number of blocks.
        attention_heads: of each block.
        patch: side of a patch; divides H and W.
        classes: number of labels, None without.
        heads: names of second outputs of x's shape.
        guidance: whether ``cond.w`` is an input.
    """

    SIZES = {
        "tiny": {"width": 64, "depth": 2, "attention_heads": 2},
        "small": {"width": 192, "depth": 4, "attention_heads": 3},
        "base": {"width": 384, "depth": 12, "attention_heads": 6},
        "large": {"width": 768, "depth": 12, "attention_heads": 12},
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
    ) -> None:
        super().__init__()
        if len(shape) != 3 or shape[1] % patch or shape[2] % patch:
            raise ValueError(
                f"DiT: expected a shape (C, H, W) with H and W divisible by the patch {patch}, got "
                f"{tuple(shape)}; change the patch or the image size"
            )
        self.shape = tuple(shape)
        self.patch = patch
        tokens, size = (shape[1] // patch) * (shape[2] // patch), shape[0] * patch * patch
        self.conditioning = Conditioning(width, partial(sinusoidal, size=64), 64, classes, guidance)
        self.stem = nn.Linear(size, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.ModuleList(_Block(width, attention_heads) for _ in range(depth))
        self.norm = RMSNorm(width, learned=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.out = Readout(lambda: nn.Linear(width, size), heads)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads: x [B, C, H, W], s and t [B] -> [B, C, H, W]."""
        check_input(x, s, t, self.shape)
        c = self.conditioning(x, s, t, cond)
        h = self.stem(self._patches(x)) + self.position
        for block in self.blocks:
            h = block(h, c)
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
