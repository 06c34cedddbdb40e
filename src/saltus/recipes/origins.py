"""What a run learns from and does not hold itself, told by its content: a teacher's weights, arrays of data.

A path does not say whether the same file is still there. So a run notes what its files hashed to when it
began, and does not go on in silence with a teacher that was trained again or data that were replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from saltus.training.shards import sha256_of

__all__ = ["prints"]

_LENGTH = 16


def prints(files: Mapping[str, Path]) -> dict[str, str]:
    """The beginning of the SHA-256 of each file, by the names given.

    A file is read once, as long as its size and its time do not change.

    Raises:
        OSError: for a file that cannot be read.
    """
    stats = {name: (path.resolve(), path.stat()) for name, path in files.items()}
    return {name: _print(path, s.st_size, s.st_mtime_ns) for name, (path, s) in stats.items()}


@lru_cache(maxsize=64)
def _print(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)[:_LENGTH]
