"""Parts of tensors in safetensors files: written as a stream, read again in whatever parts are wanted.

Every process writes the parts that it holds. A part is a box of the whole tensor: where it begins along
each axis, and how long it is there. A reader asks for boxes of its own, which may lie across several
files, so a checkpoint of four processes is read by one, or by three.

Files are read by the safetensors library. They are written here, since a stream needs no second copy of
the numbers and yields its hash on the way.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["Part", "Whole", "box_of", "read_box", "sha256_of", "size_of", "write_shard"]

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls the number formats."""
_BLOCK = 1 << 24


class Part(NamedTuple):
    """Where a box of a tensor is stored.

    Attributes:
        file: its name within the checkpoint.
        offset: where the box begins along each axis.
        shape: how long it is there.
    """

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


class Whole(NamedTuple):
    """A tensor of a checkpoint.

    Attributes:
        dtype: as safetensors names it.
        shape: of the whole.
        parts: boxes that cover it.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def dtype_name(tensor: Tensor, name: str) -> str:
    """The number format of a tensor as safetensors names it, or a ValueError."""
    if tensor.dtype not in _NAMES:
        raise ValueError(
            f"{name}: expected one of {', '.join(_NAMES.values())} in a checkpoint, got {tensor.dtype}; "
            "convert it"
        )
    return _NAMES[tensor.dtype]


def size_of(name: str) -> int:
    """The bytes of a number in a format that safetensors calls by this name, or a ValueError.

    >>> size_of("BF16")
    2
    """
    for dtype, known in _NAMES.items():
        if known == name:
            return dtype.itemsize
    raise ValueError(f"number format {name[:20]!r}, expected one of {', '.join(_NAMES.values())}")


def write_shard(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors to a new safetensors file, flush it to the disk, return its SHA-256.

    Args:
        path: of the file; there is none yet.
        tensors: by name. Each is brought to the CPU and into one run of memory when it is its turn, so at
            most one of them is copied at a time.
        metadata: words for the header.

    Raises:
        OSError: as the system says.
        ValueError: for a number format that safetensors has not.
    """
    # wide numbers first, as the library does: then every number lies at a multiple of its size
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": dtype_name(tensor, name),
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight
    seen = hashlib.sha256()
    with path.open("xb") as file:
        for piece in chain([len(text).to_bytes(8, "little"), text], (_bytes(t) for _, t in ordered)):
            seen.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return seen.hexdigest()


def _bytes(tensor: Tensor) -> Any:  # noqa: ANN401 - whatever has a buffer
    """The numbers of a tensor as bytes; those of a contiguous one on the CPU without a copy."""
    here = tensor.detach().cpu().contiguous()
    return here.reshape(-1).view(torch.uint8).numpy() if here.numel() else b""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            seen.update(block)
    return seen.hexdigest()


def box_of(offset: Iterable[int], shape: Iterable[int]) -> tuple[slice, ...]:
    """The indices of a box.

    >>> box_of((2, 0), (3, 4))
    (slice(2, 5, None), slice(0, 4, None))
    """
    return tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))


def read_box(
    folder: Path, name: str, whole: Whole, offset: tuple[int, ...], shape: tuple[int, ...]
) -> Tensor:
    """The box of a stored tensor that begins at ``offset``, on the CPU: put together from the parts that it
    meets.

    Raises:
        ValueError: if a file is not what the checkpoint says of it, or the parts leave a gap.
    """
    found: Tensor | None = None
    filled = 0
    for part in whole.parts:
        low = tuple(max(a, b) for a, b in zip(offset, part.offset, strict=True))
        high = tuple(
            min(a + m, b + n) for a, m, b, n in zip(offset, shape, part.offset, part.shape, strict=True)
        )
        length = tuple(max(0, b - a) for a, b in zip(low, high, strict=True))
        if math.prod(length) == 0 and math.prod(shape) > 0:
            continue
        there = box_of((a - b for a, b in zip(low, part.offset, strict=True)), length)
        values = _read(folder / part.file, name, whole, part, there)
        if length == shape:
            return values
        if found is None:
            found = torch.zeros(shape, dtype=values.dtype)
        found[box_of((a - b for a, b in zip(low, offset, strict=True)), length)] = values
        filled += math.prod(length)
    if found is None or filled != math.prod(shape):
        raise ValueError(
            f"{folder}: tensor {name}: expected parts that cover {list(shape)} from {list(offset)}, got "
            f"{filled} of {math.prod(shape)} numbers; the checkpoint is damaged, take an earlier one"
        )
    return found


def _read(path: Path, name: str, whole: Whole, part: Part, box: tuple[slice, ...]) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            stored = file.get_slice(name)
            kind, shape = stored.get_dtype(), tuple(stored.get_shape())
            if kind != whole.dtype or shape != part.shape:
                raise ValueError(
                    f"tensor {name} as {whole.dtype} {list(part.shape)} was expected, found {kind} "
                    f"{list(shape)}"
                )
            values: Tensor = stored[box] if box else file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError, MemoryError) as error:
        raise ValueError(
            f"{path}: expected what the manifest says, got {' '.join(str(error).split())[:200]}; the "
            "checkpoint is damaged, take an earlier one"
        ) from None
    return values
