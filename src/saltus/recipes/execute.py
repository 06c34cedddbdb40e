"""A run from its first second to its last: the folder, a teacher of its own, training, pictures, figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from saltus.maps import NetworkMap
from saltus.page import write_page
from saltus.page.files import PAGE
from saltus.recipes.doctor import counted
from saltus.recipes.environment import environment
from saltus.recipes.evaluate import EULERS, Exam, Measured, all_samplers, evaluate, tables
from saltus.recipes.evaluate import STEPS as PICTURED
from saltus.recipes.exhausted import explaining
from saltus.recipes.experiment import TEACHER, Experiment
from saltus.recipes.folder import (
    ENVIRONMENT,
    EVALUATION,
    METRICS,
    OPTIONS,
    SAMPLES,
    WEIGHTS,
    read_json,
    whole,
    write_json,
)
from saltus.recipes.memory import size
from saltus.recipes.occupied import check_free, finished, occupied
from saltus.recipes.opened import open_run
from saltus.recipes.show import picture, shown
from saltus.recipes.train import MEMORY, refresh, train
from saltus.recipes.watch import conclude
from saltus.samplers import prior
from saltus.streams import Streams
from saltus.training import Stopped
from saltus.training.memory import on_cuda

__all__ = ["check_place", "execute", "record", "show"]


def check_place(made: Experiment) -> None:
    """Raise a ValueError unless the run may begin or go on in its folder."""
    teacher = None if made.teacher is None else made.teacher.place
    ends = not made.output.skip_evaluation
    check_free(made.folder, made.options(), made.output.overwrite, teacher, ends)


def show_samples(made: Experiment, model: NetworkMap, path: Path) -> None:
    """Draw a picture of the method's samples, and plain integration's beside them, from the same noise."""
    n = shown(made.system.shape)
    rng = Streams(made.training.seed, index=torch.arange(n))
    x0 = prior(rng, made.system.shape, made.interpolant)
    labels = None if made.system.classes is None else torch.arange(n) % made.system.classes
    with torch.no_grad():
        rows = [row for row in all_samplers(made, model, x0, labels, rng, PICTURED) if row.pictured]
        rows = sorted(rows, key=lambda row: row.group is EULERS)  # Euler's last
        parts = [(row.label, made.system.seen(row.sample())) for row in rows]
    with whole(path) as draft:
        title = f"{made.name}: the same noise by {counted(len(parts), 'sampler')}"
        picture(title, parts, labels).save(draft)


def execute(made: Experiment) -> list[Measured]:
    """Train or go on, draw, save and measure. All processes of a run call this; the first one writes."""
    world, folder = made.world, made.folder
    with ExitStack() as stack:
        if world.leads:  # the others may come when files are half written
            check_place(made)
            here = environment(world.device, world.size)
            ends = not made.output.skip_evaluation
            stack.enter_context(occupied(folder, made.options(), made.output.overwrite, here, ends))
            if made.teacher is not None:
                made.teacher.keep(folder)
            if not made.output.quiet:
                print(f"{made.name}: {made.training.steps:,} steps of {made.training.batch} into {folder}/")
        world.barrier()
        try:
            if made.first is not None:
                made = _taught(made, folder / TEACHER)
            model = _model(made, folder)
        except Stopped as stop:
            if world.leads:
                done = f"after step {stop.step:,}, which is saved"
                print(f"stopped {done}; the same command goes on from there", file=sys.stderr)
                refresh(folder)
            raise
        except Exception:
            with suppress(Exception):  # one fault is told at a time
                if world.leads and (folder / METRICS).is_file():
                    write_page(folder, training=False)
            raise
        # in the folder still: nobody else may begin in it while it is drawn and measured
        return [] if model is None else _conclude(made, model, folder)


def _model(made: Experiment, folder: Path) -> NetworkMap | None:
    """The trained map, in the first process: of now, or of a process that ended before it had drawn it."""
    if not made.world.tell((folder / WEIGHTS).exists()):  # what one process sees, another may not see yet
        with explaining(made):
            return train(made, folder)
    if not made.world.leads:
        return None
    if not made.output.quiet:
        print(f"{made.name} is trained; what is missing is drawn and measured now")
    return open_run(folder).model


def _memory(made: Experiment) -> str:
    """The peak of memory in words."""
    peak = read_json(made.folder / ENVIRONMENT, "environment").get(MEMORY, 0)
    return size(float(peak)) + " of tensors" * on_cuda(made.world.device)


def _conclude(made: Experiment, model: NetworkMap, folder: Path) -> list[Measured]:
    """Draw and measure a trained map, and say where everything is."""
    show_samples(made, model, folder / SAMPLES)
    lines, protocol = Recorded([], "") if made.output.skip_evaluation else record(made, model, folder)
    if lines:
        conclude(made, model, folder, lines)
    refresh(folder)
    if not made.output.quiet:
        if lines:
            show(made, lines, protocol=protocol)
        print(f"memory   {_memory(made)} at most while training")
        print(f"run      {folder}/")
        print(f"picture  {folder / SAMPLES}")
        print(f"page     {folder / PAGE}")
    return lines


def _taught(made: Experiment, place: Path) -> Experiment:
    """The run with its own teacher, which is trained now unless it is there."""
    first, leads = made.first, made.world.leads
    assert first is not None
    loud = leads and not made.output.quiet
    if not made.world.tell(finished(place, evaluated=False)):
        if leads:
            place.mkdir(exist_ok=True)
            write_json(place / OPTIONS, first.options())
        if loud:
            print(f"first its teacher, {first.name}: {first.training.steps:,} steps")
        made.world.barrier()
        model = _model(first, place)
        if model is not None:
            show_samples(first, model, place / SAMPLES)
            refresh(place)
    made.world.barrier()
    if loud:
        print(f"then {made.name}: {made.training.steps:,} steps")
    return made.taught(place)


class Recorded(NamedTuple):
    """An evaluation, and the protocol of its figures in words."""

    lines: list[Measured]
    protocol: str


def record(made: Experiment, model: NetworkMap, folder: Path) -> Recorded:
    """Measure, and write the figures into the run folder."""
    with Console(quiet=made.output.quiet).status("measuring", spinner="line"):
        exam = Exam(made)
        lines, protocol = list(evaluate(made, model, exam)), exam.judge.note
    said = {"protocol": protocol} if protocol else {}
    write_json(folder / EVALUATION, {"run": made.name, **said, "lines": [asdict(m) for m in lines]})
    return Recorded(lines, protocol)


def show(
    made: Experiment,
    lines: Sequence[Measured],
    weights: str = "moving average of the weights",
    protocol: str = "",
) -> None:
    """Print the figures of a run, taken with these weights."""
    title = f"{made.name} after {made.training.steps:,} steps ({weights})"
    against = f"the same against {made.system.name}"
    against += " (evaluation only: training read no data)" if made.data_free else ""
    for part in tables(lines, title, against, protocol):
        part.show()
