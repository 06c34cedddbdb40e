"""What is asked of a run's map, by a command or on a page, and the answers from one noise at every number of
steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from saltus.recipes.foreign import said_to
from saltus.recipes.opened import Finished
from saltus.recipes.sampling import check_steps
from saltus.typing import Condition

__all__ = ["Answer", "Wish", "answers"]


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        steps: of the sampler; several start at the same noise.
        n: samples for each number of steps.
        seed: sample i is a function of the seed, i and what else is asked for.
        label: the class of all samples; None is one after another.
        prompt: the text of all samples, in place of a label.
        w: the strength of guidance.
    """

    steps: tuple[int, ...]
    n: int
    seed: int = 0
    label: int | None = None
    prompt: str | None = None
    w: float | None = None

    def check(self, done: Finished) -> None:
        """Raise a ValueError for steps and strengths that mean nothing to the map."""
        if not self.steps:
            raise ValueError("steps: expected at least one number of steps, got none; choose 1 and 4, say")
        for k in self.steps:
            check_steps(done.card, done.method.name, k)
        done.check_strength(self.w)

    def guess(self, done: Finished) -> str:
        """A line if the strength of guidance was not learned, else nothing."""
        high = math.inf if done.guidance is None else done.guidance
        if self.w is None or 1.0 <= self.w <= high:
            return ""
        learned = "from 1 on" if math.isinf(high) else f"from 1 to {high:g}"
        return f"w {self.w:g}: {done.name} learned strengths {learned}; this is a guess"


@dataclass(frozen=True, eq=False)
class Answer:
    """Samples x [n, ...] on the CPU by a number of steps, and the time that the sampler took."""

    steps: int
    x: Tensor
    seconds: float


@lru_cache(maxsize=8)
def _text(done: Finished, prompt: str, label: int | None) -> Condition:
    return said_to(done, prompt, label)


def answers(done: Finished, wish: Wish, warm: bool = True) -> Iterator[Answer]:
    """Samples for each number of steps in turn, all from the same noise.

    Args:
        done: the map.
        wish: what is asked of it.
        warm: False draws once and forgets it, so that what a first call costs is in no time.

    Raises:
        ValueError: for what the map cannot be asked.
    """
    wish.check(done)
    given = None if wish.prompt is None else _text(done, wish.prompt, wish.label)

    def draw(k: int) -> Tensor:
        return done.sample(wish.n, k, wish.seed, wish.label, wish.w, given).cpu()

    if not warm:
        draw(min(wish.steps))
    for k in wish.steps:
        start = time.perf_counter()
        x = draw(k)
        yield Answer(k, x, time.perf_counter() - start)
