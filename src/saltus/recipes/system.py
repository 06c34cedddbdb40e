"""What a recipe learns from, and how samples of it are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from saltus.recipes.gallery import Gallery
from saltus.streams import Streams
from saltus.typing import Batch, Condition, Velocity

__all__ = ["MAP_ERROR", "Drawn", "Judge", "System"]


MAP_ERROR = "map RMSE"
"""The figure that compares a sample with where the exact map sends its noise."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples with what they were drawn from.

    Attributes:
        x0: the noise, [n, ...].
        x: the samples, [n, ...].
        label: the classes asked for, int64 [n], or None.
        w: the strength of guidance asked for, or None.
    """

    x0: Tensor
    x: Tensor
    label: Tensor | None = None
    w: float | None = None


@dataclass(frozen=True, eq=False)
class Judge:
    """How samples are judged.

    Attributes:
        count: how many samples a judgement takes.
        labels: the classes to ask for, int64 [count], or None.
        figures: of samples, by name. By the first one, of which less is better, weights are told apart.
        real: the same figures for fresh data in place of samples: what perfection scores.
        counts: the step counts of its table, where the method's card allows them.
        published: figures in print, by step count.
        batch: samples drawn at a time; None draws all at once.
        note: the protocol of the figures: what two of them must have in common to be compared.
    """

    count: int
    labels: Tensor | None
    figures: Callable[[Drawn], dict[str, float]]
    real: Callable[[], dict[str, float]]
    counts: tuple[int, ...] = (1, 2, 4, 8)
    published: Mapping[int, dict[str, float]] = field(default_factory=dict)
    batch: int | None = None
    note: str = ""


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
        velocity: the exact velocity on the linear interpolant, where it is known: a teacher.
        gallery: the real images, for judges that look at features; None, or what makes None, where there are
            none.
        decode: samples to pictures [n, 1 or 3, H, W], where samples are not pictures themselves (latents).
        meta: what the weights file says besides, for whoever has nothing else: plain data.
        digests: of the files that it is made of, by what they are to a run.
    """

    name: str
    shape: tuple[int, ...]
    sigma_data: float
    classes: int | None
    source: Callable[[Streams], Batch]
    judge: Callable[[], Judge]
    velocity: Velocity | None = None
    gallery: Callable[[], Gallery | None] | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    meta: Mapping[str, object] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def seen(self, x: Tensor) -> Tensor:
        """Samples as they are looked at: decoded where they are latents."""
        return x if self.decode is None else self.decode(x)


def asked(label: Tensor | None, w: Tensor | None = None) -> Condition | None:
    """The condition that asks for labels [n] at guidance strengths w [n]."""
    return None if label is None else Condition(label=label, w=w)
