"""``saltus bench mixture``, ``images`` and ``digits``: every method on one problem, at one budget."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tyro import conf

from saltus.methods import Need, discover, load
from saltus.plots import Dots, dots
from saltus.recipes.folder import check_file, whole
from saltus.recipes.options import HELP, Flag, parse
from saltus.recipes.show import said
from saltus.recipes.trials import (
    COUNTS,
    DIGITS,
    FULL,
    IMAGES,
    MIXTURE,
    QUICK,
    Problem,
    experiment,
    measure,
    old,
)
from saltus.recipes.yardsticks import MARGIN, YARDSTICKS
from saltus.report import Cell, Table, figure

__all__ = ["BENCHES", "bench", "hold"]

BENCHES: dict[str, tuple[Problem, ...]] = {
    "mixture": (MIXTURE,),
    "images": (IMAGES,),
    "digits": (IMAGES, DIGITS),
}
PROBLEMS = {problem.name: problem for several in BENCHES.values() for problem in several}
WORDS = {"rmse": "RMSE", "sw": "SW", "energy": "energy", "frechet": "Fréchet"}
"""Headings of the figures."""

USAGE = """\
usage: saltus bench mixture [--options]
       saltus bench images [--options]
       saltus bench digits [--options]

Trains methods at one budget and measures the maps that they learned: on the reference mixture, where the
exact map is known and every method has a bound; on 500 digits as the means of a mixture, likewise; on
these and on the 1,797 real digits, where a network trained first is the teacher of those that need one.
Every (method, seed) is a line of the results file; what is there already is not trained again, so an
interrupted bench goes on where it was.

examples:
  saltus bench mixture
  saltus bench mixture --methods lsd mean_flow --seeds 0 1 2
  saltus bench mixture --short
  saltus bench digits --methods lsd lmd
"""


@dataclass(frozen=True)
class Budget:
    """What every method of a bench has: optimiser steps, the learning rate at the start, rows of a step."""

    steps: int
    lr: float
    batch: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0.0 < self.lr < math.inf:
            raise ValueError(
                f"budget: expected at least 1 step and 1 row and a rate above 0, got steps={self.steps}, "
                f"batch={self.batch}, lr={self.lr:g}; without the options it is the usual one"
            )

    def full(self, problem: Problem) -> bool:
        """Whether yardsticks and the cards' bounds refer to it: the usual one, or longer."""
        usual = (self.lr, self.batch) == (FULL[1], problem.batch)
        return problem.bounded and usual and self.steps >= FULL[0]

    def quick(self, problem: Problem) -> bool:
        """Whether the cards' bounds for a short training refer to it."""
        return problem.bounded and (self.steps, self.lr, self.batch) == (*QUICK, problem.batch)

    def __str__(self) -> str:
        return f"{self.steps:,} steps of batch {self.batch} at {self.lr:g}"


Rows = dict[tuple[str, str, int, Budget], dict[str, Any]]
"""Results by problem, method, seed and budget."""


def bench(args: Sequence[str]) -> int:
    """The command: the bench's name and its options."""
    if not args or args[0] in HELP:
        sys.stdout.write(USAGE)
        return 0
    if args[0] not in BENCHES:
        raise ValueError(f"unknown bench {args[0]!r}; near matches: {', '.join(BENCHES)}")
    return int(parse(partial(hold, args[0]), f"saltus bench {args[0]}", args[1:]))


def hold(
    name: conf.Suppress[str],
    *,
    methods: tuple[str, ...] = (),
    seeds: tuple[int, ...] | None = None,
    steps: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    short: Flag = False,
    fresh: Flag = False,
    out: Path | None = None,
    markdown: Flag = False,
) -> int:
    """Train methods at one budget and measure the maps that they learned.

    RMSE is the root of the mean squared distance to where the exact map sends the same noise, SW the
    sliced Wasserstein distance and energy the energy distance to fresh data, of samples by the method's
    own sampler at 1, 2 and 4 steps where its card allows them, for the last weights of a small network:
    the mean over the seeds, and in brackets half their range. Methods take their plain form: squared
    error, no clipping. On the reference mixture and at the usual rate and batch each is held against 1.5
    times the figures of an independent reproduction where there are some, and against its own bound; the
    exit status is 1 if a mean is above one of them.

    Args:
        methods: Which; by default all but those that learn guidance, for no labels are used here.
        seeds: One training each; by default 0 1 2 on the mixture and 0 on images.
        steps: Optimiser steps; by default 2500.
        lr: Learning rate at the start, by default 1e-3; it falls along a cosine.
        batch: Rows of data in a step; by default 512 on the mixture and 256 on images.
        short: 300 steps at 5e-3 and seed 0, with the cards' bounds for that.
        fresh: Train again what was measured by other code, or with another release of torch.
        out: The results, one JSON line for each method and seed; read first. The plot is beside them. By
            default runs/bench-NAME.jsonl.
        markdown: Print the table as GitHub-flavoured Markdown, with every figure.
    """
    usual = QUICK if short else FULL
    asked = [load(n).name for n in methods]
    _check_seeds(seeds)
    out = out or Path(f"runs/bench-{name}.jsonl")
    check_file(out, (".jsonl",))
    known, status = _read(out), 0
    panels: dict[str, list[Dots]] = {}
    titles: dict[str, None] = {}
    for problem in BENCHES[name]:
        budget = Budget(
            usual[0] if steps is None else steps,
            usual[1] if lr is None else lr,
            problem.batch if batch is None else batch,
        )
        chosen = seeds or ((0,) if short else problem.seeds)
        names = asked or _serves(problem, budget, known, chosen[0])
        for method, seed in ((n, s) for n in names for s in chosen):
            key = (problem.name, method, seed, budget)
            if key not in known or (fresh and old(known[key], problem)):
                known[key] = measure(method, seed, budget.steps, budget.lr, budget.batch, problem)
                _append(out, known[key])
                print(_found(known[key], problem))
        rows = {n: [known[problem.name, n, seed, budget] for seed in chosen] for n in names}
        lines = [Line.of(problem, n, found, budget) for n, found in rows.items()]
        shown = table(problem, lines, budget, markdown)
        print(f"{shown.title}\n\n{shown.markdown()}\n\n{shown.note}\n") if markdown else shown.show()
        status |= int(any(line.missed for line in lines))
        panels |= _panels(problem, lines)
        titles[f"{budget}, seed{'s' * (len(chosen) != 1)} {' '.join(map(str, chosen))}"] = None
    _draw(panels, "; ".join(titles), out.with_suffix(".png"))
    return status


def _check_seeds(seeds: Sequence[int] | None) -> None:
    if seeds is not None and not seeds:
        raise ValueError("seeds: expected at least one, got none; three are usual: --seeds 0 1 2")
    if seeds is not None and len(set(seeds)) < len(seeds):
        got = " ".join(map(str, seeds))
        raise ValueError(f"seeds: expected different ones, got {got}; three are usual: --seeds 0 1 2")


def _serves(problem: Problem, budget: Budget, known: Rows, seed: int) -> list[str]:
    """The methods that can learn the problem, put together with one seed; why others cannot is printed."""
    found = []
    for name, method in discover().items():
        if Need.LABELS in method.card.needs:  # none are used here
            continue
        if any(key[:2] == (problem.name, name) and key[3] == budget for key in known):  # it did
            found.append(name)
            continue
        try:
            made = experiment(name, seed, budget.steps, budget.lr, budget.batch, problem)
            made.game(made.model())
        except ValueError as why:
            print(f"{name}: left out on {problem.title}: {why}")
            continue
        found.append(name)
    return found


def _found(row: Mapping[str, Any], problem: Problem) -> str:
    first = problem.kinds[0]
    k, value = next(iter(row[first].items()))
    at = f"{WORDS[first]} {figure(value)} at {said(int(k))}"
    return f"{problem.name}, {row['method']}, seed {row['seed']}: {at}, trained in {row['seconds']:.0f} s"


def _read(path: Path) -> Rows:
    """The results that are there; a line cut short by an interruption is passed over."""
    found: Rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            budget = Budget(row["steps"], row["lr"], row["batch"])
            if _is_whole(row):
                found[row["problem"], row["method"], row["seed"], budget] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Whether a row has all that is shown of it; a KeyError says no as well."""
    kinds = [row[kind] for kind in PROBLEMS[row["problem"]].kinds]
    if not all(isinstance(kind, dict) for kind in kinds):
        return False
    numbers = [row["seconds"], *(value for kind in kinds for value in kind.values() if value is not None)]
    words = [row["code"], row["torch"]]
    return all(isinstance(n, int | float) for n in numbers) and all(isinstance(w, str) for w in words)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line, after ending one that an interruption cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ended = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if ended else "\n") + json.dumps(row) + "\n")


def _blown(value: float | None) -> bool:
    """Whether a figure is of a training that diverged: none, or beyond any law that a bench has."""
    return value is None or value > 100.0


@dataclass(frozen=True)
class Line:
    """One method on one problem: its results, and what they may be at most.

    Attributes:
        problem: what they learned.
        name: of the method.
        rows: the results of each seed.
        kind: the figure that is held against the limits.
        limits: at most, by number of steps; empty where nothing is asked.
    """

    problem: Problem
    name: str
    rows: Sequence[Mapping[str, Any]]
    kind: str
    limits: Mapping[int, float]

    @classmethod
    def of(cls, problem: Problem, name: str, rows: Sequence[Mapping[str, Any]], budget: Budget) -> Line:
        """The line with the limits that this budget has."""
        card = load(name).card
        kind = "sw" if card.law_alone else problem.kinds[0]
        own = {min(card.steps): card.threshold if budget.full(problem) else card.quick_threshold}
        asked = {k: v for k, v in own.items() if v is not None}
        if budget.quick(problem):
            return cls(problem, name, rows, kind, asked)
        if not budget.full(problem):
            return cls(problem, name, rows, kind, {})
        yardstick = YARDSTICKS.get(name)
        if yardstick is None:
            return cls(problem, name, rows, kind, asked)
        judged = problem.kinds[0] if yardstick.coupled else "sw"
        limits = {k: v for k, v in yardstick.limits.items() if k in card.steps}
        if judged == kind:
            limits |= {k: min(v, limits.get(k, v)) for k, v in asked.items()}
        return cls(problem, name, rows, judged, limits)

    def values(self, kind: str, k: int) -> list[float]:
        """The figures of the seeds at k steps; none unless every seed has one."""
        found = [row[kind].get(str(k)) for row in self.rows]
        return [] if any(map(_blown, found)) else found

    def mean(self, kind: str, k: int) -> float | None:
        """Their mean."""
        found = self.values(kind, k)
        return statistics.fmean(found) if found else None

    @property
    def missed(self) -> list[int]:
        """The numbers of steps at which the mean is above its limit, or there is none."""
        means = {k: self.mean(self.kind, k) for k in self.limits}
        return [k for k, mean in means.items() if mean is None or mean > self.limits[k]]

    @property
    def verdict(self) -> str | None:
        """Whether all limits hold, None without any."""
        if not self.limits:
            return None
        return f"MISSED at {' '.join(map(str, self.missed))}" if self.missed else "holds"

    @property
    def bound(self) -> str:
        """The limits by number of steps."""
        return " ".join(f"{figure(v)}" if k == 1 else f"{k}: {figure(v)}" for k, v in self.limits.items())

    def cell(self, kind: str, k: int, spread: bool) -> str | None:
        """The mean and, with ``spread``, half the range of the seeds."""
        found = self.values(kind, k)
        if not found:
            blown = any(str(k) in row[kind] and _blown(row[kind][str(k)]) for row in self.rows)
            return "diverges" if blown else None
        mean = figure(statistics.fmean(found))
        return f"{mean} ({figure((max(found) - min(found)) / 2)})" if spread and len(found) > 1 else mean

    @property
    def seconds(self) -> float:
        """Of a training, the mean of the seeds."""
        return statistics.fmean(row["seconds"] for row in self.rows)

    @property
    def old(self) -> bool:
        """Whether a row was measured by other code, or another torch, than is here now."""
        return any(old(row, self.problem) for row in self.rows)


def table(problem: Problem, lines: Sequence[Line], budget: Budget, wide: bool) -> Table:
    """All figures; on a terminal the energy distance at one step only."""
    kinds = [(kind, k) for kind in problem.kinds for k in COUNTS if wide or kind != "energy" or k == 1]
    bounded = any(line.limits for line in lines)
    cells: list[list[Cell]] = []
    for line in lines:
        found = [line.cell(kind, k, wide or (kind, k) == kinds[0]) for kind, k in kinds]
        limits = [line.bound, line.verdict] if bounded else []
        cells.append([line.name + " *" * line.old, *found, *limits, line.seconds])
    heads = ("method", *(f"{WORDS[kind]} {k}" for kind, k in kinds), *(("at most", "") if bounded else ()))
    seeds = len(lines[0].rows) if lines else 0
    title = f"{problem.title}, {budget}, {seeds} seed{'s' * (seeds != 1)}"
    return Table((*heads, "seconds"), cells, title, "\n".join(_notes(problem, lines, budget)))


def _notes(problem: Problem, lines: Sequence[Line], budget: Budget) -> Iterator[str]:
    yield "Figures at 1, 2 and 4 steps: mean over seeds (half the range)."
    held = [line for line in lines if line.limits]
    if held and budget.quick(problem):
        yield "At most: the card's bound for this budget, at the fewest of its steps."
    if held and budget.full(problem):
        card = "the card's bound at the fewest of its steps"
        yield f"At most: {MARGIN:g} times an independent reproduction, and {card}."
        known = [(line.name, YARDSTICKS[line.name]) for line in held if line.name in YARDSTICKS]
        yield from (f"{name}: {text}." for name, yardstick in known for text in yardstick.said())
    laws = [line.name for line in held if line.kind != problem.kinds[0]]
    if laws:
        yield f"Held against the limit by {WORDS['sw']}: {', '.join(laws)}."
    if problem is DIGITS:
        yield "Students of the network that was trained first start with its weights."
    if any(line.old for line in lines):
        yield "* measured by another version of the code or of torch; --fresh trains again."


def _panels(problem: Problem, lines: Sequence[Line]) -> dict[str, list[Dots]]:
    """The first two figures of each method, one panel each; none for a single method."""
    found = {}
    if len(lines) < 2:
        return {}
    for kind in problem.kinds[:2]:
        drawn = [
            Dots(
                line.name,
                {str(k): mean for k in COUNTS if (mean := line.mean(kind, k)) is not None},
                line.limits.get(min(line.limits)) if line.limits and kind == line.kind else None,
            )
            for line in lines
        ]
        found[f"{problem.title}: {WORDS[kind]}"] = [d for d in drawn if d.values]
    return {name: drawn for name, drawn in found.items() if drawn}


def _draw(panels: Mapping[str, Sequence[Dots]], title: str, path: Path) -> None:
    """The plot beside the results, where matplotlib is there to draw it."""
    if not panels:
        return
    try:
        with whole(path) as draft:
            dots(panels, draft, "steps", title)
    except ValueError as why:
        print(f"plot     none: {why}")
    else:
        print(f"plot     {path}")
