"""Tables of pictures: which columns hold them and their classes, whoever wrote the table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saltus.data.pixels import Item
from saltus.data.stored import Asked, listed, numbered

__all__ = ["Columns", "columns", "item", "labels_of"]

IMAGES, LABELS = ("image", "img", "picture", "jpg", "png"), ("label", "labels")
BINARY = frozenset({"binary", "large_binary"})
WHOLE = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})
TEXT = frozenset({"string", "large_string"})
CLASSES = frozenset({"ClassLabel"})


@dataclass(frozen=True)
class Columns:
    """Where a table holds what.

    Attributes:
        image: the column of the pictures.
        label: that of the classes; None if there is none.
        classes: the names of the classes, where the table says them.
    """

    image: str
    label: str | None
    classes: tuple[str, ...] | None


def columns(
    types: Mapping[str, str], metadata: Mapping[bytes, bytes] | None, asked: Asked, place: object
) -> Columns:
    """The columns of pictures and of their classes.

    Args:
        types: the type of each column in Arrow's words, by its name.
        metadata: the schema's; the libraries of the Hub name the classes there.
        asked: names of columns, or None to find them.
        place: for messages.

    Raises:
        ValueError: if they are not there, or cannot be told from others.
    """
    pictures = [name for name, kind in types.items() if kind in BINARY or _is_image(kind)]
    image = asked.image or next((name for name in IMAGES if name in pictures), None)
    if image is None and len(pictures) == 1:
        image = pictures[0]
    if image not in pictures:
        told = ", ".join(f"{name} ({kind})" for name, kind in types.items())[:300]
        which = f"several, {listed(pictures)}; choose one with --image-column" if pictures else told or "none"
        wanted = "" if asked.image is None else f" named {asked.image}"
        raise ValueError(
            f"{place}: expected a column{wanted} of encoded pictures, struct(bytes, path) or binary, "
            f"got {which}"
        )
    assert image is not None
    named = _named_classes(metadata)
    label = _label(types, named, asked, place)
    return Columns(image, label, None if label is None else named.get(label))


def _is_image(kind: str) -> bool:
    return kind.startswith("struct<") and any(f"bytes: {name}" in kind for name in BINARY)


def _label(
    types: Mapping[str, str], named: Mapping[str, tuple[str, ...]], asked: Asked, place: object
) -> str | None:
    if not asked.labelled:
        return None
    if asked.label is not None:
        if types.get(asked.label) not in WHOLE | TEXT:
            told = ", ".join(f"{name} ({kind})" for name, kind in types.items())[:300]
            raise ValueError(
                f"{place}: expected a column {asked.label} of whole numbers or names of classes, got {told}"
            )
        return asked.label
    usual = [name for name in LABELS if types.get(name) in WHOLE | TEXT]
    found = usual or [name for name in types if name in named]
    if len(found) > 1 and not usual:
        raise ValueError(
            f"{place}: expected one column of classes, got {listed(found)}; choose one with --label-column, "
            "or use --no-labels"
        )
    return found[0] if found else None


def _named_classes(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """The names of the classes by column, as the libraries of the Hub write them."""
    try:
        features: dict[str, Any] = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: f for name, f in features.items() if isinstance(f, dict) and f.get("_type") in CLASSES}
        return {name: tuple(str(k) for k in f["names"]) for name, f in kinds.items() if f.get("names")}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def labels_of(
    values: np.ndarray, classes: tuple[str, ...] | None, place: object
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int64 and the names of the classes: of a column of numbers, or of names, which are sorted."""
    if values.dtype.kind in "OU":
        if any(not isinstance(value, str) for value in values):
            raise ValueError(
                f"{place}: expected a class for each picture, got rows without one; use --no-labels"
            )
        names, numbers = np.unique(values.astype(str), return_inverse=True)
        return numbers.astype(np.int64), tuple(names.tolist())
    if values.dtype.kind == "f":
        raise ValueError(f"{place}: expected a class for each picture, got rows without one; use --no-labels")
    labels = numbered(values, classes, place)
    return labels, classes or tuple(str(k) for k in range(int(labels.max()) + 1))


def item(value: object, beside: Path | None) -> Item:
    """The picture in a cell: its bytes, or the path of its file; no bytes at all if neither is there."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            return data
        if isinstance(path, str):
            return Path(path) if beside is None else beside / path
    return b""
