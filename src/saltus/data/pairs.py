"""Stored pairs of noise and the samples that a flow made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from saltus.data.arrays import ArrayData
from saltus.streams import Streams
from saltus.tensors import check_finite, placed
from saltus.typing import Batch

__all__ = ["Pairs"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Batches of pairs (x0, x1) that belong together, as a teacher's flow made them.

    Each costs the teacher's calls once, whatever the length of the training:
    ``x1 = samplers.integrate(teacher, x0, 32)``.

    Attributes:
        x0: the noise of each row, floating point [N, ...].
        ends: where it went, with the batch size and labels; its own noise is not used.

    >>> import torch
    >>> pairs = Pairs(torch.zeros(4, 2), ArrayData(torch.ones(4, 2), batch=2))
    >>> float(pairs(Streams(seed=0, index=torch.arange(2))).x0.sum())
    0.0
    """

    x0: Tensor
    ends: ArrayData

    def __post_init__(self) -> None:
        if self.x0.shape != self.ends.x.shape or not self.x0.is_floating_point():
            raise ValueError(
                f"pairs: expected floating-point noise of shape {list(self.ends.x.shape)}, one a sample, got "
                f"{self.x0.dtype} {list(self.x0.shape)}; keep the x0 that each x1 was made from"
            )
        check_finite(self.x0, "pairs")

    def __len__(self) -> int:
        return len(self.x0)

    def __call__(self, rng: Streams) -> Batch:
        """The batch of a step, in the order of :class:`ArrayData`."""
        rows = placed(self.ends.rows(rng), self.x0.device)
        return replace(self.ends(rng), x0=placed(self.x0[rows], rng.device, rng.dtype))
