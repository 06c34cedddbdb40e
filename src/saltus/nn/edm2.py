"""The U-Net of EDM2, which preserves the magnitude of its activations, with two time inputs.

Its embedding is emb = mp_sum(N_s P(s), N_gap P(t - s)), with the positional features P of
:func:`saltus.nn.magnitude.positional`, then mp_sum with a vector for the class and mp_silu. In a block the
embedding scales the channels by 1 + g (N emb), with a gain g that is zero at the start; so is the gain of the
output.

For a student that starts as its teacher the gap enters as P(0) + k (P(t - s) - P(0)) with a learned k, which
is 1 in a network of its own and 0 in a new student: then the embedding is what it was at t = s, with the same
magnitude, and k learns. The balance with the class, one half at first, is learned for the same reason.

There is no dropout.

References:
    Karras et al., "Analyzing and improving the training dynamics of diffusion models", 2023,
    arXiv 2312.02696 (configuration G, sizes).
    Boffi, Albergo and Vanden-Eijnden, "How to build a consistency model: learning flow maps via
    self-distillation", 2025, arXiv 2505.18825 (the two times; sizes for CIFAR-10 and CelebA-64).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.nn.attention import attention
from saltus.nn.embeddings import SMALL, check_condition, check_input, guidance_features, rows_of_table
from saltus.nn.inherit import copied
from saltus.nn.ladder import Rung, check_levels, ladder
from saltus.nn.magnitude import MPConv, MPLayer, MPLinear, mp_cat, mp_silu, mp_sum, positional, unit
from saltus.tensors import like
from saltus.typing import Condition, Output

__all__ = ["EDM2"]

BALANCE = 0.3
"""The part of a block's residual branch, and of its attention, in their sums."""
CLIP = 256.0
"""Activations stay within it, for half precision."""
HEAD = 64
"""Channels of a head of attention."""


class _Attention(nn.Module):
    """Attention of pixels to each other; queries, keys and values have mean square 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD)
        self.qkv = MPConv(channels, 3 * channels, 1)
        self.leave = MPConv(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        qkv: Tensor = self.qkv(h)
        parts = unit(qkv.reshape(h.shape[0], self.heads, -1, 3, h.shape[2] * h.shape[3]), (2,))
        q, k, v = parts.permute(3, 0, 1, 4, 2).unbind(0)
        y = attention(q, k, v).transpose(2, 3).reshape(h.shape)
        return mp_sum(h, self.leave(y), BALANCE)


class _Block(nn.Module):
    """Two convolutions beside a shortcut, the channels between them scaled by the embedding."""

    def __init__(self, rung: Rung, down: bool, embedding: int) -> None:
        super().__init__()
        enter, leave = rung.enter, rung.leave
        self.down, self.resample = down, rung.resample
        self.conv0 = MPConv(leave if down else enter, leave, 3)
        self.film = MPLinear(embedding, leave)
        self.film_gain = nn.Parameter(torch.zeros(1))
        self.conv1 = MPConv(leave, leave, 3)
        self.shortcut = None if enter == leave else MPConv(enter, leave, 1)
        self.attention = _Attention(leave) if rung.attends else None

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        if self.resample:
            h = F.avg_pool2d(h, 2) if self.down else F.interpolate(h, scale_factor=2.0)
        if self.down:  # the way down normalises each pixel, the way up does not
            h = unit(h if self.shortcut is None else self.shortcut(h), (1,))
        y = self.conv0(mp_silu(h))
        scale = self.film(c, self.film_gain) + 1.0
        y = self.conv1(mp_silu(y * like(scale.to(y.dtype), y)))
        if not self.down and self.shortcut is not None:
            h = self.shortcut(h)
        h = mp_sum(h, y, BALANCE)
        if self.attention is not None:
            h = self.attention(h)
        return h.clamp(-CLIP, CLIP)


class _Layer(MPConv):
    """An output: a convolution times a gain, which is zero at the start."""

    def __init__(self, enter: int, leave: int) -> None:
        super().__init__(enter, leave, 3)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(h, self.gain)


class _Outputs(nn.Module):
    """u and the second heads."""

    def __init__(self, enter: int, leave: int, heads: tuple[str, ...]) -> None:
        super().__init__()
        self.u = _Layer(enter, leave)
        self.heads = nn.ModuleDict({name: _Layer(enter, leave) for name in heads})


class EDM2(nn.Module):
    """Magnitude-preserving U-Net on images [C, H, W]; sizes xs to xxl are those of ImageNet-512.

    The inputs should have about unit variance. Bring the weights back to the sphere with :meth:`project`
    after every step (:class:`saltus.games.Reproject`; recipes do).

    Args:
        shape: (C, H, W).
        channels: at full resolution.
        multipliers: of the channels at each resolution, halved from one to the next.
        depth: blocks at each resolution on the way down; one more on the way up.
        attention: the resolutions (heights) that have attention; the lowest has it once in any case.
        classes: number of labels, None without; a row without a label has a vector of its own.
        heads: names of second outputs of x's shape.
        guidance: whether ``cond.w`` is an input, with a learned balance that is zero at the start.
    """

    SIZES = {
        "tiny": {"channels": 16, "multipliers": (1, 2), "depth": 1, "attention": (4,)},
        "small": {"channels": 32, "multipliers": (1, 2), "depth": 2, "attention": (4,)},
        "cifar10": {"channels": 128, "multipliers": (2, 2, 2), "depth": 4, "attention": (16,)},
        "celeba64": {"channels": 128, "multipliers": (1, 2, 3, 4), "depth": 3, "attention": (16, 8)},
        "xs": {"channels": 128, "multipliers": (1, 2, 3, 4), "depth": 3, "attention": (16, 8)},
        "s": {"channels": 192, "multipliers": (1, 2, 3, 4), "depth": 3, "attention": (16, 8)},
        "m": {"channels": 256, "multipliers": (1, 2, 3, 4), "depth": 3, "attention": (16, 8)},
        "l": {"channels": 320, "multipliers": (1, 2, 3, 4), "depth": 3, "attention": (16, 8)},
        "xl": {"channels": 384, "multipliers": (1, 2, 3, 4), "depth": 3, "attention": (16, 8)},
        "xxl": {"channels": 448, "multipliers": (1, 2, 3, 4), "depth": 3, "attention": (16, 8)},
    }

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 32,
        multipliers: tuple[int, ...] = (1, 2),
        depth: int = 2,
        attention: tuple[int, ...] = (16, 8),
        classes: int | None = None,
        heads: tuple[str, ...] = (),
        guidance: bool = False,
    ) -> None:
        super().__init__()
        check_levels("EDM2", shape, len(multipliers))
        if classes is not None and classes < 1:
            raise ValueError(f"classes: expected at least 1, got {classes}; None is a network without labels")
        self.shape, self.classes = tuple(shape), classes
        sizes = [channels * m for m in multipliers]
        self.waves, width = sizes[0], max(sizes)
        self.start = MPLinear(self.waves, width)
        self.gap = MPLinear(self.waves, width)
        self.gap_gain = nn.Parameter(torch.ones(1))
        self.label = None if classes is None else MPLinear(classes + 1, width)
        self.w = MPLinear(SMALL, width) if guidance else None
        balances = {"label": 0.5} if classes is not None else {}
        balances |= {"w": 0.0} if guidance else {}
        self.balance = nn.ParameterDict({k: nn.Parameter(torch.full((1,), v)) for k, v in balances.items()})
        down, up = ladder(sizes[0], sizes, depth, attention, shape[1], every=True)
        self.turn, self.joins = len(down), [rung.joins for rung in up]
        self.stem = MPConv(shape[0] + 1, sizes[0], 3)
        self.blocks = nn.ModuleList(
            [*(_Block(rung, True, width) for rung in down), *(_Block(rung, False, width) for rung in up)]
        )
        self.out = _Outputs(sizes[0], shape[0], heads)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads: x [B, C, H, W], s and t [B] -> [B, C, H, W]."""
        check_input(x, s, t, self.shape)
        check_condition(cond, label=self.label is not None)
        c = self.embedding(x, s, t, cond)
        h = self.stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))  # the ones stand for biases
        skips, blocks = [h], list(self.blocks)
        for block in blocks[: self.turn]:
            h = block(h, c)
            skips.append(h)
        for block, joins in zip(blocks[self.turn :], self.joins, strict=True):
            h = block(mp_cat(h, skips.pop()) if joins else h, c)
        heads = {name: layer(h).to(x.dtype) for name, layer in self.out.heads.items()}
        return Output(self.out.u(h).to(x.dtype), heads)

    def embedding(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """What modulates the blocks, [B, width], in the precision of the parameters."""
        dtype = self.start.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            none = positional(torch.zeros_like(s), self.waves)
            gap = none + self.gap_gain * (positional(t - s, self.waves) - none)
            c = mp_sum(self.start(positional(s, self.waves).to(dtype)), self.gap(gap.to(dtype)))
            if self.label is not None and self.classes is not None:
                label = self.label.column(rows_of_table(x, cond, self.classes))
                c = mp_sum(c, label, self.balance["label"])
            if self.w is not None:
                c = mp_sum(c, self.w(guidance_features(x, cond).to(dtype)), self.balance["w"])
            return mp_silu(c)

    @torch.no_grad()
    def inherit(self, teacher: nn.Module) -> None:
        """Start as the teacher: the output at (s, t) is its output at (s, s), for every t."""
        copied(self, teacher)
        self.gap_gain.zero_()

    def project(self) -> None:
        """Bring every weight that is trained back to its sphere; the output stays what it is."""
        for layer in self.modules():
            if isinstance(layer, MPLayer) and layer.weight.requires_grad:
                layer.project()
