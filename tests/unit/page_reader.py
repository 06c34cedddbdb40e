"""The page as a test reads it: its elements, its words, and the numbers in it."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import options, write_log

from saltus.page import write_page

__all__ = ["SECTIONS", "Reader", "page", "start"]


class Reader(html.parser.HTMLParser):
    """The elements of a page with their attributes, its words, and the JSON in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.charts: list[dict[str, Any]] = []
        self._in: list[str] = []
        self._json = False
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in.append(tag)
        self._json = tag == "script" and dict(attrs).get("type") == "application/json"

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = self._in[-1] if self._in else ""
        if inside == "script" and self._json:
            self.charts.append(json.loads(data, parse_constant=lambda c: pytest.fail(f"{c} in the page")))
        elif inside not in ("script", "style"):
            self.words.append(data)

    def lines(self) -> dict[str, tuple[list[float], list[float]]]:
        """The numbers of all lines of all charts by name; the first of a name."""
        found: dict[str, tuple[list[float], list[float]]] = {}
        for chart in self.charts:
            for line in chart["lines"]:
                found.setdefault(line["name"], (line["x"], line["y"]))
        return found

    def headings(self) -> list[str]:
        return [w for w in self.words if w in SECTIONS]


SECTIONS = (
    "Samples",
    "Figures",
    "Training",
    "Trajectories",
    "Residuals",
    "Teacher",
    "Options",
    "Environment",
)


def page(folder: Path, training: bool | None = None) -> Reader:
    return Reader(write_page(folder, training).read_text(encoding="utf-8"))


def start(folder: Path, rows: list[dict[str, Any]], **training: object) -> Path:
    """A run with options and a log."""
    write_log(folder, rows)
    (folder / "options.json").write_text(json.dumps(options(**training)))
    return folder
