"""Where a loss looks: the state x_s of each row, and the data velocity that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from saltus.couplings import Coupling
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import Interpolant, path
from saltus.streams import Streams
from saltus.typing import Batch, Condition, Draws

__all__ = ["DataStates", "PriorStates", "State", "States", "draw_pairing", "locate"]


class State(NamedTuple):
    """A state of the flow.

    Attributes:
        x: [n, ...].
        velocity: dI_s of the pair that made x, or b_s(x) where a teacher's trajectory did, [n, ...];
            None where neither did.
        x0, x1: that pair, or None.
        noise: normals in the shape of x for a leg that noise drives, [n, k, ...], or None.
    """

    x: Tensor
    velocity: Tensor | None = None
    x0: Tensor | None = None
    x1: Tensor | None = None
    noise: Tensor | None = None


class States(Protocol):
    """(batch, interpolant, times s [n], order of x0 or None) -> State."""

    def __call__(self, batch: Batch, interpolant: Interpolant, s: Tensor, order: Tensor | None) -> State: ...


@dataclass(frozen=True)
class DataStates:
    """x = I_s = alpha_s x0 + beta_s x1: the interpolant between prior and data."""

    def __call__(self, batch: Batch, interpolant: Interpolant, s: Tensor, order: Tensor | None) -> State:
        x1 = batch.data()
        x0 = batch.x0 if order is None else batch.x0[order]
        x, velocity = path(interpolant, x0, x1, s)
        return State(x, velocity, x0, x1)


@dataclass(frozen=True)
class PriorStates:
    """x = alpha_0 x0, for laws of times with s = 0: data-free."""

    def __call__(self, batch: Batch, interpolant: Interpolant, s: Tensor, order: Tensor | None) -> State:
        x, _ = path(interpolant, batch.x0, torch.zeros_like(batch.x0), s)
        return State(x)


def draw_pairing(
    coupling: Coupling, guidance: LabelDropout | GuidanceInput | None, batch: Batch, rng: Streams
) -> Draws:
    """What every objective draws beside its times: the coupling's order and the guidance's numbers."""
    draws: Draws = {}
    order = coupling(batch)
    if order is not None:
        draws["order"] = order
    if guidance is not None:
        draws["guidance"] = guidance.draw(rng)
    return draws


def locate(
    states: States,
    interpolant: Interpolant,
    guidance: LabelDropout | GuidanceInput | None,
    batch: Batch,
    draws: Draws,
    s: Tensor,
) -> tuple[State, Condition | None]:
    """The states at times s [n] and their condition, from what :func:`draw_pairing` drew, and
    :func:`saltus.legs.draw_noise`."""
    order, drawn, noise = draws.get("order"), draws.get("guidance"), draws.get("leg")
    assert not isinstance(order, dict) and not isinstance(drawn, dict) and not isinstance(noise, dict)
    cond = batch.cond
    if guidance is not None and drawn is not None:
        cond = guidance.apply(cond, drawn)
    return states(replace(batch, cond=cond), interpolant, s, order)._replace(noise=noise), cond
