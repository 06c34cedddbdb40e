"""A data set in memory as a source of batches, each row seen once an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.data.order import rows_of
from saltus.streams import Streams
from saltus.tensors import check_finite, placed
from saltus.typing import Batch, Condition

__all__ = ["ArrayData"]


def _check_tensor(value: object, name: str) -> None:
    """Raise a ValueError for an array of another library."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name}: expected a torch.Tensor, got {type(value).__name__}; use torch.as_tensor(...), "
            "and .float() for samples in double precision"
        )


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Batches of an array, in an order that is a function of (seed, step) alone.

    The order is that of :func:`saltus.data.order.rows_of`: every row once an epoch, whatever the processes,
    the micro-batches and the resumptions.

    Attributes:
        x: floating point [N, ...], or uint8, which is scaled from [0, 255] to [-1, 1] when drawn.
        batch: rows of the *global* batch.
        labels: the class of each row, int64 [N], or None.
        prior: the standard deviation of x0.

    >>> data = ArrayData(torch.arange(4.0).reshape(4, 1), batch=2)
    >>> rng = Streams(seed=0, index=torch.arange(2))
    >>> torch.cat([data(rng).data(), data(rng.at(1)).data()]).flatten().sort().values
    tensor([0., 1., 2., 3.])
    """

    x: Tensor
    batch: int
    labels: Tensor | None = None
    prior: float = 1.0

    def __post_init__(self) -> None:
        x, labels = self.x, self.labels
        _check_tensor(x, "data")
        if labels is not None:
            _check_tensor(labels, "labels")
        if x.ndim < 2 or x.numel() == 0:
            raise ValueError(f"data: expected samples [N, ...] with N >= 1, got shape {list(x.shape)}")
        if not x.is_floating_point() and x.dtype != torch.uint8:
            raise ValueError(
                f"data: expected floating point or uint8 (scaled from [0, 255] to [-1, 1]), got {x.dtype}; "
                "convert it with .float() and scale it"
            )
        if x.is_floating_point():
            check_finite(x, "data")
        if not 1 <= self.batch <= len(x):
            raise ValueError(
                f"data: expected a batch between 1 and the {len(x)} rows of the data, got {self.batch}; "
                "use a smaller batch or more data"
            )
        if labels is not None and (labels.shape != x.shape[:1] or labels.dtype != torch.int64):
            raise ValueError(
                f"labels: expected int64 [{len(x)}], one a row, got {labels.dtype} {list(labels.shape)}; "
                "use labels.long() and one label a row"
            )
        if labels is not None and int(labels.min()) < 0:
            raise ValueError(f"labels: expected classes from 0, got {int(labels.min())}; number them from 0")
        if not self.prior > 0.0:
            raise ValueError(f"prior: expected a positive standard deviation, got {self.prior}")

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, rng: Streams) -> Tensor:
        """Which rows of the data the streams' samples are, int64 [B] on the CPU."""
        return rows_of(rng, self.batch, len(self.x))

    def __call__(self, rng: Streams) -> Batch:
        """The batch of a step: x0 from the stream "x0", x1 and its labels from the data."""
        rows = self.rows(rng)
        at = placed(rows, self.x.device)
        x1 = placed(self.x[at], rng.device, rng.dtype)
        if self.x.dtype == torch.uint8:
            x1 = x1 / 127.5 - 1.0
        label = None
        if self.labels is not None:
            label = placed(self.labels[placed(rows, self.labels.device)], rng.device)
        x0 = self.prior * rng.normal_like("x0", x1)
        return Batch(x0, x1, None if label is None else Condition(label=label))
