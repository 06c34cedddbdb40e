"""Tables of results: on a terminal, and as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

__all__ = ["Table", "figure", "measured"]

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table under a title.

    Attributes:
        columns: headings; the first column is aligned to the left, the others to the right.
        rows: cells; None is shown as a dash, a float with three significant digits.
        title: a line above.
        note: a line below.
        rules: indices of rows that a thin rule precedes.
        left: headings of further columns that hold words and align to the left.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""
    rules: frozenset[int] = field(default_factory=frozenset)
    left: frozenset[str] = field(default_factory=frozenset)

    def show(self, stream: TextIO | None = None) -> None:
        """Print it, fitted to the terminal's width."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text

        out = sys.stdout if stream is None else stream
        console = Console(file=out, width=None if out.isatty() else 140, highlight=False)
        if self.title:  # above, not in the table, which would fold it to its own width
            console.print(Text(self.title, style="bold"))
        drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False)
        for k, name in enumerate(self.columns):
            words = k == 0 or name in self.left
            whole = k == 0 or not words
            drawn.add_column(Text(name), justify="left" if words else "right", no_wrap=whole, overflow="fold")
        for k, row in enumerate(self.rows):
            if k in self.rules:
                drawn.add_section()
            drawn.add_row(*(Text(figure(c)) for c in row))
        console.print(drawn)
        if self.note:
            console.print(Text(self.note, style="dim"))

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown.

        >>> print(Table(["steps", "distance"], [[1, 0.25], [4, None]]).markdown())
        | steps | distance |
        | --- | ---: |
        | 1 | 0.250 |
        | 4 | – |
        """
        marks = ["---" if k == 0 or n in self.left else "---:" for k, n in enumerate(self.columns)]
        lines = [self.columns, marks, *([figure(c) for c in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(cell: Cell) -> str:
    """A number with three significant digits, a dash for None, words as they are.

    >>> [figure(v) for v in (0.0123456, 4.6, 1234.5, 2.5e6, 0.0, None, 7, "x")]
    ['0.0123', '4.60', '1234', '2.5e+06', '0', '–', '7', 'x']
    """
    if cell is None:
        return "–"
    if not isinstance(cell, float):
        return str(cell)
    if cell == 0.0:
        return "0"
    size = abs(cell)
    if size < 1e-3 or 1e5 <= size < float("inf"):
        return f"{cell:.1e}"
    if size >= 1000 or size != size:
        return f"{cell:.0f}"
    places = 2 if size >= 1 else 3 if size >= 0.1 else 4
    if size >= 10:
        places = 1
    return f"{cell:.{places}f}"


def measured(figures: Sequence[Mapping[str, float]], name: str) -> list[float | None]:
    """One figure of many, None where it was not measured."""
    return [f.get(name) for f in figures]
