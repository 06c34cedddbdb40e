"""CIFAR-10 from the disk, in whatever form it was fetched: Parquet, the binary version, folders, an archive.

References:
    Krizhevsky, "Learning multiple layers of features from tiny images", 2009 (the data; the binary version is
    records of one byte of the class and 3 x 32 x 32 bytes of pixels).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from saltus.data.images import Channels, Images, open_images
from saltus.data.pixels import Form
from saltus.data.stored import Stored, content, listed

__all__ = ["CIFAR10", "open_cifar10"]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The names of the classes, by number."""
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
BINARY = {"train": "data_batch_*.bin", "test": "test_batch.bin"}
PICKLED = "data_batch_[0-9]"


def open_cifar10(place: Path, split: str = "train") -> Images:
    """The 50,000 pictures to learn from, or the 10,000 of the test, [3, 32, 32] with their classes.

    A subset in the same layout is taken as it is.

    Args:
        place: a folder with train.parquet and test.parquet, or with their shards as the Hub has them (columns
            image or img, and label); with the files data_batch_1.bin, ... and test_batch.bin; or with a
            folder for each split and in it one for each class. Or one file of these.
        split: train or test.

    Raises:
        ValueError: for anything that is not CIFAR-10, or not whole.
    """
    if split not in BINARY:
        raise ValueError(f"split: expected {' or '.join(BINARY)}, got {split!r}")
    where = next((p for p in (place, place / "cifar-10-batches-bin") if _binary(p, split)), None)
    if where is not None:
        return _from_binary(_binary(where, split), f"CIFAR-10, {split}")
    if place.is_dir() and any(place.rglob(PICKLED)):
        raise ValueError(
            f"{place}: expected the binary version of CIFAR-10 or Parquet, got the Python version, which is "
            "pickled and could run anything; take another one"
        )
    chosen = None if place.is_file() else split
    found = open_images(place, labels=True, split=chosen, channels=Channels.RGB)
    assert found.labels is not None and found.classes is not None
    numbers = found.classes == tuple(str(k) for k in range(len(found.classes)))
    if found.shape != SHAPE or not (found.classes == CIFAR10 or (numbers and len(found.classes) <= 10)):
        raise ValueError(
            f"{place}: expected CIFAR-10, pictures of 3 x 32 x 32 in 10 classes, got "
            f"{' x '.join(map(str, found.shape))} in {len(found.classes)}: {listed(found.classes)}; "
            "saltus run pictures-METHOD learns any pictures"
        )
    which = place.name if place.is_file() else split
    return replace(found, name=f"CIFAR-10, {which}", classes=CIFAR10)


def _binary(place: Path, split: str) -> list[Path]:
    return sorted(place.glob(BINARY[split])) if place.is_dir() else []


def _from_binary(files: list[Path], name: str) -> Images:
    """Records of a byte of the class and the pixels, channels first."""
    records = []
    for path in files:
        data = np.fromfile(path, dtype=np.uint8)
        if not len(data) or len(data) % RECORD:
            raise ValueError(
                f"{path}: expected records of {RECORD:,} bytes, got {len(data):,} bytes; fetch the file again"
            )
        records.append(data.reshape(-1, RECORD))
    every = np.concatenate(records)
    if int(every[:, 0].max()) >= len(CIFAR10):
        raise ValueError(
            f"{files[0].parent}: expected classes 0 to 9, got {int(every[:, 0].max())}; is this CIFAR-100?"
        )
    x = every[:, 1:].reshape(-1, *SHAPE)
    labels = every[:, 0].astype(np.int64)
    stored = Stored(
        len(x),
        lambda rows: [np.ascontiguousarray(x[row].transpose(1, 2, 0)) for row in rows],
        lambda row: f"row {row:,}",
        content(files),
        labels,
        CIFAR10,
        x,
    )
    return Images(stored, Form(*SHAPE), name, stored.digest, torch.from_numpy(labels), CIFAR10)
