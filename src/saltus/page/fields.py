"""What lives in a square: residuals over two times, and samples in the plane with their ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saltus.page.axes import Floats, number
from saltus.page.curves import finite
from saltus.page.markup import Markup, joined, tag

__all__ = ["Heat", "Plane", "heat", "plane", "read_heats", "read_planes"]

MOST_TIMES = 64
MOST_POINTS = 2000
MOST_WAYS = 60
MOST_PANELS = 8


@dataclass(frozen=True, eq=False)
class Heat:
    """Residuals values[i, j] at s = times[i] and t = times[j]; nan where there is none."""

    name: str
    times: Floats
    values: Floats


@dataclass(frozen=True, eq=False)
class Plane:
    """Points [n, 2], and ways [k + 1, 2] of some samples, all on [-reach, reach]^2."""

    name: str
    reach: float
    points: Floats
    ways: Sequence[Floats] = ()


def _numbers(value: object) -> list[float] | None:
    """A list of finite numbers, else None."""
    if not isinstance(value, list):
        return None
    found = [finite(v) for v in value]
    return [v for v in found if v is not None] if None not in found else None


def _pairs(value: object, most: int) -> Floats:
    """The pairs of finite numbers in a list, at most so many of them, evenly taken."""
    if not isinstance(value, list):
        return np.zeros((0, 2))
    every = max(1, -(-len(value) // most))
    pairs = [p for v in value[::every] if (p := _numbers(v)) is not None and len(p) == 2]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def read_heats(value: dict[str, Any]) -> list[Heat]:
    """The panels of ``residuals.json`` that are whole."""
    times, panels = _numbers(value.get("times")), value.get("panels")
    if times is None or not 2 <= len(times) <= MOST_TIMES or not isinstance(panels, dict):
        return []
    n, found = len(times), []
    for name, rows in list(panels.items())[:MOST_PANELS]:
        if not isinstance(rows, list) or len(rows) != n:
            continue
        if any(not isinstance(row, list) or len(row) != n for row in rows):
            continue
        cells = [[np.nan if (v := finite(c)) is None else v for c in row] for row in rows]
        values = np.array(cells, dtype=np.float64)
        if np.isfinite(values).any():
            found.append(Heat(str(name), np.array(times), values))
    return found


def read_planes(value: dict[str, Any]) -> list[Plane]:
    """The panels of ``trajectories.json`` that are whole."""
    reach, panels = finite(value.get("reach")), value.get("panels")
    if reach is None or reach <= 0.0 or not isinstance(panels, list):
        return []
    found = []
    for panel in panels[:MOST_PANELS]:
        if not isinstance(panel, dict):
            continue
        points, ways = _pairs(panel.get("points"), MOST_POINTS), panel.get("ways")
        lines = [_pairs(w, 256) for w in ways[:MOST_WAYS]] if isinstance(ways, list) else []
        lines = [w for w in lines if len(w)]
        if len(points) or lines:
            found.append(Plane(str(panel.get("name", "")), reach, points, lines))
    return found


def heat(field: Heat) -> Markup:
    """A square of cells, s upwards and t across, stronger where the residual is larger."""
    n, top = len(field.times), float(np.nanmax(field.values))
    cells = []
    for i in range(n):
        for j in range(n):
            value = float(field.values[i, j])
            if value != value:
                continue
            depth = min(1.0, max(0.0, value) / top) if top > 0.0 else 0.0
            words = f"s = {number(field.times[i])}, t = {number(field.times[j])}: {number(value)}"
            opacity = f"{0.05 + 0.95 * depth:.3f}"
            place: dict[str, str | int] = {
                "x": j,
                "y": n - 1 - i,
                "width": 1,
                "height": 1,
                "fill-opacity": opacity,
            }
            cells.append(tag("rect", place, tag("title", {}, words)))
    box = {"viewBox": f"0 0 {n} {n}", "role": "img", "aria-label": field.name, "class": "heat"}
    first, last = number(float(field.times[0])), number(float(field.times[-1]))
    across = tag("div", {"class": "across"}, *(tag("span", {}, w) for w in (first, "t", last)))
    upwards = tag("div", {"class": "upwards"}, *(tag("span", {}, w) for w in (last, "s", first)))
    scale = tag("div", {"class": "scale"}, "0", tag("i", {}), number(top))
    square = tag("div", {"class": "square"}, upwards, tag("svg", box, *cells), across)
    return tag("figure", {"class": "field"}, tag("figcaption", {}, field.name), square, scale)


SIDE = 1000


def _place(points: Floats, reach: float) -> list[str]:
    xy = np.clip((points * (1.0, -1.0) / reach + 1.0) * SIDE / 2, -SIDE, 2 * SIDE).round().astype(int)
    return [f"{a} {b}" for a, b in xy.tolist()]


def plane(field: Plane) -> Markup:
    """A square of points with the ways of some, from the noise (hollow) to the sample (filled)."""
    parts = []
    if len(field.points):
        dots = "".join(f"M{p}h0" for p in _place(field.points, field.reach))
        parts.append(tag("path", {"class": "cloud", "d": dots}))
    ways = [_place(w, field.reach) for w in field.ways]
    if ways:
        parts.append(tag("path", {"class": "way", "d": "".join("M" + "L".join(w) for w in ways)}))
        parts.append(tag("path", {"class": "start", "d": "".join(f"M{w[0]}h0" for w in ways)}))
        parts.append(tag("path", {"class": "start inner", "d": "".join(f"M{w[0]}h0" for w in ways)}))
        parts.append(tag("path", {"class": "end", "d": "".join(f"M{w[-1]}h0" for w in ways)}))
    box = {"viewBox": f"0 0 {SIDE} {SIDE}", "role": "img", "aria-label": field.name, "class": "plane"}
    return tag(
        "figure", {"class": "field"}, tag("figcaption", {}, field.name), tag("svg", box, joined(*parts))
    )
