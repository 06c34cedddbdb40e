"""Figures by the sampler's step count: over training, over step counts, and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from saltus.page.axes import doubling, fixed, number
from saltus.page.chart import COLOURS, Chart, Line, drawn
from saltus.page.curves import Curve
from saltus.page.files import Evaluation, Figures, RunFiles
from saltus.page.markup import Markup, joined, tag

__all__ = [
    "OWN",
    "REAL",
    "best",
    "by_count",
    "curve_of",
    "legend",
    "level",
    "names",
    "over_training",
    "perfection",
    "table",
]

OWN, EULERS, GUIDED, REAL = "own", "euler", "guided", "real"
RIVALS = (OWN, EULERS, GUIDED)
"""Groups of lines among which the best figure is looked for; others are what they are held against."""
TARGETS = frozenset({"nearest", "agreement %", "precision", "recall", "density", "coverage"})
"""Figures that are good when they are those of fresh data; others are distances, good when small."""
GREY = COLOURS - 1
MOST_FIGURES = 12


def names(lines: Sequence[Figures]) -> list[str]:
    """The figures that lines have, in order."""
    return list(dict.fromkeys(n for line in lines for n in line.figures))[:MOST_FIGURES]


def perfection(lines: Sequence[Figures], name: str) -> float | None:
    """What fresh data score."""
    return next((line.figures[name] for line in lines if line.group == REAL and name in line.figures), None)


def best(name: str, values: Sequence[float | None], real: float | None) -> int | None:
    """The index of the best of several values of a figure: the lowest, or where low is not good, the one
    nearest to that of fresh data.

    >>> best("energy", [0.3, 0.1, None], 0.2), best("agreement %", [80.0, 97.0, 99.0], 97.5)
    (1, 1)
    """
    known = {k: v for k, v in enumerate(values) if v is not None}
    if len(known) < 2 or (name in TARGETS and real is None):
        return None
    return min(
        known, key=lambda k: abs(known[k] - real) if name in TARGETS and real is not None else known[k]
    )


def level(value: float, x: Sequence[float]) -> Line:
    """A dashed line across at what fresh data score."""
    ends = np.array([min(x), max(x)], dtype=np.float64)
    return Line("data", Curve(ends, np.full(2, value)), GREY, dashed=True)


def curve_of(points: Iterable[tuple[float, float]]) -> Curve | None:
    """The curve through points, from left to right; None through none."""
    found = sorted(points)
    return Curve(*np.array(found, dtype=np.float64).T) if found else None


def over_training(run: RunFiles) -> list[Markup]:
    """A chart for every figure: a line for each step count of the method's own sampler, over training."""
    every = run.main
    if len(every) < 2:
        return []
    charts = []
    for name in names([line for e in every for line in e.lines]):
        points: dict[str, list[tuple[float, float]]] = {}
        for e in every:
            for line in e.lines:
                if line.group == OWN and name in line.figures and e.step is not None:
                    points.setdefault(line.label, []).append((float(e.step), line.figures[name]))
        lines = [
            Line(label, Curve(*np.array(found).T), k, dotted=len(found) < 40)
            for k, (label, found) in enumerate(list(points.items())[: COLOURS - 1])
        ]
        real = perfection(every[-1].lines, name)
        if lines and real is not None:
            lines.append(level(real, [x for line in lines for x in line.curve.x.tolist()]))
        if lines:
            charts.append(drawn(Chart(name, lines)))
    return charts


def by_count(lines: Sequence[Figures]) -> list[Markup]:
    """A chart for every figure over step counts: the method's own sampler, and Euler's on its velocity."""
    charts = []
    for name in names(lines):
        found = []
        for group in (OWN, EULERS):
            mine = [m for m in lines if m.group == group and name in m.figures and m.steps > 0]
            curve = curve_of((m.steps, m.figures[name]) for m in mine)
            if curve is not None and len(curve) > 1:
                label, mere = mine[-1].label.lstrip("0123456789 "), group == EULERS
                found.append(Line(label, curve, GREY if mere else 0, dotted=True, dashed=mere))
        if found:
            axis = doubling([x for line in found for x in line.curve.x.tolist()])
            charts.append(drawn(Chart(name, found, across=axis, note="by steps of the sampler")))
    return charts


def table(found: Evaluation) -> Markup:
    """All lines of an evaluation; the best of each column is marked."""
    columns = names(found.lines)
    marked = {}
    for name in columns:
        values = [m.figures.get(name) if m.group in RIVALS else None for m in found.lines]
        marked[name] = best(name, values, perfection(found.lines, name))
    timed = any(m.ms is not None for m in found.lines)
    heads = ["", *columns, *(["ms a sample"] if timed else [])]
    body = []
    for k, m in enumerate(found.lines):
        cells = [tag("th", {"scope": "row"}, m.label or m.group)]
        for name in columns:
            value = m.figures.get(name)
            look = {"class": "best"} if marked[name] == k else {}
            cells.append(tag("td", look, "–" if value is None else fixed(value)))
        if timed:
            cells.append(tag("td", {}, "–" if m.ms is None else number(m.ms)))
        new = k > 0 and m.group != found.lines[k - 1].group
        body.append(tag("tr", {"class": "rule" if new else None}, *cells))
    head = tag("tr", {}, *(tag("th", {"scope": "col"}, h) for h in heads))
    whole = tag("table", {"class": "figures"}, tag("thead", {}, head), tag("tbody", {}, *body))
    return joined(tag("div", {"class": "scroll", "tabindex": "0"}, whole), legend(columns))


def legend(columns: Sequence[str], rule: str = "lowest") -> Markup:
    """What the marks in a table mean."""
    near = " and ".join(n for n in columns if n in TARGETS)
    rest = f"; of {near}, the nearest to that of real data" if near else ""
    return tag("p", {"class": "legend"}, f"Marked: the {rule}{rest}; teachers and long solutions apart.")
