"""A data set of pictures that is read by the number of a row, however it is stored.

    images = open_images("photos.zip", size=64)
    images.read(torch.tensor([5, 0]))       # uint8 [2, 3, 64, 64]

What is read is a function of the row alone: nothing is augmented, nothing drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saltus.data.hub import dataset, is_dataset, is_saved, saved
from saltus.data.parquet import holds_parquet, parquet
from saltus.data.pixels import Fault, Form, Item, Look, look, unpack
from saltus.data.stored import Asked, Stored, array, fingerprint, folder, listed, zipped

__all__ = ["Channels", "Corrupt", "Images", "open_images"]

LOOKED_AT = 16
"""So many pictures, spread over the set, say what size and colour it has."""
CHUNK = 64
"""Pictures that a thread looks through at a time."""
FILES = {".zip": zipped, ".parquet": parquet, ".npy": array, ".npz": array}

Decode = Callable[[Sequence[Item], Form], tuple[np.ndarray, list[Fault]]]
"""Pictures in one form and what is wrong with them, such as :func:`saltus.data.pixels.unpack`."""


class Corrupt(Enum):
    """What happens with pictures that cannot be decoded."""

    STOP = "stop"
    SKIP = "skip"


class Channels(Enum):
    """Colours of a picture."""

    GREY = 1
    RGB = 3


@dataclass(frozen=True, eq=False)
class Images:
    """Pictures by row.

    Attributes:
        stored: where they lie.
        form: what each is made into.
        name: of the set, for messages.
        digest: what is read, hexadecimal: of the files' content (Parquet, NumPy, and zip by its
            checksums), of the names, sizes and times of change of the files (a folder), or the fingerprint
            of ``datasets``; with the columns that are taken, the form, and what was left out. Whatever is
            kept of the pictures is kept under it.
        labels: the class of each, int64 [N], or None.
        classes: the names of the classes, or None.
        corrupt: the names of pictures that were left out because they cannot be decoded, with the reason.
    """

    stored: Stored = field(repr=False)
    form: Form
    name: str
    digest: str
    labels: Tensor | None = field(default=None, repr=False)
    classes: tuple[str, ...] | None = None
    corrupt: tuple[str, ...] = ()
    kept: Tensor | None = field(default=None, repr=False)
    """The rows of what is stored that the set consists of, int64 [N]; None is all."""

    def __len__(self) -> int:
        return self.stored.count if self.kept is None else len(self.kept)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a picture, (C, H, W)."""
        return self.form.shape

    def read(self, rows: Tensor, decode: Decode = unpack) -> Tensor:
        """The pictures of rows (int64 [n]), uint8 [n, C, H, W] on the CPU.

        Args:
            rows: which.
            decode: how; another process may do it.

        Raises:
            ValueError: for a row that does not exist, and for pictures that cannot be decoded, by name.
        """
        places = self._places(rows)
        if self.decoded:
            assert self.stored.decoded is not None
            return torch.from_numpy(np.ascontiguousarray(self.stored.decoded[places]))
        result, faults = decode(self.stored.encoded(places), self.form)
        if faults:
            raise ValueError(self._told([(places[f.place], f) for f in faults]))
        return torch.from_numpy(result)

    @property
    def decoded(self) -> bool:
        """Whether the pixels are at hand as they are wanted, without decoding."""
        x = self.stored.decoded
        return x is not None and x.shape[1:] == self.shape

    def _places(self, rows: Tensor) -> list[int]:
        count = len(self)
        if rows.ndim != 1 or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count):
            raise ValueError(f"rows: expected int64 [n] from 0 to {count - 1} of {self.name}, got {rows}")
        found: list[int] = (rows if self.kept is None else self.kept[rows]).tolist()
        return found

    def _told(self, faults: Sequence[tuple[int, Fault]]) -> str:
        """What is wrong with some pictures, in a line."""
        unlike = [(row, f) for row, f in faults if f.unlike]
        if unlike:
            sizes = listed(f"{self.stored.name(row)} of {f.reason}" for row, f in unlike)
            return (
                f"{self.name}: expected pictures of {self.form.width} x {self.form.height} pixels like the "
                f"first ones, got {sizes}; give --image-size to crop and resize them"
            )
        told = listed(_reason(self.stored, row, f) for row, f in faults)
        return (
            f"{self.name}: expected whole pictures, but {len(faults)} cannot be decoded: {told}; "
            "--corrupt skip leaves such pictures out"
        )

    def without_corrupt(self) -> Images:
        """The same without the pictures that cannot be decoded. All are decoded once to find them.

        Raises:
            ValueError: if none is left, or for one of another size.
        """
        if self.decoded:
            return self

        def check(rows: range) -> list[tuple[int, Fault]]:
            _, faults = unpack(self.stored.encoded(rows), self.form)
            return [(rows[f.place], f) for f in faults]

        count = self.stored.count
        chunks = [range(k, min(k + CHUNK, count)) for k in range(0, count, CHUNK)]
        with ThreadPoolExecutor() as threads:
            faults = [fault for some in threads.map(check, chunks) for fault in some]
        unlike = [pair for pair in faults if pair[1].unlike]
        if unlike:
            raise ValueError(self._told(unlike))
        bad = [row for row, _ in faults]
        if not bad:
            return self
        if len(bad) == count:
            raise ValueError(self._told(faults))
        kept = torch.from_numpy(np.delete(np.arange(count), bad))
        return replace(
            self,
            kept=kept,
            labels=None if self.labels is None else self.labels[kept],
            digest=fingerprint([self.digest, *bad]),
            corrupt=tuple(_reason(self.stored, row, fault) for row, fault in faults),
        )


def _reason(stored: Stored, row: int, fault: Fault) -> str:
    return f"{stored.name(row)} ({fault.reason})"


def open_images(
    place: object,
    *,
    size: int | None = None,
    channels: Channels | None = None,
    labels: bool | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    corrupt: Corrupt = Corrupt.STOP,
) -> Images:
    """A data set of pictures.

    Args:
        place: a folder or a .zip archive of picture files, with classes in folders if there are any; a
            .parquet file or a folder of such shards in the layout of the Hub; a folder that
            ``Dataset.save_to_disk`` wrote, or a ``datasets.Dataset``; a .npy or .npz file of uint8 pixels.
        size: crop the largest square from the middle and resample it to this many pixels a side; None takes
            pictures as they are, which then must have one size.
        channels: grey or RGB; None is grey if all the pictures looked at are.
        labels: True insists on classes, False ignores them; None takes them if there are any.
        split: "train", say, where there are several; None takes that or the only one.
        image_column: of a table; None finds it.
        label_column: of a table; None finds it.
        corrupt: whether a picture that cannot be decoded ends the reading that meets it, or all pictures are
            decoded now and those are left out.

    Raises:
        ImportError: for a format whose package is not installed.
        ValueError: for what is no such set, in a line.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as place:
    ...     for name in ("cat", "dog"):
    ...         (Path(place) / name).mkdir()
    ...         Image.new("RGB", (12, 8), "red").save(Path(place) / name / "1.png")
    ...     images = open_images(place, size=4)
    ...     len(images), images.shape, images.classes, images.read(torch.tensor([1]))[0, :, 0, 0].tolist()
    (2, (3, 4, 4), ('cat', 'dog'), [255, 0, 0])
    """
    if size is not None and size < 1:
        raise ValueError(f"image size: expected at least one pixel, got {size}")
    asked = Asked(split, image_column, label_column, labels is not False)
    stored, name = _stored(place, asked)
    known = stored.labels if asked.labelled else None
    if labels and known is None:
        raise ValueError(
            f"{name}: expected pictures with classes, got none; put each class in a folder of its own or "
            "name the column with --label-column, or use --no-labels"
        )
    form = _form(stored, name, size, channels)
    images = Images(
        stored,
        form,
        name,
        fingerprint([stored.digest, *form.shape, form.resized]),
        None if known is None else torch.from_numpy(known),
        None if known is None else stored.classes,
    )
    return images.without_corrupt() if corrupt is Corrupt.SKIP else images


def _stored(place: object, asked: Asked) -> tuple[Stored, str]:
    if is_dataset(place):
        return dataset(place, asked), "dataset"
    if not isinstance(place, str | Path):
        raise ValueError(
            f"data: expected a path or a datasets.Dataset, got {type(place).__name__}; for a tensor in "
            "memory there is ArrayData"
        )
    path, known = Path(place), ", ".join(FILES)
    name = path.name or str(path)
    if path.is_dir():
        if is_saved(path):
            return saved(path, asked), name
        return (parquet if holds_parquet(path) else folder)(path, asked), name
    if not path.is_file():
        raise ValueError(f"data {path}: expected a folder or a file ({known}), found nothing there")
    if path.suffix.lower() not in FILES:
        kind = path.suffix or "bare"
        raise ValueError(f"data {path}: expected a folder or one of {known}, got a {kind} file")
    return FILES[path.suffix.lower()](path, asked), name


def _form(stored: Stored, name: str, size: int | None, channels: Channels | None) -> Form:
    """What the pictures are made into, after a look at some of them."""
    rows = sorted({k * (stored.count - 1) // (LOOKED_AT - 1) for k in range(LOOKED_AT)})
    looks: dict[int, Look] = {}
    wrong = ""
    for row, item in zip(rows, stored.encoded(rows), strict=True):
        try:
            looks[row] = look(item)
        except Exception as error:  # Pillow raises a dozen kinds; whether it ends the run is said elsewhere
            wrong = wrong or _reason(stored, row, Fault(row, " ".join(str(error).split())))
    if not looks:
        raise ValueError(f"{name}: expected pictures, but none of {len(rows)} can be read; {wrong}")
    if channels is None:
        channels = Channels.GREY if all(seen.grey for seen in looks.values()) else Channels.RGB
    if size is not None:
        return Form(channels.value, size, size, resized=True)
    (first, seen), *others = looks.items()
    for row, other in others:
        if (other.width, other.height) != (seen.width, seen.height):
            raise ValueError(
                f"{name}: expected pictures of one size, got {stored.name(first)} of {seen.width} x "
                f"{seen.height} and {stored.name(row)} of {other.width} x {other.height} pixels; give "
                "--image-size to crop and resize them"
            )
    return Form(channels.value, seen.height, seen.width)
