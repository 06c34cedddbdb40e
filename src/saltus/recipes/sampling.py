"""Samples from a trained map, by the sampler and at the step counts that its method's card allows."""

from __future__ import annotations

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.legs import EULER
from saltus.methods import Card, Sampler
from saltus.samplers import integrate, jumps, renoise
from saltus.streams import Streams
from saltus.typing import Condition, FlowMap

__all__ = ["check_steps", "draw"]


def check_steps(card: Card, name: str, steps: int) -> None:
    """Raise a ValueError unless the card allows this many steps."""
    if steps not in card.steps:
        some = ", ".join(map(str, card.steps)) + (" step" if card.steps == (1,) else " steps")
        raise ValueError(f"steps: {name} gives meaningful samples at {some}, got {steps}")


@torch.no_grad()
def draw(
    model: FlowMap,
    card: Card,
    x: Tensor,
    steps: int,
    cond: Condition | None,
    rng: Streams,
    interpolant: Interpolant,
) -> Tensor:
    """Samples from the states x at t = 0, [n, ...] -> [n, ...].

    Args:
        model: the flow map.
        card: of the method that trained it; it names the sampler.
        x: from :func:`saltus.samplers.prior`.
        steps: of the sampler.
        cond: what is asked for.
        rng: the rows' streams, for samplers that add noise.
        interpolant: the method's.
    """
    samplers = {
        Sampler.ODE: lambda: integrate(model.velocity, x, steps, EULER, cond),
        Sampler.JUMPS: lambda: jumps(model, x, steps, cond),
        Sampler.RENOISE: lambda: renoise(model, x, steps, interpolant, rng, cond=cond),
    }
    return samplers[card.sampler]()
