"""The order in which the rows of a data set are seen: a function of (seed, step) alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from saltus.streams import Streams

__all__ = ["rows_of"]


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of the rows in an epoch, int64 [count] on the CPU; a batch touches two epochs at most."""
    return Streams(seed, step=epoch, index=torch.arange(count), prefix="data/").permutation("order")


def rows_of(rng: Streams, batch: int, count: int) -> Tensor:
    """Which of ``count`` rows of data the streams' samples are, int64 [B] on the CPU.

    Sample k = step * batch + index of the run is row ``order_e[k mod count]`` with e = k // count the epoch
    and order_e a permutation keyed by (seed, e). So every row is seen once an epoch, epochs do not restart
    within a batch, and neither resuming nor the count of processes changes anything.

    Args:
        rng: the streams; their name plays no part.
        batch: rows of the *global* batch.
        count: rows of data.

    Raises:
        ValueError: for a global index that is not below the batch.
    """
    if len(rng.index) and not 0 <= int(rng.index.min()) <= int(rng.index.max()) < batch:
        raise ValueError(
            f"streams: expected global indices below the batch of {batch}, got one of "
            f"{int(rng.index.max())}; give the data the global batch size"
        )
    k = rng.step * batch + rng.index
    rows = torch.empty_like(k)
    epochs = k // count
    for epoch in torch.unique(epochs).tolist():
        here = epochs == epoch
        rows[here] = _order(rng.seed, epoch, count)[k[here] % count]
    return rows
