"""Memory and time of a training step with recomputed activations, relative to the plain step.

Two networks alike are trained side by side, one of them after :func:`saltus.autodiff.recomputed`. Memory
is the most bytes alive at once in a step beyond those alive before it (weights, optimiser), counted
storage by storage; it includes the gradients. Time is measured in turns, plain, recomputed, plain (A B A):
each round gives the ratio of B to the mean of its neighbours, and the table shows the median. The first
losses of both must be equal to the bit.

    python benchmarks/recompute.py --threads 1 --write
"""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import tyro

from saltus.autodiff import recomputed
from saltus.games import as_game
from saltus.maps import AverageVelocity
from saltus.methods import load
from saltus.nn import build
from saltus.report import Table
from saltus.streams import Streams
from saltus.training import Fit, Precision, fit, initialised
from saltus.training.memory import Tracker, memory_peak
from saltus.typing import Batch


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        networks: backbone and size, joined by a dash.
        methods: names.
        side: of the images.
        batch: rows of a step.
        rounds: ratios of times.
        threads: of the CPU; 0 leaves PyTorch's choice.
        precision: of the loss.
        device: where to run.
        write: put the table into recompute.md beside this file.
    """

    networks: tuple[str, ...] = ("dit-small", "dit-base", "unet-small", "unet-base")
    methods: tuple[str, ...] = ("flow_matching", "lsd", "mean_flow")
    side: int = 32
    batch: int = 8
    rounds: int = 3
    threads: int = 0
    precision: Literal["float32", "bf16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    write: bool = False


class Subject:
    """A run in progress."""

    def __init__(self, network: str, method: str, options: Options, again: bool) -> None:
        device, shape = torch.device(options.device), (3, options.side, options.side)
        name, size = network.rsplit("-", 1)
        self.student = AverageVelocity(initialised(0, lambda: build(name, size, shape))).to(device)
        if again:
            recomputed(self.student.backbone)
        rows = torch.arange(options.batch)
        data = Streams(1, index=rows, device=device)
        batch = Batch(data.normal("x0", *shape), data.normal("x1", *shape))
        game = as_game(load(method).wired(self.student), self.student)
        precision = Precision(options.precision)
        self.run: Fit = fit(
            game, lambda _: batch, steps=10**6, seed=0, batch=options.batch, precision=precision
        )

    def seconds(self) -> float:
        """Of one step."""
        begin = time.perf_counter()
        next(self.run)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def bytes(self, device: torch.device) -> int:
        """The most alive in one step beyond what was alive before."""
        if device.type == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            next(self.run)
            return memory_peak(device) - before
        with Tracker() as tracker:
            next(self.run)
        return tracker.peak


def measure(network: str, method: str, options: Options) -> list[str | float]:
    """A line of the table."""
    device = torch.device(options.device)
    plain, again = (Subject(network, method, options, again) for again in (False, True))
    first = [float(next(subject.run).loss) for subject in (plain, again)]
    if first[0] != first[1]:
        raise SystemExit(f"{network}, {method}: expected equal losses, got {first}")
    wide, narrow = plain.bytes(device), again.bytes(device)
    ratios, before = [], plain.seconds()
    for _ in range(options.rounds):
        here, after = again.seconds(), plain.seconds()
        ratios.append(2.0 * here / (before + after))
        before = after
    weights = sum(p.numel() * p.element_size() for p in plain.student.parameters())
    sizes = [f"{n / 2.0**20:.0f}" for n in (weights, wide, narrow)]
    return [network, method, *sizes, narrow / wide, median(ratios)]


HEAD = ["network", "method", "weights MiB", "plain MiB", "recomputed MiB", "memory", "time"]


def main(options: Options) -> None:
    """Measure, print, write."""
    if options.threads:
        torch.set_num_threads(options.threads)
    lines = []
    for network in options.networks:
        for method in options.methods:
            lines.append(measure(network, method, options))
            print(*lines[-1], flush=True)
    shape = f"{options.batch} images of 3 x {options.side} x {options.side}"
    where = f"{options.precision}, {options.device}, {torch.get_num_threads()} threads"
    print(f"{shape}, {where}, PyTorch {torch.__version__}")
    Table(HEAD, lines).show()
    if options.write:
        cells = [[c if isinstance(c, str) else f"{c:.2f}" for c in line] for line in lines]
        table = "\n".join(f"| {' | '.join(row)} |" for row in [HEAD, ["---"] * len(HEAD), *cells])
        command = " ".join(["python benchmarks/recompute.py", *sys.argv[1:]])
        path = Path(__file__).with_suffix(".md")
        path.write_text(
            f"# Recomputed activations\n\n```console\n$ {command}\n```\n\n{shape}, {where}, PyTorch "
            f"{torch.__version__}, {platform.machine()}, {options.rounds} rounds.\n\n{table}\n\n"
            "`plain` and `recomputed`: the most bytes alive at once in a step beyond weights and optimiser, "
            "gradients included. `memory` and\n`time`: recomputed over plain; the machine was shared, so "
            "times are rough. The first losses of both were equal to the bit.\n"
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
