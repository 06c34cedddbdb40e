"""From an experiment to a trained map, in a run folder or without one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from saltus.maps import NetworkMap
from saltus.page import write_page
from saltus.recipes.averages import EVALUATED, averages, modules, snapshot
from saltus.recipes.experiment import Experiment
from saltus.recipes.folder import CHECKPOINTS, ENVIRONMENT, METRICS, WEIGHTS, read_json, write_json
from saltus.recipes.nonfinite import explained
from saltus.recipes.watch import Watch, cut, writers
from saltus.training import EMA, Fit, Log, NonFiniteLoss, Run, Screen, Step, cut_back, gathered, save_weights
from saltus.training.memory import forget_peak, memory_peak

__all__ = ["MEMORY", "refresh", "train"]

MEMORY = "memory_peak"
"""In a run's environment: the most bytes in use while training, of the first process; on CUDA of tensors."""
_HOST = torch.device("cpu")
LOG_EVERY = 50
PAGE_SECONDS = 20.0
"""Between two drawings of a run's page."""


def train(made: Experiment, folder: Path | None) -> NetworkMap | None:
    """Train, or go on where the run in ``folder`` was saved; all processes of the run call this.

    Args:
        made: what to train.
        folder: exists; gets checkpoints, metrics, pictures and in the end the weights. None writes nothing.

    Returns:
        The averaged weights as a flow map on the CPU, in the first process; None in the others.

    Raises:
        NonFiniteLoss: where a loss or gradient was not finite; with a folder, it tells which rows and when.
    """
    try:
        return _trained(made, folder)
    except NonFiniteLoss as wrong:
        if folder is None:
            raise
        fault = wrong.with_traceback(None)  # which held the networks
    raise explained(made, folder, fault)


def _trained(made: Experiment, folder: Path | None) -> NetworkMap | None:
    forget_peak(made.world.device)
    student = made.model()
    kept = averages(made.training, student)
    fit = made.fit(student)
    if folder is None:
        with _log(made)(None) as log:
            for step in fit:
                _average(kept, step)
                log(step)
        return _whole(made, kept)
    world, o = made.world, made.output
    with Run(
        folder / CHECKPOINTS,
        save_every=o.save_every,
        keep_last=o.keep_last,
        keep_best=o.keep_best,
        meta=made.meta(),
        world=world,
        say=lambda line: print(line, file=sys.stderr),
    ) as run:
        done = run.resume(fit, kept)
        if world.leads:
            if done and not o.quiet:
                print(f"going on with {made.name} after step {done:,} of {made.training.steps:,}")
            cut(folder, done)
        try:
            _play(made, fit, kept, folder, run)
        except (RuntimeError, MemoryError) as error:
            error.add_note(f"at step {fit.index:,}")
            raise
        if world.leads and (folder / ENVIRONMENT).exists():
            peak = {MEMORY: memory_peak(world.device)}
            write_json(folder / ENVIRONMENT, read_json(folder / ENVIRONMENT, "environment") | peak)
        parts = {name: gathered(m, world, _HOST) for name, m in modules(kept, student).items()}
        if world.leads:
            save_weights(folder / WEIGHTS, {k: m for k, m in parts.items() if m is not None}, made.meta())
    return _whole(made, kept)


def _play(made: Experiment, fit: Fit, kept: Mapping[str, EMA], folder: Path, run: Run) -> None:
    """The steps that are left."""
    leads, start = made.world.leads, fit.index
    earlier = cut_back(folder / METRICS, start) if leads else 0.0
    drawn = time.monotonic()
    with (
        writers(made, folder, start, leads) as writer,
        _log(made)(folder if leads else None, start=start, earlier=earlier, writer=writer) as log,
    ):
        watch = Watch(made, folder, log, writer)
        for step in fit:
            _average(kept, step)
            log(step)
            score = None
            if watch.due(fit.index):
                model = _whole(made, kept)
                score = watch(fit.index, model) if model is not None else None
            snapshot(made.training, kept, folder, fit.index, made.world)
            run.after(step, score, watch.measures(fit.index))
            if leads and time.monotonic() - drawn > PAGE_SECONDS:
                with log.aside():
                    refresh(folder, training=True)
                drawn = time.monotonic()


def _log(made: Experiment) -> Callable[..., Log]:
    """A log that knows the training's length and whether to be silent."""
    steps = made.training.steps
    console = Screen(quiet=made.output.quiet or not made.world.leads, highlight=False)
    return partial(Log, steps=steps, batch=made.training.batch, every=min(LOG_EVERY, steps), console=console)


def _average(kept: Mapping[str, EMA], step: Step) -> None:
    """Take in the weights after a step, unless something in it was skipped."""
    for average in kept.values() if step.complete else ():
        average.update()


def _whole(made: Experiment, kept: Mapping[str, EMA]) -> NetworkMap | None:
    """The map that is evaluated, in one piece on the CPU of the first process."""
    averaged = kept[EVALUATED].module
    assert isinstance(averaged, NetworkMap)
    alone = made.world.size == 1 and made.world.device == _HOST
    return averaged if alone else gathered(averaged, made.world, _HOST)


def refresh(folder: Path, training: bool = False) -> None:
    """Draw the run's page again. It is drawn from files, and its failing is no reason to end a training."""
    try:
        write_page(folder, training)
    except Exception as wrong:
        print(f"saltus: warning: no page of {folder}: {wrong}; the run goes on", file=sys.stderr)
