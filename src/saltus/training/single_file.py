"""Weights on disk: one safetensors file that also says how to build the networks.

A file holds the tensors of some named modules ("student.blocks.0.weight") and, as JSON in its
header, whatever options rebuild them. It is written beside its place, flushed to the disk and
renamed over it, so a crash leaves the old file or the new one and never a half. Nothing is ever
unpickled, and every fault of a file is one ValueError.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from saltus.training.shards import write_shard

__all__ = ["Header", "Weights", "load_weights", "read_header", "restore", "save_weights"]

_KEY = "saltus"
_VERSION = 1


class Weights(NamedTuple):
    """The contents of a weights file."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


class Header(NamedTuple):
    """What a weights file says of its contents: the shape of each tensor by name, and the meta."""

    shapes: dict[str, tuple[int, ...]]
    meta: dict[str, Any]


def save_weights(path: str | Path, modules: Mapping[str, nn.Module], meta: Mapping[str, Any]) -> None:
    """Write the parameters and buffers of ``modules`` and the JSON-able ``meta`` to ``path``.

    Raises:
        ValueError: if a weight is not finite, ``meta`` is no JSON, or the file cannot be written;
            what stood at ``path`` is then still there, untouched.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        if not prefix or "." in prefix:
            raise ValueError(f"module name {prefix!r}: expected a word without dots; rename it")
        tensors |= _state(module, prefix)
    _check_finite(tensors)
    try:
        options = json.dumps({"version": _VERSION, "meta": dict(meta)}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"meta: expected strings, finite numbers, lists and dicts, got {_line(error)}; convert it"
        ) from None
    _replace(Path(path), tensors, {_KEY: options})


def load_weights(path: str | Path, prefix: str = "") -> Weights:
    """The tensors, on the CPU, and the meta of a file that :func:`save_weights` wrote.

    Args:
        path: of the file.
        prefix: reads only the tensors whose names begin with it.

    Raises:
        ValueError: if the file is absent, no safetensors file, damaged, or not one of Saltus.
    """
    with _opened(path) as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}
    return Weights(tensors, _meta(Path(path), header))


def read_header(path: str | Path) -> Header:
    """What a file of :func:`save_weights` says of its tensors, without reading any; errors as there."""
    with _opened(path) as file:
        header = file.metadata() or {}
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    return Header(shapes, _meta(Path(path), header))


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """The safetensors file at a path; what is wrong with it, within the context too, is a ValueError."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: expected a weights file, found nothing; check the path, or train first")
    if not path.is_file():
        raise ValueError(f"{path}: expected a weights file, found something else; name the .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, got {_line(error)}; the file is damaged or of "
            "another kind, take an earlier checkpoint"
        ) from None


def restore(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], origin: str | Path) -> None:
    """Copy ``tensors`` into all parameters and buffers of ``modules``; all of them fit, or none is touched.

    Args:
        modules: under the names that they were saved with; others in ``tensors`` are an error.
        tensors: from :func:`load_weights`.
        origin: the file's path, for messages.

    Raises:
        ValueError: for a missing or superfluous tensor, or one of another shape or dtype.
    """
    ours = {name: t for prefix, module in modules.items() for name, t in _state(module, prefix).items()}
    missing, extra = sorted(ours.keys() - tensors.keys()), sorted(tensors.keys() - ours.keys())
    fix = "build the network with the options stored in the file"
    if missing or extra:
        raise ValueError(
            f"{origin}: expected the {len(ours)} tensors of the network, got {len(tensors)}: "
            f"{_some(missing)} missing, {_some(extra)} unknown; {fix}"
        )
    for name, mine in ours.items():
        theirs = tensors[name]
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            raise ValueError(
                f"{origin}: tensor {name}: expected {list(mine.shape)} of {mine.dtype}, "
                f"got {list(theirs.shape)} of {theirs.dtype}; {fix}"
            )
    with torch.no_grad():
        for name, mine in ours.items():
            mine.copy_(tensors[name])


def _state(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    state = {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name}: expected a tensor in the module's state, got {type(value).__name__}; "
                "keep it in a buffer or in the construction options"
            )
    return state


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{name}: expected finite weights, got NaN or infinity; nothing was saved, "
                "go on from an earlier checkpoint with a lower learning rate"
            )


def _meta(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """The meta in a safetensors header, or a ValueError."""
    try:
        options = json.loads(header[_KEY])
        version, meta = options["version"], options["meta"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(
            f"{path}: expected a file written by Saltus, got safetensors without its options; "
            "give a file that a run saved"
        ) from None
    if version != _VERSION or not isinstance(meta, dict):
        raise ValueError(f"{path}: expected version {_VERSION}, got {str(version)[:20]}; update saltus")
    return meta


def _replace(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Put a file at ``path``: write it beside, flush it, rename it over; or leave all as it was."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        draft.unlink(missing_ok=True)  # of a process that was killed, or a link laid in the way
        write_shard(draft, tensors, metadata)
        os.replace(draft, path)
    except OSError as error:
        raise ValueError(
            f"{path}: expected to write here, got {error.strerror or error}; choose an existing folder "
            "with room and write permission"
        ) from None
    finally:
        with suppress(OSError):  # gone already, or its folder is no folder
            draft.unlink()
    with suppress(OSError):  # the file is whole by now, and not every system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__} ({text[:160]})"


def _some(names: list[str]) -> str:
    return (", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")) or "none"
