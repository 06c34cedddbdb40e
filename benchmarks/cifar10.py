"""CIFAR-10 by class: a teacher and students of one network and one budget, by steps, pictures and seconds.

The teacher is a flow of ``flow_matching``; ``lsd`` and ``mean_flow`` learn from the data alone; ``freeflow``
is a student of that teacher which sees no data, starts with its weights and takes half as many steps. All
have the same network and batch. Commands of saltus train and measure them, one process each, and this script
reads what they wrote:

    images      rows of data or noise in the training's steps, in thousands
    images/s    of a training step, measured at the end in turns, so that a machine which other programs use
                slows down all of them; the median of the rounds
    ratio       seconds for an image over those of flow matching in the same round, the median
    memory      the most that the process took, or on CUDA the most in tensors
    Fréchet     by the features of a small classifier of the data (see docs/evaluation.md), at 1, 2, 4, 8
                steps and of an ODE of 64 Heun steps; after it, half of a 95 % interval of the bootstrap

On two CPU cores, in about half an hour, and on a GPU:

    python benchmarks/cifar10.py --data CIFAR10 --out runs/cifar10
    python benchmarks/cifar10.py --data CIFAR10 --out runs/cifar10 --setting small --compile

It goes on where it was stopped; --quick trains a few steps, to see that all of it works.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import matplotlib
import numpy as np
import tyro

from saltus.recipes.pace import measured
from saltus.recipes.resolve import experiment
from saltus.report import Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS = (1, 2, 4, 8)
TEACHER = "flow_matching"
METHODS = (TEACHER, "lsd", "mean_flow", "freeflow")
CLASSES = 10


@dataclass(frozen=True)
class Options:
    """What to run."""

    data: Path
    """CIFAR-10: see saltus run cifar10 --help."""
    out: Path = Path("runs/cifar10")
    """Folder of the runs, the table and the picture."""
    setting: Literal["cpu", "small"] = "cpu"
    """Of the recipe."""
    steps: int | None = None
    """Of each training; None is the setting's."""
    count: int = 1000
    """Samples for each figure."""
    rounds: int = 3
    """In which the pace of all is measured."""
    backbone: str | None = None
    """Another network than the setting's."""
    size: str | None = None
    """Its size."""
    compile: bool = False
    """Compile the losses."""
    quick: bool = False
    """Eight steps each and 64 samples."""


def saltus(*words: object) -> None:
    """One command, to its end; what it says goes to the terminal."""
    command = [sys.executable, "-m", "saltus", *map(str, words)]
    print("$ saltus", *words, flush=True)
    subprocess.run(command, check=True)


def train(options: Options, method: str) -> Path:
    """The folder of a finished run, which is trained unless it is there."""
    run = options.out / method
    if (run / "model.safetensors").exists():
        return run
    shared: list[object] = ["--skip-evaluation", "--grid-every", 0, "--out", run]
    if options.compile:
        shared.append("--compile")
    steps = 8 if options.quick else options.steps
    if method == "freeflow":
        teacher = options.out / TEACHER
        told = json.loads((teacher / "options.json").read_text())["options"]["training"]
        same = ("batch", "lr", "warmup", "clip")
        words = [word for name in same for word in (f"--{name}", told[name])]
        words += ["--steps", told["steps"] // 2]
        saltus("distill", teacher, "--method", method, *words, "--ema", *told["ema"], *shared)
        return run
    words = ["--setting", options.setting]
    words += [] if steps is None else ["--steps", steps]
    words += ["--warmup", 0] if options.quick else []
    words += [] if options.backbone is None else ["--backbone", options.backbone, "--patch", "None"]
    words += [] if options.size is None else ["--size", options.size]
    saltus("run", f"cifar10-{method}", "--data", options.data, *words, *shared)
    return run


def measure(options: Options, run: Path, method: str) -> dict[tuple[str, int], tuple[float, float]]:
    """Fréchet distances of a run and half of their intervals, by (sampler, steps)."""
    kept = run / "scores.json"
    if not kept.exists():
        steps = (1,) if method == "freeflow" else STEPS
        solved = () if method == "freeflow" else ("solver",)
        count = 64 if options.quick else options.count
        words = ("--features", "own", "--count", count, "--metrics", "frechet", "--steps", *steps)
        saltus("evaluate", run, *words, "--samplers", "own", *solved)
    lines = json.loads(kept.read_text())["scores"][-1]["lines"]
    found = {}
    for line in lines:
        value = line["figures"]["Fréchet"]
        low, high = line["intervals"].get("Fréchet", (value, value))
        found[line["group"], line["steps"]] = (value, (high - low) / 2.0)
    return found


def effort(run: Path) -> tuple[int, int]:
    """Rows that a run learned from, and the bytes that it took."""
    training = json.loads((run / "options.json").read_text())["options"]["training"]
    memory = json.loads((run / "environment.json").read_text())["memory_peak"]
    return training["batch"] * training["steps"], memory


def paces(options: Options, runs: dict[str, Path]) -> dict[str, list[float]]:
    """Seconds a row of each method's step, round by round."""
    parts = {method: experiment(str(run / "options.json"), ["--quiet"]) for method, run in runs.items()}
    found: dict[str, list[float]] = {method: [] for method in runs}
    for _ in range(1 if options.quick else options.rounds):
        for method, made in parts.items():
            rows = made.training.batch
            found[method].append(measured(made, rows)(rows) / rows)
    return found


def grid(options: Options, runs: dict[str, Path]) -> Path:
    """A picture of what all make of the same noise, a class to a column."""
    rows = []
    for method, run in runs.items():
        steps = {TEACHER: (64,), "freeflow": (1,)}.get(method, (1, 2, 4))
        path = run / "grid.npy"
        saltus("sample", run, "--steps", *steps, "--n", CLASSES, "--seed", 1, "--out", path)
        images = np.clip(np.load(path) / 2.0 + 0.5, 0.0, 1.0)
        rows += [(f"{method}, {n}", x) for n, x in zip(steps, images, strict=True)]
    figure, axes = plt.subplots(len(rows), CLASSES, figsize=(CLASSES + 2, len(rows)), squeeze=False)
    for line, (name, images) in zip(axes, rows, strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.transpose(1, 2, 0), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    figure.subplots_adjust(left=0.165, right=0.998, top=0.995, bottom=0.005, wspace=0.03, hspace=0.03)
    place = options.out / "cifar10.png"
    figure.savefig(place, dpi=80)
    return place


def main(options: Options) -> None:
    """Train, measure, print the table and the place of the picture."""
    runs = {method: train(options, method) for method in METHODS}
    found = {method: measure(options, run, method) for method, run in runs.items()}
    rows: list[list[str | float]] = []
    took = paces(options, runs)
    for method, run in runs.items():
        seen, memory = effort(run)
        ratio = median(a / b for a, b in zip(took[method], took[TEACHER], strict=True))
        scores = found[method]
        asked = [("own", n) for n in STEPS] + [("solver", 64)]
        told = ["–" if key not in scores else "{:.2f} ± {:.2f}".format(*scores[key]) for key in asked]
        learned = f"{seen / 1000:.0f}" + ("" if method != "freeflow" else " of noise")
        rate = f"{1.0 / median(took[method]):.0f}"
        rows.append([method, learned, rate, round(ratio, 2), f"{memory / 2**30:.1f} GiB", *told])
    head = ["method", "images/1000", "images/s", "ratio", "memory", *map(str, STEPS), "ODE"]
    Table(head, rows, title=f"CIFAR-10 by class, Fréchet distance at 1 to 8 steps, {options.setting}").show()
    print(f"picture  {grid(options, runs)}")


if __name__ == "__main__":
    main(tyro.cli(Options))
