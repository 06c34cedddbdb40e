"""What a run costs beside its training: logging, saving, pictures and the page, as shares of the time of the
thread that trains, on ``saltus run digits-lsd``.

    python benchmarks/run_overhead.py --threads 1

Runs alternate: one without a folder, which writes nothing (off), one with everything (on: a log line every
50 steps, here for TensorBoard too, a checkpoint every 200, the usual grids, the page), one without, and so
on. A share is the time that the training thread spent in the part, over that of its whole run. A checkpoint
is written by a thread of its own while training goes on; what that costs shows in the last line alone: the
time of a run over the mean of its two neighbours without. Medians over the rounds. The wait for a device is
not the log's: it is told apart.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar
from unittest.mock import patch

import torch
import tyro

from saltus.recipes import train as module
from saltus.recipes.resolve import experiment
from saltus.report import Table
from saltus.training import Log, Run

T = TypeVar("T")

LOGGING, SAVING = 0.01, 0.03
"""The bounds: shares of the training thread's time."""


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        recipe: with its method.
        steps: of a run.
        save_every: steps from one checkpoint to the next.
        rounds: runs with everything; the table shows medians.
        threads: of the CPU; 0 leaves PyTorch's choice.
        device: where to train.
        check: fail unless logging and saving keep to their bounds.
    """

    recipe: str = "digits-lsd"
    steps: int = 800
    save_every: int = 200
    rounds: int = 5
    threads: int = 1
    device: str = "cpu"
    check: bool = True


@dataclass
class Seen:
    """The objects that a run made, and the seconds that its page and all of it took."""

    logs: list[Log] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    watches: list[module.Watch] = field(default_factory=list)
    page: float = 0.0
    whole: float = 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Of the whole, by part."""
        parts = {
            "logging": sum(log.seconds for log in self.logs),
            "waiting for the device to log": sum(log.waited for log in self.logs),
            "saving": sum(run.checkpoints.waited for run in self.runs),
            "pictures": sum(watch.seconds for watch in self.watches),
            "page": self.page,
        }
        return {name: seconds / self.whole for name, seconds in parts.items()}


def kept(kind: Callable[..., T], found: list[T]) -> Callable[..., T]:
    """A constructor that also keeps what it makes."""

    def make(*args: object, **options: object) -> T:
        found.append(kind(*args, **options))
        return found[-1]

    return make


@contextmanager
def looking(seen: Seen) -> Iterator[None]:
    """Keep the objects that a training makes meanwhile, and time its page."""
    draw = module.refresh

    def refresh(folder: Path, training: bool = False) -> None:
        begin = time.perf_counter()
        draw(folder, training)
        seen.page += time.perf_counter() - begin

    with ExitStack() as stack:
        for name, made in (
            ("Log", kept(Log, seen.logs)),
            ("Run", kept(Run, seen.runs)),
            ("Watch", kept(module.Watch, seen.watches)),
            ("refresh", refresh),
        ):
            stack.enter_context(patch.object(module, name, made))
        yield


def played(options: Options, steps: int, folder: Path | None) -> Seen:
    """One run, in a folder with everything or without one."""
    words = ["--steps", str(steps), "--device", options.device, "--quiet"]
    words += ["--save-every", str(options.save_every), "--tensorboard"]
    made = experiment(options.recipe, [*words, "--out", str(folder or "nowhere")])
    seen = Seen()
    with looking(seen):
        begin = time.perf_counter()
        module.train(made, folder)
        seen.whole = time.perf_counter() - begin
    return seen


def measure(options: Options) -> tuple[list[Seen], list[float]]:
    """The runs with everything, and how long each took relative to its neighbours without."""
    on: list[Seen] = []
    played(options, 20, None)
    off = [played(options, options.steps, None).whole]
    for k in range(options.rounds):
        with tempfile.TemporaryDirectory() as place:
            on.append(played(options, options.steps, Path(place)))
        off.append(played(options, options.steps, None).whole)
        print(f"round {k + 1} of {options.rounds}", file=sys.stderr)
    return on, [s.whole / ((a + b) / 2) for s, a, b in zip(on, off, off[1:], strict=False)]


def main(options: Options) -> int:
    """Measure and print; the exit status is 1 if a bound is missed."""
    if options.threads:
        torch.set_num_threads(options.threads)
    on, ratios = measure(options)
    logs = on[0].logs[0]
    saves = on[0].runs[0].checkpoints.count
    bounds = {"logging": LOGGING, "saving": SAVING}
    percent = {name: [100.0 * s.shares[name] for s in on] for name in on[0].shares}
    percent["the run, on against off"] = [100.0 * (r - 1.0) for r in ratios]
    rows = [
        [name, median(p), min(p), max(p), f"< {100.0 * bounds[name]:g} %" if name in bounds else None]
        for name, p in percent.items()
    ]
    each = f"{1e3 * logs.seconds / (options.steps // 50):.2f} ms a line"
    title = (
        f"{options.recipe}, {options.steps} steps on {options.device}, {torch.get_num_threads()} threads of "
        f"{os.cpu_count()} cores: {saves} checkpoints, {each}"
    )
    columns = ("part", "% of the time", "least", "most", "bound")
    Table(columns, rows, title, f"medians of {options.rounds} rounds", frozenset({len(rows) - 1})).show()
    missed = [name for name, bound in bounds.items() if median(percent[name]) >= 100.0 * bound]
    for name in missed:
        print(f"{name}: above its bound of {100.0 * bounds[name]:g} %", file=sys.stderr)
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
