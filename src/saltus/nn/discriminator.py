"""Discriminators: small heads on the features of a network, frozen or learned with them.

Generators are judged well in the feature space of a network that knows the data: that of the frozen teacher,
asked at the level to which the samples were noised, or any other feature map.

References:
    Sauer et al., "Projected GANs converge faster", 2021, arXiv 2111.01007; Sauer et al., "Fast
    high-resolution image synthesis with latent adversarial diffusion distillation", 2024, arXiv 2403.12015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from saltus.typing import Condition

__all__ = ["BlockFeatures", "Discriminator", "heads_on"]

Features = Callable[[Tensor, Tensor, Condition | None], Sequence[Tensor]]
"""(x [B, ...], t [B], condition) -> tensors [B, C], [B, L, C] or [B, C, H, W]."""


class _Collector:
    """Keeps what a block returns, while somebody listens."""

    def __init__(self) -> None:
        self.listens = False
        self.heard: list[Tensor] = []

    def hear(self, block: nn.Module, given: object, out: Tensor) -> None:
        if self.listens:
            self.heard.append(out)


class BlockFeatures(nn.Module):
    """What some blocks of a network say of x at time t.

    Args:
        model: called as (x, t, t, condition): a flow map or its backbone.
        blocks: of it, in the order in which they run.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self._collector = _Collector()
        for block in blocks:
            block.register_forward_hook(self._collector.hear)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> tuple[Tensor, ...]:
        """The blocks' outputs."""
        collector = self._collector
        collector.heard, collector.listens = [], True
        self.model(x, t, t, cond)
        found, collector.heard, collector.listens = tuple(collector.heard), [], False
        return found


class Discriminator(nn.Module):
    """Logits [B, H] of every place of every feature tensor, each tensor with a head of its own.

    A head is two linear layers along the channels, the last one zero at the start: D = 0. Strengths of
    guidance are not told.

    Args:
        features: a module, or any function of tensors.
        channels: of each of the features.
        width: of the heads.
        pairs: whether it judges a jump, by the features of its end and of its start side by side.
        learned: whether the features learn too. If not, they are no part of this module: neither its
            parameters nor its checkpoints hold them; the gradient passes through them to x.

    >>> d = Discriminator(lambda x, t, cond: [x], (2,))
    >>> d(torch.ones(3, 2), torch.ones(3))
    tensor([[0.],
            [0.],
            [0.]], grad_fn=<CatBackward0>)
    """

    def __init__(
        self,
        features: Features | nn.Module,
        channels: Sequence[int],
        width: int = 64,
        pairs: bool = False,
        learned: bool = False,
    ) -> None:
        super().__init__()
        self.pairs = pairs
        if learned and not isinstance(features, nn.Module):
            raise ValueError("discriminator: only a module's features can learn; leave out learned=True")
        self.learned = features if learned and isinstance(features, nn.Module) else None
        self._frozen: tuple[Features | nn.Module, ...] = () if learned else (features,)
        if not learned and isinstance(features, nn.Module):
            features.requires_grad_(False)
        self.heads = nn.ModuleList(_Head(count * (2 if pairs else 1), width) for count in channels)

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition | None = None, start: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The logits of x [B, ...] at times t [B]; ``start`` is where the jump began, state and time.

        Raises:
            ValueError: if a start is given to a discriminator that does not judge pairs, or none to one that
                does; or if there are more or fewer features than heads.
        """
        if (start is not None) != self.pairs:
            raise ValueError(
                f"discriminator: expected {'the start of the jump' if self.pairs else 'samples alone'}, got "
                f"{'none' if self.pairs else 'a start as well'}; build it with pairs={not self.pairs}"
            )
        plain = None if cond is None else replace(cond, w=None, interval=None)
        seen = self._of(x, t, plain)
        if start is not None:
            before = self._of(start[0], start[1], plain)
            seen = [torch.cat(both, dim=-1) for both in zip(seen, before, strict=True)]
        if len(seen) != len(self.heads):
            raise ValueError(
                f"discriminator: expected {len(self.heads)} features, one for each head, got {len(seen)}; "
                "give the channels of each"
            )
        logits = [head(h).flatten(1) for head, h in zip(self.heads, seen, strict=True)]
        return torch.cat(logits, dim=1).to(x.dtype)

    def _of(self, x: Tensor, t: Tensor, cond: Condition | None) -> list[Tensor]:
        """The features with their channels last."""
        features = self._frozen[0] if self.learned is None else self.learned
        return [h.movedim(1, -1) if h.ndim == 4 else h for h in features(x, t, cond)]


class _Head(nn.Module):
    """[..., C] -> [..., 1]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, width)
        self.last = nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, h: Tensor) -> Tensor:
        weight = self.first.weight
        logits: Tensor = self.last(nn.functional.silu(self.first(h.to(weight.dtype))))
        return logits


def heads_on(
    model: nn.Module,
    shape: tuple[int, ...],
    width: int = 64,
    pairs: bool = False,
    learned: bool = False,
    most: int = 4,
    twin: nn.Module | None = None,
) -> Discriminator:
    """Heads on up to ``most`` evenly spaced blocks of a network, the last one among them.

    Args:
        model: called as (x, t, t, condition); its ``backbone``, or itself, has the list ``blocks``.
        shape: of one sample.
        width: of the heads.
        pairs: whether it judges a jump by its end and its start.
        learned: whether the network learns too.
        most: heads.
        twin: a network of the same structure that is asked for the sizes of features instead, where the model
            itself cannot be called by one process alone.
    """
    channels = _channels(model if twin is None else twin, shape, most)
    features = BlockFeatures(model, _chosen(model, most))
    lead = next(model.parameters())
    return Discriminator(features, channels, width, pairs, learned).to(lead.device, lead.dtype)


def _chosen(model: nn.Module, most: int) -> list[nn.Module]:
    """Blocks of a network."""
    parts = dict(model.named_children())
    blocks = dict(parts.get("backbone", model).named_children()).get("blocks")
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise ValueError(
            f"heads_on: expected a network with a list of blocks, got {type(model).__name__}; give "
            "Discriminator the features and their channels"
        )
    count = min(most, len(blocks))
    return [blocks[(k + 1) * len(blocks) // count - 1] for k in range(count)]


def _channels(model: nn.Module, shape: tuple[int, ...], most: int) -> list[int]:
    """How many each of the features has."""
    lead = next(model.parameters())
    x = torch.zeros(1, *shape, dtype=lead.dtype, device=lead.device)
    collector = _Collector()
    hooks = [block.register_forward_hook(collector.hear) for block in _chosen(model, most)]
    collector.listens = True
    try:
        with torch.no_grad():
            model(x, *[torch.zeros(1, dtype=torch.float32, device=lead.device)] * 2)
    finally:
        for hook in hooks:
            hook.remove()
    return [h.shape[1] if h.ndim == 4 else h.shape[-1] for h in collector.heard]
