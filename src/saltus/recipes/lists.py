"""``saltus recipes`` and ``saltus methods``: what there is."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from saltus.methods import Card, Method, Need, Sampler, discover
from saltus.recipes import discover as discover_recipes
from saltus.report import Cell, Table

__all__ = ["methods", "methods_table", "recipes"]


def _learns(card: Card) -> str:
    if card.sampler is Sampler.ODE:
        return "b_t"
    return "s ≤ t" if card.two_times else "t = 1"


def _sources(card: Card) -> str:
    if Need.TEACHER not in card.needs:
        return "data"
    return "teacher, data" if Need.DATA in card.needs else "teacher alone"


COLUMNS: dict[str, Callable[[Method], Cell]] = {
    "method": lambda m: m.name,
    "arXiv": lambda m: m.card.paper.rpartition(" ")[2],
    "learns from": lambda m: _sources(m.card),
    "also needs": lambda m: ", ".join(sorted(n.value for n in m.card.needs - {Need.DATA, Need.TEACHER})),
    "sampler: steps": lambda m: f"{m.card.sampler.value}: {' '.join(str(k) for k in m.card.steps)}",
    "learns": lambda m: _learns(m.card),
    "calls": lambda m: m.card.cost.evaluations,
}
"""What the table of methods shows, by heading."""
ONLY_WIDE = ("arXiv", "also needs", "learns")
WIDE = 116
"""Columns of a terminal that holds all of it."""


def methods_table(columns: int = WIDE) -> Table:
    """Every method with what its card says; on a narrow terminal, what one needs to choose and to sample."""
    kept = [name for name in COLUMNS if columns >= WIDE or name not in ONLY_WIDE]
    rows: list[list[Cell]] = [[COLUMNS[name](m) for name in kept] for m in discover().values()]
    notes = {
        "learns": "learns: the map X_{s,t} for all s ≤ t, that to t = 1, or the velocity b_t alone.",
        "calls": "calls: network evaluations of a training step, a row.",
    }
    said = " ".join(notes[name] for name in kept if name in notes)
    more = "" if columns >= WIDE else f"\nA terminal of {WIDE} columns shows papers and further needs too."
    note = (
        f"{said}\nTrain one with saltus run RECIPE-METHOD, or from a teacher with saltus distill;\n"
        f"a method that learns from a teacher alone reads no data.{more}"
    )
    return Table(kept, rows, note=note, left=frozenset(kept) - {"calls"})


def methods() -> None:
    """List every method with its card: its paper, what it needs and how it may be sampled."""
    methods_table(shutil.get_terminal_size((WIDE, 24)).columns).show()


def recipes() -> None:
    """List what can be trained."""
    rows = [[f"{r.name}-METHOD", r.summary] for r in discover_recipes().values()]
    Table(
        ("recipe", "what is learned"),
        rows,
        note="METHOD is any name that saltus methods lists; for example: saltus run digits-lsd",
        left=frozenset({"what is learned"}),
    ).show()
