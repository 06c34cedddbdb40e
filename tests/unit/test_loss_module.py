"""The loss of a move as a module: what it owns, how it reduces, what it computes in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from saltus.games import Move, as_game
from saltus.streams import Streams
from saltus.training import (
    LossModule,
    Precision,
    fit,
    initialised,
)
from saltus.typing import Batch, Draws, Term


def sgd(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def source(rng: Streams) -> Batch:
    return Batch(rng.normal("x0", 3))


def linear(dtype: torch.dtype = torch.float64) -> nn.Linear:
    return initialised(3, lambda: nn.Linear(3, 1, bias=False, dtype=dtype))


def test_loss_module_owns_the_mover_only() -> None:
    net, critic = linear(), linear()

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.critic = critic

        def draw(self, batch: Batch, rng: Streams) -> Draws:
            return {}

        def forward(self, batch: Batch, draws: Draws) -> dict[str, Term]:
            return {}

    module = LossModule(Move("student", net, Owner()))
    assert [id(p) for p in module.parameters()] == [id(net.weight)]
    assert list(module.state_dict()) == ["mover.weight"]
    with pytest.raises(ValueError, match="at least one term"):
        module(Batch(torch.zeros(1, 3)), {})


def test_terms_are_rows() -> None:
    @dataclass(frozen=True, eq=False)
    class Shaped:
        student: nn.Module
        rows: slice

        def draw(self, batch: Batch, rng: Streams) -> Draws:
            return {}

        def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
            value = self.student(batch.x0)
            return {"main": Term(value[:, 0] ** 2), "part": Term(value[self.rows].squeeze(1))}

    net = linear()
    step = next(fit(as_game(Shaped(net, slice(0, 0)), net), source, steps=1, seed=0, batch=4))
    assert float(step.terms["part"]) == 0.0 and math.isfinite(float(step.loss))  # no rows, no NaN
    matrix = nn.Linear(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"term 'part'.*\[n\].*\[4, 2\]"):
        next(fit(as_game(Shaped(matrix, slice(None)), matrix), source, steps=1, seed=0, batch=4))


def test_bf16_is_confined_to_the_products() -> None:
    seen: list[torch.dtype] = []

    @dataclass(frozen=True, eq=False)
    class Watched:
        student: nn.Module

        def draw(self, batch: Batch, rng: Streams) -> Draws:
            return {}

        def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
            with torch.no_grad():  # a cast weight remembered from here must not cut the gradient
                self.student(batch.x0)
            y = self.student(batch.x0)
            seen.append(y.dtype)
            return {"y": Term(y.squeeze(1))}

    for dtype, precision, expected in (
        (torch.float32, Precision.BF16, torch.bfloat16),
        (torch.float32, Precision.FLOAT32, torch.float32),
        (torch.float32, Precision.AUTO, torch.float32),  # too narrow to pay on a CPU
        (torch.float64, Precision.BF16, torch.float64),
    ):
        net = linear(dtype)
        options = {"optimizer": sgd(0.1), "precision": precision}
        before = net.weight.detach().clone()
        steps = fit(as_game(Watched(net), net), source, steps=1, seed=0, batch=4, **options)  # type: ignore[arg-type]
        step = next(steps)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert seen[-1] == expected and step.loss.dtype == net.weight.dtype == wide
        x = source(Streams(0, 0, torch.arange(4), dtype=wide).named("data")).x0
        error = (before - 0.1 * x.mean(0) - net.weight.detach()).abs().max()
        assert float(error) < (1e-3 if expected is torch.bfloat16 else 1e-6)


def test_auto_precision_looks_at_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = nn.Linear(128, 128), nn.Linear(128, 127)
    for native in (True, False):
        monkeypatch.setattr("saltus.training.precision.has_bf16", lambda device, native=native: native)
        assert Precision.AUTO.resolve(wide) is (Precision.BF16 if native else Precision.FLOAT32)
        assert Precision.AUTO.resolve(narrow) is Precision.FLOAT32
        assert Precision.BF16.resolve(narrow) is Precision.BF16
        assert Precision.AUTO.resolve(wide.double()) is Precision.FLOAT32
        wide.float()
    with pytest.raises(ValueError, match="resolve"):
        Precision.AUTO.context(torch.device("cpu"))
