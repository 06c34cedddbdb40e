"""The manifest of a checkpoint: which files it has, what they hash to, and which boxes of which tensors
they hold. It is JSON with a hash of itself; reading it runs nothing, believes nothing and follows no path
out of its folder.

    checkpoints/step-00000500/manifest.json
                              shard-00000-of-00002.safetensors      one for each process
                              shard-00001-of-00002.safetensors
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saltus.training.shards import Part, Whole, sha256_of, size_of

__all__ = ["MANIFEST", "File", "Manifest", "read_manifest", "shard_name", "verify"]

MANIFEST = "manifest.json"
_VERSION, _SELF = 1, "sha256"
_WRONG = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError)
_MOST_BYTES = 1 << 28  # of a manifest: a million tensors and more
_SHARD = re.compile(r"shard-[0-9]{5}-of-[0-9]{5}\.safetensors")


@dataclass(frozen=True)
class File:
    """A file of a checkpoint.

    Attributes:
        bytes: its size.
        sha256: its hash.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        step: how many steps are done.
        score: of the weights, smaller is better; None if they were not measured.
        meta: plain data, as the run gave it.
        files: by name.
        tensors: by name.
    """

    step: int
    score: float | None
    meta: Mapping[str, Any]
    files: Mapping[str, File]
    tensors: Mapping[str, Whole]

    def text(self) -> str:
        """As JSON.

        Raises:
            ValueError: if ``meta`` is no JSON.
        """
        try:
            value = {
                "version": _VERSION,
                "step": self.step,
                "score": self.score,
                "meta": self.meta,
                "files": {k: {"bytes": f.bytes, "sha256": f.sha256} for k, f in self.files.items()},
                "tensors": {
                    name: {"dtype": w.dtype, "shape": w.shape, "parts": w.parts}
                    for name, w in self.tensors.items()
                },
            }
            return json.dumps({**value, _SELF: hash_of(value)}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as wrong:
            raise ValueError(
                f"checkpoint: expected strings, finite numbers, lists and dicts in meta, got {wrong}; "
                "convert it"
            ) from None


def hash_of(value: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest without its own entry of that name, as JSON writes it."""
    body = {key: entry for key, entry in value.items() if key != _SELF}
    return hashlib.sha256(json.dumps(body, allow_nan=False).encode()).hexdigest()


def shard_name(rank: int, size: int) -> str:
    """The file of one process.

    >>> shard_name(1, 4)
    'shard-00001-of-00004.safetensors'
    """
    return f"shard-{rank:05}-of-{size:05}.safetensors"


def read_manifest(folder: Path) -> Manifest:
    """What the checkpoint in ``folder`` says of itself, checked for sense; :func:`verify` checks the files.

    Raises:
        ValueError: in one line, for whatever is not as :meth:`Manifest.text` writes it.
    """
    path = folder / MANIFEST
    try:
        if not path.is_file() or path.is_symlink():
            raise ValueError("none" if not path.exists() else "something other than a file")
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        with path.open(encoding="utf-8") as file:
            return _parsed(json.loads(file.read(_MOST_BYTES)))
    except _WRONG as wrong:
        why = f"{type(wrong).__name__} {' '.join(str(wrong).split())[:200]}"
        raise ValueError(
            f"{path}: expected the manifest of a checkpoint, got {why}; the checkpoint is damaged or none, "
            "take an earlier one"
        ) from None


def _parsed(value: Any) -> Manifest:  # noqa: ANN401 - whatever the file holds
    if value["version"] != _VERSION:
        raise ValueError(f"version {str(value['version'])[:20]}, this saltus reads {_VERSION}")
    if value[_SELF] != hash_of(value):  # which is a ValueError for NaN and infinity
        raise ValueError("another content than its own hash says")
    files = {name: File(_count(f["bytes"]), str(f["sha256"])) for name, f in value["files"].items()}
    strange = [name for name in files if not _SHARD.fullmatch(name)]
    if strange:
        raise ValueError(f"file {strange[0][:80]!r}, expected names like {shard_name(0, 1)}")
    tensors = {name: _whole(name, w, files) for name, w in value["tensors"].items()}
    room = {name: file.bytes for name, file in files.items()}
    for whole in tensors.values():
        for part in whole.parts:
            room[part.file] -= math.prod(part.shape) * size_of(whole.dtype)
    if any(left < 0 for left in room.values()):
        raise ValueError("tensors larger than the files that hold them")
    score, meta = value["score"], value["meta"]
    if not isinstance(meta, dict) or not (score is None or type(score) in (int, float)):
        raise ValueError("meta or score of another kind")
    return Manifest(_count(value["step"]), score, meta, files, tensors)


def _whole(name: str, w: Any, files: Mapping[str, File]) -> Whole:  # noqa: ANN401 - whatever the file holds
    """What is said of a tensor, whose parts must cover it without a gap: they lie inside, are disjoint and
    have together as many numbers."""
    shape = _counts(w["shape"])
    parts = tuple(Part(str(p[0]), _counts(p[1]), _counts(p[2])) for p in w["parts"])
    for part in parts:
        ends = [a + n for a, n in zip(part.offset, part.shape, strict=True)]
        inside = all(a <= b for a, b in zip(ends, shape, strict=True))
        if part.file not in files or not inside:
            raise ValueError(f"tensor {name[:80]!r} with a part outside of it or of no file")
    if len({part.file for part in parts}) < len(parts):
        raise ValueError(f"tensor {name[:80]!r} with two parts in one file")
    if sum(math.prod(part.shape) for part in parts) != math.prod(shape) or not parts:
        raise ValueError(f"tensor {name[:80]!r} with parts that do not add up to {list(shape)}")
    if _overlap(parts):
        raise ValueError(f"tensor {name[:80]!r} with parts that overlap")
    return Whole(str(w["dtype"]), shape, parts)


def _overlap(parts: tuple[Part, ...]) -> bool:
    """Whether two boxes share a number."""
    open_: list[Part] = []
    for part in sorted((p for p in parts if math.prod(p.shape)), key=lambda p: p.offset):
        # those before it that still go on at its beginning; none has a first axis where shapes are []
        open_ = [p for p in open_ if not p.shape or p.offset[0] + p.shape[0] > part.offset[0]]
        for p in open_:
            axes = zip(p.offset, p.shape, part.offset, part.shape, strict=True)
            if all(a < b + m and b < a + n for a, n, b, m in axes):
                return True
        open_.append(part)
    return False


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{str(value)[:40]} where a count belongs")
    return value


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > 32:
        raise ValueError(f"{str(values)[:40]} where a list of counts belongs")
    return tuple(_count(value) for value in values)


def verify(folder: Path, manifest: Manifest) -> None:
    """Raise a ValueError unless every file of a checkpoint is there, whole and unchanged."""
    for name, file in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size if path.is_file() and not path.is_symlink() else -1
            found = sha256_of(path) if size == file.bytes else ""
        except OSError as wrong:
            why = wrong.strerror
            raise ValueError(f"{path}: expected to read it, got {why}; check permissions") from None
        if found != file.sha256:
            what = "none" if size < 0 else f"{size:,} bytes" if size != file.bytes else "another content"
            raise ValueError(
                f"{path}: expected {file.bytes:,} bytes as when it was saved, got {what}; the checkpoint is "
                "damaged, take an earlier one"
            )
