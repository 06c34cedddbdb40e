"""The whole document: head, style and script around the parts, and the way to disk."""

from __future__ import annotations

import uuid
from importlib.resources import files
from pathlib import Path

from saltus.page.markup import Markup, tag

__all__ = ["document", "put"]

REFRESH = 20
"""Seconds from one look of a browser at the page of a training run to the next."""


def _own(name: str) -> Markup:
    """A file of this package."""
    return Markup((files("saltus.page") / name).read_text(encoding="utf-8"))


def document(title: str, *parts: str, live: bool = False) -> str:
    """A page of these parts; a live one is read again by the browser every so many seconds.

    >>> text = document("<run>", tag("p", {}, "x"))
    >>> text.startswith("<!doctype html>"), "<title>&lt;run&gt;</title>" in text, "<p>x</p>" in text
    (True, True, True)
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    head = tag(
        "head",
        {},
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("meta", {"http-equiv": "refresh", "content": REFRESH}) if live else "",
        tag("title", {}, title),
        tag("style", {}, _own("page.css")),
    )
    body = tag("body", {}, tag("main", {}, *parts), tag("script", {}, _own("page.js")))
    return f"<!doctype html>\n{tag('html', {'lang': 'en'}, head, body)}\n"


def put(path: Path, text: str) -> Path:
    """Write beside the file and rename, so that a reader finds a whole page at every moment."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.write_text(text, encoding="utf-8", errors="replace")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
