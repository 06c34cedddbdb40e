"""Derivatives of networks along a direction: the only place that uses forward-mode differentiation.

:func:`derivative` returns f(p) and its directional derivative d/de f(p + e v) at e = 0 in one of
three ways, which are values, not strings:

- :class:`Forward`: one forward-mode pass. Value and derivative both carry gradient to the
  parameters ("reverse over forward"), as Lagrangian self-distillation needs.
- :class:`TwoPass`: the derivative is a constant, the value comes from a second, plain pass. For
  objectives that stop the gradient of the derivative; saves the memory of its graph, and the plain
  pass may use fused attention.
- :class:`FiniteDifference`: central differences, for networks without forward-mode rules.

**Safe mode.** A backward pass through the forward-mode derivative of PyTorch's fused layer norm,
instance norm, training batch norm and gated linear unit is wrong or missing, silently for the norms
(tens of percent of the parameter gradient), and fused attention has no forward-mode rule at all.
While a derivative is taken in safe mode, these calls are replaced by the same formulas in primitive
operations (:mod:`saltus.primitives`), also inside networks that are not ours. Linear layers and SiLU
get rules of our own that give the same numbers with less work.

Compile the whole loss, with the derivative inside it, by :func:`compiled`; differentiating a compiled
network is not supported. Activation checkpointing works around a derivative, not inside it.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from saltus.primitives import FORMULAS
from saltus.tensors import upcast

__all__ = ["Derivative", "FiniteDifference", "Forward", "TwoPass", "compiled", "derivative"]

T = TypeVar("T")
_RULES = "torch._decomp.decompositions_for_jvp"  # forward-mode rules that PyTorch loads at first use


def _split(x: Tensor | float) -> tuple[Tensor | float, Tensor | None]:
    """A value and its derivative in the innermost :func:`derivative`, None if it does not move."""
    if not isinstance(x, Tensor):
        return x, None
    value, moved = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return value, moved


def _join(value: Tensor, moved: Tensor) -> Tensor:
    joined: Tensor = forward_ad.make_dual(value, moved)  # type: ignore[no-untyped-call]
    return joined


def _product(a: Tensor | float, b: Tensor | float) -> Tensor:
    """a b where one factor does not move: the derivative is one product. PyTorch's own rule adds the
    other, with a symbolic zero, whose shape it works out in Python for a tenth of a millisecond."""
    (x, dx), (y, dy) = _split(a), _split(b)
    if torch.compiler.is_compiling() or (dx is None) == (dy is None):
        return torch.mul(a, b)  # type: ignore[arg-type]
    return _join(torch.mul(x, y), torch.mul(x if dx is None else dx, y if dy is None else dy))  # type: ignore[arg-type]


def _sum(a: Tensor | float, b: Tensor | float, sign: float = 1.0) -> Tensor:
    """a + sign b where one summand does not move: the derivative is the other's."""
    (x, dx), (y, dy) = _split(a), _split(b)
    if torch.compiler.is_compiling() or (dx is None) == (dy is None):
        return a + b if sign > 0.0 else a - b  # type: ignore[return-value]
    value = x + y if sign > 0.0 else x - y
    assert isinstance(value, Tensor)
    moved = dx if dx is not None else dy if sign > 0.0 else -dy  # type: ignore[operator]
    assert moved is not None
    return _join(value, moved.to(value.dtype).expand_as(value))


def _quotient(a: Tensor | float, b: Tensor | float) -> Tensor:
    """a / b where the divisor does not move."""
    (x, dx), (y, dy) = _split(a), _split(b)
    if torch.compiler.is_compiling() or dx is None or dy is not None:
        return torch.div(a, b)  # type: ignore[arg-type]
    return _join(torch.div(x, y), torch.div(dx, y))  # type: ignore[arg-type]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b with the derivative W dx: two products of matrices, where PyTorch's own rule makes a third
    with the zero derivative of W."""
    if torch.compiler.is_compiling():
        return F.linear(input, weight, bias)
    x, dx = _split(input)
    others = [weight] if bias is None else [weight, bias]
    if dx is None or any(_split(p)[1] is not None for p in others):
        return F.linear(input, weight, bias)
    assert isinstance(x, Tensor)
    return _join(F.linear(x, weight, bias), F.linear(dx, weight))


def _silu(input: Tensor, inplace: bool = False) -> Tensor:
    """y = x g, g = sigmoid(x), with the derivative (g + y (1 - g)) dx, which takes half the passes over
    memory of PyTorch's own rule and of the backward pass through it."""
    x, dx = _split(input)
    if torch.compiler.is_compiling() or dx is None:
        return F.silu(input)
    assert isinstance(x, Tensor)
    wide = upcast(x)  # the fused function works in float32 inside, too
    gate = torch.sigmoid(wide)
    y = wide * gate
    return _join(y.to(x.dtype), (dx * (gate + y * (1.0 - gate))).to(x.dtype))


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


class _Primitive(TorchFunctionMode):
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
        if not kwargs and func in _ARITHMETIC:  # with out=, alpha= and their like PyTorch's rules apply
            return _ARITHMETIC[func](*args)
        return _SAFE.get(func, func)(*args, **(kwargs or {}))


@cache
def _quietly(module: str) -> Any:  # noqa: ANN401
    """A part of PyTorch that calls what PyTorch has deprecated when it is first imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(module)


def _jvp(
    f: Callable[..., T], primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], safe: bool
) -> tuple[T, T]:
    """Forward mode; a primal whose tangent is None is a constant and costs nothing."""
    moving = [i for i, v in enumerate(tangents) if v is not None]

    def g(*moved: Tensor) -> T:
        full = list(primals)
        for i, p in zip(moving, moved, strict=True):
            full[i] = p
        with _Primitive() if safe else nullcontext():
            return f(*full)

    if not moving:
        value = g()
        return value, tree_map(torch.zeros_like, value)
    directions = tuple(v for v in tangents if v is not None)
    if not torch.compiler.is_compiling():
        _quietly(_RULES)
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
        return _jvp(f, primals, tangents, self.safe)


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
            _, tangent = _jvp(f, primals, tangents, self.safe)
        value = f(*primals)
        return value, tree_map(lambda v, y: v.to(y.dtype), tangent, value)


@dataclass(frozen=True)
class FiniteDifference:
    """(f(p + eps v) - f(p - eps v)) / (2 eps), with gradient, three calls in all.

    Autocast is off while the difference is taken: at eps = 5e-3 its relative error is about 2e-5 in
    float32, but 3 to 30 % in bfloat16. Networks must be deterministic (no active dropout).

    Attributes:
        eps: the step, in units of the tangent.
    """

    eps: float = 5e-3

    def take(
        self, f: Callable[..., T], primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]
    ) -> tuple[T, T]:
        """Value and derivative; called by :func:`derivative`, which checks its arguments."""
        value = f(*primals)

        def moved(eps: float) -> T:
            return f(*(p if v is None else p + eps * v for p, v in zip(primals, tangents, strict=True)))

        with torch.autocast(primals[0].device.type, enabled=False):
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


def _zeros(
    size: list[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Tensor:
    return torch.full(size, 0, dtype=dtype, device=device)


def _inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Inductor that materialises the symbolic zeros which forward mode leaves in the graph; without
    this it stops at "ZeroTensors are immutable" (PyTorch 2.11 to 2.13)."""
    table = _quietly("torch._inductor.decomposition").select_decomp_table()
    table = {**table, torch.ops.aten._efficientzerotensor.default: _zeros}
    result: Callable[..., Any] = _quietly("torch._inductor.compile_fx").compile_fx(
        graph, inputs, decompositions=table
    )
    return result


def compiled(module: nn.Module, backend: str | None = None) -> nn.Module:
    """``module``, whose forward is a whole loss with its derivatives, compiled as one graph.

    Args:
        module: the loss; parameters are shared with the result.
        backend: None is inductor with the work-around for derivatives; a name as ``torch.compile``
            takes it otherwise ("aot_eager" checks the graph without a compiler).

    >>> from torch import nn
    >>> compiled(nn.Linear(1, 1), backend="aot_eager")(torch.zeros(2, 1)).shape
    torch.Size([2, 1])
    """
    _quietly(_RULES)
    result: Any = torch.compile(module, backend=backend or _inductor, fullgraph=True)
    wrapped: nn.Module = result
    return wrapped
