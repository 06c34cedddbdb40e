"""How times, labels and guidance enter a network, and the small parts that networks share.

Times are features of s and of t - s, computed in float32 or float64 whatever precision the network
runs in: near s = t, half precision could not tell two times apart. Frequencies suit times in [0, 1]
and stay low, because a derivative in time multiplies a feature by its frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.nn.inherit import fold_constant
from saltus.tensors import check_times, upcast
from saltus.typing import Condition, Output

__all__ = [
    "Conditioning",
    "LayerNorm",
    "Readout",
    "RMSNorm",
    "check_condition",
    "check_input",
    "sinusoidal",
    "small_features",
]

SMALL = 6
"""How many numbers :func:`small_features` makes of a time."""


def small_features(a: Tensor) -> Tensor:
    """(a, a^2, sin pi a, cos pi a, sin 2 pi a, cos 2 pi a) of times a [B]: [B, 6].

    >>> small_features(torch.tensor([0.25])).round(decimals=2)
    tensor([[0.2500, 0.0600, 0.7100, 0.7100, 1.0000, -0.0000]])
    """
    pi = math.pi
    waves = [torch.sin(pi * a), torch.cos(pi * a), torch.sin(2 * pi * a), torch.cos(2 * pi * a)]
    return torch.stack([a, a * a, *waves], dim=-1)


def sinusoidal(a: Tensor, size: int, max_frequency: float = 8.0) -> Tensor:
    """sin and cos of 2 pi f a for size/2 frequencies f, from 1/4 to ``max_frequency`` in a geometric
    series: [B] -> [B, size]. Times are not multiplied by 1000, so the slowest wave has period 4.

    >>> sinusoidal(torch.tensor([0.0, 1.0]), 8).shape
    torch.Size([2, 8])
    """
    span = torch.linspace(math.log(0.25), math.log(max_frequency), size // 2, dtype=a.dtype, device=a.device)
    angle = 2.0 * math.pi * a.unsqueeze(-1) * span.exp()
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def check_input(x: Tensor, s: Tensor, t: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless x is floating, [B, *shape], and s, t are times of its rows."""
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
        fix = "x.unsqueeze(0)" if x.shape == shape else f"a network built for shape {tuple(x.shape[1:])}"
        want = ", ".join(("B", *map(str, shape)))
        raise ValueError(f"network input: expected [{want}], got {list(x.shape)}; use {fix}")
    if not x.is_floating_point():
        raise ValueError(f"network input: expected floating point, got {x.dtype}; use x.float()")
    check_times(x, s=s, t=t)


class RMSNorm(nn.Module):
    """x / rms(x) over the last axis, times a learned weight that follows the dtype of x.

    In primitive operations: a derivative through PyTorch's fused one takes up to half as long again.

    Args:
        size: of the last axis.
        learned: whether there is a weight.
    """

    def __init__(self, size: int, learned: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(upcast(x).square().mean(-1, keepdim=True) + 1e-6)
        y = x * scale.to(x.dtype)
        return y if self.weight is None else y * self.weight.to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean)/s.d. over the last axis, without weights, in primitive operations: a backward pass through
    the derivative of PyTorch's fused one is wrong."""

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)
        centred = wide - wide.mean(-1, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
        return y.to(x.dtype)


class ClassEmbedding(nn.Module):
    """A vector for each class, and one of its own, in the last row, for rows without a label."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes: expected at least 1, got {classes}; None is a network without labels")
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02 if width > 64 else 0.1)

    def forward(self, x: Tensor, cond: Condition | None) -> Tensor:
        out: Tensor = self.table(rows_of_table(x, cond, self.classes))
        return out


def rows_of_table(x: Tensor, cond: Condition | None, classes: int) -> Tensor:
    """The labels, with ``classes`` in rows that have none or whose label is dropped: int64 [B]."""
    null = torch.full(x.shape[:1], classes, dtype=torch.int64, device=x.device)
    if cond is None or cond.label is None:
        return null
    _check_rows(x, cond.label, "label")
    label = cond.label if cond.null is None else torch.where(cond.null, null, cond.label)
    if label.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"label: expected int64 classes, got {label.dtype}; use label.long()")
    if torch.compiler.is_compiling() or label.device.type != "cpu" or not label.numel():
        return label  # other devices are not waited for
    low, high = (int(end) for end in torch.aminmax(label))
    if low < 0 or high > classes:
        raise ValueError(
            f"label: expected classes from 0 to {classes - 1}, got {low if low < 0 else high}; "
            "number the classes from 0, or build the network with more of them"
        )
    return label


class Pooled(nn.Module):
    """A linear layer of the embedding of a whole text, and a vector of its own for rows without a text.

    Args:
        size: of the embedding.
        width: of the result.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.randn(size))
        self.enter = nn.Linear(size, width, bias=False)

    def forward(self, x: Tensor, cond: Condition | None) -> Tensor:
        """cond.pooled [B, size] -> [B, width]."""
        none = self.null.expand(x.shape[0], -1)
        out: Tensor
        if cond is None or cond.pooled is None:
            out = self.enter(none)
            return out
        if cond.pooled.shape != none.shape:
            raise ValueError(
                f"pooled: expected shape {list(none.shape)}, one embedding a row of x, got "
                f"{list(cond.pooled.shape)}; build the network with pooled={cond.pooled.shape[-1]}"
            )
        seen = cond.pooled.to(none.dtype)
        if cond.null is not None:
            seen = torch.where(cond.null.unsqueeze(-1), none, seen)
        out = self.enter(seen)
        return out


class Conditioning(nn.Module):
    """c(s, t - s, label, w) [B, width]: what modulates every block of a network.

    A two-layer network of the time features, plus the class vector, plus those of the guidance
    strength and of the whole text; all in the precision of the parameters, never in that of autocast.

    Args:
        width: of the result.
        features: [B] -> [B, size], of s and of t - s.
        size: how many features there are of one time.
        classes: number of labels; None is a network without labels.
        guidance: whether the guidance strength ``cond.w`` is an input; None stands for w = 1.
        pooled: size of the embedding of a whole text, ``cond.pooled``; None is a network without.
        late: whether class, strength and text are added behind the second layer (as in the published
            DiT) in place of behind the first.
    """

    def __init__(
        self,
        width: int,
        features: Callable[[Tensor], Tensor] = small_features,
        size: int = SMALL,
        classes: int | None = None,
        guidance: bool = False,
        pooled: int | None = None,
        late: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.late = late
        self.times = nn.Linear(2 * size, width)
        self.mix = nn.Linear(width, width)
        self.label = None if classes is None else ClassEmbedding(classes, width)
        self.w = nn.Linear(SMALL, width) if guidance else None
        self.pooled = None if pooled is None else Pooled(pooled, width)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        dtype = self.times.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            seen = torch.cat([self.features(s), self.features(t - s)], dim=-1)
            h = self.times(seen.to(dtype))
            if not self.late:
                h = self._add(h, x, cond)
            c: Tensor = self.mix(F.silu(h))
            return F.silu(self._add(c, x, cond) if self.late else c)

    def _add(self, h: Tensor, x: Tensor, cond: Condition | None) -> Tensor:
        """h plus the vectors of what there is beside the times."""
        if self.label is not None:
            h = h + self.label(x, cond)
        if self.w is not None:
            h = h + self.w(guidance_features(x, cond).to(h.dtype))
        if self.pooled is not None:
            h = h + self.pooled(x, cond)
        return h

    def forget_gap(self) -> None:
        """Make c(s, t - s) what it is now at t = s, for every t; the weights on t - s can learn again."""
        none = self.features(torch.zeros(1, dtype=torch.float64))[0]
        fold_constant(self.times, slice(len(none), None), none)


def check_condition(
    cond: Condition | None, label: bool = False, tokens: bool = False, pooled: bool = False
) -> None:
    """Raise a ValueError if a network is given a label or a text that it does not take.

    Args:
        cond: what is given.
        label: whether it takes labels, and so on.
        tokens: whether it takes a sequence.
        pooled: whether it takes the embedding of a whole text.
    """
    if cond is None:
        return
    for name, value, taken, fix in (
        ("label", cond.label, label, "classes"),
        ("tokens", cond.tokens, tokens, "tokens"),
        ("pooled", cond.pooled, pooled, "pooled"),
    ):
        if value is not None and not taken:
            plural = {"label": "labels"}.get(name, name)
            raise ValueError(
                f"network condition: expected no {name}, because the network was built without {fix}, got "
                f"{plural} {list(value.shape)}; build it with {fix}=... or drop the {name}"
            )


def _check_rows(x: Tensor, value: Tensor, name: str) -> None:
    """Raise a ValueError unless value is a tensor with one number for each row of x."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name}: expected a tensor of shape [{x.shape[0]}], got {type(value).__name__}; "
            f"use torch.full(({x.shape[0]},), {value!r})"
        )
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: expected shape [{x.shape[0]}], one number a row of x {list(x.shape)}, "
            f"got {list(value.shape)}; repeat it for every row"
        )


def guidance_features(x: Tensor, cond: Condition | None) -> Tensor:
    """Features [B, 6] of a = asinh(w - 1)/4: zero without guidance, 0.66 at w = 8, smooth everywhere."""
    if cond is None or cond.w is None:
        return small_features(torch.zeros(x.shape[:1], device=x.device))
    _check_rows(x, cond.w, "w")
    return small_features(torch.asinh(cond.w - 1.0) / 4.0)


class Readout(nn.Module):
    """The output layers: u and the second heads, all zero at the start.

    Args:
        layer: makes one output layer, which has a weight and a bias.
        heads: names of the second heads.
    """

    def __init__(self, layer: Callable[[], nn.Linear | nn.Conv2d], heads: tuple[str, ...]) -> None:
        super().__init__()
        self.u = zeroed(layer())
        self.heads = nn.ModuleDict({name: zeroed(layer()) for name in heads})

    def forward(self, h: Tensor, finish: Callable[[Tensor], Tensor]) -> Output:
        """Output of features h; ``finish`` brings a layer's result into the shape and dtype of x."""
        return Output(finish(self.u(h)), {name: finish(layer(h)) for name, layer in self.heads.items()})


def zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """``layer`` with weight and bias set to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
