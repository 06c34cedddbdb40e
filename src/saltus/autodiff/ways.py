"""Value and derivative of a function along a direction, in one of three ways."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from saltus.autodiff.rules import Level

__all__ = ["Derivative", "FiniteDifference", "Forward", "TwoPass", "derivative"]

T = TypeVar("T")
RULES = "torch._decomp.decompositions_for_jvp"  # forward-mode rules that PyTorch loads at first use


@cache
def quietly(module: str) -> Any:  # noqa: ANN401
    """A part of PyTorch that calls what PyTorch has deprecated when it is first imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(module)


def forward_mode(
    f: Callable[..., T], primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], safe: bool
) -> tuple[T, T]:
    """Forward mode; a primal whose tangent is None is a constant and costs nothing."""
    moving = [i for i, v in enumerate(tangents) if v is not None]

    def g(*moved: Tensor) -> T:
        full = list(primals)
        for i, p in zip(moving, moved, strict=True):
            full[i] = p
        with Level(safe):
            return f(*full)

    if not moving:
        value = g()
        return value, tree_map(torch.zeros_like, value)
    directions = tuple(v for v in tangents if v is not None)
    if not torch.compiler.is_compiling():
        quietly(RULES)
    result: Any = torch.func.jvp(g, tuple(primals[i] for i in moving), directions)
    value, tangent = result
    return value, tangent


@dataclass(frozen=True)
class Forward:
    """Forward mode; value and derivative both carry gradient.

    Attributes:
        safe: replace the operations whose second-order rules are wrong or missing.
    """

    safe: bool = True

    def take(
        self, f: Callable[..., T], primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]
    ) -> tuple[T, T]:
        """Value and derivative; called by :func:`derivative`, which checks its arguments."""
        return forward_mode(f, primals, tangents, self.safe)


@dataclass(frozen=True)
class TwoPass:
    """The derivative without gradient, and the value with gradient from a pass of its own.

    Attributes:
        safe: as in :class:`Forward`; applies to the derivative's pass only.
    """

    safe: bool = True

    def take(
        self, f: Callable[..., T], primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]
    ) -> tuple[T, T]:
        """Value and derivative; called by :func:`derivative`, which checks its arguments."""
        with torch.no_grad():
            _, tangent = forward_mode(f, primals, tangents, self.safe)
        value = f(*primals)
        return value, tree_map(lambda v, y: v.to(y.dtype), tangent, value)


@dataclass(frozen=True)
class FiniteDifference:
    """(f(p + eps v) - f(p - eps v)) / (2 eps), three calls with the value's.

    Autocast is off while the difference is taken: at eps = 5e-3 its relative error is about 2e-5 in
    float32, but 3 to 30 % in bfloat16. Networks must be deterministic (no active dropout).

    Attributes:
        eps: the step, in units of the tangent.
        stopped: whether the difference carries no gradient; its two calls then cost no memory.
    """

    eps: float = 5e-3
    stopped: bool = False

    def take(
        self, f: Callable[..., T], primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]
    ) -> tuple[T, T]:
        """Value and derivative; called by :func:`derivative`, which checks its arguments."""
        value = f(*primals)

        def moved(eps: float) -> T:
            return f(*(p if v is None else p + eps * v for p, v in zip(primals, tangents, strict=True)))

        live = torch.is_grad_enabled() and not self.stopped
        with torch.set_grad_enabled(live), torch.autocast(primals[0].device.type, enabled=False):
            ahead, behind = moved(self.eps), moved(-self.eps)
        tangent: T = tree_map(lambda a, b: (a - b) / (2.0 * self.eps), ahead, behind)
        return value, tangent


Derivative = Forward | TwoPass | FiniteDifference
"""The ways of taking a derivative."""

_FORWARD = Forward()


def derivative(
    f: Callable[..., T],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor | None, ...],
    how: Derivative = _FORWARD,
) -> tuple[T, T]:
    """f(primals) and its derivative along ``tangents``: (value, tangent), both shaped as f returns.

    Args:
        f: a function of tensors that returns a tensor or a nest of tensors (an ``Output``).
        primals: the point, one tensor an argument of f.
        tangents: the direction, each of its primal's shape and cast to its dtype; None stands for
            zeros and is free.
        how: the way it is taken.

    Raises:
        ValueError: the tangents do not match the primals.

    >>> value, tangent = derivative(torch.sin, (torch.zeros(2),), (torch.ones(2),))
    >>> value, tangent
    (tensor([0., 0.]), tensor([1., 1.]))
    """
    if len(primals) != len(tangents):
        raise ValueError(
            f"derivative: expected {len(primals)} tangents, one a primal, got {len(tangents)}; "
            "use None where the direction is zero"
        )
    cast = []
    for i, (p, v) in enumerate(zip(primals, tangents, strict=True)):
        if v is not None and v.shape != p.shape:
            raise ValueError(
                f"derivative: expected tangent {i} of shape {list(p.shape)}, got {list(v.shape)}; expand it"
            )
        cast.append(None if v is None else v.to(p.dtype))
    return how.take(f, primals, tuple(cast))
