"""Pictures as they lie on a disk: folders of files, zip archives, NumPy arrays."""

from __future__ import annotations

import hashlib
import lzma
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from saltus.data.pixels import Item

__all__ = ["Asked", "Stored", "array", "chosen", "content", "folder", "listed", "numbered", "zipped"]

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"}
)
SPLITS = frozenset({"train", "test", "val", "valid", "validation"})
USUAL = "train"
SHOWN = 5
"""So many names a message gives."""
PICTURES, LABELS = ("images", "image", "x", "data", "arr_0"), ("labels", "label", "y", "arr_1")
"""Names of arrays in an archive."""


@dataclass(frozen=True)
class Asked:
    """What is wanted of a place that may hold more.

    Attributes:
        split: which part; None is the only one, or "train".
        image: the column of the pictures; None finds it.
        label: the column of the classes; None finds it.
        labelled: whether classes matter.
    """

    split: str | None = None
    image: str | None = None
    label: str | None = None
    labelled: bool = True


class Encoded(Protocol):
    """Pictures by their numbers."""

    def __call__(self, rows: Sequence[int]) -> Sequence[Item]: ...


@dataclass(frozen=True, eq=False)
class Stored:
    """Pictures as they lie.

    Attributes:
        count: how many.
        encoded: gives those of some rows; may be called by several threads at once.
        name: gives the name of a row, for messages.
        digest: of what they are, hexadecimal.
        labels: the class of each, int64 [count]; None if nothing says it.
        classes: the names of the classes; None if there are none.
        decoded: the pixels of all, where nothing needs to be decoded, uint8 [N, C, H, W].
    """

    count: int
    encoded: Encoded
    name: NamedRow
    digest: str
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    decoded: np.ndarray | None = field(default=None, repr=False)


class NamedRow(Protocol):
    """The name of a row."""

    def __call__(self, row: int) -> str: ...


def fingerprint(parts: Iterable[object]) -> str:
    """The beginning of the SHA-256 of what the parts say, 16 hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part if isinstance(part, bytes) else f"{part}\n".encode(errors="surrogateescape"))
    return state.hexdigest()[:16]


def content(files: Iterable[Path]) -> str:
    """The beginning of the SHA-256 of the content of files."""

    def one(path: Path) -> str:
        with open(path, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    return fingerprint(one(path) for path in files)


def listed(names: Iterable[object]) -> str:
    """The first few of several names.

    >>> listed("abcdefg")
    'a, b, c, d, e, ...'
    """
    all_of = [str(name) for name in names]
    return ", ".join(all_of[:SHOWN]) + (", ..." if len(all_of) > SHOWN else "")


def numbered(labels: np.ndarray, classes: tuple[str, ...] | None, place: object) -> np.ndarray:
    """Labels as int64, if they number classes from 0 without gaps, or number the names that there are.

    Raises:
        ValueError: if they do not.
    """
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"{place}: expected one whole number a picture as its label, got {labels.dtype} "
            f"{list(labels.shape)}; number the classes from 0"
        )
    found = np.unique(labels).tolist()
    if classes is not None and found and not 0 <= found[0] <= found[-1] < len(classes):
        raise ValueError(
            f"{place}: expected labels from 0 to {len(classes) - 1}, for {len(classes)} named classes, got "
            f"{found[0]} to {found[-1]}; correct them, or use --no-labels"
        )
    if classes is None and found != list(range(len(found))):
        raise ValueError(
            f"{place}: expected labels that number the classes from 0 without gaps, got {listed(found)} "
            f"({len(found)} classes up to {found[-1]}); number them anew, or use --no-labels"
        )
    return labels.astype(np.int64)


def chosen(splits: Iterable[str], wanted: str | None, place: object) -> str:
    """Which of several splits is taken.

    Raises:
        ValueError: if the one that is wanted is not there, or none is wanted and none is usual.
    """
    names = sorted(splits)
    if wanted is None and len(names) == 1:
        return names[0]
    split = USUAL if wanted is None else wanted
    if split not in names:
        got = "none was chosen" if wanted is None else f"got {wanted!r}"
        raise ValueError(f"{place}: expected a split of {listed(names)}; {got}; choose one with --split")
    return split


def check_split(own: str | None, wanted: str | None, place: object) -> None:
    """Raise a ValueError if a split is wanted of a set that is not divided, unless it is called so.

    Args:
        own: its name, None if it has none.
        wanted: None is whatever there is.
        place: for messages.
    """
    if wanted not in (None, own):
        said = "without splits" if own is None else f"named {own}"
        raise ValueError(f"{place}: expected the split {wanted!r}, got a set {said}; drop --split")


@dataclass(frozen=True)
class _Entry:
    """A file: where it lies in its set, and what tells it from another of that name."""

    where: PurePosixPath
    facts: tuple[int, ...]


def _walk(place: Path, seen: frozenset[tuple[int, int]] = frozenset()) -> Iterator[os.DirEntry[str]]:
    """All files under a folder, through links too, but in no circles."""
    about = place.stat()
    mark = (about.st_dev, about.st_ino)
    if mark in seen:
        return
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), seen | {mark})
            elif entry.is_file():
                yield entry


def _is_picture(where: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in where.parts)
    return where.suffix.lower() in SUFFIXES and not hidden


def _sorted_out(
    entries: Iterable[_Entry], split: str | None, place: object
) -> tuple[list[_Entry], list[PurePosixPath]]:
    """The entries of the split in order, and where each lies below what all have in common."""
    entries = sorted(entries, key=lambda entry: str(entry.where))
    if not entries:
        raise ValueError(
            f"{place}: expected pictures ({', '.join(sorted(SUFFIXES))}), found none; give the folder or "
            "archive that holds them"
        )
    inner = _below_common([entry.where for entry in entries])
    first = {where.parts[0] for where in inner if len(where.parts) > 1}
    loose = any(len(where.parts) == 1 for where in inner)
    if split is not None or (first and not loose and first <= SPLITS):
        above = {entry.where.parts[:-1] for entry in entries}
        if split is not None and len(above) and all(split in parts for parts in above):
            return entries, inner  # the only split there is
        wanted = chosen(first, split, place)
        entries = [entry for entry, where in zip(entries, inner, strict=True) if where.parts[0] == wanted]
        inner = _below_common([entry.where for entry in entries])
    return entries, inner


def _below_common(places: list[PurePosixPath]) -> list[PurePosixPath]:
    """The paths without the folders that hold all of them."""
    while len(places[0].parts) > 1 and len({where.parts[0] for where in places}) == 1:
        if any(len(where.parts) == 1 for where in places):
            break
        places = [PurePosixPath(*where.parts[1:]) for where in places]
    return places


def _by_folder(inner: list[PurePosixPath]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Classes from the names of the folders; none where a picture lies in no folder."""
    if any(len(where.parts) == 1 for where in inner):
        return None, None
    classes = tuple(sorted({where.parts[0] for where in inner}))
    number = {name: k for k, name in enumerate(classes)}
    return np.array([number[where.parts[0]] for where in inner], dtype=np.int64), classes


def folder(place: Path, asked: Asked) -> Stored:
    """Files in a folder and the folders in it; the outermost folders that tell pictures apart are classes.

    Folders named train, test, val, valid or validation, where there is nothing else, are splits. Files whose
    names begin with a dot are no pictures. The digest is of names, sizes and times of change.
    """

    def entry(found: os.DirEntry[str]) -> _Entry:
        about = found.stat()
        where = PurePosixPath(Path(found.path).relative_to(place).as_posix())
        return _Entry(where, (about.st_size, about.st_mtime_ns))

    files = [entry(found) for found in _walk(place) if _is_picture(PurePosixPath(found.name))]
    files, inner = _sorted_out(files, asked.split, place)
    labels, classes = _by_folder(inner)
    paths = [str(file.where) for file in files]
    return Stored(
        len(paths),
        lambda rows: [place / paths[row] for row in rows],
        lambda row: paths[row],
        fingerprint((file.where, *file.facts) for file in files),
        labels,
        classes,
    )


def zipped(place: Path, asked: Asked) -> Stored:
    """A zip archive of the same. The digest is of names, sizes and checksums, thus of the content."""
    try:
        archive = zipfile.ZipFile(place)
        infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as wrong:
        raise ValueError(f"{place}: expected a zip archive, got {wrong}; is it whole?") from None
    secret = [name for name, info in infos.items() if info.flag_bits & 1]
    if secret:
        raise ValueError(f"{place}: expected an archive without a password, got {listed(secret)} encrypted")
    found = [_Entry(PurePosixPath(name), (i.file_size, i.CRC)) for name, i in infos.items()]
    files, inner = _sorted_out([f for f in found if _is_picture(f.where)], asked.split, place)
    labels, classes = _by_folder(inner)
    by_place = {PurePosixPath(name): name for name in infos}
    names = [by_place[file.where] for file in files]

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, NotImplementedError):
            return b""  # which is no picture: it is told by name with the others

    return Stored(
        len(names),
        lambda rows: [read(names[row]) for row in rows],
        lambda row: names[row],
        fingerprint((file.where, *file.facts) for file in files),
        labels,
        classes,
    )


def array(place: Path, asked: Asked) -> Stored:
    """A .npy array of pixels, or a .npz archive of one with labels.

    Pixels are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]. There are no splits.

    In an archive the pictures are named images, image, x, data or arr_0, and the classes labels, label, y or
    arr_1, unless columns are asked for by name. The digest is of the content and of the two
    names.
    """
    check_split(None, asked.split, place)
    try:
        found = np.load(place, mmap_mode="r", allow_pickle=False)
        arrays = dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {"": found}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as wrong:
        raise ValueError(f"{place}: expected arrays that NumPy wrote, got {wrong}; is it whole?") from None
    alone = len(arrays) == 1
    image = _key(arrays, asked.image, PICTURES) or (next(iter(arrays)) if alone else None)
    label = _key(arrays, asked.label, LABELS) if asked.labelled else None
    wanted = asked.image or f"one of {', '.join(PICTURES)}"
    if asked.labelled and asked.label is not None and label is None:
        image, wanted = None, asked.label
    if image is None or (asked.image is not None and image != asked.image):
        raise ValueError(f"{place}: expected an array named {wanted}, got {listed(sorted(arrays))}")
    x = _channels_first(arrays[image], place)
    labels = None if label is None else numbered(arrays[label], None, place)
    if labels is not None and len(labels) != len(x):
        raise ValueError(f"{place}: expected {len(x)} labels, one a picture, got {len(labels)}")
    return Stored(
        len(x),
        lambda rows: [np.ascontiguousarray(x[row].transpose(1, 2, 0)) for row in rows],
        lambda row: f"row {row:,}",
        fingerprint([content([place]), image, label]),
        labels,
        None if labels is None else tuple(str(k) for k in range(int(labels.max()) + 1)),
        x,
    )


def _key(arrays: dict[str, np.ndarray], wanted: str | None, usual: tuple[str, ...]) -> str | None:
    names = usual if wanted is None else (wanted,)
    return next((name for name in names if name in arrays), None)


def _channels_first(x: np.ndarray, place: Path) -> np.ndarray:
    """uint8 [N, C, H, W], a view."""
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or x.size == 0:
        raise ValueError(
            f"{place}: expected uint8 [N, H, W, C], [N, C, H, W] or [N, H, W], got {x.dtype} "
            f"{list(x.shape)}; scale the pixels to 0 ... 255 and convert them"
        )
    if x.ndim == 3:
        return x[:, None]
    known = Counter({axis: x.shape[axis] for axis in (1, 3) if x.shape[axis] in (1, 3, 4)})
    if not known:
        raise ValueError(
            f"{place}: expected 1, 3 or 4 channels as the second or the last axis, got {list(x.shape)}"
        )
    last = 3 in known and (1 not in known or x.shape[2] != x.shape[3])
    return x.transpose(0, 3, 1, 2) if last else x
