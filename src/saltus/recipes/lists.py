"""``saltus recipes`` and ``saltus methods``: what there is."""

from __future__ import annotations

from saltus.methods import Card, discover
from saltus.recipes import discover as discover_recipes
from saltus.report import Table

__all__ = ["methods", "methods_table", "recipes"]


def _steps(card: Card) -> str:
    return ", ".join(str(k) for k in card.steps)


def methods_table() -> Table:
    """Every method with what its card says."""
    rows = [
        [
            m.name,
            m.card.title,
            m.card.paper,
            ", ".join(sorted(n.value for n in m.card.needs)),
            m.card.sampler.value,
            _steps(m.card),
            "s ≤ t" if m.card.two_times else "t = 1",
            m.card.evaluations,
        ]
        for m in discover().values()
    ]
    return Table(
        ("method", "title", "paper", "needs", "sampler", "steps", "learns", "evaluations"),
        rows,
        note="evaluations: network calls of one training step, in forward passes a row. "
        "Train one with saltus run RECIPE --method METHOD.",
        left=frozenset({"title", "paper", "needs", "sampler", "steps", "learns"}),
    )


def methods(markdown: bool = False) -> None:
    """List every method with its card: what it needs and how it may be sampled.

    Args:
        markdown: print GitHub-flavoured Markdown.
    """
    table = methods_table()
    if markdown:
        print(table.markdown())
    else:
        table.show()


def recipes() -> None:
    """List what can be trained."""
    rows = [[f"{r.name}-METHOD", r.summary] for r in discover_recipes().values()]
    Table(
        ("recipe", "what is learned"),
        rows,
        note="METHOD is any name that saltus methods lists; for example: saltus run digits-lsd",
        left=frozenset({"what is learned"}),
    ).show()
