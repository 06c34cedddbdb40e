"""``saltus run``: from a command line to a finished run folder."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence

import torch

from saltus.methods import Need
from saltus.methods import discover as discover_methods
from saltus.nn import parameter_count
from saltus.recipes import discover
from saltus.recipes.doctor import counted
from saltus.recipes.execute import check_place, execute
from saltus.recipes.experiment import TEACHER, Experiment
from saltus.recipes.folder import CHECKPOINTS
from saltus.recipes.memory import footprint, summary
from saltus.recipes.occupied import goes_on
from saltus.recipes.optimisation import planned
from saltus.recipes.options import HELP
from saltus.recipes.pace import measured
from saltus.recipes.resolve import experiment
from saltus.training import Checkpoints
from saltus.training.memory import free_memory

__all__ = ["carry_out", "clock", "preview", "run"]

SPARE = 0.9
"""The part of the free memory that steps which are only timed may take."""

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


def preview(made: Experiment) -> None:
    """Print what would run: the parts, the parameters and the time, measured over a few steps."""
    check_place(made)
    done = max(Checkpoints(made.folder / CHECKPOINTS).steps(), default=0)
    going_on = f", going on after step {done:,}" if done and goes_on(made.folder, made.options()) else ""
    print(f"would train {made.name} into {made.folder}/{going_on}")
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
    plan, precision = planned(made.training, steps), steps.players[0].precision.value
    del steps
    memory, room = footprint(made), free_memory(made.world.device)
    share = 1.0 if room is None else min(1.0, SPARE * room / memory.total)
    pace = measured(made, max(1, int(share * memory.rows)))
    accumulate = made.training.machine.accumulate
    each = pace(memory.rows, accumulate)
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
    print(f"  steps        {rows}")
    print(f"               {cost:g} network evaluations a row, in the plain form")
    for what, how in [*plan, ("memory", summary(memory))]:
        first, *more = textwrap.wrap(how, 64)
        print(f"  {what:<12} {first}", *more, sep=f"\n{17 * ' '}")
    print(f"  precision    {precision}, {counted(torch.get_num_threads(), 'thread')}")
    whole = each * made.training.steps
    most = max(pace.measured)
    how = "measured now" if most == memory.rows else f"from {counted(most, 'row')}, measured now"
    print(f"  time         about {clock(whole)} here ({1e3 * each:.1f} ms a step, {how})")
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
