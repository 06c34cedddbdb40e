"""What the card of an exported map tells of its run."""

from __future__ import annotations

from pathlib import Path

from saltus import __version__
from saltus.export import Story
from saltus.methods import Need
from saltus.recipes.averages import Choice
from saltus.recipes.folder import EVALUATION, SCORES, read_json
from saltus.recipes.opened import DEFAULT, Finished
from saltus.recipes.scored import shown
from saltus.report import Table

__all__ = ["early", "story_of"]

TEXTS = "tokens"


def early(done: Finished) -> str:
    """How far a run is that is not finished; empty for others."""
    return "" if done.after is None else f" after {done.after:,} steps of an unfinished run"


def story_of(done: Finished, run: Path, choice: Choice = DEFAULT) -> Story:
    """The story of an opened run.

    Args:
        done: the run.
        run: its folder, or its weights file, beside which nothing was measured.
        choice: which of its weights were opened.
    """
    card = done.card
    foreign = done.spec.foreign or {}
    base = Path(foreign["base"]["folder"]).name if "base" in foreign else ""
    needs = {Need.DATA: f"the data of {done.recipe}", Need.TEACHER: f"a teacher{base and f', {base}'}"}
    learned = " and ".join(text for need, text in needs.items() if need in card.needs) or "noise alone"
    return Story(
        name=done.name,
        method=done.method.name,
        title=card.title,
        paper=card.paper,
        sampler=card.sampler,
        steps=card.steps,
        learned=learned,
        weights=f"{done.which}{early(done)}",
        parameters=sum(p.numel() for p in done.model.parameters()),
        shape=done.shape,
        classes=None if TEXTS in foreign.get("null", {}) else done.spec.classes,
        guided=done.spec.guidance,
        guidance=done.guidance,
        figures=_figures(done, run, choice),
        version=__version__,
        base=base,
    )


def _figures(done: Finished, run: Path, choice: Choice) -> str:
    """Everything that was measured with these weights, as Markdown: tables, each with its protocol."""
    if not run.is_dir() or done.after is not None:
        return ""
    parts = []
    if choice == DEFAULT and (run / EVALUATION).is_file():
        parts += _evaluated(run)
    if (run / SCORES).is_file():
        listed = read_json(run / SCORES, "scores").get("scores", [])
        for found in listed:
            if found["protocol"]["weights"].startswith(f"{done.which} of "):
                first, *rest = (table.markdown() for table in shown(found, ""))
                parts += [first, _items(found["protocol"]), *rest]
    return "\n\n".join(parts)


def _evaluated(run: Path) -> list[str]:
    """What ``saltus evaluate`` without options wrote."""
    saved = read_json(run / EVALUATION, "evaluation")
    lines = [m for m in saved["lines"] if m["figures"]]
    names = list(dict.fromkeys(name for m in lines for name in m["figures"]))
    rows = [[m["label"], *(m["figures"].get(name) for name in names)] for m in lines]
    parts = [Table(("sampler", *names), rows).markdown()]
    said = saved.get("protocol")
    return [*parts, f"Protocol: {said}"] if said else parts


def _items(protocol: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in protocol.items())
