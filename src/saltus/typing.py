"""The words that the rest of the library is written in.

Time runs from noise to data: t = 0 is the prior, t = 1 is the data, and s <= t. Every time is a
tensor of shape [B] in float32 or float64; :func:`saltus.tensors.like` is the only broadcast.

Shape names used in every docstring: B rows of a batch, ``...`` the shape of one sample, n the rows
of a loss term, K components of a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from saltus.streams import Streams

__all__ = [
    "Backbone",
    "Batch",
    "Condition",
    "Draws",
    "FlowMap",
    "Gradient",
    "Objective",
    "Output",
    "Schedule",
    "Term",
    "Velocity",
]

Draws = dict[str, "Tensor | Draws"]
"""Everything random in a loss: times, noises, masks and row splits, by name (nested in a sum)."""

Schedule = Callable[[Tensor], Tensor]
"""A number that changes with progress: 0-d tensor in [0, 1] -> 0-d tensor."""


@dataclass(frozen=True)
class Condition:
    """What a sample is conditioned on. Every field has the batch as its first axis.

    Attributes:
        label: class labels, int64 [B].
        w: guidance strength as an input of the network, [B]; w = 1 means no guidance.
        interval: the times (start, end) between which guidance applies, [B, 2].
        null: rows whose condition is dropped, bool [B]. The backbone owns the null embedding.
        tokens: a sequence of embeddings, of a text say, [B, L, D].
        mask: which of the tokens count, bool [B, L]; None is all.
        pooled: one embedding of the whole sequence, [B, P], for networks that take it beside the tokens.
    """

    label: Tensor | None = None
    w: Tensor | None = None
    interval: Tensor | None = None
    null: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None

    @property
    def given(self) -> Tensor | None:
        """What says that there is something to drop: the labels, or else the tokens; None if neither."""
        return self.tokens if self.label is None else self.label

    def nulled(self) -> Condition:
        """The same condition with every label and text dropped (the unconditional branch of guidance)."""
        given = self.given
        if given is None:
            return self
        return replace(self, null=torch.ones(len(given), dtype=torch.bool, device=given.device))

    def drop(self, rows: Tensor) -> Condition:
        """Drop the labels and texts of ``rows`` (bool [B]) in addition to those dropped already."""
        return replace(self, null=rows if self.null is None else self.null | rows)

    def rows(self, index: Tensor) -> Condition:
        """The condition of some rows; ``index`` is int64 [n] or bool [B]."""
        return self.each(lambda value: value[index])

    def to(self, device: torch.device) -> Condition:
        """The same condition on another device."""
        return self.each(lambda value: value.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same with every tensor in it changed."""

        def of(value: Tensor | None) -> Tensor | None:
            return None if value is None else change(value)

        return Condition(
            label=of(self.label),
            w=of(self.w),
            interval=of(self.interval),
            null=of(self.null),
            tokens=of(self.tokens),
            mask=of(self.mask),
            pooled=of(self.pooled),
        )


class Output(NamedTuple):
    """What a backbone returns: the main output u [B, ...] and named second heads of its shape."""

    u: Tensor
    heads: Mapping[str, Tensor]


@runtime_checkable
class Velocity(Protocol):
    """b_t(x): x [B, ...], t [B] -> [B, ...]. A teacher is a Velocity; so is an exact system."""

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor: ...


@runtime_checkable
class FlowMap(Protocol):
    """X_{s,t}(x) = x + (t - s) u_{s,t}(x), with u the average velocity and u_{t,t} = b_t."""

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """X_{s,t}(x): x [B, ...], s and t [B] -> [B, ...]."""
        ...

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{s,t}(x), smooth at s = t. The primitive: nobody divides by t - s."""
        ...

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{t,t}(x), the instantaneous velocity."""
        ...

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) together with the second heads that the same network call computed."""
        ...


class Backbone(Protocol):
    """A network with two time inputs, any real numbers: the raw material of a flow map.

    ``forward`` returns an :class:`Output`; ``blocks`` are the parts to shard and compile.
    """

    blocks: torch.nn.ModuleList

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output: ...


class Gradient(Enum):
    """How far the gradient of a trajectory loss reaches.

    TARGET: everything but u_{s,t}(x_s) is stopped: regression on a constant.
    TIME: through u and its derivative in time; the velocity it is compared with, and any transport by
        a spatial Jacobian, are stopped (Lagrangian self-distillation's default).
    DERIVATIVE: through u and its whole derivative; only the velocity is stopped.
    FULL: nothing is stopped.
    """

    TARGET = "target"
    TIME = "time"
    DERIVATIVE = "derivative"
    FULL = "full"


@dataclass(frozen=True)
class Term:
    """One summand of a loss: ``weight * mean(value)``.

    Attributes:
        value: one number a row, or a group of rows, [n], in float32 or float64.
        weight: a number or a 0-d tensor.
        slope: gives the norm of each row's gradient of the value in the error, [n], as constants; asked
            for by sums that balance their parts. None where there is no such error.
        part: the names that lead to its draws within those of a sum, outermost first.
    """

    value: Tensor
    weight: float | Tensor = 1.0
    slope: Callable[[], Tensor] | None = None
    part: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """What an objective sees of one step.

    Attributes:
        x0: samples of the prior, [B, ...].
        x1: samples of the data, [B, ...]; None is data-free training.
        cond: what the samples are conditioned on.
        progress: how much of the run is over, a 0-d tensor in [0, 1].
        mean: the mean over the global batch, for the few weights that need one; without gradient, and
            where micro-batches are accumulated over the processes' present ones.
    """

    x0: Tensor
    x1: Tensor | None = None
    cond: Condition | None = None
    progress: Tensor = field(default_factory=lambda: torch.zeros(()))
    mean: Callable[[Tensor], Tensor] = torch.mean

    def rows(self, index: Tensor) -> Batch:
        """Some rows of the batch; ``index`` is int64 [n]."""
        return replace(
            self,
            x0=self.x0[index],
            x1=None if self.x1 is None else self.x1[index],
            cond=None if self.cond is None else self.cond.rows(index),
        )

    def data(self) -> Tensor:
        """x1, or a ValueError that says that this objective needs data."""
        if self.x1 is None:
            raise ValueError(
                "this objective learns from data, but the batch has x1=None (data-free); "
                "give the run a data set or choose a method whose card does not need data"
            )
        return self.x1


@runtime_checkable
class Objective(Protocol):
    """A loss as a pure function of tensors. It owns no parameters and never logs, steps or syncs."""

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """Everything random, drawn eagerly: times, noises, masks, row splits."""
        ...

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The terms of the loss; deterministic in its arguments, so that it compiles."""
        ...
