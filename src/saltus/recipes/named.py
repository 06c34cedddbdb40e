"""The names of classes, from the data of a run to whoever shows its samples, by way of its weights file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["carried", "meta_of", "names_of"]

META = "classes"
"""In the weights file of a run on classes that have names: these, by number."""
LONGEST = 80


def meta_of(names: Sequence[str] | None) -> dict[str, object]:
    """What a weights file says of names; nothing if they are numbers.

    >>> meta_of(["cat", "dog"]), meta_of(["0", "1"]), meta_of(None)
    ({'classes': ['cat', 'dog']}, {}, {})
    """
    plain = names is None or all(name == str(k) for k, name in enumerate(names))
    return {} if names is None or plain else {META: list(names)}


def carried(meta: Mapping[str, object]) -> dict[str, object]:
    """What a student's file says of names, which are its teacher's."""
    return {META: meta[META]} if META in meta else {}


def names_of(meta: Mapping[str, object], count: int) -> tuple[str, ...]:
    """The names of so many classes, by number: numbers unless a file says one for each.

    >>> names_of({"classes": ["cat", "dog"]}, 2), names_of({"classes": ["cat"]}, 2), names_of({}, 2)
    (('cat', 'dog'), ('0', '1'), ('0', '1'))
    """
    said = meta.get(META)
    if isinstance(said, list) and len(said) == count and all(isinstance(name, str) for name in said):
        return tuple(name[:LONGEST] for name in said)
    return tuple(map(str, range(count)))
