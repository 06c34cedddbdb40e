"""Pictures on a disk as a run learns them: their options, their batches, their judge."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from saltus.data import Channels, Corrupt, ImageData, Images, Loading, open_images
from saltus.data.decoders import usual_workers
from saltus.recipes.gallery import Gallery
from saltus.recipes.judged_images import image_judge
from saltus.recipes.named import meta_of
from saltus.recipes.system import Judge, System

__all__ = ["Bringing", "Pictures", "gallery_of", "loading_of", "opened", "pictures_system"]

CHANNELS = {"grey": Channels.GREY, "rgb": Channels.RGB}
SAMPLE = 512
"""Pictures whose pixels say what the standard deviation of the data is."""
NAMED = 20
"""So many pictures that are left out are named."""


@dataclass(frozen=True)
class Pictures:
    """The pictures."""

    split: str | None = None
    """Part of the data, where there are several; None is train, or the only one."""
    image_size: int | None = None
    """Crop the middle square and resample it to this side; None: pictures of one size, as they are."""
    channels: Literal["grey", "rgb"] | None = None
    """Colours; None is grey if the pictures are."""
    image_column: str | None = None
    """Of a table: the column of the pictures; None finds it."""
    label_column: str | None = None
    """Of a table: the column of the classes; None finds it."""
    corrupt: Literal["stop", "skip"] = "stop"
    """A picture that cannot be decoded ends the run, or is left out (all are decoded first, to find them)."""
    flip: bool = False
    """Mirror half of the pictures left to right, drawn anew each time."""


@dataclass(frozen=True)
class Bringing:
    """How pictures come from the disk: an unfinished run goes on with other values of these."""

    workers: int | None = None
    """Processes that decode pictures; 0 decodes in the one that trains, None is one a core but one."""
    ahead: int = 2
    """Batches are made so many steps ahead; 0 makes each when it is needed."""
    cache_memory: float = 2.0
    """GiB of decoded pictures that are kept in memory."""
    cache_folder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Keep decoded pictures in a file there instead, for later runs too."""


def loading_of(bringing: Bringing) -> Loading:
    """How pictures are brought on this machine.

    Raises:
        ValueError: for numbers below zero.
    """
    workers = usual_workers() if bringing.workers is None else bringing.workers
    for name, value in {"workers": workers, "ahead": bringing.ahead, "cache": bringing.cache_memory}.items():
        if not value >= 0:
            raise ValueError(f"{name}: expected 0 or more, got {value}")
    return Loading(workers, bringing.ahead, int(bringing.cache_memory * 2**30), bringing.cache_folder)


def opened(place: object, pictures: Pictures, labels: bool, quiet: bool = False) -> Images:
    """The pictures at a place; those that are left out are told.

    Args:
        place: a path, or a ``datasets.Dataset``.
        pictures: how they are taken.
        labels: whether classes are taken, if there are any.
        quiet: says nothing.
    """
    images = open_images(
        place,
        size=pictures.image_size,
        channels=None if pictures.channels is None else CHANNELS[pictures.channels],
        labels=None if labels else False,
        split=pictures.split,
        image_column=pictures.image_column,
        label_column=pictures.label_column,
        corrupt=Corrupt(pictures.corrupt),
    )
    if images.corrupt and not quiet:
        count = len(images.corrupt)
        told = ", ".join(images.corrupt[:NAMED]) + ", ..." * (count > NAMED)
        whole = f"{count:,} of {images.stored.count:,} pictures"
        print(f"{images.name}: left out {whole} that cannot be decoded: {told}", file=sys.stderr)
    return images


def gallery_of(images: Images, read: Callable[[Tensor], Tensor]) -> Gallery:
    """The pictures as judges see them.

    Args:
        images: the set.
        read: gives those of rows, uint8 [n, C, H, W]; it may have kept them.
    """
    classes = None if images.classes is None else len(images.classes)
    return Gallery(
        images.name,
        len(images),
        images.digest,
        lambda rows: read(rows.cpu()) / 127.5 - 1.0,
        images.labels,
        classes,
    )


def pictures_system(name: str, images: Images, batch: int, flip: bool, loading: Loading) -> System:
    """What a run learns of pictures.

    Args:
        name: of the recipe.
        images: the pictures; their classes are learned if they have any.
        batch: rows of the global batch.
        flip: see :class:`Pictures`.
        loading: how they are brought.
    """
    labelled = images.labels is not None
    data = ImageData(images, batch, labels=labelled, flip=flip, loading=loading)
    gallery = gallery_of(images, data.read)

    def judge() -> Judge:
        return image_judge(gallery, labelled)

    return System(
        name,
        shape=images.shape,
        sigma_data=_spread(data),
        classes=gallery.classes if labelled else None,
        source=data,
        judge=judge,
        gallery=lambda: gallery,
        meta=meta_of(images.classes if labelled else None),
        digests={"data": images.digest},
    )


def _spread(data: ImageData) -> float:
    """The standard deviation of the pixels in [-1, 1] of pictures spread over the set."""
    count = min(SAMPLE, len(data))
    x = data.read(torch.arange(count) * len(data) // count)
    return round(float(x.double().std()) / 127.5, 6) or 1.0
