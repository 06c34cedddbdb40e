"""``saltus estimate``: how much memory and time a run would take.

Memory is counted without allocating it (:mod:`saltus.recipes.memory`); time is measured over a few steps on
this machine (:mod:`saltus.recipes.pace`).
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from saltus.recipes.experiment import Experiment
from saltus.recipes.memory import PARTS, Growth, growth, size
from saltus.recipes.options import HELP
from saltus.recipes.pace import Pace, measured
from saltus.recipes.resolve import experiment
from saltus.recipes.run import clock
from saltus.report import Table
from saltus.training.memory import forget_peak, free_memory, memory_now, memory_peak, on_cuda, unallocated

__all__ = ["Estimate", "estimate", "estimated"]

USAGE = """\
usage: saltus estimate RECIPE [--options] [--devices N] [--memory SIZE]
       saltus estimate RUN/options.json [--options]

What a run would take: memory by part, the largest batch that fits, and time.
Nothing is trained or written. The options are those of saltus run RECIPE, and:

  --devices N      over how many devices torchrun would divide it (1)
  --memory SIZE    of a device, such as 24GiB; by default what is free here

examples:
  saltus estimate digits-lsd
  saltus estimate digits-lsd --backbone dit --size large --batch 1024 --memory 24GiB
  saltus estimate digits-freeflow --devices 4
"""

_UNITS = {"": 1, "k": 1, "m": 2, "g": 3, "t": 4}
_TINY = 2**16  # bytes below which a part is not listed
_SPARE = 0.9  # the part of the free memory that a batch may fill


@dataclass(frozen=True)
class Estimate:
    """What a training would take.

    Attributes:
        growth: the memory of a device and how it grows with the rows.
        process: bytes that Python, PyTorch and its libraries take beside the tensors, on a CPU; 0 on CUDA,
            where only tensors count.
        pace: None if no step fits here.
    """

    growth: Growth
    process: int
    pace: Pace | None

    @property
    def total(self) -> int:
        """Bytes that a run reports as its peak."""
        return self.growth.memory.total + self.process


def estimate(args: Sequence[str]) -> int:
    """The command: RECIPE and its options."""
    if not args or args[0] in HELP:
        sys.stdout.write(USAGE)
        return 0
    own = argparse.ArgumentParser(prog="saltus estimate", add_help=False, allow_abbrev=False)
    own.add_argument("--devices", type=int, default=1)
    own.add_argument("--memory", default=None)
    asked, rest = own.parse_known_args(args[1:])
    if asked.devices < 1:
        raise ValueError(f"devices: expected at least 1, got {asked.devices}")
    memory = None if asked.memory is None else _bytes(asked.memory)
    made = experiment(args[0], rest)
    parts = asked.devices * made.training.machine.accumulate
    if made.training.batch % parts:
        raise ValueError(
            f"batch {made.training.batch}: expected a multiple of {parts} (devices times micro-batches); "
            "change --batch, --devices or --accumulate"
        )
    seconds = 0.0
    if made.first is not None:
        print(f"first its teacher, {made.first.name}")
        seconds += _show(made.first, asked.devices, memory)
        print(f"\nthen {made.name}")
    seconds += _show(made, asked.devices, memory)
    if made.first is not None and seconds:
        print(f"\ntogether {clock(seconds)}")
    return 0


def _bytes(text: str) -> int:
    """Bytes of a size such as 24GiB, 24GB or 512MiB."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*) ?([kmgt])(i?)b?", text.lower())
    if found is None:  # a number alone would be bytes, which nobody means
        raise ValueError(f"memory: expected a size such as 24GiB, got {text!r}")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _UNITS[prefix])


def estimated(made: Experiment, devices: int = 1) -> Estimate:
    """Count the memory of a training and measure its pace here."""
    device = made.world.device
    before = memory_now(device)
    unallocated()
    counting = memory_now(device) - before  # what it has loaded, and a run does not
    grown = growth(made, devices)
    gc.collect()
    rows, room = grown.memory.rows, free_memory(device)
    alone = grown if devices == 1 else growth(made, rows=rows)  # here all weights are on one device
    if room is not None:
        rows = min(rows, alone.fits(_SPARE * room))
    if rows < 1:
        return Estimate(grown, 0, None)
    forget_peak(device)
    pace = measured(made, rows)
    if on_cuda(device):
        return Estimate(grown, 0, pace)
    tensors = round(alone.at(max(pace.measured)))
    return Estimate(grown, max(0, memory_peak(device) - tensors - counting), pace)


def _show(made: Experiment, devices: int, memory: int | None) -> float:
    """Print the estimate of one training; its seconds."""
    found = estimated(made, devices)
    device = made.world.device
    peak = found.growth.memory
    rows = [[part, PARTS[part], size(peak.parts[part])] for part in PARTS if peak.parts.get(part, 0) > _TINY]
    each = "" if devices == 1 else " on each device"
    title = f"{made.name}: memory at the peak of a step of {peak.rows:,} rows{each}, {device.type}"
    Table(
        ["part", "what it is", "size"],
        [*rows, ["sum", "tensors", size(peak.total)]],
        title=title,
        rules=frozenset({len(rows)}),
        left=frozenset({"what it is"}),
    ).show()
    if found.process:
        print(f"with {size(found.process)} of Python, PyTorch and its libraries, measured here, the process")
        print(f"takes {size(found.total)} at most")
    room = free_memory(device) if memory is None else memory - found.process
    if room is not None:
        given = "are left for tensors" if found.process else "are given"
        whose = "are free here" if memory is None else given
        _room(made, found.growth, room, whose)
    return _time(made, found.pace, devices)


def _room(made: Experiment, growth: Growth, room: int, whose: str) -> None:
    """Print the largest batch that fits into ``room`` bytes."""
    memory, parts = growth.memory, made.training.machine.accumulate
    most = growth.fits(_SPARE * room)
    print(f"{size(max(room, 0))} {whose}; ", end="")
    if most < 1:
        needed = size(growth.at(1))
        print(f"one row needs {needed}: take a smaller --size or more --devices")
        return
    batch = most * parts * memory.devices
    settings = f", --accumulate {parts}" * (parts > 1) + f", {memory.devices} devices" * (memory.devices > 1)
    print(f"the largest batch that fills nine tenths of it: about {_rounded(batch):,} rows{settings}")
    if most < memory.rows:
        print(f"--batch {made.training.batch} does not fit: see --accumulate, --batch, --size and --devices")


def _rounded(count: int) -> int:
    """The first two digits of a count."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return count // unit * unit


def _time(made: Experiment, pace: Pace | None, devices: int) -> float:
    """Print the time on this and other numbers of devices; the seconds on ``devices``."""
    if pace is None:
        print("time: not measured, since not one row fits here")
        return 0.0
    t = made.training
    parts = t.machine.accumulate
    counts = sorted({n for n in (1, 2, 4, 8, devices) if t.batch % (n * parts) == 0})
    rows: list[list[str | float]] = []
    for n in counts:
        each = t.batch // (n * parts)
        step = pace(each, parts)
        rows.append([n, f"{parts} x {each:,}", 1e3 * step, 1.0 / step, clock(step * t.steps)])
    note = "measured here at " + " and ".join(f"{n:,}" for n in pace.measured) + " rows; of several\n"
    note += "devices each is taken to be as fast as this one, and what they send each other\nto take no time"
    columns = ["devices", "rows each", "ms a step", "steps/s", f"{t.steps:,} steps"]
    Table(columns, rows, title="time", note=note).show()
    return pace(t.batch // (devices * parts), parts) * t.steps
