"""What to do when memory has run out: which setting to lower, with the arithmetic."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from saltus.recipes.experiment import Experiment
from saltus.recipes.memory import Growth, growth, rows_at_once, size, summary
from saltus.training.memory import free_memory, is_out_of_memory, on_cuda

__all__ = ["explained", "explaining"]

SPARE, LOADED = 0.9, 2**28
"""The part of the free memory that a proposal may fill, and the bytes that the first step loads on a CPU."""


@contextmanager
def explaining(made: Experiment) -> Iterator[None]:
    """A context that turns a lack of memory into an error that says what to do."""
    room = free_memory(made.world.device)  # now: an allocator keeps what is given back to it
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the networks
        raise explained(error, made, room) from None


def explained(error: BaseException, made: Experiment, room: int | None) -> ValueError:
    """The error for a training that ran out of memory: what it needs, what there is, what would fit.

    Args:
        error: that said so; its notes, if any, say where.
        made: what was trained.
        room: bytes that were free before it began, if that is known.
    """
    gc.collect()
    where = " ".join(str(note) for note in vars(error).get("__notes__", ()))
    found = f"out of memory {where}".rstrip()
    kept = "what was saved stays, and a run goes on from there with another --accumulate too"
    grown = _counted(made)
    if grown is None or room is None:
        return ValueError(f"{found}: lower --batch, or raise --accumulate; {kept}")
    rows = _rows(made)
    needs = summary(grown.memory) if grown.memory.rows == rows else size(grown.at(rows))
    there = f"{size(room)} were free when it began"
    return ValueError(f"{found}: needs about {needs}, {there}; {_proposal(made, grown, room)}; {kept}")


def _rows(made: Experiment) -> int:
    return rows_at_once(made, made.world.size)


def _counted(made: Experiment) -> Growth | None:
    """The memory of the training, counted with as many of its rows as there is room to draw."""
    rows = _rows(made)
    while rows >= 1:
        try:
            return growth(made, made.world.size, rows)
        except (RuntimeError, MemoryError) as again:
            if not is_out_of_memory(again):
                raise
        rows //= 8
    return None


def _proposal(made: Experiment, grown: Growth, room: int) -> str:
    """The smallest change of the options that fits."""
    t, processes = made.training, made.world.size
    share = t.batch // processes
    now = t.machine.accumulate
    space = SPARE * (room if on_cuda(made.world.device) else room - LOADED)
    for parts in range(now + 1, share + 1):
        rows = share // parts
        if share % parts == 0 and grown.at(rows) <= space:
            less = size(grown.at(rows))
            smaller = rows * now * processes
            return f"--accumulate {parts} needs {less} for the same batch, --batch {smaller} as much"
    return (
        f"one row alone needs {size(grown.at(1))}: take a smaller --size, fewer --ema, or more devices "
        "(torchrun --nproc-per-node)"
    )
