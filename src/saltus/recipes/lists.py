"""``saltus recipes`` and ``saltus methods``: what there is."""

from __future__ import annotations

from saltus.methods import Card, Sampler, discover
from saltus.recipes import discover as discover_recipes
from saltus.report import Cell, Table

__all__ = ["methods", "methods_table", "recipes"]


def _learns(card: Card) -> str:
    if card.sampler is Sampler.ODE:
        return "b_t"
    return "s ≤ t" if card.two_times else "t = 1"


def methods_table() -> Table:
    """Every method with what its card says."""
    rows: list[list[Cell]] = [
        [
            m.name,
            m.card.title,
            m.card.paper.rpartition(" ")[2],
            ", ".join(sorted(n.value for n in m.card.needs)),
            f"{m.card.sampler.value}: {' '.join(str(k) for k in m.card.steps)}",
            _learns(m.card),
            m.card.cost.evaluations,
        ]
        for m in discover().values()
    ]
    return Table(
        ("method", "title", "arXiv", "needs", "sampler: steps", "learns", "calls"),
        rows,
        note="learns: the map X_{s,t} for all s ≤ t, that to t = 1, or the velocity b_t alone. "
        "calls: network evaluations of a training step, a row.\nTrain one with saltus run RECIPE-METHOD.",
        left=frozenset({"title", "arXiv", "needs", "sampler: steps", "learns"}),
    )


def methods() -> None:
    """List every method with its card: its paper, what it needs and how it may be sampled."""
    methods_table().show()


def recipes() -> None:
    """List what can be trained."""
    rows = [[f"{r.name}-METHOD", r.summary] for r in discover_recipes().values()]
    Table(
        ("recipe", "what is learned"),
        rows,
        note="METHOD is any name that saltus methods lists; for example: saltus run digits-lsd",
        left=frozenset({"what is learned"}),
    ).show()
