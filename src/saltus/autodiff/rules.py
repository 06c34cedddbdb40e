"""Safe mode: the rules that replace PyTorch's own while a derivative is taken.

A backward pass through the forward-mode derivative of PyTorch's fused layer norm, instance norm, training
batch norm and gated linear unit is wrong or missing, silently for the norms (tens of percent of the
parameter gradient), and fused attention has no forward-mode rule at all. Within :class:`Primitive` these
calls are replaced by the same formulas in primitive operations (:mod:`saltus.primitives`), also inside
networks that are not ours. Linear layers, SiLU and arithmetic get rules of our own that give the same
numbers with less work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from saltus.primitives import FORMULAS
from saltus.tensors import upcast

__all__ = ["Level", "Primitive", "join", "levels", "split"]


def split(x: Tensor | float) -> tuple[Tensor | float, Tensor | None]:
    """A value and its derivative in the innermost :func:`derivative`, None if it does not move."""
    if not isinstance(x, Tensor):
        return x, None
    value, moved = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return value, moved


def join(value: Tensor, moved: Tensor) -> Tensor:
    joined: Tensor = forward_ad.make_dual(value, moved)  # type: ignore[no-untyped-call]
    return joined


def _product(a: Tensor | float, b: Tensor | float) -> Tensor:
    """a b where one factor does not move: the derivative is one product. PyTorch's own rule adds the
    other, with a symbolic zero, whose shape it works out in Python for a tenth of a millisecond."""
    (x, dx), (y, dy) = split(a), split(b)
    if torch.compiler.is_compiling() or (dx is None) == (dy is None):
        return torch.mul(a, b)  # type: ignore[arg-type]
    return join(torch.mul(x, y), torch.mul(x if dx is None else dx, y if dy is None else dy))  # type: ignore[arg-type]


def _sum(a: Tensor | float, b: Tensor | float, sign: float = 1.0) -> Tensor:
    """a + sign b where one summand does not move: the derivative is the other's."""
    (x, dx), (y, dy) = split(a), split(b)
    if torch.compiler.is_compiling() or (dx is None) == (dy is None):
        return a + b if sign > 0.0 else a - b  # type: ignore[return-value]
    value = x + y if sign > 0.0 else x - y
    assert isinstance(value, Tensor)
    moved = dx if dx is not None else dy if sign > 0.0 else -dy  # type: ignore[operator]
    assert moved is not None
    return join(value, moved.to(value.dtype).expand_as(value))


def _quotient(a: Tensor | float, b: Tensor | float) -> Tensor:
    """a / b where the divisor does not move."""
    (x, dx), (y, dy) = split(a), split(b)
    if torch.compiler.is_compiling() or dx is None or dy is not None:
        return torch.div(a, b)  # type: ignore[arg-type]
    return join(torch.div(x, y), torch.div(dx, y))  # type: ignore[arg-type]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b with the derivative W dx: two products of matrices, where PyTorch's own rule makes a third
    with the zero derivative of W."""
    if torch.compiler.is_compiling():
        return F.linear(input, weight, bias)
    x, dx = split(input)
    others = [weight] if bias is None else [weight, bias]
    if dx is None or any(split(p)[1] is not None for p in others):
        return F.linear(input, weight, bias)
    assert isinstance(x, Tensor)
    return join(F.linear(x, weight, bias), F.linear(dx, weight))


def _silu(input: Tensor, inplace: bool = False) -> Tensor:
    """y = x g, g = sigmoid(x), with the derivative (g + y (1 - g)) dx, which takes half the passes over
    memory of PyTorch's own rule and of the backward pass through it."""
    x, dx = split(input)
    if torch.compiler.is_compiling() or dx is None:
        return F.silu(input)
    assert isinstance(x, Tensor)
    wide = upcast(x)  # the fused function works in float32 inside, too
    gate = torch.sigmoid(wide)
    y = wide * gate
    return join(y.to(x.dtype), (dx * (gate + y * (1.0 - gate))).to(x.dtype))


def _difference(a: Tensor | float, b: Tensor | float) -> Tensor:
    return _sum(a, b, sign=-1.0)


_SAFE: dict[Callable[..., Any], Callable[..., Any]] = {**FORMULAS, F.linear: _linear, F.silu: _silu}
_ARITHMETIC: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _product),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _sum),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), _difference),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), _quotient),
    Tensor.__rsub__: lambda a, b: _difference(b, a),
}


class Primitive(TorchFunctionMode):
    """Safe mode: within it the functions above run as primitive formulas. Being a mode, it also
    keeps ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` off their fused fast paths."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is Tensor.unflatten:  # torch.compile traces the function under a mode, not the method
            func = torch.unflatten
        # With out=, alpha= and their like PyTorch's rules apply; and the tracer of torch.compile takes some
        # of these functions for others, and then fails at its own guards.
        if not kwargs and not torch.compiler.is_compiling() and func in _ARITHMETIC:
            return _ARITHMETIC[func](*args)
        return _SAFE.get(func, func)(*args, **(kwargs or {}))


class _Open(threading.local):
    """The derivatives that a thread is in, the innermost last; the backward pass has threads of its own."""

    def __init__(self) -> None:
        self.levels: tuple[Level, ...] = ()


_OPEN = _Open()


class Level:
    """A forward-mode derivative while it is taken.

    Args:
        safe: whether safe mode is on.
    """

    def __init__(self, safe: bool) -> None:
        self.safe = safe
        self._rules = self.rules()

    def rules(self) -> AbstractContextManager[object]:
        """The mode that its functions run in."""
        return Primitive() if self.safe else nullcontext()

    def __enter__(self) -> None:
        _OPEN.levels = (*_OPEN.levels, self)
        self._rules.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rules.__exit__(kind, error, trace)
        _OPEN.levels = _OPEN.levels[:-1]


def levels() -> tuple[Level, ...]:
    """The derivatives in progress, the innermost last."""
    return _OPEN.levels
