"""Every method's loss compiles as one graph, derivatives included, with the eager value and gradient."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from kinds import each
from systems import Undecided, first
from torch import Tensor

from saltus.autodiff import compiled
from saltus.games import as_game
from saltus.maps import AverageVelocity
from saltus.methods import Need, discover
from saltus.nn import MLP
from saltus.streams import Streams
from saltus.training import LossModule, initialised
from saltus.typing import Batch, Condition

ROWS = 64


def batch(rng: Streams) -> Batch:
    condition = Condition(label=rng.integers("label", 3), null=rng.uniform("null") < 0.2)
    x0, x1 = rng.normal("x0", 2), 1.0 + 0.5 * rng.normal("x1", 2)
    return Batch(x0, x1, condition, progress=torch.full((), 0.3, dtype=torch.float64))


@pytest.mark.parametrize("name", each(discover()))
def test_compiled_loss_equals_eager(name: str) -> None:
    """In float64, by the tracer without a code generator; a break of the graph raises."""
    torch._dynamo.reset()
    method = discover()[name]
    heads = ("v",) if Need.HEAD in method.card.needs else ()
    network = initialised(0, lambda: MLP((2,), width=16, depth=2, classes=3, heads=heads))
    student = AverageVelocity(network).double()
    with torch.no_grad():
        for k, p in enumerate(student.parameters()):  # at the start the output is zero: much is hidden
            p.copy_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype))
    teacher, critic = (deepcopy(student).requires_grad_(k > 0) for k in range(2))
    others = {"critic": critic, "discriminator": Undecided()}
    built = first(method.wired(student, teacher=teacher.velocity, **others))
    move = as_game(built, student).moves[0]
    loss = LossModule(move)
    rng = Streams(0, index=torch.arange(ROWS), dtype=torch.float64)
    with torch.no_grad():
        draws = move.objective.draw(batch(rng), rng)

    def measured(module: torch.nn.Module) -> list[Tensor]:
        value, _ = module(batch(rng), draws)
        return [value, *torch.autograd.grad(value, tuple(move.module.parameters()), allow_unused=True)]

    for ours, eager in zip(measured(compiled(loss, backend="aot_eager")), measured(loss), strict=True):
        assert (ours is None) == (eager is None)
        if eager is not None:
            assert torch.allclose(ours, eager, rtol=1e-9, atol=1e-11)
