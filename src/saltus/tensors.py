"""Small functions on tensors: the one broadcast, per-row reductions, frozen calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = [
    "answered",
    "check_finite",
    "check_times",
    "frozen",
    "full_like_rows",
    "like",
    "per_row_norm2",
    "per_row_sum",
    "placed",
    "sg",
    "upcast",
]


def like(t: Tensor, x: Tensor) -> Tensor:
    """Shape a per-row number t [B] so that it multiplies x [B, ...]: the only broadcast.

    >>> like(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def full_like_rows(value: float, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A time (or any per-row number) with the same value in every row of x [B, ...]: [B].

    The dtype is float64 when x is float64 and float32 otherwise, unless given: times are never
    kept in half precision.
    """
    if dtype is None:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.full((x.shape[0],), value, dtype=dtype, device=x.device)


def per_row_sum(x: Tensor) -> Tensor:
    """Sum over everything but the first axis: [B, ...] -> [B]."""
    return x.flatten(1).sum(dim=1) if x.ndim > 1 else x  # unlike reshape, right for no rows too


def per_row_norm2(x: Tensor) -> Tensor:
    """The squared Euclidean norm of each row, summed over dimensions, in at least float32: [B].

    >>> per_row_norm2(torch.tensor([[3.0, 4.0]]))
    tensor([25.])
    """
    return per_row_sum(upcast(x).square())


def placed(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """x on a device, in a type if one is given. What comes from the host is sent without waiting for what the
    device still has to do; what goes there is waited for, or its numbers would be read too early."""
    return x.to(device=device, dtype=dtype or x.dtype, non_blocking=x.is_cpu)


def upcast(x: Tensor) -> Tensor:
    """float32 for half-precision tensors, anything else as it is: losses are never in half."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def sg(x: Tensor) -> Tensor:
    """Stop-gradient: the value of x as a constant."""
    return x.detach()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within the context the modules' parameters require no gradient, but their inputs still do.

    This is how a critic or a teacher is called when the gradient must pass *through* it: under
    ``no_grad`` it would be lost silently.
    """
    thawed = [p for m in modules for p in m.parameters() if p.requires_grad]
    for p in thawed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in thawed:
            p.requires_grad_(True)


def check_times(x: Tensor, **times: Tensor) -> None:
    """Raise a ValueError unless every time is a float32 or float64 tensor of shape [B].

    >>> check_times(torch.zeros(2, 3), t=torch.tensor([0, 1]))
    Traceback (most recent call last):
    ...
    ValueError: time t: expected float32 or float64 of shape [2], got torch.int64 of shape [2]; use t.float()
    """
    for name, t in times.items():
        if not isinstance(t, Tensor):
            raise ValueError(
                f"time {name}: expected a tensor of shape [{x.shape[0]}], got {type(t).__name__}; "
                f"use full_like_rows({t!r}, x)"
            )
        if t.shape != x.shape[:1] or t.dtype not in (torch.float32, torch.float64):
            shape = list(t.shape)
            fix = f"{name}.float()" if t.shape == x.shape[:1] else f"one time a row of x {list(x.shape)}"
            raise ValueError(
                f"time {name}: expected float32 or float64 of shape [{x.shape[0]}], "
                f"got {t.dtype} of shape {shape}; use {fix}"
            )


def answered(b: Tensor, x: Tensor) -> Tensor:
    """What another's velocity said of the states x, or a ValueError if its shape is not theirs: a narrower
    one would be broadcast without a word."""
    if b.shape != x.shape:
        raise ValueError(
            f"expected a velocity of shape {list(x.shape)}, like its states, got {list(b.shape)}; "
            "wrap the model in a function that returns that"
        )
    return b


def check_finite(x: Tensor, name: str) -> None:
    """Raise a ValueError that counts the non-finite entries of x, if there are any."""
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        rows = (~torch.isfinite(x)).reshape(x.shape[0], -1).any(dim=1).nonzero().flatten()
        raise ValueError(
            f"{name}: expected finite numbers, got {bad} NaN or infinite entries, "
            f"first in row {int(rows[0])}; clean the data"
        )
