"""Derivatives of networks along a direction: the only place that uses forward-mode differentiation.

:func:`derivative` returns f(p) and its directional derivative d/de f(p + e v) at e = 0 in one of
three ways, which are values, not strings:

- :class:`Forward`: one forward-mode pass. Value and derivative both carry gradient to the
  parameters ("reverse over forward"), as Lagrangian self-distillation needs.
- :class:`TwoPass`: the derivative is a constant, the value comes from a second, plain pass. For
  objectives that stop the gradient of the derivative; saves the memory of its graph, and the plain
  pass may use fused attention.
- :class:`FiniteDifference`: central differences, for networks without forward-mode rules.

Forward mode runs in a **safe mode** (:mod:`saltus.autodiff.rules`), without which the gradient through
the derivative of some layers is wrong.

Compile the whole loss, with the derivative inside it, by :func:`compiled`; differentiating a compiled
network is not supported. PyTorch's activation checkpointing fails inside a derivative; :func:`recomputed`
is one that works there.
"""

from saltus.autodiff.compilation import compiled
from saltus.autodiff.recomputation import Aside, Beside, recomputed
from saltus.autodiff.ways import Derivative, FiniteDifference, Forward, TwoPass, derivative

__all__ = [
    "Aside",
    "Beside",
    "Derivative",
    "FiniteDifference",
    "Forward",
    "TwoPass",
    "compiled",
    "derivative",
    "recomputed",
]
