"""From the bytes of a picture to its pixels, and the program of a process that does nothing else.

This file knows NumPy and Pillow alone, so that a decoding process starts in a fraction of a second:
``python -P pixels.py`` reads requests from its input and answers on its output until the input ends, which
it does however the process that asks ends.

What is done with the pictures that are not plainly 8 bits of grey or RGB:

* The orientation in EXIF is applied. Of an animation the first frame is taken.
* A palette is resolved. What is transparent lies on white.
* 16 bits become 8 by their upper byte; floating-point pictures are refused.
* CMYK, YCbCr, LAB and HSV are converted to RGB by Pillow, without colour profiles.
* Colour to grey is ITU-R 601-2 luma, grey to colour three equal channels.
* To another size: the largest square in the middle, then Lanczos resampling, which widens its filter where
  it shrinks, so nothing aliases.
* A file that ends early, or whose bytes Pillow cannot decode, is unreadable as a whole: no half pictures.
"""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["Fault", "Form", "Item", "Look", "look", "pixels", "unpack"]

Item = bytes | Path | np.ndarray
"""A picture as it lies: an encoded file, the path of one, or pixels uint8 [H, W] or [H, W, C]."""

GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
CLEAR = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
FLOATING = frozenset({"F"})
DEEPEST = 2**16 - 1
TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange width and height."""
ORIENTATION = 0x0112
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Form:
    """What every picture of a set is made into.

    Attributes:
        channels: 1 or 3.
        height: in pixels.
        width: in pixels.
        resized: whether pictures of other sizes are cropped and resampled; then height = width.
    """

    channels: int
    height: int
    width: int
    resized: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one picture, (C, H, W)."""
        return self.channels, self.height, self.width


class Fault(NamedTuple):
    """What is wrong with one of several pictures.

    Attributes:
        place: which of them.
        reason: in words.
        unlike: whether it is whole, but of another size.
    """

    place: int
    reason: str
    unlike: bool = False


class Look(NamedTuple):
    """What the head of a picture says: its size in pixels as it is seen, and whether it is grey."""

    width: int
    height: int
    grey: bool


def _opened(item: bytes | Path) -> Image.Image:
    return Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)


def look(item: Item) -> Look:
    """The size of a picture and whether it is grey, without decoding it.

    Raises:
        Exception: whatever Pillow raises for what is no picture.
    """
    if isinstance(item, np.ndarray):
        return Look(item.shape[1], item.shape[0], item.ndim == 2 or item.shape[2] == 1)
    with _opened(item) as image:
        width, height = image.size
        turned = image.getexif().get(ORIENTATION) in TURNED
        return Look(height if turned else width, width if turned else height, image.mode in GREY)


def pixels(item: Item, channels: int, size: int | None = None) -> np.ndarray:
    """A picture as uint8 [H, W] (one channel) or [H, W, 3], contiguous.

    Args:
        item: the picture.
        channels: 1 or 3.
        size: crop to the largest square in the middle and resample to this many pixels a side; None keeps it.

    Raises:
        Exception: whatever Pillow raises for what cannot be decoded, and ValueError for floating point.
    """
    if isinstance(item, np.ndarray):
        return _made(Image.fromarray(item.squeeze(2) if item.shape[2:] == (1,) else item), channels, size)
    with _opened(item) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _made(image, channels, size)


def _made(image: Image.Image, channels: int, size: int | None) -> np.ndarray:
    image = _flat(image, MODES[channels])
    if size is not None and image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        if width != height:
            image = image.crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """8 bits of grey or RGB, nothing transparent."""
    if image.mode in FLOATING:
        raise ValueError("its pixels are floating-point numbers of no known scale")
    if image.mode in DEEP:
        deep = np.asarray(image)
        if deep.size and not 0 <= int(deep.min()) <= int(deep.max()) <= DEEPEST:
            raise ValueError(f"its pixels reach {int(deep.max())}, more than 16 bits")
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    if image.mode in CLEAR or "transparency" in image.info:
        above = image.convert("RGBA")
        below = Image.new("RGBA", above.size, "white")
        below.alpha_composite(above)
        image = below.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def unpack(items: Sequence[Item], form: Form) -> tuple[np.ndarray, list[Fault]]:
    """Pictures in one form, uint8 [n, C, H, W], and what is wrong with those that are left black."""
    result = np.zeros((len(items), *form.shape), dtype=np.uint8)
    faults = []
    for place, item in enumerate(items):
        try:
            found = pixels(item, form.channels, form.height if form.resized else None)
        except UnidentifiedImageError:
            faults.append(Fault(place, "no picture, or its first bytes are damaged"))
            continue
        except Exception as wrong:  # Pillow raises a dozen kinds for damaged files
            faults.append(Fault(place, " ".join(f"{wrong}".split()) or type(wrong).__name__))
            continue
        if found.shape[:2] != (form.height, form.width):
            faults.append(Fault(place, f"{found.shape[1]} x {found.shape[0]}", unlike=True))
            continue
        result[place] = found if found.ndim == 2 else found.transpose(2, 0, 1)
    return result, faults


def ask(items: Sequence[Item], form: Form, to: IO[bytes], back: IO[bytes]) -> tuple[np.ndarray, list[Fault]]:
    """:func:`unpack` in the process that listens at ``to`` and answers at ``back``.

    Raises:
        OSError: if it has ended.
    """
    paths = [None if isinstance(item, bytes) else str(item) for item in items]
    sizes = [len(item) if isinstance(item, bytes) else 0 for item in items]
    request = {"form": asdict(form), "paths": paths, "sizes": sizes}
    to.write(json.dumps(request).encode() + b"\n")
    to.write(b"".join(item for item in items if isinstance(item, bytes)))
    to.flush()
    line = back.readline()
    result = np.empty((len(items), *form.shape), dtype=np.uint8)
    view = result.reshape(-1).data
    done = 0
    while line and done < result.nbytes:
        got = back.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            break
        done += got
    if not line or done < result.nbytes:
        raise BrokenPipeError("the decoding process has ended")
    return result, [Fault(*fault) for fault in json.loads(line)]


def answer(asked: IO[bytes], back: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    while line := asked.readline():
        request = json.loads(line)
        items: list[Item] = []
        for path, size in zip(request["paths"], request["sizes"], strict=True):
            items.append(asked.read(size) if path is None else Path(path))
        result, faults = unpack(items, Form(**request["form"]))
        back.write(json.dumps(faults).encode() + b"\n")
        back.write(result.reshape(-1).data)
        back.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks; this one follows it
    try:
        answer(sys.stdin.buffer, sys.stdout.buffer)
    except (BrokenPipeError, KeyboardInterrupt):
        sys.stderr.close()  # nobody listens any more
