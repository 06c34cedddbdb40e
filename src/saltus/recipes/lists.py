"""``saltus recipes`` and ``saltus methods``: what there is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Annotated

from tyro import conf

from saltus.methods import Card, Method, Need, Sampler, discover, load
from saltus.recipes import discover as discover_recipes
from saltus.recipes.axes import ALSO, AXES, axes
from saltus.recipes.options import Flag
from saltus.report import Cell, Table

__all__ = [
    "AXES_NOTE",
    "FACTS_NOTE",
    "axes_table",
    "facts_table",
    "methods",
    "methods_table",
    "recipes",
    "restored",
]

Names = Annotated[tuple[str, ...], conf.arg(metavar="[METHOD ...]")]


def _learns(card: Card) -> str:
    if card.sampler is Sampler.ODE:
        return "b_t"
    return "s ≤ t" if card.two_times else "t = 1"


def _sources(card: Card) -> str:
    if Need.TEACHER not in card.needs:
        return "data"
    return "teacher, data" if Need.DATA in card.needs else "teacher alone"


def _steps(card: Card) -> str:
    return f"{card.sampler.value}: {' '.join(str(k) for k in card.steps)}"


COLUMNS: dict[str, Callable[[Method], Cell]] = {
    "method": lambda m: m.name,
    "arXiv": lambda m: m.card.paper.rpartition(" ")[2],
    "learns from": lambda m: _sources(m.card),
    "also needs": lambda m: ", ".join(sorted(n.value for n in m.card.needs - {Need.DATA, Need.TEACHER})),
    "sampler: steps": lambda m: _steps(m.card),
    "learns": lambda m: _learns(m.card),
    "calls": lambda m: m.card.cost.evaluations,
}
"""What the table of methods shows, by heading."""
ONLY_WIDE = ("arXiv", "also needs", "learns")
WIDE = 116
"""Columns of a terminal that holds all of it."""


def methods_table(columns: int = WIDE, chosen: Mapping[str, Method] | None = None) -> Table:
    """Methods with what their cards say; on a narrow terminal, what one needs to choose and to sample."""
    kept = [name for name in COLUMNS if columns >= WIDE or name not in ONLY_WIDE]
    shown = discover() if chosen is None else chosen
    rows: list[list[Cell]] = [[COLUMNS[name](m) for name in kept] for m in shown.values()]
    notes = {
        "learns": "learns: the map X_{s,t} for all s ≤ t, that to t = 1, or the velocity b_t alone.",
        "calls": "calls: network evaluations of a training step, a row, in the plain form.",
    }
    said = " ".join(notes[name] for name in kept if name in notes)
    more = "" if columns >= WIDE else f"\nA terminal of {WIDE} columns shows papers and further needs too."
    note = (
        f"{said}\nTrain one with saltus run RECIPE-METHOD, or from a teacher with saltus distill;\n"
        f"a method that learns from a teacher alone reads no data.{more}"
    )
    return Table(kept, rows, note=note, left=frozenset(kept) - {"calls"})


AXES_NOTE = """\
A row is a term of the loss in the paper's form: a jump X_{s,t} from a state at s is compared with two legs
that meet at the split m. Eulerian: m near s; Lagrangian: m near t; Composition: in between; Endpoint: none;
Diagonal: s = t. Cells are the names that values have in the package, without what is their default. The share
is that of the rows and of the weight; × another weight. A player's × is how many times a step it moves, a
stage's % its part of the run. No target: the student itself, stopped."""
FACTS_NOTE = """\
Evaluations: network calls of a training step for each row, in the plain form, a call with its derivative
counting 1.5; discriminators are not counted.
Restores: whether away from the truth the expected gradient leads home from a wrong law of the data, and from
a wrong map of the right law; measured, in the plain form. † Not from a primary source."""


@cache
def _restores() -> dict[str, dict[str, bool]]:
    """What ``tests/conformance/restores.py`` measured: by method, whether law and map are restored."""
    read = files("saltus.recipes").joinpath("restores.json").read_text(encoding="utf-8")
    return json.loads(read)  # type: ignore[no-any-return]


def restored(name: str) -> str:
    """What a method restores, in words; a dash where it has not been measured."""
    known = _restores().get(name)
    return "–" if known is None else ", ".join(what for what, does in known.items() if does)


def axes_table(chosen: Mapping[str, Method], folded: bool = False) -> Table:
    """What methods are on the axes of the algebra: a row for each term of the loss, a column for each axis;
    ``folded``, for terminals, has all axes in one column."""
    heads = ["method", "term", "share", *AXES, ALSO]
    rows: list[list[Cell]] = []
    rules = set()
    for name, method in chosen.items():
        rules.add(len(rows))
        for k, row in enumerate(axes(method)):
            rows.append([name if k == 0 else "", row.term, row.share, *row.cells.values()])
    if folded:
        heads = [*heads[:3], "axes"]
        rows = [[*row[:3], _folded(row[3:])] for row in rows]
    return Table(heads, rows, note=AXES_NOTE, rules=frozenset(rules - {0}), left=frozenset(heads))


def _folded(cells: Sequence[Cell]) -> str:
    """The cells of all axes with the axes' names, without the empty ones."""
    return "; ".join(f"{axis}: {cell}" for axis, cell in zip((*AXES, ALSO), cells, strict=True) if cell)


def facts_table(chosen: Mapping[str, Method]) -> Table:
    """What methods need, cost, restore and allow, with their papers and what is second-hand."""
    heads = ("method", "needs", "evaluations", "restores", "sampler: steps", "paper", "†")
    rows: list[list[Cell]] = []
    for name, method in chosen.items():
        card = method.card
        needs = ", ".join(n.value for n in Need if n in card.needs)
        known = [restored(name), _steps(card), card.paper, "; ".join(card.second_hand)]
        rows.append([name, needs, f"{card.cost.evaluations:g}", *known])
    return Table(heads, rows, note=FACTS_NOTE, left=frozenset(heads) - {"evaluations"})


def _chosen(names: Sequence[str]) -> dict[str, Method]:
    return {name: load(name) for name in names} if names else discover()


def methods(names: conf.Positional[Names] = (), /, *, table: Flag = False, markdown: Flag = False) -> None:
    """List every method with its card: its paper, what it needs and how it may be sampled.

    examples:
      saltus methods
      saltus methods lsd mean_flow --table
      saltus methods --table --markdown > methods.md

    Args:
        names: Methods to list, by default all.
        table: What each method is on every axis of the algebra, then what it needs, costs and restores.
        markdown: Print GitHub-flavoured Markdown.
    """
    chosen = _chosen(names)
    if table:
        tables = [axes_table(chosen, not markdown), facts_table(chosen)]
    else:
        columns = WIDE if markdown else shutil.get_terminal_size((WIDE, 24)).columns
        tables = [methods_table(columns, chosen)]
    for each in tables:
        if markdown:
            print(f"{each.markdown()}\n\n{each.note}\n")
        else:
            each.show()


def recipes() -> None:
    """List what can be trained."""
    rows = [[f"{r.name}-METHOD", r.summary] for r in discover_recipes().values()]
    Table(
        ("recipe", "what is learned"),
        rows,
        note="METHOD is any name that saltus methods lists; for example: saltus run digits-lsd",
        left=frozenset({"what is learned"}),
    ).show()
