"""The time of a step, measured at two numbers of rows: t = a + b rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median

from saltus.recipes.averages import averages
from saltus.recipes.experiment import Experiment

__all__ = ["Pace", "measured"]

_SECONDS = 2.0  # of steps that are timed at each number of rows
_PATIENCE = 8.0  # seconds that a step may take to be tried
_FIRST = 8  # rows of the first step that is tried: enough for each part of a loss that shares them
_GROWTH = 4  # times as many rows in the next


@dataclass(frozen=True)
class Pace:
    """The time of a step on one device of this machine.

    Attributes:
        fixed: seconds a pass, whatever its rows.
        row: seconds more for each row.
        measured: the numbers of rows at which it was measured.
    """

    fixed: float
    row: float
    measured: tuple[int, ...]

    def __call__(self, rows: int, passes: int = 1) -> float:
        """Seconds of a step of so many passes of so many rows."""
        return passes * (self.fixed + self.row * rows)


def measured(made: Experiment, rows: int) -> Pace:
    """The pace of real steps of at most ``rows`` rows at once, in the first stage if there are several.

    Few rows are tried first, and more only where a step of them will not take long.
    """
    run = _Steps(made.under(made.first.model()) if made.first is not None else made)
    many = min(rows, _FIRST)
    while many < rows and _GROWTH * run.seconds(many, enough=0.0) < _PATIENCE:
        many = min(rows, _GROWTH * many)
    few = max(min(rows, _FIRST), many // _GROWTH)
    slow, fast = run.seconds(many), run.seconds(few)
    if few == many:
        return Pace(0.0, fast / few, (few,))
    slope = max(0.0, (slow - fast) / (many - few))
    return Pace(max(0.0, slow - slope * many), slope, (few, many))


class _Steps:
    """Real steps of a training, to be timed."""

    def __init__(self, made: Experiment) -> None:
        self.made = made
        self.student = made.model()
        self.kept = list(averages(made.training, self.student).values())

    def seconds(self, rows: int, enough: float = _SECONDS) -> float:
        """The median time of a step of so many rows, over so many seconds of them."""
        t = self.made.training
        machine = replace(t.machine, accumulate=1)
        steps = replace(self.made, training=replace(t, batch=rows, steps=10**9, machine=machine)).fit(
            self.student
        )

        def step() -> float:
            begin = time.perf_counter()
            done = next(steps)
            for average in self.kept:
                average.update()
            done.fetch()  # waits for the device
            return time.perf_counter() - begin

        first = step()
        times = [step()]
        while sum(times) < enough and len(times) < 100 and first + sum(times) < _PATIENCE:
            times.append(step())
        return median(times)
