"""Curves from ``metrics.jsonl``: read with tolerance, thinned so that extremes stay, smoothed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saltus.page.axes import Floats

__all__ = ["Curve", "History", "finite", "objects", "read_history", "smoothed", "thinned"]

LONG, EVEN = 10_000, 3000
"""Lines of a log that are all read; of a longer one, so many evenly spaced ones and those with extremes."""
BLOCKS = 300
"""Parts of a longer log of which each keeps the lines with its extremes."""
WATCHED = ("loss", "grad_norm")
"""The numbers whose extremes are looked for in a longer log."""
BUCKETS = 220
"""Parts of a curve of which each shows its smallest and its largest value."""
MOST = 24
"""Terms of a player that are kept."""
TINY, HUGE = 1e-200, 1e200


@dataclass(frozen=True, eq=False)
class Curve:
    """Numbers y [n] at steps x [n], in order."""

    x: Floats
    y: Floats

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class History:
    """What a log says.

    Attributes:
        terms: each player's terms of the loss, by player and name; a lone player is "".
        rates: each player's learning rate.
        norms: each player's norm of the gradient.
        speed: samples a second.
        pace: training steps a second, over the last lines.
        step: the last that was logged.
        seconds: of training, without the pauses between a stop and a resumption.
        loss: the last of the first player.
        stages: name and first logged step of each stage.
        skipped: lines that could not be read.
        left_out: moves that training left out because they were not finite.
    """

    terms: dict[str, dict[str, Curve]] = field(default_factory=dict)
    rates: dict[str, Curve] = field(default_factory=dict)
    norms: dict[str, Curve] = field(default_factory=dict)
    speed: Curve | None = None
    pace: float | None = None
    step: int = 0
    seconds: float = 0.0
    loss: float | None = None
    stages: tuple[tuple[str, int], ...] = ()
    skipped: int = 0
    left_out: int = 0


def finite(value: object) -> float | None:
    """A number that can be drawn, else None.

    >>> finite(2), finite(float("nan")), finite("2"), finite(True), finite(10**400)
    (2.0, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not -HUGE < value < HUGE:
        return None
    return 0.0 if abs(value) < TINY else float(value)


def objects(lines: Sequence[bytes]) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects among lines, and how many lines hold something else."""
    found, wrong = [], 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            wrong += 1
            continue
        if isinstance(row, dict):
            found.append(row)
        else:
            wrong += 1
    return found, wrong


def lines_of(path: Path) -> list[bytes]:
    """The whole lines of a file, without one that is still being written; none if it cannot be read."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []


def _extremes(data: bytes, n: int) -> set[int] | None:
    """Where among n lines a watched number is smallest or largest within its block; None where the lines
    differ too much to say."""
    found: set[int] = set()
    edges = np.linspace(0, n, BLOCKS + 1).astype(int)
    for name in WATCHED:
        texts = re.findall(rb'"%s": (-?\d[-+.\deE]*)' % name.encode(), data)
        if len(texts) % n:
            return None
        try:
            values = np.fromiter(map(float, texts), np.float64, len(texts)).reshape(n, -1)
        except ValueError:
            return None
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            part = values[a:b]
            found.update((a + part.argmin(axis=0)).tolist(), (a + part.argmax(axis=0)).tolist())
    return found


def _chosen(path: Path) -> list[bytes]:
    """The lines of a log, all of a short one; of a long one, enough to draw it."""
    lines = lines_of(path)
    if len(lines) <= LONG:
        return lines
    extremes = _extremes(path.read_bytes(), len(lines))
    if extremes is None:
        return lines
    even = np.linspace(0, len(lines) - 1, EVEN).astype(int).tolist()
    return [lines[k] for k in sorted(extremes.union(even))]


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by rising steps; where a resumed run did a step again, the later one."""
    by = {row["step"]: row for row in rows}
    return [by[step] for step in sorted(by)]


def _seconds(rows: Sequence[dict[str, Any]]) -> float:
    """Seconds of training; they begin at zero again where a run was resumed."""
    whole = before = 0.0
    for row in rows:
        now = finite(row.get("seconds"))
        if now is not None:
            whole += now - before if now >= before else now
            before = now
    return max(0.0, whole)


def _moves(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each player of a row with its numbers."""
    moves = row.get("moves")
    if isinstance(moves, dict):
        yield from ((str(who), move) for who, move in moves.items() if isinstance(move, dict))
    else:
        yield "", row


class _Columns:
    """Numbers under a key, gathered row by row."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}

    def add(self, who: str, name: str, step: float, value: object) -> None:
        y = finite(value)
        if y is not None:
            xs, ys = self.found.setdefault((who, name), ([], []))
            xs.append(step)
            ys.append(y)

    def curves(self) -> dict[str, dict[str, Curve]]:
        by: dict[str, dict[str, Curve]] = {}
        for (who, name), (xs, ys) in self.found.items():
            mine = by.setdefault(who, {})
            if len(mine) < MOST:
                mine[name] = Curve(np.array(xs), np.array(ys))
        return by

    def alone(self) -> dict[str, Curve]:
        return {who: next(iter(mine.values())) for who, mine in self.curves().items()}


def read_history(path: Path) -> History:
    """Read a log; a log that is not there is an empty one."""
    rows, wrong = objects(_chosen(path))
    good = [row for row in rows if finite(row.get("step")) is not None and row["step"] >= 0]
    wrong += len(rows) - len(good)
    terms, rates, norms, speed = _Columns(), _Columns(), _Columns(), _Columns()
    stages: list[tuple[str, int]] = []
    kept = _in_order(good)
    for row in kept:
        step = float(row["step"])
        for who, move in _moves(row):
            named = move.get("terms")
            own = named if isinstance(named, dict) and named else {"loss": move.get("loss")}
            for name, value in own.items():
                terms.add(who, str(name), step, value)
            rates.add(who, "", step, move.get("lr"))
            norms.add(who, "", step, move.get("grad_norm"))
        speed.add("", "", step, row.get("samples_per_second"))
        stage = row.get("stage")
        if isinstance(stage, str) and (not stages or stages[-1][0] != stage):
            stages.append((stage, int(step)))
    recent = [p for row in kept[-8:] if (p := finite(row.get("steps_per_second")))]
    last = next(_moves(kept[-1]), ("", {}))[1] if kept else {}
    return History(
        terms=terms.curves(),
        rates=rates.alone(),
        norms=norms.alone(),
        speed=speed.alone().get(""),
        pace=sum(recent) / len(recent) if recent else None,
        step=int(kept[-1]["step"]) if kept else 0,
        seconds=_seconds(good),
        loss=finite(last.get("loss")),
        stages=tuple(stages),
        skipped=wrong,
        left_out=int(finite(kept[-1].get("skipped")) or 0) if kept else 0,
    )


def smoothed(curve: Curve, points: int = 160) -> Curve | None:
    """The running mean, twice over a window of a thirtieth of the curve, at some points; None if short.

    At the ends the window is what there is of it, so the last value is a mean too.

    >>> line = Curve(np.arange(100.0), np.arange(100.0))
    >>> smooth = smoothed(line)
    >>> bool(np.allclose(smooth.x[5:-5], smooth.y[5:-5])), float(smooth.y[-1])
    (True, 98.25)
    """
    n = len(curve)
    if n < 24:
        return None
    half = max(1, n // 60)
    y = curve.y
    first, end = np.maximum(np.arange(n) - half, 0), np.minimum(np.arange(n) + half + 1, n)
    for _ in range(2):
        sums = np.concatenate(([0.0], np.cumsum(y - y.mean())))
        y = y.mean() + (sums[end] - sums[first]) / (end - first)
    kept = np.unique(np.linspace(0, n - 1, min(n, points)).astype(int))
    return Curve(curve.x[kept], y[kept])


def thinned(curve: Curve, buckets: int = BUCKETS) -> Curve:
    """A curve of fewer points, with the smallest and the largest of every part, and both ends.

    >>> noisy = Curve(np.arange(10_000.0), np.sin(np.arange(10_000.0)) + 9.0 * (np.arange(10_000) == 4321))
    >>> thin = thinned(noisy)
    >>> len(thin) < 500, bool(thin.y.max() == noisy.y.max())
    (True, True)
    """
    n = len(curve)
    if n <= 2 * buckets:
        return curve
    edges = np.linspace(0, n, buckets + 1).astype(int)
    kept = {0, n - 1}
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        kept |= {int(a + curve.y[a:b].argmin()), int(a + curve.y[a:b].argmax())}
    at = np.array(sorted(kept))
    return Curve(curve.x[at], curve.y[at])
