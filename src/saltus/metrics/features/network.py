"""What feature networks share: a name, a digest of all that decides their values, and 8-bit images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["FeatureNetwork", "digest_of", "eight_bits"]

LENGTH = 16


def eight_bits(x: Tensor) -> Tensor:
    """Images in [-1, 1] as a file would keep them, in whole numbers of [0, 255], in float32.

    >>> eight_bits(torch.tensor([-1.5, -1.0, 0.0, 1.0]))
    tensor([  0.,   0., 128., 255.])
    """
    return ((x.float() + 1.0) * 127.5).round().clamp(0.0, 255.0)


def digest_of(tensors: Mapping[str, Tensor], *facts: str) -> str:
    """The beginning of the SHA-256 of tensors with their names, types and shapes, and of some words.

    It is that of the values: the same weights from another kind of file have the same.

    >>> digest_of({"a": torch.zeros(2)}) == digest_of({"a": torch.zeros(2, 1)})
    False
    """
    found = hashlib.sha256()
    for fact in facts:
        found.update(f"{fact}\0".encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {t.dtype} {list(t.shape)}\0".encode())
        found.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:LENGTH]


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """Images to features, with what has to be said of it beside every figure.

    Attributes:
        name: in words, with the preprocessing.
        digest: of its weights and preprocessing.
        module: 8-bit images [n, C, H, W] as whole numbers of [0, 255] in float32 -> features [n, D].
        head: features [n, D] -> logits of the data's classes, where it was trained on them.
    """

    name: str
    digest: str
    module: nn.Module
    head: nn.Module | None = None

    def to(self, device: torch.device) -> FeatureNetwork:
        """The same with its weights on a device."""
        head = None if self.head is None else self.head.to(device)
        return FeatureNetwork(self.name, self.digest, self.module.to(device), head)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features of images in [-1, 1], float32 [n, D]; rounded to 8 bits first, data and samples alike."""
        found: Tensor = self.module(eight_bits(x))
        return found.float()

    @torch.no_grad()
    def classes(self, features: Tensor) -> Tensor:
        """The class that it sees, int64 [n]."""
        if self.head is None:
            raise ValueError(f"{self.name}: expected a classifier of the data, got a network that knows none")
        logits: Tensor = self.head(features)
        return logits.argmax(dim=1)
