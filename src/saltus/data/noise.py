"""What a student without data learns from: noise."""

from __future__ import annotations

from dataclasses import dataclass

from saltus.streams import Streams
from saltus.typing import Batch, Condition

__all__ = ["Noise"]


@dataclass(frozen=True)
class Noise:
    """Batches without data: x0 ~ N(0, I), labels uniform over the classes.

    Attributes:
        shape: of one sample.
        classes: how many labels there are; None draws none.

    Raises:
        ValueError: for a shape that is no tuple, or no class at all.

    >>> import torch
    >>> batch = Noise((2,), classes=3)(Streams(seed=0, index=torch.arange(4)))
    >>> batch.x1 is None, batch.cond.label.shape
    (True, torch.Size([4]))
    """

    shape: tuple[int, ...]
    classes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple):
            raise ValueError(f"shape: expected that of one sample, such as (2,), got {self.shape!r}")
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes: expected at least one, or None for no labels, got {self.classes}")

    def __call__(self, rng: Streams) -> Batch:
        label = None if self.classes is None else rng.integers("label", self.classes)
        return Batch(rng.normal("x0", *self.shape), None, None if label is None else Condition(label=label))
