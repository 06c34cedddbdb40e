"""Samples as a page shows them: one picture for each number of steps, a sample in the same place in all."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from saltus.plots import check_matplotlib, scatter, tiles
from saltus.recipes.decoded import Decoder
from saltus.recipes.named import names_of
from saltus.recipes.opened import Finished
from saltus.recipes.portraits import reach_of
from saltus.recipes.prompts import Prompts
from saltus.recipes.wishes import Answer, Wish, answers

__all__ = ["Easel", "Panel"]


@dataclass(frozen=True, eq=False)
class Panel:
    """What was drawn at a number of steps, and its picture."""

    answer: Answer
    picture: Image.Image


@dataclass(frozen=True, eq=False)
class Easel:
    """Where samples of a run are drawn.

    Attributes:
        done: the map.
        decode: makes pictures of its samples, if they are latents.
        prompts: the texts that its labels stand for, if they do.
    """

    done: Finished
    decode: Decoder | None = None
    prompts: Prompts | None = None
    _warm: set[int] = field(default_factory=set)

    @property
    def planar(self) -> bool:
        """Whether samples are points in the plane."""
        return self.done.shape == (2,)

    def check(self) -> None:
        """Raise a ValueError for samples that no picture shows."""
        shape = self.done.shape
        if self.planar:
            check_matplotlib()
        elif len(shape) != 3 or self.decode is None and shape[0] not in (1, 3):
            raise ValueError(
                f"{self.done.name}: expected samples that are pictures or points in the plane, got "
                f"{list(shape)}; saltus sample --out FILE.npy draws any"
            )

    def names(self) -> Sequence[str]:
        """What the classes are called, or the texts that they stand for; nothing without classes."""
        if self.prompts is not None:
            return self.prompts.texts
        return names_of(self.done.meta, self.done.spec.classes or 0)

    def draw(self, wish: Wish) -> Iterator[list[Panel]]:
        """What there is after each number of steps; of points when all are there, for they share a scale.

        Times are without what the first call of a size costs, and without the decoder's.

        Raises:
            ValueError: for what the map cannot be asked, and for samples that are not finite.
        """
        panels: list[Panel] = []
        found: list[Answer] = []
        for answer in answers(self.done, wish, warm=wish.n in self._warm):
            self._warm.add(wish.n)
            if not answer.x.isfinite().all():
                raise ValueError(
                    f"samples at {answer.steps} steps: expected finite ones, got some that are not; the "
                    "training has diverged, or the strength of guidance is too large"
                )
            found.append(answer)
            if not self.planar:
                panels.append(Panel(answer, self._tiled(answer.x)))
                yield list(panels)
        if self.planar:
            reach = reach_of(torch.cat([answer.x for answer in found]))
            yield [Panel(answer, _plotted(answer.x, reach)) for answer in found]

    def _tiled(self, x: Tensor) -> Image.Image:
        where = next(self.done.model.parameters()).device
        seen = x if self.decode is None else self.decode(x.to(where))
        return tiles(seen, columns=math.ceil(len(x) ** 0.5))


def _plotted(x: Tensor, reach: float) -> Image.Image:
    """Points [n, 2] on a square around 0."""
    file = io.BytesIO()
    scatter({"": x}, reach, file)
    return Image.open(file).convert("RGB")
