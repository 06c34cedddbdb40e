"""Checkpoints of every kind of tensor, as one process or several write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saltus.training import Checkpoints
from saltus.training.checkpoint import Saved
from saltus.training.parallel import Piece

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Every number format, no axis, no number, a view with strides, names that are awkward in JSON."""
    g = torch.Generator().manual_seed(seed)
    found = {str(dtype): torch.randn(3, 5, generator=g).to(dtype) for dtype in DTYPES}
    found |= {str(dtype): torch.randint(0, 99, (7,), generator=g).to(dtype) for dtype in INTEGERS}
    found["scalar"] = torch.randn((), generator=g)
    found["count"] = torch.tensor(2**53 + 1)
    found["empty"] = torch.zeros(0, 4)
    found["wide"] = torch.randn(4, 6, generator=g).T[1:, ::2]
    found['odd "name" \\ / é'] = torch.tensor([0.1, -0.0, 5e-324, 1.7e308], dtype=torch.float64)
    found["tiny"] = torch.tensor([2.0**-133, 1.0, -3e38]).to(torch.bfloat16)
    return found


def bits(x: Tensor) -> bytes:
    return x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit, the sign of zero included."""
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def saved(folder: Path, step: int = 3, given: dict[str, Tensor] | None = None, **options: Any) -> Saved:  # noqa: ANN401
    checkpoints = Checkpoints(folder, **options)
    checkpoints.save(step, tensors() if given is None else given, {"a": [1, None, "x"]})
    checkpoints.wait()
    return checkpoints.open(step)


class Held:
    """What one of several pretended processes holds of a tensor."""

    def __init__(self, value: Piece) -> None:
        self.value = value


def whole(x: Tensor) -> Piece:
    return Piece(x, tuple(x.shape), (0,) * x.ndim, True)


def rows(x: Tensor, rank: int, size: int) -> Held:
    """A run of the first axis, as even as it goes; the last may have none."""
    each = -(-len(x) // size)
    low = min(rank * each, len(x))
    part = x[low : low + each]
    return Held(Piece(part, tuple(x.shape), (low, *[0] * (x.ndim - 1)), part.numel() > 0))


def quarters(x: Tensor, rank: int) -> Held:
    """One of four boxes of a matrix, of different sizes."""
    a, b = (2, 3)
    r, c = (slice(0, a), slice(a, None))[rank // 2], (slice(0, b), slice(b, None))[rank % 2]
    part = x[r, c]
    return Held(Piece(part, tuple(x.shape), (a * (rank // 2), b * (rank % 2)), True))


TRUTH = {"long": torch.arange(35.0).reshape(7, 5), "short": torch.arange(3), "box": torch.randn(5, 6)}


def held(rank: int, size: int) -> dict[str, Any]:
    box = quarters(TRUTH["box"], rank) if size == 4 else rows(TRUTH["box"], rank, size)
    mine: dict[str, Any] = {k: rows(TRUTH[k], rank, size) for k in ("long", "short")}
    return {**mine, "box": box, "plain": Held(Piece(torch.tensor(4.0), (), (), rank == 0))}


def together(folder: Path, size: int, **options: Any) -> Saved:  # noqa: ANN401
    """Saved by several ranks at once, each in threads of its own."""
    ranks = [Checkpoints(folder, rank=r, size=size, attempt="x", **options) for r in range(size)]
    for rank in reversed(range(size)):  # the first one waits for the others
        ranks[rank].save(7, held(rank, size), {})
    for rank in ranks:
        rank.wait()
    return ranks[0].open(7)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flipped(content: bytes, at: int = -3) -> bytes:
    found = bytearray(content)
    found[at] ^= 1
    return bytes(found)


def told(wrong: pytest.ExceptionInfo[ValueError]) -> str:
    said = str(wrong.value)
    assert "\n" not in said and "expected" in said and len(said) < 1000, said
    return said
