"""A teacher's pairs, stored: knowledge distillation as training on data."""

from __future__ import annotations

from dataclasses import replace

import torch
from systems import Perturbed, gaussian, streams
from torch import Tensor

from saltus.data import ArrayData, Pairs
from saltus.legs import HEUN
from saltus.methods.endpoint import endpoint
from saltus.objectives import Endpoint
from saltus.samplers import integrate
from saltus.typing import Condition

C = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)


def test_endpoint_on_stored_pairs_is_the_same_loss_without_a_teacher() -> None:
    """And each pair costs the teacher's 2n calls once."""
    system = gaussian()
    student = Perturbed(system.exact, C)
    asked = 0

    def counted(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        nonlocal asked
        asked += len(x)
        return system.velocity(x, t)

    x0 = streams(32).normal("x0", 2)
    source = Pairs(x0, ArrayData(integrate(counted, x0, 8, HEUN), batch=16))
    assert asked == 2 * 8 * 32
    stored, online = Endpoint(student), endpoint(student, teacher=counted, solver_steps=8)
    for step in range(4):
        rng = replace(streams(16), step=step)
        batch = source(rng)
        batch = replace(batch, cond=Condition(label=torch.arange(16)))
        before = asked
        (mine,) = stored(batch, stored.draw(batch, rng)).values()
        assert asked == before
        (theirs,) = online(batch, online.draw(batch, rng)).values()
        assert asked == before + 2 * 8 * 16
        assert torch.allclose(mine.value, theirs.value, atol=1e-12)
