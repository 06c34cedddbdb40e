"""Markup whose every text is escaped by construction: what is not :class:`Markup` already becomes it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

__all__ = ["Markup", "joined", "tag"]

VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta", "path", "rect", "line", "circle"})
"""Elements without an end tag (those of SVG are closed at once)."""
SHAPES = frozenset({"path", "rect", "line", "circle"})


class Markup(str):
    """Text that is HTML; plain ``str`` is not."""


def _safe(text: str) -> str:
    """Escaped, unless it is markup; what cannot be printed becomes a blank."""
    if isinstance(text, Markup):
        return text
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return escape(text)


def joined(*parts: str) -> Markup:
    """One after another.

    >>> joined("a < b", Markup("<br>"))
    'a &lt; b<br>'
    """
    return Markup("".join(map(_safe, parts)))


def tag(name: str, attributes: Mapping[str, str | int | float | None] | None = None, *parts: str) -> Markup:
    """An element; an attribute that is None is left out, one that is empty stands alone.

    >>> tag("p", {"class": 'a"b', "id": None, "hidden": ""}, "x & ", tag("b", {}, "<y>"))
    '<p class="a&quot;b" hidden>x &amp; <b>&lt;y&gt;</b></p>'
    """
    given = ((k, v) for k, v in (attributes or {}).items() if v is not None)
    words = "".join(f' {k}="{_safe(str(v))}"' if str(v) else f" {k}" for k, v in given)
    if name in SHAPES and not parts:
        return Markup(f"<{name}{words}/>")
    if name in VOID and not parts:
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{joined(*parts)}</{name}>")
