"""Line charts that fit any width: the plot is an SVG that stretches, its words are HTML that does not.

Lines are named where they end. A chart carries its numbers as JSON; the page's script reads them to tell the
values under the pointer, and without a script nothing is lost but that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saltus.page.axes import Axis, Floats, number, suited
from saltus.page.axes import steps as over_steps
from saltus.page.curves import Curve, smoothed, thinned
from saltus.page.markup import Markup, joined, tag

__all__ = ["COLOURS", "HEIGHT", "Chart", "Line", "data", "drawn"]

HEIGHT = 190
"""Pixels from the lower to the upper end of a plot; the style sheet has the same number."""
GAP = 15
"""Pixels between two names at the right."""
WIDEST = 146
"""Pixels for the names at the right; longer names are cut."""
GUTTER = 44
"""Pixels for the numbers at the left, unless they need more; the style sheet has the same number."""
EDGE = 6
"""Pixels that a name keeps from the ends of the plot."""
COLOURS = 8
SIDE = 1000
"""Units of a stretched drawing in both directions."""


@dataclass(frozen=True, eq=False)
class Line:
    """A line of a chart.

    Attributes:
        name: written where it ends.
        curve: its numbers.
        colour: which of the page's colours.
        smooth: whether a running mean is drawn over the numbers.
        dotted: whether its points are marked.
        dashed: whether it is a mere reference.
    """

    name: str
    curve: Curve
    colour: int = 0
    smooth: bool = False
    dotted: bool = False
    dashed: bool = False


@dataclass(frozen=True, eq=False)
class Chart:
    """A chart.

    Attributes:
        title: above.
        lines: at least one, each of at least one point.
        below: what the abscissa is.
        zero: whether the ordinate begins at zero.
        across: the axis below; None makes one of training steps.
        marks: names at abscissae, for instance where stages begin.
        note: beside the title.
    """

    title: str
    lines: Sequence[Line]
    below: str = "steps"
    zero: bool = False
    across: Axis | None = None
    marks: Sequence[tuple[str, float]] = ()
    note: str = ""


def data(value: object) -> Markup:
    """JSON inside a page: nothing in it can end the element that holds it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return tag("script", {"type": "application/json"}, Markup(text))


def _digits(values: Floats) -> list[float]:
    """Six significant digits: more cannot be seen."""
    return [float(f"{v:.6g}") for v in values]


def _way(x: Axis, y: Axis, curve: Curve, dots: bool = False) -> str:
    """The path of a curve; of dots, a line of no length for each, which round ends make a disc."""
    px = np.clip(x.at(curve.x) * SIDE, -SIDE, 2 * SIDE)
    py = np.clip((1.0 - y.at(curve.y)) * SIDE, -SIDE, 2 * SIDE)
    points = [f"{a:.1f} {b:.1f}" for a, b in zip(px.tolist(), py.tolist(), strict=True)]
    return "".join(f"M{p}h0" for p in points) if dots else "M" + "L".join(points)


def _spread(wanted: Sequence[float]) -> list[float]:
    """Heights in pixels near the wanted ones, in their order, at least GAP apart and within the plot.

    >>> _spread([50.0, 52.0, 100.0])
    [43.5, 58.5, 100.0]
    """
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    groups: list[tuple[float, int]] = []  # middle and number of names that stand together
    for k in order:
        middle, count = wanted[k], 1
        while True:
            half = (count - 1) * GAP / 2.0
            middle = min(max(middle, half + EDGE), HEIGHT - EDGE - half)
            if not groups or middle - half - GAP >= groups[-1][0] + (groups[-1][1] - 1) * GAP / 2.0:
                break
            above, many = groups.pop()
            middle = (above * many + middle * count) / (many + count)
            count += many
        groups.append((middle, count))
    heights = [m + (i - (c - 1) / 2.0) * GAP for m, c in groups for i in range(c)]
    found = dict(zip(order, heights, strict=True))
    return [found[k] for k in range(len(wanted))]


def _names(lines: Sequence[Line], y: Axis) -> Markup:
    """The names of the lines with their last values, at the right, as wide as the longest needs."""
    lasts = [line.curve.y[-1] if (s := _mean(line)) is None else s.y[-1] for line in lines]
    wanted = [float(np.clip(1.0 - y.at(np.array([v]))[0], 0.0, 1.0)) * HEIGHT for v in lasts]
    parts, widest = [], 0.0
    for line, value, top in zip(lines, lasts, _spread(wanted), strict=True):
        said = number(float(value))
        words = joined(tag("b", {}, line.name) if line.name else "", tag("i", {}, said))
        widest = max(widest, 8.2 * len(line.name) + 7.2 * len(said) + 6 * bool(line.name))
        look = {"class": f"name c{line.colour % COLOURS}", "style": f"top:{top:.1f}px"}
        parts.append(tag("span", look | {"title": f"{line.name} {said}".strip()}, words))
    width = min(WIDEST, max(48, round(12 + widest)))
    return tag("div", {"class": "names", "style": f"width:{width}px"}, *parts)


def _mean(line: Line) -> Curve | None:
    return smoothed(line.curve) if line.smooth else None


def _drawing(line: Line, x: Axis, y: Axis) -> Markup:
    """One line: its numbers, faint under their running mean if that is drawn."""
    mean, thin = _mean(line), thinned(line.curve)
    colour = f"c{line.colour % COLOURS}"
    dash = " dash" if line.dashed else ""
    title = tag("title", {}, line.name) if line.name else Markup("")
    if mean is not None:
        raw = tag("path", {"class": f"raw {colour}", "d": _way(x, y, thin)})
        return joined(raw, tag("path", {"class": f"line {colour}", "d": _way(x, y, mean)}, title))
    parts = [tag("path", {"class": f"line {colour}{dash}", "d": _way(x, y, thin)}, title)]
    if line.dotted or len(thin) == 1:
        parts.append(tag("path", {"class": f"dots {colour}", "d": _way(x, y, thin, dots=True)}, title))
    return joined(*parts)


def _frame(x: Axis, y: Axis, marks: Sequence[tuple[str, float]]) -> tuple[list[Markup], list[Markup]]:
    """Grid lines for the drawing, and words around it."""
    grid, words = [], []
    for value, text in y.ticks:
        part = float(y.at(np.array([value]))[0])
        if -1e-6 <= part <= 1 + 1e-6:
            height = f"{(1 - part) * SIDE:.1f}"
            grid.append(tag("path", {"class": "grid", "d": f"M0 {height}H{SIDE}"}))
            words.append(tag("span", {"class": "ytick", "style": f"top:{100 * (1 - part):.2f}%"}, text))
    for value, text in x.ticks:
        part = float(x.at(np.array([value]))[0])
        words.append(tag("span", {"class": "xtick", "style": f"left:{100 * part:.2f}%"}, text))
    for text, value in marks:
        part = float(x.at(np.array([value]))[0])
        if 0.0 <= part <= 1.0:
            grid.append(tag("path", {"class": "mark", "d": f"M{part * SIDE:.1f} 0V{SIDE}"}))
            words.append(tag("span", {"class": "mark", "style": f"left:{100 * part:.2f}%"}, text))
    return grid, words


def drawn(chart: Chart) -> Markup:
    """The chart as a figure."""
    every = np.concatenate([line.curve.y for line in chart.lines])
    ends = np.concatenate([line.curve.x[[0, -1]] for line in chart.lines])
    y = suited(every, chart.zero)
    x = chart.across or over_steps(0.0, float(ends.max()))
    grid, words = _frame(x, y, chart.marks)
    numbers: dict[str, Any] = {
        "x": [x.low, x.high, x.log],
        "y": [y.low, y.high, y.log],
        "below": chart.below,
        "lines": [
            {
                "name": line.name,
                "colour": line.colour % COLOURS,
                "x": _digits((thin := thinned(line.curve)).x),
                "y": _digits(thin.y),
            }
            for line in chart.lines
        ],
    }
    box = {"viewBox": f"0 0 {SIDE} {SIDE}", "preserveAspectRatio": "none", "role": "img"}
    lines = (_drawing(line, x, y) for line in reversed(chart.lines))
    svg = tag("svg", box | {"aria-label": chart.title}, *grid, *lines)
    scale = " log" if y.log else ""
    note = f"{chart.note}{', ' if chart.note and scale else ''}{'log scale' if scale else ''}"
    head = tag("figcaption", {}, chart.title, tag("small", {}, note) if note else "")
    plot = tag("div", {"class": "plot"}, svg, *words, tag("span", {"class": "below"}, chart.below))
    gutter = max(GUTTER, round(10 + 6.8 * max((len(text) for _, text in y.ticks), default=0)))
    look = {"class": "chart", "style": None if gutter == GUTTER else f"--gutter:{gutter}px"}
    return tag("figure", look, head, plot, _names(chart.lines, y), data(numbers))
