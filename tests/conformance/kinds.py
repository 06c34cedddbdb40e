"""One method of each kind.

What costs seconds for a method and depends on its kind alone, not on its formula, CI asks of these;
``make test-all`` asks it of all. A formula is held against its truth in CI for every method: by its expected
gradient on a Gaussian and by a short training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["KINDS", "each", "of_a_kind"]

KINDS = {
    "lsd": "two terms, a derivative with a gradient",
    "mean_flow": "two terms, a stopped derivative",
    "scm": "another path, weights with a curriculum",
    "psd": "two legs",
    "improved_mean_flow": "a second head",
    "consistency_training": "a moving average, a finite step",
    "ctm": "a teacher's solver",
    "freeflow": "a critic",
    "progressive": "stages",
    "guidance_input": "guidance",
}
"""By what is peculiar to it."""


def of_a_kind(name: str) -> bool:
    """Whether CI asks it."""
    return name in KINDS


def each(names: Iterable[str]) -> list[Any]:
    """The names as parameters of a test, those of :data:`KINDS` in CI."""
    return [pytest.param(n, id=n, marks=() if of_a_kind(n) else pytest.mark.all) for n in names]
