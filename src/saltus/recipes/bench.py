"""``saltus bench mixture`` and ``images``: every method against an exact flow map, at one budget."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tyro import conf

from saltus.methods import Need, Sampler, discover, load
from saltus.recipes.assemble import assemble
from saltus.recipes.experiment import Experiment
from saltus.recipes.folder import check_file
from saltus.recipes.images import system as digits_as_means
from saltus.recipes.mixture import system as reference_problem
from saltus.recipes.options import HELP, Flag, Network, Output, Training, parse
from saltus.recipes.sampling import draw
from saltus.recipes.system import Drawn, System
from saltus.recipes.train import train
from saltus.report import Cell, Table, figure
from saltus.samplers import prior
from saltus.streams import Streams

__all__ = ["PROBLEMS", "Problem", "bench"]

COUNTS = (1, 2, 4)
FULL, QUICK = (2500, 1e-3), (300, 5e-3)
"""Steps and learning rates that the cards' two thresholds refer to."""
NOISE = 2**31
"""First index of the evaluation's streams."""


@dataclass(frozen=True)
class Problem:
    """What methods are held against.

    Attributes:
        name: as typed.
        title: in words.
        system: makes it.
        network: of the student.
        batch: rows of a step.
        bounded: whether the cards' thresholds refer to it.
    """

    name: str
    title: str
    system: Callable[[], System]
    network: Network
    batch: int
    bounded: bool


MIXTURE = Problem("mixture", "Reference mixture", reference_problem, Network(), 512, True)
IMAGES = Problem(
    "images", "500 digits as a mixture", digits_as_means, Network(backbone="residual-mlp"), 256, False
)
PROBLEMS = {p.name: p for p in (MIXTURE, IMAGES)}

USAGE = """\
usage: saltus bench mixture [--options]
       saltus bench images [--options]

Trains methods on the reference mixture, or on digits as the means of a mixture, and holds their maps
against the exact one. Every (method, seed) is a line of the results file; what is there already is not
trained again, so an interrupted bench goes on where it was. Exact velocities serve as teachers.

examples:
  saltus bench mixture --methods lsd mean_flow --seeds 0 1 2
  saltus bench mixture --steps 300 --lr 5e-3 --seeds 0 --out runs/quick.jsonl
  saltus bench images --methods lmd freeflow --seeds 0
"""


def bench(args: Sequence[str]) -> int:
    """The command: the problem's name and its options."""
    if not args or args[0] in HELP:
        sys.stdout.write(USAGE)
        return 0
    if args[0] not in PROBLEMS:
        raise ValueError(f"unknown bench {args[0]!r}; near matches: {', '.join(PROBLEMS)}")
    return int(parse(partial(hold, PROBLEMS[args[0]]), f"saltus bench {args[0]}", args[1:]))


def hold(
    problem: conf.Suppress[Problem],
    *,
    methods: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = FULL[0],
    lr: float = FULL[1],
    batch: int | None = None,
    out: Path | None = None,
    markdown: Flag = False,
) -> int:
    """Hold methods against an exact flow map.

    The figures are the root of the mean squared distance to where the exact map sends the same noise
    and the sliced Wasserstein distance to fresh data, of samples by the method's own sampler, for the
    last weights of a small network: the mean over the seeds, and in brackets half their range.
    Methods take their plain form: squared error, no clipping; those that need a teacher have the exact
    velocity. On the reference mixture the exit status is 1 if a mean is above its method's threshold.

    Args:
        methods: Which; by default all but those that learn guidance, for no labels are used here.
        seeds: One training each.
        steps: Optimiser steps.
        lr: Learning rate at the start; it falls along a cosine.
        batch: Rows of data in a step; by default 512 on the mixture and 256 on images.
        out: The results, one JSON line for each method and seed; read first. By default
            runs/bench-PROBLEM.jsonl.
        markdown: Print the table as GitHub-flavoured Markdown.
    """
    usual = [n for n, m in discover().items() if Need.LABELS not in m.card.needs]  # none are used here
    names = [load(n).name for n in methods] or usual
    if not seeds:
        raise ValueError("seeds: expected at least one, got none; three are usual: --seeds 0 1 2")
    out, batch = out or Path(f"runs/bench-{problem.name}.jsonl"), batch or problem.batch
    check_file(out, (".jsonl",))
    known = _read(out)
    for name in names:
        for seed in seeds:
            if (name, seed, steps, lr, batch) not in known:
                row = measure(name, seed, steps, lr, batch, problem)
                known[name, seed, steps, lr, batch] = row
                _append(out, row)
                error = figure(row["rmse"]["1"])
                print(f"{name}, seed {seed}: map RMSE {error} at one step, trained in {row['seconds']:.0f} s")
    rows = [[known[name, seed, steps, lr, batch] for seed in seeds] for name in names]
    limits = {name: _limit(name, steps, lr) if problem.bounded else None for name in names}
    shown = _table(problem.title, limits, rows, f"{steps:,} steps of batch {batch} at {lr:g}", markdown)
    print(shown.markdown()) if markdown else shown.show()
    verdicts = [_verdict(limits[name], found) for name, found in zip(names, rows, strict=True)]
    return int(False in verdicts)


def measure(
    name: str, seed: int, steps: int, lr: float, batch: int, problem: Problem = MIXTURE
) -> dict[str, Any]:
    """Train one method with one seed and measure its map."""
    training = Training(steps=steps, batch=batch, lr=lr, seed=seed, ema=(0.0,), precision="float32")
    made = assemble(problem.system(), name, True, problem.network, training, Output(quiet=True), {})
    begin = time.perf_counter()
    model = train(made, None)
    assert model is not None, "a bench is one process"
    seconds = time.perf_counter() - begin
    found = {k: _figures(made, model, k) for k in COUNTS if k in made.method.card.steps}
    fresh = made.method.card.sampler is Sampler.RENOISE  # fresh noise after a jump: no map to compare with
    return {
        "method": name,
        "seed": seed,
        "steps": steps,
        "lr": lr,
        "batch": batch,
        "rmse": {str(k): f["map RMSE"] for k, f in found.items() if k == 1 or not fresh},
        "sw": {str(k): f["sliced W2"] for k, f in found.items()},
        "seconds": seconds,
        "torch": torch.__version__,
    }


def _figures(made: Experiment, model: Any, k: int) -> dict[str, float]:  # noqa: ANN401
    judge = made.system.judge()
    rng = Streams(0, index=torch.arange(NOISE, NOISE + judge.count))
    x0 = prior(rng, made.system.shape, made.interpolant)
    return judge.figures(Drawn(x0, draw(model, made.method.card, x0, k, None, rng, made.interpolant)))


def _read(path: Path) -> dict[tuple[str, int, int, float, int], dict[str, Any]]:
    """The results that are there; a line cut short by an interruption is passed over."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            found[row["method"], row["seed"], row["steps"], row["lr"], row["batch"]] = row
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return found


def _append(path: Path, row: dict[str, Any]) -> None:
    """Add a line, after ending one that an interruption cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps(row) + "\n")


def _limit(name: str, steps: int, lr: float) -> float | None:
    """The method's threshold for this budget, None where there is none."""
    card = load(name).card
    return card.threshold if steps >= FULL[0] else card.quick_threshold if (steps, lr) == QUICK else None


def _verdict(limit: float | None, rows: Sequence[dict[str, Any]]) -> bool | None:
    """Whether the mean one-step error is within the method's threshold, None without one."""
    return None if limit is None else statistics.fmean(r["rmse"]["1"] for r in rows) <= limit


def _spread(values: Sequence[float | None], wide: bool) -> str | None:
    """The mean, and where there is room half the range; None unless every seed has the figure."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    mean = figure(statistics.fmean(known))
    return f"{mean} ({figure((max(known) - min(known)) / 2)})" if wide and len(known) > 1 else mean


def _table(
    title: str,
    limits: Mapping[str, float | None],
    rows: Sequence[Sequence[dict[str, Any]]],
    budget: str,
    wide: bool,
) -> Table:
    cells: list[list[Cell]] = []
    bounded = any(limit is not None for limit in limits.values())
    for (name, limit), found in zip(limits.items(), rows, strict=True):
        ok = _verdict(limit, found)
        figures = [
            _spread([r[kind].get(str(k)) for r in found], wide or (kind == "rmse" and k == 1))
            for kind in ("rmse", "sw")
            for k in COUNTS
        ]
        verdict = None if ok is None else "holds" if ok else "MISSED"
        seconds = statistics.fmean(r["seconds"] for r in found)
        cells.append([name, *figures, *([limit, verdict] if bounded else []), seconds])
    kinds = (*(f"RMSE {k}" for k in COUNTS), *(f"SW {k}" for k in COUNTS))
    heads = ("method", *kinds, *(("at most", "") if bounded else ()), "seconds")
    seeds = len(rows[0])
    note = "RMSE and SW (sliced Wasserstein) at 1, 2 and 4 steps: mean over seeds (half the range)."
    return Table(heads, cells, f"{title}, {budget}, {seeds} seed{'s' * (seeds > 1)}", note)
