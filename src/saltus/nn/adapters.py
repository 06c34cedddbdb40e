"""A trained network with small parts beside its linear layers that take the strength of guidance.

Each linear layer y = W h + b, frozen, becomes

    y + U (g(w) * D h),    D [rank, in], U [out, rank], U = 0 at the start,

with the gate g(w) = G phi(a), a = asinh(w - 1)/4 and phi(a) = (a, a^2, sin pi a, 1 - cos pi a), one number
for each of the rank directions. phi vanishes at w = 1, so there, and everywhere at the start, the network
is what it was.

References:
    Jensen and Sadat, "Efficient distillation of classifier-free guidance using adapters", 2025,
    arXiv 2503.07274 (adapters beside a frozen network, about 2 % of its parameters; theirs are small networks
    on the hidden states, these are of low rank).
    Hu et al., "LoRA: low-rank adaptation of large language models", 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.autodiff import Aside, Beside
from saltus.nn.magnitude import MPLinear
from saltus.tensors import upcast
from saltus.typing import Condition, Output

__all__ = ["AdaptedLinear", "AdaptedMPLinear", "GuidanceAdapters"]

_FEATURES = 4


def strength_features(w: Tensor) -> Tensor:
    """phi(a) of strengths w [B], a = asinh(w - 1)/4: [B, 4], zero at w = 1.

    >>> strength_features(torch.tensor([1.0]))
    tensor([[0., 0., 0., 0.]])
    """
    a = torch.asinh(upcast(w) - 1.0) / 4.0
    return torch.stack([a, a * a, torch.sin(math.pi * a), 1.0 - torch.cos(math.pi * a)], dim=-1)


class _Part(Beside):
    """What stands beside a layer, with its parameters among those of the layer."""

    down: nn.Parameter
    up: nn.Parameter
    gate: nn.Parameter

    def _place(self, weight: Tensor, rank: int, aside: Aside) -> None:
        leave, enter = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, enter))
        self.up = nn.Parameter(weight.new_zeros(leave, rank))
        self.gate = nn.Parameter(weight.new_empty(rank, _FEATURES))
        nn.init.normal_(self.down, std=enter**-0.5)
        nn.init.normal_(self.gate)
        self.aside = aside

    def _beside(self, h: Tensor, y: Tensor) -> Tensor:
        """y, the layer's value at h [B, ..., in], plus U (g(w) * D h)."""
        features = self.aside.value
        if features is None:
            return y
        g = F.linear(features.to(self.gate.dtype), self.gate)
        g = g.reshape(g.shape[0], *(1,) * (h.ndim - 2), g.shape[1])
        return y + F.linear(g * F.linear(h, self.down), self.up)


class AdaptedLinear(nn.Linear, _Part):
    """A frozen linear layer with a gated part of low rank beside it.

    Args:
        base: the layer, whose weight and bias are taken as they are.
        rank: of the part beside it.
        aside: where the features of the strengths of the call in progress are found, [B, 4]; None without.
    """

    def __init__(self, base: nn.Linear, rank: int, aside: Aside) -> None:
        super().__init__(1, 1, bias=False, device="meta")  # its weights are the base's
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self._place(base.weight, rank, aside)

    def forward(self, h: Tensor) -> Tensor:
        """[B, ..., in] -> [B, ..., out]."""
        return self._beside(h, F.linear(h, self.weight, self.bias))


class AdaptedMPLinear(MPLinear, _Part):
    """The same beside a frozen magnitude-preserving layer; its gain leaves the part alone.

    Args:
        base: the layer, whose weight is taken as it is.
        rank: of the part beside it.
        aside: as for :class:`AdaptedLinear`.
    """

    def __init__(self, base: MPLinear, rank: int, aside: Aside) -> None:
        super().__init__(1, 1)
        self.in_features, self.out_features, self.fan_in = base.in_features, base.out_features, base.fan_in
        self.weight = base.weight
        self._place(base.weight, rank, aside)

    def forward(self, h: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """[B, ..., in] -> [B, ..., out]."""
        return self._beside(h, super().forward(h, gain))


class GuidanceAdapters(nn.Module):
    """A backbone that takes the strength of guidance, made of one that does not: a copy, frozen but for the
    small parts beside its linear layers.

    Without ``cond.w``, and at w = 1, it is the backbone. The adapters draw their directions from PyTorch's
    global generator.

    Args:
        backbone: a trained network of protocol :class:`saltus.typing.Backbone`; it is copied.
        rank: of each part; 1 is about 2 % of the parameters of a network of width 128, 8 of one of 1024.

    Raises:
        ValueError: for a rank below 1, or a network without linear layers.

    >>> from saltus.nn import MLP
    >>> net = GuidanceAdapters(MLP((2,)), rank=1)
    >>> round(net.share, 3)
    0.023
    """

    def __init__(self, backbone: nn.Module, rank: int = 4) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"adapters: expected a rank of at least 1, got {rank}; 4 is usual")
        self._aside = Aside()
        self.backbone = copy.deepcopy(backbone).requires_grad_(False)
        inner = [m for m in self.backbone.modules() if not isinstance(m, _Part)]
        count = 0
        for module in inner:
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    module.add_module(name, AdaptedLinear(child, rank, self._aside))
                elif type(child) is MPLinear:
                    module.add_module(name, AdaptedMPLinear(child, rank, self._aside))
                else:
                    continue
                count += 1
        if count == 0:
            raise ValueError(
                f"adapters: expected a network with linear layers, got {type(backbone).__name__} without; "
                "train the whole network on the guided velocity instead"
            )

    @property
    def blocks(self) -> nn.ModuleList:
        """Those of the backbone."""
        found = self.backbone.blocks
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def share(self) -> float:
        """The parameters of the adapters over those of the backbone."""
        sizes = {True: 0, False: 0}
        for p in self.parameters():
            sizes[p.requires_grad] += p.numel()
        return sizes[True] / sizes[False]

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads, guided with strength cond.w."""
        if cond is None or cond.w is None:
            output: Output = self.backbone(x, s, t, cond)
            return output
        with self._aside.holding(strength_features(cond.w)):
            output = self.backbone(x, s, t, replace(cond, w=None))
        return output
