"""Data for a distillation: those of a recipe, pictures on a disk, or arrays of any numbers."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saltus.data import ArrayData, ImageData
from saltus.data.latents import Latents, is_latents, open_latents
from saltus.recipes import discover, load
from saltus.recipes.experiment import Experiment
from saltus.recipes.options import Training
from saltus.recipes.pictured import Bringing, Pictures, loading_of, opened
from saltus.recipes.teacher import TeacherRun
from saltus.streams import Streams
from saltus.typing import Batch

__all__ = ["data_source", "names_place"]

ARRAY = ".npy"
SUFFIXES = frozenset({ARRAY, ".npz", ".zip", ".parquet"})


def names_place(data: str) -> bool:
    """Whether the words name a place on the disk and no recipe.

    >>> names_place("digits"), names_place("photos.zip"), names_place("runs/photos")
    (False, True, True)
    """
    path = Path(data)
    known = data in discover()
    return not known and (path.suffix.lower() in SUFFIXES or len(path.parts) > 1 or path.is_dir())


def data_source(
    data: str, labels: Path | None, teacher: TeacherRun, training: Training
) -> Callable[[Streams], Batch]:
    """Batches of a recipe's data, of pictures, or of an array on disk, that fit the teacher.

    Pictures are cropped and resampled to the teacher's size, in its colours. Latents are those of a folder
    that ``saltus encode`` wrote.

    Raises:
        ValueError: for an unknown recipe, data that are absent, damaged, of another shape or dtype, or labels
            that are missing or out of range.
    """
    if not names_place(data):
        if labels is not None:
            raise ValueError(f"labels {labels}: expected an array of data with them, got recipe {data!r}")
        return _recipe(data, teacher, training)
    spec = teacher.run.spec
    if Path(data).suffix.lower() != ARRAY:
        if labels is not None:
            raise ValueError(
                f"labels {labels}: expected a {ARRAY} array of data with them, got {data}, whose classes are "
                "its folders or a column; drop --labels"
            )
        if is_latents(Path(data)):
            return _latents(Path(data), teacher, training)
        return _pictures(Path(data), teacher, training)
    x = _samples(Path(data), spec.shape)
    if spec.classes is None:
        if labels is not None:
            raise ValueError(f"labels {labels}: {teacher.run.name} has no classes; drop --labels")
        return ArrayData(x, training.batch)
    if labels is None:
        raise ValueError(
            f"data {data}: expected labels with it, because {teacher.run.name} has {spec.classes} classes; "
            f"add --labels FILE.npy with {len(x)} numbers from 0 to {spec.classes - 1}"
        )
    return ArrayData(x, training.batch, _classes(labels, len(x), spec.classes))


def _latents(place: Path, teacher: TeacherRun, training: Training) -> Latents:
    """Latents in the teacher's shape, with its classes if it has any."""
    run = teacher.run
    data = open_latents(place, training.batch, labels=run.spec.classes is not None)
    found = None if data.label is None else len(data.manifest.about.classes or ())
    if (data.shape, found) != (run.spec.shape, run.spec.classes):
        raise ValueError(
            f"data {place}: expected latents {list(run.spec.shape)} of {run.spec.classes or 'no'} classes, "
            f"as {run.name} was trained with, got {list(data.shape)} of {found or 'no'}"
        )
    return data


def _pictures(place: Path, teacher: TeacherRun, training: Training) -> ImageData:
    """Pictures in the teacher's form, with its classes if it has any."""
    run = teacher.run
    shape, classes = run.spec.shape, run.spec.classes
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise ValueError(
            f"data {place}: expected a teacher of square pictures, grey or RGB, but samples of {run.name} "
            f"have shape {list(shape)}; give a {ARRAY} array of that"
        )
    form = Pictures(image_size=shape[1], channels="grey" if shape[0] == 1 else "rgb")
    images = opened(place, form, labels=classes is not None)
    if classes is not None and len(images.classes or ()) != classes:
        raise ValueError(
            f"data {place}: expected pictures of {classes} classes, as {run.name} was trained with, got "
            f"{len(images.classes or ()) or 'none'}"
        )
    return ImageData(images, training.batch, classes is not None, loading=loading_of(Bringing()))


def _recipe(name: str, teacher: TeacherRun, training: Training) -> Callable[[Streams], Batch]:
    known = discover()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)
        raise ValueError(
            f"data {name!r}: expected a recipe's name ({', '.join(near)}), a folder of pictures or a file "
            f"({', '.join(sorted(SUFFIXES))})"
        )
    spec, function = teacher.run.spec, load(name)[0].function()
    options: dict[str, Any] = {"method": "flow_matching", "training": training}
    taken = inspect.signature(function).parameters
    labelled = "labels" in taken
    if labelled:
        options["labels"] = spec.classes is not None
    if "data" in taken and taken["data"].default is inspect.Parameter.empty:
        raise ValueError(
            f"data {name}: expected a recipe with data of its own; give the folder or file in its place"
        )
    made: Experiment = function(**options)
    if made.system.shape != spec.shape:
        raise ValueError(
            f"data {name}: expected samples of shape {list(spec.shape)} like {teacher.run.name}, "
            f"got {list(made.system.shape)}"
        )
    if made.system.classes != spec.classes:
        raise ValueError(
            f"data {name}: expected {spec.classes or 'no'} classes, as {teacher.run.name} was trained with, "
            f"got {made.system.classes or 'none'}"
        )
    return made.system.source


def _load(path: Path, what: str) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{what} {path}: expected a {ARRAY} file, found none")
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, OSError, EOFError) as wrong:
        raise ValueError(f"{what} {path}: expected an array that numpy.save wrote, got {wrong}") from wrong


def _samples(path: Path, shape: tuple[int, ...]) -> Tensor:
    x = _load(path, "data")
    if x.shape[1:] != shape or x.ndim < 2:
        want = ", ".join(("N", *map(str, shape)))
        raise ValueError(
            f"data {path}: expected an array [{want}], like the teacher's samples, got {list(x.shape)}"
        )
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise ValueError(f"data {path}: expected floating point or uint8, got {x.dtype}; convert it")
    return torch.from_numpy(x if x.dtype == np.uint8 else x.astype(np.float32))


def _classes(path: Path, count: int, classes: int) -> Tensor:
    label = _load(path, "labels")
    if label.shape != (count,) or label.dtype.kind not in "iu":
        raise ValueError(
            f"labels {path}: expected {count} integers, one a sample, got {label.dtype} {list(label.shape)}"
        )
    if count and not 0 <= int(label.min()) <= int(label.max()) < classes:
        raise ValueError(
            f"labels {path}: expected classes from 0 to {classes - 1}, got {label.min()} to {label.max()}"
        )
    return torch.from_numpy(label.astype(np.int64))
