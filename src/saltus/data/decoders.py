"""Processes that decode pictures beside the one that trains.

A decoding process runs the file ``pixels.py`` alone: it knows neither PyTorch nor the program that started
it, shares no memory and no locks with it, and ends when its input ends, that is, whenever and however the
program that started it ends. Threads would do for large pictures, which Pillow decodes without Python's
lock; but a training step takes that lock thousands of times, and would wait for it each time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from queue import SimpleQueue
from threading import Lock

import numpy as np

from saltus.data import pixels
from saltus.data.pixels import Fault, Form, Item, ask, unpack

__all__ = ["Decoders", "usual_workers"]

MOST = 8
SMALLEST = 8
"""Pictures for which it is worth to ask a process."""
PATIENCE = 5.0
"""Seconds in which a process whose input has ended must have ended."""

Process = subprocess.Popen[bytes]


def usual_workers() -> int:
    """Decoding processes for one training process: a core each but one, at most 8.

    The processes that torchrun starts on a machine share its cores.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(0, min(MOST, cores // max(1, int(here) if here.isdigit() else 1) - 1))


@dataclass(eq=False)
class Crew:
    """The processes at work, and the threads that talk to them; None in the queue has been lost."""

    threads: ThreadPoolExecutor
    all: list[Process] = field(default_factory=list)
    free: SimpleQueue[Process | None] = field(default_factory=SimpleQueue)


class Decoders:
    """:func:`saltus.data.pixels.unpack` by several processes, which start with the first pictures.

    Args:
        count: of the processes; 0 decodes here.

    >>> with Decoders(0) as decode:
    ...     found, faults = decode([np.zeros((2, 2), np.uint8)], Form(1, 2, 2))
    >>> found.shape, faults
    ((1, 1, 2, 2), [])
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"workers: expected a number of processes, or 0 to decode here, got {count}")
        self.count = count
        self._crew: Crew | None = None
        self._starting = Lock()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, items: Sequence[Item], form: Form) -> tuple[np.ndarray, list[Fault]]:
        """Pictures in one form, uint8 [n, C, H, W], and what is wrong with some. Threads may call it."""
        parts = min(self.count, len(items) // SMALLEST)
        if not parts or any(isinstance(item, np.ndarray) for item in items):
            return unpack(items, form)
        crew = self._started()
        cuts = [len(items) * k // parts for k in range(parts + 1)]
        waiting = [
            (low, crew.threads.submit(_decoded, crew, items[low:high], form)) for low, high in pairwise(cuts)
        ]
        found = [(low, *future.result()) for low, future in waiting]
        faults = [f._replace(place=low + f.place) for low, _, some in found for f in some]
        return np.concatenate([made for _, made, _ in found]), faults

    def _started(self) -> Crew:
        with self._starting:
            if self._crew is None:
                crew = Crew(ThreadPoolExecutor(self.count, thread_name_prefix="saltus-decoders"))
                weakref.finalize(self, _end, crew)  # also when the program ends
                for _ in range(self.count):
                    crew.all.append(_process())
                    crew.free.put(crew.all[-1])
                self._crew = crew
            return self._crew

    def close(self) -> None:
        """End the processes; they start again if they are asked."""
        with self._starting:
            crew, self._crew = self._crew, None
        if crew is not None:
            _end(crew)


def _process() -> Process:
    command = [sys.executable, "-P", pixels.__file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _decoded(crew: Crew, items: Sequence[Item], form: Form) -> tuple[np.ndarray, list[Fault]]:
    """By a process that is free, or here if that has been lost."""
    process = crew.free.get()
    try:
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            return ask(items, form, process.stdin, process.stdout)
    except (OSError, ValueError):  # ValueError: its pipe is closed
        code, process = process.wait() if process is not None else 0, None
        warnings.warn(
            f"a decoding process has ended with code {code} (too little memory?); its part is decoded here",
            RuntimeWarning,
            stacklevel=2,
        )
    finally:
        crew.free.put(process)
    return unpack(items, form)


def _end(crew: Crew) -> None:
    """Let all go; pictures that nobody waits for any more are not decoded."""
    crew.threads.shutdown(wait=True, cancel_futures=True)
    for process in crew.all:
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
    for process in crew.all:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
