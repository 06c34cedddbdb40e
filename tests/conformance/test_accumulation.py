"""Micro-batches change nothing: losses, norms of gradients and terms of every method are those of the batch.

In float64, over the first steps of each stage, with clipping; the batch is the least that gives every
micro-batch whole groups of rows. Where a loss takes a mean over the batch itself, documents say otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from kinds import each
from systems import Undecided, few
from test_resume import network, source, velocity
from torch import Tensor

from saltus.games import Stages, as_game
from saltus.methods import Need, discover
from saltus.training import AdamW, fit

METHODS = discover()
ROWS, PARTS, STEPS = 48, 3, 6
OVER_THE_BATCH = {"freeflow": {"factor": 0.5}}
"""Methods whose loss holds a mean over the batch, and what fixes it."""


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def played(name: str, accumulate: int, options: dict[str, object]) -> dict[str, Tensor]:
    """Loss, norm of the gradient and terms of every move."""
    method = METHODS[name]
    needs, taken = method.card.needs, inspect.signature(method.build).parameters
    student = network(0, ("v",) if Need.HEAD in needs else (), Need.LABELS in needs)
    options = options | ({"cells": 4} if "cells" in taken else {}) | few(method)
    others = {"critic": network(1), "discriminator": Undecided()}
    built = method.wired(student, teacher=velocity, **others, **options)
    steps = STEPS if isinstance(built, Stages) else 2
    run = fit(
        as_game(built, student),
        source,
        steps=steps,
        seed=5,
        batch=ROWS,
        optimizer=AdamW(0.01),
        clip=0.5,
        accumulate=accumulate,
    )
    return {f"{step.index}/{who}": moved.values for step in run for who, moved in step.moved.items()}


def difference(name: str, options: dict[str, object]) -> float:
    """The largest relative one."""
    whole, parts = (played(name, n, options) for n in (1, PARTS))
    assert whole.keys() == parts.keys() and all(whole[key].dtype == torch.float64 for key in whole)
    return max(float((whole[key] - parts[key]).abs().max() / whole[key].abs().max()) for key in whole)


@pytest.mark.parametrize("name", each(METHODS))
def test_micro_batches_are_the_batch(name: str) -> None:
    fixed = OVER_THE_BATCH.get(name, {})
    assert difference(name, dict(fixed)) < 1e-12
    if fixed:
        assert difference(name, {}) > 1e-3, "no exception any more: drop it here and in docs/scale.md"


@pytest.mark.parametrize("name", each(name for name, m in METHODS.items() if m.card.plain))
def test_micro_batches_are_the_batch_in_plain_form(name: str) -> None:
    assert difference(name, {**METHODS[name].card.plain, **OVER_THE_BATCH.get(name, {})}) < 1e-12


def test_groups_of_rows_are_not_divided() -> None:
    with pytest.raises(ValueError, match="groups of 16, got 24 rows"):
        played("tbcm", 2, {})
