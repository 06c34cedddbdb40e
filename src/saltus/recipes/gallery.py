"""Real images as judges see them: any row at any time, and a digest that says which images they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.metrics.features import digest_of, eight_bits

__all__ = ["Gallery"]


@dataclass(frozen=True, eq=False)
class Gallery:
    """A set of images of one size.

    Attributes:
        name: in words, with the split: "CIFAR-10, train".
        count: images.
        digest: of their pixels and labels, or of the files that hold them; what is derived of the images is
            kept under it.
        images: rows int64 [n] -> images in [-1, 1], float [n, C, H, W].
        labels: the class of each, int64 [count], or None.
        classes: number of labels, or None.
    """

    name: str
    count: int
    digest: str
    images: Callable[[Tensor], Tensor]
    labels: Tensor | None = None
    classes: int | None = None

    @classmethod
    def of(
        cls, x: Tensor, labels: Tensor | None = None, name: str = "data", classes: int | None = None
    ) -> Gallery:
        """Images in memory: floating point in [-1, 1] or uint8, [N, C, H, W].

        Args:
            x: images.
            labels: int64 [N], or None.
            name: see above.
            classes: number of labels; by default the largest one and 1.
        """
        pixels = x if x.dtype == torch.uint8 else eight_bits(x).to(torch.uint8)
        tensors = {"x": pixels} if labels is None else {"x": pixels, "labels": labels}
        if labels is not None and classes is None:
            classes = int(labels.max()) + 1

        def images(rows: Tensor) -> Tensor:
            some = x[rows]
            return some / 127.5 - 1.0 if some.dtype == torch.uint8 else some

        return cls(name, len(x), digest_of(tensors), images, labels, classes)
