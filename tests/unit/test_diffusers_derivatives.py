"""Derivatives of every family of networks in safe mode, in float64 against finite differences: along the
state and the time, and the gradient of the weights through that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, WIDE, Wide, condition, network, noise, scheduler
from torch import Tensor

from saltus.autodiff import FiniteDifference, Forward, TwoPass, derivative
from saltus.teachers.diffusers import DiffusersModel, family_of, path_of
from saltus.typing import Condition

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FAMILIES},
    "SD1.5 with a strength": ("SD1.5", {"time_cond_proj_dim": 6}),
    "SD3.5": ("SD3", {"dual_attention_layers": (0,)}),
    "Sana with normalised queries": ("Sana", {"qk_norm": "rms_norm_across_heads"}),
    "PixArt-alpha": (
        "PixArt",
        {"use_additional_conditions": True, "attention_head_dim": 12, "cross_attention_dim": 24},
    ),
    "U-Net of classes": ("U-Net", {"num_class_embeds": 4}),
}


def made(case: str) -> tuple[DiffusersModel, Condition | None]:
    name, settings = SETTINGS[case]
    module = network(name, WIDE, **settings)
    family = family_of(module)
    path = path_of(scheduler(name)).per_step(family.per_step)
    cond = condition(name, dtype=WIDE)
    if "label" in family.takes and cond is None:
        cond = Condition(label=torch.tensor([1, 3]))
    return DiffusersModel(module, family, path, tuple(noise(name).shape[1:]), strength=2.0), cond


def five_points(f: Callable[[float], Tensor], eps: float) -> Tensor:
    """The derivative of f at 0, to fourth order."""
    return (8.0 * (f(eps) - f(-eps)) - (f(2.0 * eps) - f(-2.0 * eps))) / (12.0 * eps)


def worst(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize("case", SETTINGS)
def test_the_derivative_and_the_gradient_through_it(case: str) -> None:
    model, cond = made(case)
    name = SETTINGS[case][0]
    b = model.velocity()
    x, dx, weight = (noise(name, dtype=WIDE, seed=seed) for seed in (1, 2, 3))
    t, dt = torch.tensor([0.31, 0.77], dtype=WIDE), torch.tensor([1.0, -0.5], dtype=WIDE)

    def along() -> tuple[Tensor, Tensor]:
        return derivative(lambda x, t: b(x, t, cond), (x, t), (dx, dt), Forward())

    with Wide():
        value, moved = along()
        loss = (weight * moved).sum() + (weight * value).sum()
        loss.backward()
        with torch.no_grad():
            assert worst(value, b(x, t, cond)) < 1e-12
            truth = five_points(lambda e: b(x + e * dx, t + e * dt, cond), 2e-6)
            assert worst(moved, truth) < 1e-6
            parameters = list(model.module.parameters())
            rng = torch.Generator().manual_seed(7)
            directions = [torch.randn(p.shape, generator=rng, dtype=WIDE) for p in parameters]
            starts = [p.clone() for p in parameters]

            def at(eps: float) -> Tensor:
                for p, start, v in zip(parameters, starts, directions, strict=True):
                    p.copy_(start + eps * v)
                value, moved = along()
                return (weight * moved).sum() + (weight * value).sum()

            truth = five_points(at, 1e-7)  # less is between the kinks of Sana's rectified queries
    silent = [n for n, p in model.module.named_parameters() if p.grad is None]
    assert not silent, silent
    found = sum((p.grad * v).sum() for p, v in zip(parameters, directions, strict=True) if p.grad is not None)
    assert isinstance(found, Tensor)
    assert worst(found, truth) < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_the_other_ways_agree(name: str) -> None:
    """Two passes give the same numbers, a finite difference nearly."""
    model, cond = made(name)
    ask = model.ask
    x, dx = noise(name, dtype=WIDE), noise(name, dtype=WIDE, seed=2)
    timestep = model.path.clock(torch.tensor([0.31, 0.77], dtype=WIDE))

    def f(x: Tensor) -> Tensor:
        return ask(x, timestep, cond)

    with Wide(), torch.no_grad():
        one, two, three = (
            derivative(f, (x,), (dx,), how) for how in (Forward(), TwoPass(), FiniteDifference(1e-4))
        )
    assert worst(two[0], one[0]) < 1e-12 and worst(two[1], one[1]) < 1e-12
    assert worst(three[1], one[1]) < 1e-5
