"""Pictures that are decoded once and kept, in memory or in a file."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from saltus.data.images import Decode, Images
from saltus.data.pixels import unpack

__all__ = ["InFile", "InMemory"]


class InMemory:
    """The first pictures of a set, as many as fit, are kept in memory once they have been decoded.

    Args:
        images: the set.
        room: bytes that it may take; pages are taken as pictures come.
        decode: how.
    """

    def __init__(self, images: Images, room: int, decode: Decode = unpack) -> None:
        if room < 0:
            raise ValueError(f"cache: expected a number of bytes, or 0 to keep nothing, got {room}")
        count = 0 if images.decoded else min(len(images), room // int(np.prod(images.shape)))
        self._images, self._decode = images, decode
        self._kept = torch.empty(count, *images.shape, dtype=torch.uint8)
        self._here = torch.zeros(count, dtype=torch.bool)

    def __call__(self, rows: Tensor) -> Tensor:
        """The pictures of rows, uint8 [n, C, H, W]."""
        count = len(self._here)
        if not count:
            return self._images.read(rows, self._decode)
        inside = rows < count
        known = inside & self._here[rows.clamp(max=count - 1)]
        if bool(known.all()):
            return self._kept.index_select(0, rows)  # whole rows at once: many times as fast as [rows]
        result = torch.empty(len(rows), *self._images.shape, dtype=torch.uint8)
        result[known] = self._kept[rows[known]]
        result[~known] = fresh = self._images.read(rows[~known], self._decode)
        new = rows[~known] < count
        self._kept[rows[~known][new]] = fresh[new]
        self._here[rows[~known][new]] = True  # only now: another thread may look
        return result


class InFile:
    """The pictures of a set are kept in a file once they have been decoded, for other runs and processes too.

    The file is named by the set's digest, the form of its pictures and the version of Pillow. It takes room
    as pictures come. Beside it lies a checksum of each picture, 0 for one that is not there yet; a picture is
    believed when its checksum is right, so nothing that was half written is ever used.

    Args:
        images: the set.
        folder: where; it is made.
        decode: how.

    Raises:
        ValueError: for a folder that cannot be written.
    """

    def __init__(self, images: Images, folder: Path, decode: Decode = unpack) -> None:
        self._images, self._decode = images, decode
        self._size = int(np.prod(images.shape))
        resized = "-resized" if images.form.resized else ""
        stem = f"{images.digest}-{'x'.join(map(str, images.shape))}{resized}-pillow{PIL.__version__}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._pixels = _sized(folder / f"{stem}.pixels", len(images) * self._size)
            self._sums = _sized(folder / f"{stem}.sums", len(images) * 4)
        except OSError as wrong:
            raise ValueError(
                f"cache {folder}: expected a folder to write to, got {wrong.strerror}; choose another one"
            ) from None
        self._kept = np.memmap(self._pixels, np.uint8, "r", shape=(len(images), *images.shape))
        self._marks = np.memmap(self._sums, np.uint32, "r", shape=(len(images),))
        self._believed = np.zeros(len(images), dtype=bool)

    def __call__(self, rows: Tensor) -> Tensor:
        """The pictures of rows, uint8 [n, C, H, W]."""
        wanted = rows.numpy()
        for row in np.unique(wanted[~self._believed[wanted]]):
            mark = int(self._marks[row])
            self._believed[row] = mark != 0 and mark == _checksum(self._kept[row])
        missing = ~self._believed[wanted]
        if not missing.any():
            return torch.from_numpy(self._kept[wanted])
        result = np.empty((len(wanted), *self._images.shape), dtype=np.uint8)
        result[~missing] = self._kept[wanted[~missing]]
        result[missing] = fresh = self._images.read(rows[torch.from_numpy(missing)], self._decode).numpy()
        self._write(wanted[missing], fresh)
        return torch.from_numpy(result)

    def _write(self, rows: np.ndarray, fresh: np.ndarray) -> None:
        """By calls that say when the disk is full, which a write to mapped memory cannot."""
        try:
            with open(self._pixels, "r+b") as pixels, open(self._sums, "r+b") as sums:
                for row, picture in zip(rows.tolist(), fresh, strict=True):
                    pixels.seek(row * self._size)
                    pixels.write(picture.tobytes())
                pixels.flush()  # before the checksums say that they are there
                for row, picture in zip(rows.tolist(), fresh, strict=True):
                    sums.seek(4 * row)
                    sums.write(np.uint32(_checksum(picture)).tobytes())
        except OSError as wrong:
            raise ValueError(
                f"cache {self._pixels.parent}: expected to write decoded pictures, got {wrong.strerror}; "
                "make room or choose another folder"
            ) from None


def _sized(path: Path, size: int) -> Path:
    """The file with that many bytes, whatever process makes it first."""
    with open(path, "ab") as file:
        if os.fstat(file.fileno()).st_size < size:
            file.truncate(size)
    return path


def _checksum(picture: np.ndarray) -> int:
    """CRC-32, but never 0."""
    return zlib.crc32(np.ascontiguousarray(picture).data) or 1
