"""Pictures in ``datasets``: a Dataset in memory, or the folder that its ``save_to_disk`` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saltus.data.columns import columns, item, labels_of
from saltus.data.pixels import Item
from saltus.data.stored import USUAL, Asked, Stored, check_split, chosen, fingerprint

__all__ = ["dataset", "is_dataset", "is_saved", "saved"]

MARKS = ("dataset_dict.json", "state.json")


def is_saved(place: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    return any((place / name).is_file() for name in MARKS)


def is_dataset(value: object) -> bool:
    """Whether it is a Dataset or a DatasetDict; ``datasets`` is not imported for that."""
    return type(value).__module__.partition(".")[0] in {"datasets"}


def saved(place: Path, asked: Asked) -> Stored:
    """The folder, mapped from the disk.

    Raises:
        ImportError: without datasets.
        ValueError: for a folder that is damaged, and for what :func:`dataset` refuses.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "folders of Dataset.save_to_disk are read by datasets: pip install 'saltus[data]'"
        ) from error
    try:
        found = datasets.load_from_disk(str(place))
    except (OSError, ValueError, KeyError, TypeError) as wrong:
        why = " ".join(str(wrong).split())[:200]
        raise ValueError(f"{place}: expected a folder of Dataset.save_to_disk, got {why}") from None
    return dataset(found, asked, place)


def dataset(value: Any, asked: Asked, place: object = "dataset") -> Stored:  # noqa: ANN401 - of datasets
    """A Dataset, or a split of a DatasetDict. The digest is of the fingerprint that ``datasets`` keeps
    and of the names of the columns that are taken.

    Raises:
        ValueError: for a split or columns that are not there, labels that do not number classes, or no rows.
    """
    import datasets

    if isinstance(value, datasets.DatasetDict):
        value = value[chosen(value, asked.split, place)]
    if not isinstance(value, datasets.Dataset):
        raise ValueError(
            f"{place}: expected a datasets.Dataset with rows that can be counted, got "
            f"{type(value).__name__}; load it without streaming"
        )
    own = USUAL if value.split is None else str(value.split).partition("[")[0]  # "train[:10%]" is of train
    check_split(own, asked.split, place)
    if not len(value):
        raise ValueError(f"{place}: expected pictures, got a data set without rows")
    schema = value.features.arrow_schema
    found = columns({f.name: str(f.type) for f in schema}, schema.metadata, asked, place)
    labels, classes = None, None
    if found.label is not None:
        column = value.select_columns([found.label]).with_format("arrow")[:].column(0)
        labels, classes = labels_of(column.to_numpy(), found.classes, place)
    pictures = value.select_columns([found.image])
    if isinstance(value.features[found.image], datasets.Image):
        pictures = pictures.cast_column(found.image, datasets.Image(decode=False))
    pictures = pictures.with_format("arrow")

    def encoded(rows: Sequence[int]) -> list[Item]:
        return [item(cell, None) for cell in pictures[list(rows)].column(0).to_pylist()]

    mark = fingerprint([value._fingerprint, found.image, found.label])
    return Stored(len(value), encoded, lambda row: f"row {row:,}", mark, labels, classes)
