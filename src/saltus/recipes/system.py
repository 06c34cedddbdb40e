"""What a recipe learns from, and how samples of it are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from saltus.streams import Streams
from saltus.typing import Batch, Condition

__all__ = ["Drawn", "Judge", "System"]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples with what they were drawn from.

    Attributes:
        x0: the noise, [n, ...].
        x: the samples, [n, ...].
        label: the classes asked for, int64 [n], or None.
    """

    x0: Tensor
    x: Tensor
    label: Tensor | None = None


class Judge(Protocol):
    """Figures of samples, by name."""

    @property
    def count(self) -> int:
        """How many samples a judgement takes."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """The classes to ask for, int64 [count], or None."""
        ...

    def __call__(self, drawn: Drawn) -> dict[str, float]: ...

    def real(self) -> dict[str, float]:
        """The same figures for fresh data in place of samples: what perfection scores."""
        ...


@dataclass(frozen=True, eq=False)
class System:
    """A thing to learn.

    Attributes:
        name: of the recipe.
        shape: of one sample.
        sigma_data: the standard deviation of the data.
        classes: number of labels, or None.
        source: streams -> batch, for training.
        judge: makes the judge when it is needed (it may have to prepare).
    """

    name: str
    shape: tuple[int, ...]
    sigma_data: float
    classes: int | None
    source: Callable[[Streams], Batch]
    judge: Callable[[], Judge]


def asked(label: Tensor | None, w: Tensor | None = None) -> Condition | None:
    """The condition that asks for labels [n] at guidance strengths w [n]."""
    return None if label is None else Condition(label=label, w=w)
