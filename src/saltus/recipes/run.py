"""``saltus run``: from a command line to a finished run folder."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from saltus.maps import NetworkMap
from saltus.methods import discover as discover_methods
from saltus.methods import load as load_method
from saltus.nn import parameter_count
from saltus.recipes import Recipe, discover, load
from saltus.recipes.assemble import Experiment, train
from saltus.recipes.evaluate import EULERS, Measured, evaluate, samplers, table
from saltus.recipes.folder import EVALUATION, SAMPLES, check_free, fresh, read_json, write_json
from saltus.recipes.options import HELP, as_arguments, parse
from saltus.recipes.show import picture, shown
from saltus.recipes.system import asked
from saltus.report import Table
from saltus.samplers import prior
from saltus.streams import Streams

__all__ = ["execute", "experiment", "preview", "record", "report", "run"]

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

saltus run RECIPE --help shows the recipe's options.
"""


def usage() -> str:
    """The page that ``saltus run --help`` prints."""
    import textwrap

    lines = "\n".join(f"  {r.name + '-METHOD':<22} {r.summary}" for r in discover().values())
    names = textwrap.fill(", ".join(discover_methods()), 92, initial_indent="  ", subsequent_indent="  ")
    return USAGE.format(recipes=lines, methods=names)


def experiment(name: str, args: Sequence[str]) -> Experiment:
    """The experiment of a recipe's name, or of a saved options file, with command-line options."""
    recipe, method, saved = _target(name)
    if method is not None:
        load_method(method)  # a mistyped method is told before any option is
    function = recipe.function()
    named = function if method is None else partial(function, method=method)
    made = parse(named, f"saltus run {name}", [*saved, *args])
    assert isinstance(made, Experiment)
    return made


def _target(name: str) -> tuple[Recipe, str | None, list[str]]:
    if not name.endswith(".json"):
        return *load(name), []
    saved = read_json(Path(name), "saved options")
    groups = saved.get("options")
    texts = [saved.get("recipe"), saved.get("method")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(groups, dict):
        raise ValueError(f"saved options: expected the keys recipe, method and options in {name}")
    recipe, _ = load(saved["recipe"])
    return recipe, str(saved.get("method")), as_arguments(groups)


def run(args: Sequence[str]) -> int:
    """The command: RECIPE and its options."""
    if not args or args[0] in HELP:
        sys.stdout.write(usage())
        return 0
    made = experiment(args[0], args[1:])
    if made.output.dry_run:
        preview(made)
        return 0
    execute(made)
    return 0


def preview(made: Experiment) -> None:
    """Print what would run: the parts, the parameters and the time, measured over a few steps."""
    check_free(made.folder, made.output.overwrite)
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
    print(f"would train {made.name} into {made.folder}/ (nothing is written now)")
    size = f"{parameter_count(student):,} parameters"
    print(f"  network      {spec.backbone} {spec.size}, {size}, its output: {spec.parametrisation}")
    print(f"  method       {made.method.card.title}: {made.method.card.paper}")
    rows = f"{made.training.steps:,} of {made.training.batch} rows"
    print(f"  steps        {rows}, {cost:g} network evaluations a row")
    print(f"  precision    {steps.players[0].precision.value}, {torch.get_num_threads()} threads")
    whole = clock(each * made.training.steps)
    print(f"  time         about {whole} here ({1e3 * each:.1f} ms a step, measured now)")


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
    card, n = made.method.card, shown(made.system.shape)
    rng = Streams(made.training.seed, index=torch.arange(n))
    x0 = prior(rng, made.system.shape, made.interpolant)
    labels = None if made.system.classes is None else torch.arange(n) % made.system.classes
    rows = samplers(model, card, x0, asked(labels), rng, made.interpolant)
    rows = sorted((row for row in rows if row.pictured), key=lambda row: row.group is EULERS)  # Euler's last
    parts = [(row.label, row.sample()) for row in rows]
    picture(f"{made.name}: the same noise by {len(parts)} samplers", parts, labels).save(path)


def execute(made: Experiment) -> list[Measured]:
    """Train, draw, save and measure; the folder appears when the weights are in it."""
    with fresh(made.folder, made.output.overwrite) as folder:

        def grid(model: NetworkMap, step: int) -> None:
            show_samples(made, model, folder / f"samples-{step:06d}.png")

        model = train(made, folder, grid)
        show_samples(made, model, folder / SAMPLES)
    lines = [] if made.output.skip_evaluation else record(made, model, made.folder)
    if not made.output.quiet:
        if lines:
            report(made, lines).show()
        print(f"run      {made.folder}/")
        print(f"picture  {made.folder / SAMPLES}")
    return lines


def record(made: Experiment, model: NetworkMap, folder: Path) -> list[Measured]:
    """Measure, and write the figures into the run folder."""
    judge, seed = made.system.judge(), made.training.seed
    with Console(quiet=made.output.quiet).status("measuring", spinner="line"):
        lines = list(evaluate(model, made.method.card, made.interpolant, judge, seed, made.system.shape))
    write_json(folder / EVALUATION, {"run": made.name, "lines": [asdict(m) for m in lines]})
    return lines


def report(made: Experiment, lines: Sequence[Measured]) -> Table:
    """The figures of a run as a table."""
    return table(lines, f"{made.name} after {made.training.steps:,} steps (moving average of the weights)")
