"""Pictures in Parquet, in the layout of the Hub: a column struct(bytes, path) or binary, and one of classes.

The encoded bytes are held in memory, so that a picture is at hand in a microsecond whatever its place; a set
that does not fit belongs into a folder that ``datasets`` maps from the disk (``Dataset.save_to_disk``).
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from saltus.data.columns import columns, item, labels_of
from saltus.data.pixels import Item
from saltus.data.stored import Asked, Stored, check_split, chosen, content, fingerprint, listed

__all__ = ["holds_parquet", "parquet"]

SHARD = re.compile(r"(?P<split>.+?)(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))?(?:-[0-9a-f]{8,})?")
PART = 0.5
"""Of the machine's memory that a set may take."""


def holds_parquet(place: Path) -> bool:
    """Whether a folder, or the folders in it, hold Parquet files."""
    return bool(_files(place))


def _files(place: Path) -> list[Path]:
    """Those of a folder; or of a folder in it, "data" or the only one that has any."""
    for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet"):
        found = [path for path in sorted(place.glob(pattern)) if not path.name.startswith(".")]
        if found:
            folders = sorted({path.parent.name for path in found})
            if len(folders) > 1:
                raise ValueError(
                    f"{place}: expected Parquet in one folder, got it in {listed(folders)}; give one of them"
                )
            return found
    return []


def parquet(place: Path, asked: Asked) -> Stored:
    """A file, or the shards of a split in a folder. The digest is of the files' content
    and of the names of the columns that are taken.

    Raises:
        ImportError: without pyarrow.
        ValueError: for what is no Parquet, shards or columns that are missing, or more than the memory holds.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("Parquet is read by pyarrow: pip install 'saltus[data]'") from error
    if place.is_file():
        check_split(_named(place)["split"], asked.split, place)
    files = [place] if place.is_file() else _shards(place, asked.split)
    try:
        sources = [pq.ParquetFile(path) for path in files]
        schema = sources[0].schema_arrow
        found = columns({f.name: str(f.type) for f in schema}, schema.metadata, asked, place)
        _check_size(sources, place)
        wanted = [found.image] if found.label is None else [found.image, found.label]
        table = pa.concat_tables([source.read(columns=wanted) for source in sources])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError, KeyError) as wrong:
        why = " ".join(str(wrong).split())[:200]
        raise ValueError(f"{place}: expected Parquet of one layout, got {why}; is it whole?") from None
    if not len(table):
        raise ValueError(f"{place}: expected pictures, got a table without rows")
    labels, classes = None, None
    if found.label is not None:
        values = table.column(found.label).to_numpy()
        labels, classes = labels_of(values, found.classes, place)
    beside = place.parent if place.is_file() else place
    cells = _Cells(table.column(found.image), beside)
    mark = fingerprint([content(files), found.image, found.label])
    return Stored(len(table), cells, lambda row: f"row {row:,}", mark, labels, classes)


class _Cells:
    """The pictures of a column of chunks, by their rows."""

    def __init__(self, column: Any, beside: Path) -> None:  # noqa: ANN401 - pyarrow's
        self._chunks, self._beside = [chunk for chunk in column.chunks if len(chunk)], beside
        self._starts = [0, *accumulate(len(chunk) for chunk in self._chunks)]

    def __call__(self, rows: Sequence[int]) -> list[Item]:
        found = []
        for row in rows:
            k = bisect_right(self._starts, row) - 1
            found.append(item(self._chunks[k][row - self._starts[k]].as_py(), self._beside))
        return found


def _named(path: Path) -> re.Match[str]:
    """The split, and the number of the shard and their count if there are several, as a file is named."""
    found = SHARD.fullmatch(path.stem)
    assert found is not None
    return found


def _shards(place: Path, split: str | None) -> list[Path]:
    """The files of a split."""
    found: dict[str, list[tuple[Path, int, int]]] = defaultdict(list)
    for path in _files(place):
        named = _named(path)
        number, count = named["number"], named["count"]
        found[named["split"]].append((path, int(number or 0), int(count or 1)))
    which = chosen(found, split, place)
    shards = found[which]
    missing = sorted(set(range(shards[0][2])) - {number for _, number, _ in shards})
    if missing:
        raise ValueError(
            f"{place}: expected {shards[0][2]} shards of {which}, got {len(shards)}; missing: "
            f"{listed(missing)}"
        )
    return [path for path, _, _ in shards]


def _check_size(sources: Sequence[Any], place: Path) -> None:
    """Raise a ValueError for a set that would not leave room in the memory."""
    groups = (s.metadata.row_group(k) for s in sources for k in range(s.metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > PART * memory:
        raise ValueError(
            f"{place}: expected at most {PART:.0%} of this machine's {memory / 2**30:.0f} GiB of memory, got "
            f"{size / 2**30:.0f} GiB of pictures; write it with Dataset.save_to_disk, whose folder is mapped"
        )
