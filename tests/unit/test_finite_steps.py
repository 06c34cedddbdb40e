"""Finite steps below the resolution of float32 times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saltus.games import as_game
from saltus.maps import AverageVelocity
from saltus.methods import load
from saltus.nn import MLP
from saltus.objectives import Eulerian, Lagrangian
from saltus.streams import Streams
from saltus.times import Constant, Fraction, resolved
from saltus.training import Precision, initialised
from saltus.typing import Batch, Draws, Gradient, Objective

ROWS = 8


def student() -> AverageVelocity:
    net = AverageVelocity(MLP((2,), width=16, depth=2))
    for k, p in enumerate(net.parameters()):
        torch.nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(k))
    return net


def drawn(objective: Objective, s: Tensor, t: Tensor) -> tuple[Batch, Draws]:
    rng = Streams(0, index=torch.arange(len(s)))
    batch = Batch(rng.normal("x0", 2), rng.normal("x1", 2), progress=torch.tensor(0.97))
    with torch.no_grad():
        draws = objective.draw(batch, rng)
    jump = draws["eulerian"] if "eulerian" in draws else draws
    assert isinstance(jump, dict)
    jump = jump.get("of", jump)
    assert isinstance(jump, dict)
    rows = len(jump["s"])
    jump["s"], jump["t"] = s[:rows], t[:rows]
    return batch, draws


@pytest.mark.parametrize("name", ["alpha_flow", "ect", "consistency_training"])
def test_rows_without_a_step_say_nothing(name: str) -> None:
    """Ordered draws of a pair law may be equal in float32, and a time may round to 1: no 0/0 follows."""
    net = initialised(0, student)
    (move,) = as_game(load(name).build(net), net).moves
    s = torch.ones(ROWS) if name != "alpha_flow" else torch.linspace(0.1, 0.9, ROWS)
    batch, draws = drawn(move.objective, s, s)
    value = move.objective(batch, draws)["eulerian"].value
    assert bool(torch.isfinite(value).all()) and float(value.detach().abs().max()) < 1e-6
    for slope in torch.autograd.grad(value.sum(), tuple(net.parameters())):
        assert bool((slope == 0).all())


@pytest.mark.parametrize(
    "objective",
    [
        lambda net: Eulerian(net, step=Fraction(lambda p: 0.005 + 0 * p)),
        lambda net: Lagrangian(net, step=Constant(1e-9), gradient=Gradient.TARGET),
    ],
    ids=["eulerian", "lagrangian"],
)
def test_steps_that_rounding_swallows_are_left_out(objective: object) -> None:
    """At d = 5e-9 near s = 1/2 the state does not move, and (x_m - x)/d would be 0 in place of a velocity."""
    assert callable(objective)
    loss = objective(initialised(0, student))
    s = torch.linspace(0.5, 0.6, ROWS)
    batch, draws = drawn(loss, s, s + 1e-6)
    (term,) = loss(batch, draws).values()
    assert bool((term.value == 0).all())


@pytest.mark.parametrize("name", ["alpha_flow", "ect", "consistency_training"])
def test_short_steps_keep_their_digits_under_bf16(name: str) -> None:
    """(u_m - u)/d divides rounding by d: in bfloat16 the gradient of ECT was off by 30 to 200 %."""
    net = initialised(0, student)
    (move,) = as_game(load(name).build(net), net).moves
    rng = Streams(0, index=torch.arange(256))
    batch = Batch(rng.normal("x0", 2), rng.normal("x1", 2), progress=torch.tensor(0.99))
    with torch.no_grad():
        draws = move.objective.draw(batch, rng)
    found = []
    for precision in (Precision.FLOAT32, Precision.BF16):
        with precision.context(torch.device("cpu")):
            value = move.objective(batch, draws)["eulerian"].value.mean()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, tuple(net.parameters()))]))
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 1e-3


def test_a_step_is_resolved_from_sixteen_roundings_on() -> None:
    eps = 2.0**-23
    d, seen = resolved(torch.tensor([0.0, 15 * eps, 16 * eps, 0.25]))
    assert seen.tolist() == [False, False, True, True]
    assert d.tolist() == [16 * eps, 16 * eps, 16 * eps, 0.25]
    assert bool(resolved(torch.tensor([1e-9], dtype=torch.float64))[1])
