"""Who supplies a velocity. A trajectory loss has three independent slots: the tangent along which a
derivative is taken, the target that u is compared with, and the end of a jump. Papers differ in how
they fill them: data, a teacher, the student itself, or a second head of its network.

A slot is called with the network that bootstraps (the student, or its moving average), the state and
its time; the objective decides what is stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from saltus.guidance import CFG
from saltus.states import State
from saltus.tensors import answered, like
from saltus.times import StepLaw, resolved
from saltus.typing import Condition, FlowMap, Velocity

__all__ = ["Chord", "Data", "Guided", "Head", "Implied", "Mixed", "Own", "Slot", "Teacher"]


class Slot(Protocol):
    """(flow map, state, its time [n], condition) -> velocity [n, ...]."""

    def __call__(self, own: FlowMap, state: State, t: Tensor, cond: Condition | None) -> Tensor: ...


@dataclass(frozen=True)
class Data:
    """The velocity that came with the state: dI_t of the pair that made it, which is unbiased, but noisy,
    and known only on its line; or that of the teacher whose trajectory it lies on."""

    def __call__(self, own: FlowMap, state: State, t: Tensor, cond: Condition | None) -> Tensor:
        if state.velocity is None:
            raise ValueError(
                "a data velocity was asked for at a state that no pair (x0, x1) made; "
                "use data states, or fill this slot with Own() or Teacher(...)"
            )
        return state.velocity


@dataclass(frozen=True)
class Own:
    """u_{t,t}(x) of the flow map that learns (or of its moving average)."""

    def __call__(self, own: FlowMap, state: State, t: Tensor, cond: Condition | None) -> Tensor:
        return own.velocity(state.x, t, cond)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance of the own velocity with each row's strength cond.w:
    u(x; null) + w (u(x; c) - u(x; null)), both at unit strength.

    With it in the target and end slots, a network that takes w as an input learns the flow map of the
    guided velocity for every w at once (arXiv 2505.18825, appendix F.5).
    """

    def __call__(self, own: FlowMap, state: State, t: Tensor, cond: Condition | None) -> Tensor:
        return CFG(own.velocity)(state.x, t, cond)


@dataclass(frozen=True)
class Head:
    """A second head of the network at (x, t, t): a velocity that costs no further call."""

    name: str = "v"

    def __call__(self, own: FlowMap, state: State, t: Tensor, cond: Condition | None) -> Tensor:
        heads = own.evaluate(state.x, t, t, cond).heads
        if self.name not in heads:
            raise ValueError(
                f"second head: expected one named {self.name!r}, got {sorted(heads) or 'none'}; build the "
                "network with it, or fill this slot with Own()"
            )
        return heads[self.name]


@dataclass(frozen=True)
class Mixed:
    """w dI + (1 - w - k) u(x; null) + k u(x; c): guidance mixed into the data velocity.

    At w = 1, k = 0 it is the data velocity; the effective strength is w/(1 - k).

    References:
        Geng et al., "Mean flows", 2025, arXiv 2505.13447, eq. (21).
    """

    w: float
    k: float

    def __call__(self, own: FlowMap, state: State, t: Tensor, cond: Condition | None) -> Tensor:
        data = Data()(own, state, t, cond)
        if cond is None or cond.given is None:
            raise ValueError(
                "guidance needs labels or tokens, but this batch has none; give them or drop guidance"
            )
        free = own.velocity(state.x, t, cond.nulled())
        mixed = self.w * data + (1.0 - self.w - self.k) * free
        if self.k != 0.0:
            mixed = mixed + self.k * own.velocity(state.x, t, cond)
        if cond.null is None:
            return mixed
        return torch.where(like(cond.null, data), data, mixed)  # a dropped label learns the unguided velocity


@dataclass(frozen=True, eq=False)
class Teacher:
    """Any other velocity: a trained model, an exact system, a guided one."""

    velocity: Velocity

    def __call__(self, own: FlowMap, state: State, t: Tensor, cond: Condition | None) -> Tensor:
        return answered(self.velocity(state.x, t, cond), state.x)


@dataclass(frozen=True, eq=False)
class Chord:
    """u_{t,1}(x), the average velocity of a flow map's jump to the end: along its chord, the end is fixed."""

    flow_map: FlowMap

    def __call__(self, own: FlowMap, state: State, t: Tensor, cond: Condition | None) -> Tensor:
        return self.flow_map.average(state.x, t, torch.ones_like(t), cond)


@dataclass(frozen=True, eq=False)
class Implied:
    """The velocity that a flow map's jumps to t = 1 imply at a state, by a finite step d along a teacher b:

        v = u - (1 - t - d)(u' - u)/d,   u = u_{t,1}(x),   u' = u_{t+d,1}(x + d b).

    At the map of the teacher's flow it is b, up to O(d). Autocast is off: u' - u of half precision over d is
    noise.

    Attributes:
        flow_map: u.
        teacher: b.
        step: d; who is asked for a velocity is not told the run's progress, so it may not depend on that.
    """

    flow_map: FlowMap
    teacher: Velocity
    step: StepLaw

    def __post_init__(self) -> None:
        s = torch.linspace(0.0, 0.9, 10, device="cpu")
        first, *others = (self.step(s, torch.ones_like(s), s.new_tensor(p)) for p in (0.0, 0.5, 1.0))
        if not all(torch.equal(first, d) for d in others):
            raise ValueError(
                f"implied velocity: expected a step that stays the same in a run, got {self.step}; "
                "use Constant(d)"
            )

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """v at x [B, ...] and t [B]."""
        one = torch.ones_like(t)
        d, seen = resolved(self.step(t, one, torch.zeros_like(t[:1]).sum()))
        with torch.autocast(x.device.type, enabled=False):
            b = answered(self.teacher(x, t, cond), x)
            u = self.flow_map.average(x, t, one, cond)
            later = self.flow_map.average(x + like(d, x) * b, t + d, one, cond)
            return torch.where(like(seen, x), u - like((one - t - d) / d, x) * (later - u), b)
