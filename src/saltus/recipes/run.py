"""``saltus run``: from a command line to a finished run folder."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from saltus.maps import NetworkMap
from saltus.methods import Need
from saltus.methods import discover as discover_methods
from saltus.nn import parameter_count
from saltus.recipes import discover
from saltus.recipes.assemble import train
from saltus.recipes.doctor import counted
from saltus.recipes.evaluate import EULERS, Measured, all_samplers, evaluate, tables
from saltus.recipes.evaluate import STEPS as PICTURED
from saltus.recipes.experiment import TEACHER, Experiment
from saltus.recipes.folder import EVALUATION, SAMPLES, check_free, fresh, write_json
from saltus.recipes.options import HELP
from saltus.recipes.resolve import experiment
from saltus.recipes.show import picture, shown
from saltus.samplers import prior
from saltus.streams import Streams

__all__ = ["carry_out", "execute", "preview", "record", "run", "show"]

USAGE = """\
usage: saltus run RECIPE [--options]
       saltus run RUN/options.json [--options]     the same run again, with changes if any

recipes (METHOD is a name from the list below; SYSTEM alone means SYSTEM-lsd):
{recipes}

methods:
{methods}

examples:
  saltus run digits-lsd
  saltus run mixture-mean_flow --steps 500 --seed 1 --out runs/mf1
  saltus run checkerboard --method psd --dry-run
  saltus run digits-freeflow      a teacher first, then its student without data

saltus run RECIPE --help shows the recipe's options.
"""


def usage() -> str:
    """The page that ``saltus run --help`` prints."""
    import textwrap

    lines = "\n".join(f"  {r.name + '-METHOD':<22} {r.summary}" for r in discover().values())
    names = textwrap.fill(", ".join(discover_methods()), 92, initial_indent="  ", subsequent_indent="  ")
    return USAGE.format(recipes=lines, methods=names)


def run(args: Sequence[str]) -> int:
    """The command: RECIPE and its options."""
    if not args or args[0] in HELP:
        sys.stdout.write(usage())
        return 0
    return carry_out(experiment(args[0], args[1:]))


def carry_out(made: Experiment) -> int:
    """Preview or execute, as asked."""
    if made.output.dry_run:
        preview(made)
    else:
        execute(made)
    return 0


def _check_free(made: Experiment) -> None:
    check_free(made.folder, made.output.overwrite, None if made.teacher is None else made.teacher.place)


def preview(made: Experiment) -> None:
    """Print what would run: the parts, the parameters and the time, measured over a few steps."""
    _check_free(made)
    print(f"would train {made.name} into {made.folder}/")
    print("(nothing is written now)")
    if made.first is None:
        _preview(made)
        return
    print(f"first its teacher, {made.first.name}, into {made.folder / TEACHER}/")
    seconds = _preview(made.first)
    print(f"then {made.name}")
    seconds += _preview(made.under(made.first.model()))
    print(f"together about {clock(seconds)}")


def _preview(made: Experiment) -> float:
    """Print the parts of one training; the seconds that it would take here."""
    student = made.model()
    steps = made.fit(student)
    next(steps)
    begin = time.perf_counter()
    rounds = min(5, made.training.steps - 1)
    for _ in range(rounds):
        next(steps)
    each = (time.perf_counter() - begin) / max(rounds, 1)
    cost = made.method.card.cost.evaluations
    spec = made.spec
    size = f"{parameter_count(student):,} parameters"
    print(f"  network      {spec.backbone} {spec.size}, {size}, its output: {spec.parametrisation}")
    print(f"  method       {made.method.card.title}:")
    print(f"               {made.method.card.paper}")
    if made.teacher is not None:
        start = "with its weights" if made.starts_as_teacher else "at random"
        print(f"  teacher      {made.teacher.run.name}; the student starts {start}")
    elif Need.TEACHER in made.method.card.needs:
        print(f"  teacher      the exact velocity of {made.system.name}; the student starts at random")
    if made.teacher is not None or made.data_free:
        given = made.own.get("data") or made.system.name
        print(f"  data         {'none is read' if made.data_free else given}")
    rows = f"{made.training.steps:,} of {made.training.batch} rows"
    print(f"  steps        {rows}, {cost:g} network evaluations a row")
    print(f"  precision    {steps.players[0].precision.value}, {counted(torch.get_num_threads(), 'thread')}")
    whole = each * made.training.steps
    print(f"  time         about {clock(whole)} here ({1e3 * each:.1f} ms a step, measured now)")
    return whole


def clock(seconds: float) -> str:
    """Seconds as a reader says them.

    >>> clock(75.0), clock(4.2)
    ('1 min 15 s', '4 s')
    """
    whole = math.ceil(seconds) if seconds > 60 else round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{max(whole, 1)} s"


def show_samples(made: Experiment, model: NetworkMap, path: Path) -> None:
    """Draw a picture of the method's samples, and plain integration's beside them, from the same noise."""
    n = shown(made.system.shape)
    rng = Streams(made.training.seed, index=torch.arange(n))
    x0 = prior(rng, made.system.shape, made.interpolant)
    labels = None if made.system.classes is None else torch.arange(n) % made.system.classes
    with torch.no_grad():
        rows = [row for row in all_samplers(made, model, x0, labels, rng, PICTURED) if row.pictured]
        rows = sorted(rows, key=lambda row: row.group is EULERS)  # Euler's last
        parts = [(row.label, row.sample()) for row in rows]
    picture(f"{made.name}: the same noise by {counted(len(parts), 'sampler')}", parts, labels).save(path)


def _trained(made: Experiment, folder: Path) -> NetworkMap:
    """Train into a folder that exists, and draw samples there."""

    def grid(model: NetworkMap, step: int) -> None:
        show_samples(made, model, folder / f"samples-{step:06d}.png")

    model = train(made, folder, grid)
    show_samples(made, model, folder / SAMPLES)
    return model


def execute(made: Experiment) -> list[Measured]:
    """Train, draw, save and measure; the folder appears when the weights are in it."""
    _check_free(made)
    with fresh(made.folder, made.output.overwrite) as folder:
        if made.first is not None:
            (folder / TEACHER).mkdir()
            if not made.output.quiet:
                print(f"first its teacher, {made.first.name}: {made.first.training.steps:,} steps")
            _trained(made.first, folder / TEACHER)
            made = made.taught(folder / TEACHER)
            if not made.output.quiet:
                print(f"then {made.name}: {made.training.steps:,} steps")
        model = _trained(made, folder)
    lines = [] if made.output.skip_evaluation else record(made, model, made.folder)
    if not made.output.quiet:
        if lines:
            show(made, lines)
        print(f"run      {made.folder}/")
        print(f"picture  {made.folder / SAMPLES}")
    return lines


def record(made: Experiment, model: NetworkMap, folder: Path) -> list[Measured]:
    """Measure, and write the figures into the run folder."""
    with Console(quiet=made.output.quiet).status("measuring", spinner="line"):
        lines = list(evaluate(made, model))
    write_json(folder / EVALUATION, {"run": made.name, "lines": [asdict(m) for m in lines]})
    return lines


def show(made: Experiment, lines: Sequence[Measured]) -> None:
    """Print the figures of a run."""
    title = f"{made.name} after {made.training.steps:,} steps (moving average of the weights)"
    against = f"the same against {made.system.name}"
    against += " (evaluation only: training read no data)" if made.data_free else ""
    for part in tables(lines, title, against):
        part.show()
