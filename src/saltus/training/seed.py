"""Initial weights as a function of a seed.

Everything random in a step comes from :class:`saltus.streams.Streams`; only the construction of a
module still draws from PyTorch's global generator, and this gives it a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["initialised"]

T = TypeVar("T")


def initialised(seed: int, build: Callable[[], T]) -> T:
    """``build()`` with the global generators at ``seed``, and put back as they were after it.

    >>> first, second = (initialised(7, lambda: torch.nn.Linear(2, 2).weight) for _ in range(2))
    >>> bool((first == second).all())
    True
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return build()
