"""What a run measures while it trains: figures and pictures of the averaged weights on a schedule.

    with writers(made, folder, start) as writer, Log(folder, ..., writer=writer) as log:
        watch = Watch(made, folder, log, writer)
        for step in fit:
            ...
            score = watch(step.index + 1, averaged) if watch.due(step.index + 1) else None

Neither changes training, and both are functions of the weights, the seed and the step: a run that was resumed
writes the same lines and pictures again, but for what clocks say (``ms`` and ``seconds``). The judge and the
noise are those of ``saltus evaluate``, and so are the figures; only rows that cost much and say nothing of
the method (integration, the teacher, fresh data) are left to the end.

A measurement that fails costs no training: one line on standard error tells it, ``evaluations.jsonl`` keeps
it under ``error``, and the run goes on. A line that cannot be appended there ends the run, as one of the
log does.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from saltus.maps import NetworkMap
from saltus.recipes.evaluate import Exam, Measured, score
from saltus.recipes.experiment import Experiment
from saltus.recipes.options import Output
from saltus.recipes.portraits import GRIDS, evaluated, grid, write_residuals, write_trajectories
from saltus.training import (
    Log,
    TensorBoard,
    WeightsAndBiases,
    Writer,
    Writers,
    check_tensorboard,
    check_wandb,
    cut_back,
    numbers,
)

__all__ = ["EVALUATIONS", "Watch", "append", "check_output", "conclude", "cut", "grids_at", "writers"]

EVALUATIONS = "evaluations.jsonl"
ROWS, LAST_ROWS = 64, 256
"""Data paths on which residuals are taken while a run trains, and at its end."""
SHARE = 0.05
"""The part of a run's time above which evaluations are said to be dear."""
GRIDS_A_RUN, LEAST = 8, 50
"""Without a schedule a run draws so many grids, at least so many steps apart."""


def check_output(output: Output) -> None:
    """Raise a ValueError for a schedule that is none, or a writer that is not installed."""
    for name, every in (("grid every", output.grid_every), ("evaluate every", output.evaluate_every)):
        if every is not None and every < 0:
            raise ValueError(f"{name}: expected a number of steps, or 0 for never, got {every}")
    if output.tensorboard:
        check_tensorboard()
    if output.wandb is not None:
        check_wandb()


def grids_at(made: Experiment) -> int:
    """Steps from one grid to the next; 0 draws none.

    The default is an eighth of the run, and no fewer than fifty steps.
    """
    every = made.output.grid_every
    return max(math.ceil(made.training.steps / GRIDS_A_RUN), LEAST) if every is None else every


def writers(made: Experiment, folder: Path, start: int = 0, leads: bool = True) -> Writers:
    """The writers that were asked for, to be used as a context.

    Args:
        made: what is trained.
        folder: of the run; it exists.
        start: steps that are done already.
        leads: whether this process writes at all.
    """
    found: list[Writer] = []
    if not leads:
        return Writers(found)
    if made.output.tensorboard:
        found.append(TensorBoard(folder, start))
    if made.output.wandb is not None:
        found.append(WeightsAndBiases(folder, made.output.wandb, str(folder), made.options()))
    return Writers(found)


def append(folder: Path, step: int, weights: str, lines: Sequence[Measured], **more: object) -> None:
    """Write an evaluation as the last line of ``evaluations.jsonl``; earlier ones of the same weights at the
    same step make way.

    Raises:
        ValueError: if the file cannot be written.
    """
    path = folder / EVALUATIONS
    row = {"step": step, "weights": weights, **more, "lines": [asdict(m) for m in lines]}
    begins = json.dumps({"step": step, "weights": weights})[:-1]
    try:
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in before if not line.startswith(begins)]
        if len(kept) < len(before):
            beside = path.with_name(f".{path.name}.part")
            beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            beside.replace(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as wrong:
        why = wrong.strerror or wrong
        raise ValueError(f"{path}: expected to append a line, got {why}; free some room and resume") from None


def conclude(made: Experiment, model: NetworkMap, folder: Path, lines: Sequence[Measured]) -> None:
    """Write what a finished run shows besides its evaluation: that as a line, residuals, trajectories."""
    done = made.training.steps
    append(folder, done, evaluated(made), lines)
    write_trajectories(made, model, folder, done)
    write_residuals(made, model, folder, done, min(LAST_ROWS, made.training.batch))


def cut(folder: Path, step: int) -> None:
    """Take back what a run has measured and drawn after ``step`` steps: going on, it does so again.

    Raises:
        ValueError: if a file cannot be replaced or removed.
    """
    cut_back(folder / EVALUATIONS, step)
    try:
        for path in (folder / GRIDS).glob("*.png"):
            if path.stem.isdecimal() and int(path.stem) > step:
                path.unlink()
    except OSError as wrong:
        raise ValueError(f"{folder / GRIDS}: expected to remove grids, got {wrong.strerror}") from None


class Watch:
    """Measures and draws a run's averaged weights when it is time.

    Attributes:
        seconds: that measuring and drawing have taken.
    """

    def __init__(
        self,
        made: Experiment,
        folder: Path,
        log: Log,
        writer: Writer,
    ) -> None:
        """Prepare nothing yet: the judge is made when it is first asked.

        Args:
            made: what is trained.
            folder: of the run.
            log: which leaves this time out of its rates.
            writer: gets figures and pictures too.
        """
        self._made, self._folder = made, folder
        self._log, self._writer = log, writer
        self._grid, self._evaluate = grids_at(made), made.output.evaluate_every
        self._exam: Exam | None = None
        self._free, self._told = math.nan, False  # when the last evaluation was over; whether it was dear
        self.seconds = 0.0

    def due(self, done: int) -> bool:
        """Whether there is something to do after ``done`` steps."""
        return self._draws(done) or self.measures(done)

    def _draws(self, done: int) -> bool:
        return self._on(self._grid, done)

    def measures(self, done: int) -> bool:
        """Whether the weights are measured after ``done`` steps."""
        return self._on(self._evaluate, done)

    def _on(self, every: int, done: int) -> bool:
        """Whether a schedule names this step; the last one is always on it."""
        return every > 0 and (done % every == 0 or done == self._made.training.steps)

    def __call__(self, done: int, model: NetworkMap) -> float | None:
        """Do what is due after ``done`` steps.

        Args:
            done: steps.
            model: the averaged map as it is now.

        Returns:
            The score of the averaged weights (see :func:`saltus.recipes.evaluate.score`), smaller is better;
            None where none was measured.
        """
        begin, found = time.monotonic(), None
        with self._log.aside():
            if self._draws(done):
                self._draw(done, model)
            if self.measures(done):
                found = self._measure(done, model)
        self.seconds += time.monotonic() - begin
        return found

    def _draw(self, done: int, model: NetworkMap) -> None:
        try:
            where = grid(self._made, model, self._folder, done)
            write_trajectories(self._made, model, self._folder, done)
        except Exception as wrong:
            _warn(f"no grid after {done:,} steps", wrong)
            return
        self._writer.images(done, {"grid": where})

    def _measure(self, done: int, model: NetworkMap) -> float | None:
        begin = time.monotonic()
        first = self._exam is None
        lines: list[Measured] = []
        fault: dict[str, object] = {}
        try:
            self._exam = self._exam or Exam(self._made)
            lines = self._exam.own(model)
            write_residuals(self._made, model, self._folder, done, ROWS)
        except Exception as wrong:
            fault = {"error": _warn(f"no evaluation after {done:,} steps", wrong)}
        took = time.monotonic() - begin
        append(self._folder, done, evaluated(self._made), lines, seconds=round(took, 3), **fault)
        self._writer.scalars(done, named(lines))
        if not first and not fault:
            self._tell(took, begin - self._free)
        self._free = time.monotonic()
        found = score(lines)
        return None if found is None or not math.isfinite(found[1]) else found[1]

    def _tell(self, took: float, between: float) -> None:
        """Say once if evaluations are dear; the first one, which prepares the judge, does not count."""
        share = took / (took + between)
        if share > SHARE and not self._told and not self._made.output.quiet:
            rarer = self._evaluate * math.ceil(took * (1.0 - SHARE) / (SHARE * between))
            print(
                f"evaluations take {share:.0%} of the time ({took:.1f} s each); "
                f"--evaluate-every {rarer} would take {SHARE:.0%}"
            )
            self._told = True


def named(lines: Sequence[Measured]) -> dict[str, float]:
    """The figures of an evaluation under names for writers.

    >>> named([Measured("1 jump", "own", 1, {"map RMSE": 0.25})])
    {'evaluation/map RMSE/1 jump': 0.25}
    """
    return numbers({"evaluation": {f"{name}/{m.label}": v for m in lines for name, v in m.figures.items()}})


def _warn(what: str, wrong: Exception) -> str:
    """Tell a fault in one line on standard error; the fault in words."""
    text = " ".join(str(wrong).split())[:200]
    fault = f"{type(wrong).__name__}: {text}"
    print(f"saltus: warning: {what}: {fault}; training goes on", file=sys.stderr)
    return fault
