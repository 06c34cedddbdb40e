"""What the next steps will ask for, made while this one computes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from saltus.streams import Streams

__all__ = ["Ahead"]

T = TypeVar("T")
LINES = 64
"""So many sequences of calls are followed at once: micro-batches, and moves with batches of their own."""
THREADS = 2

Line = tuple[int, str, torch.dtype, bytes]


@dataclass
class _Followed(Generic[T]):
    """A sequence of calls with the same rows: the step of the last one, and what is made for later ones."""

    step: int
    made: dict[int, Future[T]] = field(default_factory=dict)


class Ahead(Generic[T]):
    """A function of streams, called a few steps ahead by threads.

    It guesses: who asked for the same rows at two steps in a row will ask for those of the next. A guess that
    was wrong costs time and is dropped; what is handed out is always ``make`` of the streams that are asked
    for. So runs may begin anywhere, go back, leave out steps, and divide their batches as they like.

    Args:
        make: a function of nothing but the streams, which threads may call.
        steps: how many steps ahead; 0 makes all when it is asked for.

    >>> made = Ahead(lambda rng: 10 * rng.step, steps=2)
    >>> [made(Streams(seed=0, step=k)) for k in (0, 1, 2, 3, 7, 2)]
    [0, 10, 20, 30, 70, 20]
    """

    def __init__(self, make: Callable[[Streams], T], steps: int) -> None:
        if steps < 0:
            raise ValueError(f"ahead: expected a number of steps, or 0 for none, got {steps}")
        self._make, self._steps = make, steps
        self._lines: OrderedDict[Line, _Followed[T]] = OrderedDict()
        self._threads = ThreadPoolExecutor(min(max(steps, 1), THREADS), thread_name_prefix="saltus-ahead")

    def __call__(self, rng: Streams) -> T:
        """``make(rng)``, perhaps made already."""
        if not self._steps:
            return self._make(rng)
        line = (rng.seed, rng.prefix, rng.dtype, rng.index.numpy().tobytes())
        followed = self._lines.get(line)
        if followed is None:
            self._lines[line] = _Followed(rng.step)
            if len(self._lines) > LINES:
                _drop(self._lines.popitem(last=False)[1], range(0))
            return self._make(rng)
        self._lines.move_to_end(line)
        found = followed.made.pop(rng.step, None)
        steady = followed.step in (rng.step - 1, rng.step)
        followed.step = rng.step
        window = range(rng.step + 1, rng.step + 1 + self._steps) if steady else range(0)
        _drop(followed, window)
        for step in window:
            if step not in followed.made:
                followed.made[step] = self._threads.submit(self._make, rng.at(step))
        return self._make(rng) if found is None else found.result()

    def close(self) -> None:
        """Drop all guesses and end the threads; nothing is made ahead any more."""
        self._steps = 0
        self._lines.clear()
        self._threads.shutdown(cancel_futures=True)


def _drop(followed: _Followed[T], window: range) -> None:
    """Forget what was made for steps outside the window."""
    for step in [step for step in followed.made if step not in window]:
        followed.made.pop(step).cancel()
