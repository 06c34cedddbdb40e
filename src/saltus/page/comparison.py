"""Several runs on one page: their curves one over the other, their figures in one table, and what sets them
apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from saltus.page.axes import doubling, fixed, number
from saltus.page.chart import COLOURS, Chart, Line, drawn
from saltus.page.files import Figures, RunFiles, picture_of, read_run
from saltus.page.markup import Markup, joined, tag
from saltus.page.results import OWN, REAL, best, curve_of, legend, level, names, perfection
from saltus.page.sections import gallery, printed, said, section

__all__ = ["comparison"]

MOST_CHARTS = 9
APART = ("out", "saltus")
"""Options that say nothing about a run."""

Runs = Mapping[str, RunFiles]


def comparison(folders: Mapping[str, Path], picture: Path | None) -> tuple[str, list[Markup]]:
    """The title of the page and its parts.

    Args:
        folders: of the runs, by the names that the page gives them.
        picture: a PNG of their samples, or None.
    """
    runs = {name: read_run(folder, whole=False) for name, folder in _short(folders).items()}
    recipes = {str(run.options.get("recipe", "")) for run in runs.values()}
    title = f"{recipes.pop() or 'runs'}: {len(runs)} runs" if len(recipes) == 1 else f"{len(runs)} runs"
    parts = [_head(title, runs), _samples(picture), _figures(runs), _training(runs), _options(runs)]
    return title, [p for p in parts if p]


def _short(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Names without the words before a dash that all of them begin with, so that a chart has room for them.

    >>> list(_short({"mixture-lsd": Path("a"), "mixture-mean_flow": Path("b")}))
    ['lsd', 'mean_flow']
    """
    first, _, _ = os.path.commonprefix(list(folders)).rpartition("-")
    short = {name[len(first) + 1 if first else 0 :]: folder for name, folder in folders.items()}
    return short if len(short) == len(folders) and all(short) else dict(folders)


def _head(title: str, runs: Runs) -> Markup:
    items = []
    for k, (name, run) in enumerate(runs.items()):
        state = "" if run.state.finished else ", not finished"
        network = run.group.get("network", {})
        words = [str(network[key]) for key in ("backbone", "size") if network.get(key)]
        words += [f"{run.history.step:,} steps"] if run.history.step else []
        colour = tag("i", {"class": f"swatch c{k % COLOURS}"})
        items.append(tag("li", {}, colour, tag("b", {}, name), tag("small", {}, ", ".join(words) + state)))
    notes = [tag("p", {"class": "warning"}, f"{name}: {n}") for name, r in runs.items() for n in r.notes[:2]]
    return tag("header", {}, tag("h1", {}, title), tag("ul", {"class": "runs"}, *items), *notes[:8])


def _samples(picture: Path | None) -> Markup:
    found = None if picture is None else picture_of(picture, [])
    return Markup("") if found is None else section("Samples", printed(found))


def _own(run: RunFiles) -> list[Figures]:
    """The lines of a run's own sampler, by rising step counts."""
    found = run.final.lines if run.final else ()
    return sorted((m for m in found if m.group == OWN and m.steps > 0), key=lambda m: m.steps)


# -- figures


def _figures(runs: Runs) -> Markup:
    own = {name: found for name, run in runs.items() if (found := _own(run))}
    if not own:
        return Markup("")
    columns = names([m for found in own.values() for m in found])
    charts = [c for name in columns if (c := _by_count(runs, own, name))]
    over = [c for name in columns if (c := _over_training(runs, name))]
    shown = joined(gallery(charts) if charts else "", gallery(over) if over else "")
    return section("Figures", shown, _table(runs, own, columns))


def _data(runs: Runs, name: str) -> float | None:
    """What fresh data score, by the first run that measured it."""
    known = (perfection(run.final.lines, name) for run in runs.values() if run.final)
    return next((v for v in known if v is not None), None)


def _by_count(runs: Runs, own: Mapping[str, Sequence[Figures]], name: str) -> Markup:
    """A figure over step counts, a line for each run."""
    lines = [
        Line(label, curve, k, dotted=True)
        for k, label in enumerate(runs)
        if (curve := curve_of((m.steps, m.figures[name]) for m in own.get(label, ()) if name in m.figures))
    ]
    if not lines:
        return Markup("")
    at = [x for line in lines for x in line.curve.x.tolist()]
    real = _data(runs, name)
    if real is not None and len(set(at)) > 1:
        lines.append(level(real, at))
    return drawn(Chart(name, lines, across=doubling(at), note="by steps of the sampler"))


def _over_training(runs: Runs, name: str) -> Markup:
    """A figure over training at the fewest steps of the sampler that the run has, a line for each run."""
    lines = []
    least = min((m.steps for run in runs.values() for m in _own(run)), default=1)
    for k, (label, run) in enumerate(runs.items()):
        points = (
            (e.step, m.figures[name])
            for e in run.main
            for m in e.lines
            if e.step is not None and m.group == OWN and m.steps == least
            if name in m.figures
        )
        curve = curve_of(points)
        if curve is not None and len(curve) > 1:
            lines.append(Line(label, curve, k, dotted=len(curve) < 40))
    note = f"over training, {least} step" + "s" * (least > 1)
    return drawn(Chart(name, lines, note=note)) if lines else Markup("")


def _table(runs: Runs, own: Mapping[str, Sequence[Figures]], columns: Sequence[str]) -> Markup:
    """Every run and number of steps; the best run at each number of steps is marked."""
    counts = sorted({m.steps for found in own.values() for m in found})
    rows: list[tuple[str, Figures]] = [
        (label, m) for k in counts for label, found in own.items() for m in found if m.steps == k
    ]
    marked = set()
    for name in columns:
        for k in counts:
            at = [i for i, (_, m) in enumerate(rows) if m.steps == k]
            first = best(name, [rows[i][1].figures.get(name) for i in at], _data(runs, name))
            if first is not None:
                marked.add((at[first], name))
    timed = any(m.ms is not None for _, m in rows)
    colours = {label: k % COLOURS for k, label in enumerate(runs)}
    body = []
    for i, (label, m) in enumerate(rows):
        swatch = tag("i", {"class": f"swatch c{colours[label]}"})
        cells = [tag("th", {"scope": "row"}, swatch, label), tag("td", {}, m.label)]
        for name in columns:
            value = m.figures.get(name)
            look = {"class": "best" if (i, name) in marked else None}
            cells.append(tag("td", look, "–" if value is None else fixed(value)))
        if timed:
            cells.append(tag("td", {}, "–" if m.ms is None else number(m.ms)))
        new = i > 0 and m.steps != rows[i - 1][1].steps
        body.append(tag("tr", {"class": "rule" if new else None}, *cells))
    real = {name: _data(runs, name) for name in columns}
    if any(v is not None for v in real.values()):
        cells = [tag("td", {}, "–" if v is None else fixed(v)) for v in real.values()]
        ends = [tag("td", {}, "–")] if timed else []
        first_cells = [tag("th", {"scope": "row"}, f"{REAL} data"), tag("td", {})]
        body.append(tag("tr", {"class": "rule"}, *first_cells, *cells, *ends))
    heads = ["", "sampler", *columns, *(["ms a sample"] if timed else [])]
    head = tag("tr", {}, *(tag("th", {"scope": "col"}, h) for h in heads))
    whole = tag("table", {}, tag("thead", {}, head), tag("tbody", {}, *body))
    return joined(
        tag("div", {"class": "scroll", "tabindex": "0"}, whole),
        legend(columns, "lowest at each number of steps"),
    )


# -- training


def _training(runs: Runs) -> Markup:
    """Terms of the loss by name, those of several runs first; then gradients and the rate."""
    terms: dict[str, list[Line]] = {}
    norms: list[Line] = []
    speeds: list[Line] = []
    for k, (label, run) in enumerate(runs.items()):
        for i, (who, found) in enumerate(run.history.terms.items()):
            for name, curve in found.items():
                key = name if i == 0 else f"{name} of {who}"
                terms.setdefault(key, []).append(Line(label, curve, k, True))
        norm = next(iter(run.history.norms.values()), None)
        norms += [Line(label, norm, k, True)] if norm is not None else []
        speed = run.history.speed
        speeds += [Line(label, speed, k, True)] if speed is not None else []
    shared = sorted(terms.items(), key=lambda item: -len(item[1]))[:MOST_CHARTS]
    charts = [drawn(Chart(f"Loss: {name}", lines)) for name, lines in shared]
    charts += [drawn(Chart("Gradient norm", norms))] if norms else []
    charts += [drawn(Chart("Samples a second", speeds, zero=True))] if speeds else []
    return section("Training", gallery(charts)) if charts else Markup("")


# -- what sets them apart


def _flat(run: RunFiles) -> dict[str, str]:
    """All options by name, with their group where the name alone is not enough."""
    alone = {k: said(v) for k, v in run.options.items() if not isinstance(v, dict) and k not in APART}
    for group, fields in run.group.items():
        for k, v in fields.items():
            if k not in APART:
                alone[f"{k} ({group})" if k in alone else k] = said(v)
    return alone


def _options(runs: Runs) -> Markup:
    """A row for every option that is not the same in all runs."""
    every = {label: _flat(run) for label, run in runs.items()}
    keys = list(dict.fromkeys(k for found in every.values() for k in found))
    differing = [k for k in keys if len({found.get(k, "–") for found in every.values()}) > 1]
    if not differing:
        return Markup("")
    heads = (tag("th", {"scope": "col"}, h) for h in ("", *runs))
    body = [
        tag(
            "tr",
            {},
            tag("th", {"scope": "row"}, key.replace("_", " ")),
            *(tag("td", {}, found.get(key, "–")) for found in every.values()),
        )
        for key in differing
    ]
    whole = tag("table", {}, tag("thead", {}, tag("tr", {}, *heads)), tag("tbody", {}, *body))
    shown = tag("div", {"class": "scroll", "tabindex": "0"}, whole)
    return section("Options that differ", shown)
