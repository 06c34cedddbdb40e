"""The plan that U-Nets with a skip connection from every block share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["Rung", "check_levels", "ladder"]


@dataclass(frozen=True)
class Rung:
    """A block of a U-Net.

    Attributes:
        enter: channels, with those of the skip connection.
        leave: channels.
        resample: whether the picture is halved (on the way down) or doubled (on the way up) before.
        attends: whether it has attention.
        joins: whether a skip connection ends in it.
    """

    enter: int
    leave: int
    resample: bool = False
    attends: bool = False
    joins: bool = False


def ladder(
    stem: int,
    sizes: Sequence[int],
    depth: int,
    attention: Collection[int],
    height: int,
    every: bool,
) -> tuple[list[Rung], list[Rung]]:
    """The blocks on the way down, each of which with the stem begins a skip connection, and on the way up.

    Args:
        stem: channels before the first block.
        sizes: channels at each resolution.
        depth: blocks at each resolution on the way down, besides that which halves; one more on the way up.
        attention: heights with attention; between down and up there is one block of it in any case.
        height: of the picture.
        every: whether at these heights every block on the way up attends, or only the last.

    >>> [len(way) for way in ladder(8, (8, 16), 1, (4,), 8, every=True)]
    [3, 7]
    """
    here, skips, down = stem, [stem], []
    for level, size in enumerate(sizes):
        if level:
            down.append(Rung(here, here, resample=True))
            skips.append(here)
        for _ in range(depth):
            down.append(Rung(here, size, attends=height >> level in attention))
            here = size
            skips.append(here)
    up = [Rung(here, here, attends=True), Rung(here, here)]
    for level, size in reversed(list(enumerate(sizes))):
        if level < len(sizes) - 1:
            up.append(Rung(here, here, resample=True))
        for k in range(depth + 1):
            attends = height >> level in attention and (every or k == depth)
            up.append(Rung(here + skips.pop(), size, attends=attends, joins=True))
            here = size
    return down, up


def check_levels(name: str, shape: tuple[int, ...], levels: int) -> None:
    """Raise a ValueError unless the picture can be halved ``levels - 1`` times."""
    factor = 2 ** (levels - 1)
    if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"{name}: expected a shape (C, H, W) with H and W divisible by {factor}, got {tuple(shape)}; "
            "pad the images or use fewer multipliers"
        )
