"""Where samples start, and many of them in batches.

All randomness is a function of the seed and the sample's index (:class:`saltus.streams.Streams`):
sample 17 is the same picture alone, in a batch of 7 or in a batch of 1,000, on one device or many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from saltus.interpolants import Interpolant, Linear
from saltus.streams import Streams
from saltus.tensors import full_like_rows, like

__all__ = ["batched", "prior"]

_LINEAR = Linear()


def prior(rng: Streams, shape: tuple[int, ...], interpolant: Interpolant = _LINEAR) -> Tensor:
    """The states at t = 0 of the rows of rng: alpha_0 x0 with x0 ~ N(0, I), [B, *shape].

    alpha_0 = 1 for most interpolants and 80 for EDM's; the trace of data beta_0 x1 that some leave
    at t = 0 is neglected, as is usual.

    >>> rng = Streams(seed=0, index=torch.arange(5))
    >>> bool((prior(rng, (2,))[3:] == prior(rng.rows(torch.tensor([3, 4])), (2,))).all())
    True
    """
    x0 = rng.normal("prior", *shape)
    return like(interpolant(full_like_rows(0.0, x0)).alpha, x0) * x0


def batched(sample: Callable[[Streams, Tensor], Tensor], rng: Streams, size: int) -> Iterator[Tensor]:
    """Draw the rows of rng in batches of at most ``size``, one tensor at a time.

    Args:
        sample: (streams of some rows, their places int64 [n] among all rows) -> [n, ...]; the
            places pick the rows of a condition: ``cond.rows(places)``.
        rng: one row for each sample wanted.
        size: the largest batch.

    >>> rng = Streams(seed=0, index=torch.arange(5))
    >>> [len(x) for x in batched(lambda rng, places: prior(rng, (2,)), rng, size=2)]
    [2, 2, 1]
    """
    if size < 1:
        raise ValueError(f"size: expected a batch of at least 1, got {size}")
    count = len(rng.index)
    for start in range(0, count, size):
        places = torch.arange(start, min(start + size, count))
        yield sample(rng.rows(places), places)
