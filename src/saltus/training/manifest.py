"""The manifest of a checkpoint: which files it has, what they hash to, and which boxes of which tensors
they hold. It is JSON; reading it runs nothing, believes nothing and follows no path out of its folder.

    checkpoints/step-00000500/manifest.json
                              shard-00000-of-00002.safetensors      one for each process
                              shard-00001-of-00002.safetensors
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saltus.training.shards import Part, Whole, sha256_of

__all__ = ["MANIFEST", "File", "Manifest", "read_manifest", "shard_name", "verify"]

MANIFEST = "manifest.json"
_VERSION = 1
_MOST_BYTES = 1 << 28  # of a manifest: a million tensors and more
_SHARD = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors")


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
            return json.dumps(
                {
                    "version": _VERSION,
                    "step": self.step,
                    "score": self.score,
                    "meta": self.meta,
                    "files": {k: {"bytes": f.bytes, "sha256": f.sha256} for k, f in self.files.items()},
                    "tensors": {
                        name: {"dtype": w.dtype, "shape": w.shape, "parts": w.parts}
                        for name, w in self.tensors.items()
                    },
                },
                allow_nan=False,
            )
        except (TypeError, ValueError, RecursionError) as wrong:
            raise ValueError(
                f"checkpoint: expected strings, finite numbers, lists and dicts in meta, got {wrong}; "
                "convert it"
            ) from None


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
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as wrong:
        why = f"{type(wrong).__name__} {' '.join(str(wrong).split())[:200]}"
        raise ValueError(
            f"{path}: expected the manifest of a checkpoint, got {why}; the checkpoint is damaged or none, "
            "take an earlier one"
        ) from None


def _parsed(value: Any) -> Manifest:  # noqa: ANN401 - whatever the file holds
    if value["version"] != _VERSION:
        raise ValueError(f"version {str(value['version'])[:20]}, this saltus reads {_VERSION}")
    files = {name: File(_count(f["bytes"]), str(f["sha256"])) for name, f in value["files"].items()}
    strange = [name for name in files if not _SHARD.fullmatch(name)]
    if strange:
        raise ValueError(f"file {strange[0][:80]!r}, expected names like {shard_name(0, 1)}")
    tensors = {}
    for name, w in value["tensors"].items():
        shape = _counts(w["shape"])
        parts = tuple(Part(str(p[0]), _counts(p[1]), _counts(p[2])) for p in w["parts"])
        for part in parts:
            ends = [a + n for a, n in zip(part.offset, part.shape, strict=True)]
            inside = all(a <= b for a, b in zip(ends, shape, strict=True))
            if part.file not in files or not inside:
                raise ValueError(f"tensor {name[:80]!r} with a part outside of it or of no file")
        if sum(math.prod(part.shape) for part in parts) != math.prod(shape):
            raise ValueError(f"tensor {name[:80]!r} with parts that do not add up to {list(shape)}")
        tensors[str(name)] = Whole(str(w["dtype"]), shape, parts)
    score, meta = value["score"], value["meta"]
    if not isinstance(meta, dict) or not (score is None or isinstance(score, float | int)):
        raise ValueError("meta or score of another kind")
    return Manifest(_count(value["step"]), score, meta, files, tensors)


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
