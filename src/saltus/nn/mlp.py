"""Fully connected networks: a plain one for data in a few dimensions, a residual one for small images."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.nn.embeddings import (
    SMALL,
    ClassEmbedding,
    Conditioning,
    Readout,
    RMSNorm,
    check_condition,
    check_input,
    guidance_features,
    small_features,
)
from saltus.nn.inherit import copied, fold_constant, refusal
from saltus.typing import Condition, Output

__all__ = ["MLP", "ResidualMLP"]


class _Layer(nn.Module):
    """silu(W h + b)."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, width)

    def forward(self, h: Tensor) -> Tensor:
        y: Tensor = self.linear(h)
        return F.silu(y)


class MLP(nn.Module):
    """Hidden layers of equal width on (x, six features of s, six of t - s); the size "small", three
    layers of 128, is the network that the reference figures of two-dimensional data refer to.

    Args:
        shape: of one sample; flattened inside.
        width: of every hidden layer.
        depth: number of hidden layers.
        classes: number of labels, None without; a label enters as a vector of 16 numbers.
        heads: names of second outputs of x's shape.
        guidance: whether ``cond.w`` is an input.

    >>> from saltus.nn import MLP
    >>> net = MLP((2,))
    >>> net(torch.ones(3, 2), torch.zeros(3), torch.ones(3)).u.abs().max().item()
    0.0
    """

    SIZES = {
        "tiny": {"width": 64, "depth": 2},
        "small": {"width": 128, "depth": 3},
        "base": {"width": 256, "depth": 4},
        "large": {"width": 512, "depth": 4},
    }
    _LABEL = 16

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 128,
        depth: int = 3,
        classes: int | None = None,
        heads: tuple[str, ...] = (),
        guidance: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.guidance = guidance
        size = math.prod(self.shape)
        first = size + 2 * SMALL + (self._LABEL if classes is not None else 0) + (SMALL if guidance else 0)
        self.label = None if classes is None else ClassEmbedding(classes, self._LABEL)
        self.blocks = nn.ModuleList(_Layer(first if i == 0 else width, width) for i in range(depth))
        self.out = Readout(lambda: nn.Linear(width, size), heads)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads: x [B, *shape], s and t [B] -> [B, *shape]."""
        check_input(x, s, t, self.shape)
        check_condition(cond, label=self.label is not None)
        seen = [x.flatten(1), small_features(s), small_features(t - s)]
        if self.label is not None:
            seen.append(self.label(x, cond))
        if self.guidance:
            seen.append(guidance_features(x, cond))
        h = torch.cat([part.to(x.dtype) for part in seen], dim=-1)
        for i, block in enumerate(self.blocks):
            # The first layer sees times and few numbers: half precision would gain little and lose much.
            with torch.autocast(x.device.type, enabled=False) if i == 0 else nullcontext():
                h = block(h)
        out: Output = self.out(h, lambda y: y.to(x.dtype).reshape(x.shape))
        return out

    def inherit(self, teacher: nn.Module) -> None:
        """Start as the teacher: the output at (s, t) is its output at (s, s), for every t."""
        places = self._places_of(teacher) if isinstance(teacher, MLP) else None
        copied(self, teacher, {} if places is None else {"blocks.0.linear.weight": places})
        first = self.blocks[0].linear
        assert isinstance(first, nn.Linear)
        gap = math.prod(self.shape) + SMALL
        none = small_features(torch.zeros(1, dtype=torch.float64))[0]
        fold_constant(first, slice(gap, gap + SMALL), none)

    def _places_of(self, other: MLP) -> Tensor:
        """Where the inputs of another network of this shape stand among this one's, int64."""
        kept = [torch.arange(math.prod(self.shape) + 2 * SMALL)]
        place = len(kept[0])
        for mine, theirs, size in (
            (self.label is not None, other.label is not None, self._LABEL),
            (self.guidance, other.guidance, SMALL),
        ):
            if theirs and not mine:
                inputs = self._inputs(), other._inputs()
                raise ValueError(refusal("every input of the teacher", *inputs, "inputs"))
            if theirs:
                kept.append(torch.arange(place, place + size))
            place += size if mine else 0
        return torch.cat(kept)

    def _inputs(self) -> str:
        return ", ".join(["x, s, t", *["label"] * (self.label is not None), *["w"] * self.guidance])


class _Residual(nn.Module):
    """h + W2 silu((1 + scale(c)) W1 norm(h) + shift(c))."""

    def __init__(self, width: int, conditioning: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.enter = nn.Linear(width, width)
        self.film = nn.Linear(conditioning, 2 * width)
        self.leave = nn.Linear(width, width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(c).chunk(2, dim=-1)
        y: Tensor = F.silu(self.enter(self.norm(h)) * (1.0 + scale) + shift)
        y = self.leave(y)
        return h + y


class ResidualMLP(nn.Module):
    """Residual blocks on a flattened sample, each modulated by times and label: cheap in forward mode,
    and enough for 8x8 digits.

    Args:
        shape: of one sample; flattened inside.
        width: of the residual stream.
        depth: number of blocks, of two linear layers each.
        classes: number of labels, None without.
        heads: names of second outputs of x's shape.
        guidance: whether ``cond.w`` is an input.
    """

    SIZES = {
        "tiny": {"width": 64, "depth": 2},
        "small": {"width": 256, "depth": 3},
        "base": {"width": 512, "depth": 4},
        "large": {"width": 1024, "depth": 6},
    }

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 256,
        depth: int = 3,
        classes: int | None = None,
        heads: tuple[str, ...] = (),
        guidance: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        self.conditioning = Conditioning(width // 2, classes=classes, guidance=guidance)
        self.stem = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Residual(width, width // 2) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.out = Readout(lambda: nn.Linear(width, size), heads)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads: x [B, *shape], s and t [B] -> [B, *shape]."""
        check_input(x, s, t, self.shape)
        check_condition(cond, label=self.conditioning.label is not None)
        c = self.conditioning(x, s, t, cond)
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        out: Output = self.out(self.norm(h), lambda y: y.to(x.dtype).reshape(x.shape))
        return out

    def inherit(self, teacher: nn.Module) -> None:
        """Start as the teacher: the output at (s, t) is its output at (s, s), for every t."""
        copied(self, teacher)
        self.conditioning.forget_gap()
