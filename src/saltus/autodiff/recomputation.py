"""Activation checkpointing that is right inside a derivative: time for memory, block by block.

A block's activations are thrown away and computed again in the backward pass. Outside a derivative that
is PyTorch's non-reentrant checkpointing. Inside one, PyTorch's fails: the recomputation, which happens
when the derivative is over, has lost its directions. Here a block's arguments are split at its border
into values and directions, both of which are kept; the backward pass takes the block's value and
directional derivative again, together and by the same rules, from them. So what is kept of a block is
its arguments, (h, dh, ...), and gradients are those of the plain network: the same operations in the
same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

from saltus.autodiff.rules import Level, join, levels, split
from saltus.autodiff.ways import forward_mode

__all__ = ["Aside", "Beside", "recomputed"]


def _thread() -> int:
    """Who is asking. The tracer of torch.compile is alone."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class Aside:
    """A tensor that parts of a network read beside their arguments, set for the time of a call; kept like
    an argument where the part is recomputed. Each thread that calls the network has its own."""

    def __init__(self) -> None:
        self._values: dict[int, Tensor | None] = {}

    @property
    def value(self) -> Tensor | None:
        """None between calls."""
        return self._values.get(_thread())

    @contextmanager
    def holding(self, value: Tensor | None) -> Iterator[None]:
        """Within the context it has this value."""
        me = _thread()
        before = self._values.get(me)
        self._values[me] = value
        try:
            yield
        finally:
            if before is None:
                del self._values[me]
            else:
                self._values[me] = before


class Beside:
    """The mark of a module that reads an :class:`Aside`."""

    aside: Aside


def recomputed(backbone: nn.Module) -> None:
    """From now on the blocks of ``backbone`` recompute their activations in the backward pass.

    Names and values of parameters stay as they are, and so do losses and gradients, with or without a
    derivative, under autocast and in a compiled loss. Call it before a network is sharded: the weights of
    a block are then gathered once for its recomputation and its gradient together. Passes without gradient
    are unchanged. Inside a derivative of a derivative activations are kept. Dropout repeats itself.

    Args:
        backbone: a network of protocol :class:`saltus.typing.Backbone`; its ``blocks`` are changed in
            place, copies made of it later included.

    Raises:
        ValueError: for a network without blocks.

    >>> from saltus.nn import MLP
    >>> net = MLP((2,))
    >>> recomputed(net)
    >>> net(torch.ones(3, 2), torch.zeros(3), torch.ones(3)).u.shape
    torch.Size([3, 2])
    """
    try:
        blocks = backbone.blocks
    except AttributeError:
        blocks = None
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ValueError(
            f"recompute: expected a network with blocks (an nn.ModuleList), got {type(backbone).__name__} "
            "without; give it the attribute, or train without recomputation"
        )
    for block in blocks:
        if not isinstance(block, _Recomputed):
            block.__class__ = _recomputed(type(block))


class _Recomputed:
    """The mark of a block that recomputes."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {}


def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of blocks like ``kind`` that recompute. A class, unlike a hook or a function set on the
    block, is kept by copies and by sharding, which makes a class of its own of it."""

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        plain = partial(kind.forward, self)
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        return _recompute(plain, self, args, kwargs)

    if kind not in _KINDS:
        _KINDS[kind] = type(f"Recomputed{kind.__name__}", (_Recomputed, kind), {"forward": forward})
    return _KINDS[kind]


def _recompute(
    plain: Callable[..., Any], block: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Any:  # noqa: ANN401 - the block's own
    """``plain(*args, **kwargs)``, its activations recomputed in the backward pass."""
    open_ = levels()
    if len(open_) > 1:
        return plain(*args, **kwargs)
    level = open_[0] if open_ else None
    if torch.compiler.is_compiling():

        def traced(*args: object, **kwargs: object) -> object:  # the tracer forgets safe mode in here
            with level.rules() if level is not None else ExitStack():
                return plain(*args, **kwargs)

        return checkpoint(partial(traced, **kwargs), *args, use_reentrant=False)

    asides = list({id(m.aside): m.aside for m in block.modules() if isinstance(m, Beside)}.values())
    leaves, form = tree_flatten((args, kwargs, [aside.value for aside in asides]))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def again(*tensors: Tensor) -> Any:  # noqa: ANN401
        full = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            full[place] = tensor
        args, kwargs, values = tree_unflatten(full, form)
        with ExitStack() as held:
            for aside, value in zip(asides, values, strict=True):
                held.enter_context(aside.holding(value))
            return plain(*args, **kwargs)

    tensors = [leaves[place] for place in places]
    for place in places:
        leaves[place] = None  # or the function would keep what is moving alive
    if level is None:
        return checkpoint(again, *tensors, use_reentrant=False)
    return _dual(again, tensors, level)


def _dual(f: Callable[..., Any], tensors: list[Tensor], level: Level) -> Any:  # noqa: ANN401
    """f of tensors that move in the derivative ``level``, recomputed with their directions."""
    pairs = [split(x) for x in tensors]
    moving = [i for i, (_, dx) in enumerate(pairs) if dx is not None]

    def both(*flat: Tensor) -> tuple[Any, Any]:
        values, directions = flat[: len(pairs)], iter(flat[len(pairs) :])
        tangents = tuple(next(directions) if i in moving else None for i in range(len(pairs)))
        if levels() != (level,):  # in the backward pass
            return forward_mode(f, values, tangents, level.safe)
        found = f(*(x if dx is None else join(x, dx) for x, dx in zip(values, tangents, strict=True)))
        return tree_map(lambda y: split(y)[0], found), tree_map(lambda y: split(y)[1], found)

    kept = [x for x, _ in pairs] + [dx for _, dx in pairs if dx is not None]
    values, tangents = checkpoint(both, *kept, use_reentrant=False)
    return tree_map(lambda y, dy: y if dy is None else join(y, dy), values, tangents)
