"""The Lagrangian loss: the end of a jump moves with the flow, d_t X_{s,t}(x) = b_t(X_{s,t}(x)).

With h = t - s, X = x_s + h u and d_t X = u + h d_t u, the error is, by how far the gradient reaches,

    TARGET      u - sg( b_t(X) - h d_t u )
    TIME        u + h d_t u - sg b_t(sg X)       (the same as DERIVATIVE: no spatial Jacobian occurs)
    FULL        u + h d_t u - b_t(X)             (through the velocity at the live end)

and with a finite step d, m = t - d, in target form

    u - sg( b_m(X_{s,m}) - (h - d)(u_{s,t} - u_{s,m})/d ),

which is the jump to m followed by an Euler step of length d, rescaled so that its error in u does not
vanish with d; with another leg from m to t, (x_t - x_m)/d stands for b_m. As d -> 0 it is TARGET. Rows
whose step is below the resolution of their times have the error 0; autocast is off, for a difference of
half precision divided by d would be noise.

References:
    Boffi, Albergo and Vanden-Eijnden, 2025, arXiv 2505.18825, eqs. (13), (26), (27), (94).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from saltus.autodiff import Derivative, Forward
from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput
from saltus.identities import in_end
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Leg
from saltus.slots import Own, Slot
from saltus.states import DataStates, State, States, draw_pairing, locate
from saltus.streams import Streams
from saltus.tensors import like, sg
from saltus.times import PairLaw, StepLaw, Triangle, resolved
from saltus.typing import Batch, Condition, Draws, FlowMap, Gradient, Term
from saltus.weights import Span, Squared, Weight, slope

__all__ = ["Lagrangian"]


@dataclass(frozen=True, eq=False)
class Lagrangian:
    """Make jumps end where the flow carries them.

    Attributes:
        student: the flow map that learns.
        target: the flow map asked by slots that bootstrap; None is the student, stopped.
        interpolant: the path between prior and data.
        coupling: how x0 and x1 are paired.
        states: where x_s comes from.
        times: the law of (s, t).
        near: how the derivative in t is taken.
        step: a finite step d instead of a derivative (target form), or None.
        leg: how the end moves by a finite step; None is an Euler step along ``end``.
        end: the velocity b_t at the end of the jump.
        gradient: how far the gradient reaches.
        weight: error -> loss.
        guidance: strengths as an input of the network, or None.
    """

    student: FlowMap
    target: FlowMap | None = None
    interpolant: Interpolant = Linear()
    coupling: Coupling = Independent()
    states: States = DataStates()
    times: PairLaw = Triangle()
    near: Derivative = Forward()
    step: StepLaw | None = None
    leg: Leg | None = None
    end: Slot = Own()
    gradient: Gradient = Gradient.TIME
    weight: Weight = Squared()
    guidance: GuidanceInput | None = None

    def __post_init__(self) -> None:
        if self.step is not None and self.gradient is not Gradient.TARGET:
            raise ValueError(
                f"lagrangian: a finite step has a target form only, got {self.gradient}; use Gradient.TARGET"
            )

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The times (s, t), each [B], and the pairing."""
        s, t = self.times(rng)
        return {"s": s, "t": t, **draw_pairing(self.coupling, self.guidance, batch, rng)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``lagrangian``."""
        s, t = draws["s"], draws["t"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor)
        state, cond = locate(self.states, self.interpolant, self.guidance, batch, draws, s)
        if self.step is not None:
            d, seen = resolved(self.step(s, t, batch.progress))
            with torch.autocast(state.x.device.type, enabled=False):  # half precision over d is noise
                error, u = self._finite(state, s, t, d, cond)
                error = torch.where(like(seen, state.x), error, 0.0)
            span = Span(s, t, d, state.x, sg(u))
        else:
            error, u = self._differential(state, s, t, cond)
            span = Span(s, t, None, state.x, sg(u))
        steep = partial(slope, self.weight, error, span)
        return {"lagrangian": Term(self.weight(error, span), slope=steep)}

    def _differential(
        self, state: State, s: Tensor, t: Tensor, cond: Condition | None
    ) -> tuple[Tensor, Tensor]:
        """The error, and u."""
        h = like(t - s, state.x)
        u, du = in_end(self.student, state.x, s, t, cond, self.near)
        own = self.target or self.student
        if self.gradient is Gradient.FULL:
            return u + h * du - self.end(own, State(state.x + h * u), t, cond), u
        with torch.no_grad():
            b = self.end(own, State(state.x + h * u), t, cond)
        error = u - sg(b - h * du) if self.gradient is Gradient.TARGET else u + h * du - b
        return error, u

    def _finite(
        self, state: State, s: Tensor, t: Tensor, d: Tensor, cond: Condition | None
    ) -> tuple[Tensor, Tensor]:
        own, m = self.target or self.student, t - d
        rest, short = like(m - s, state.x), like(d, state.x)
        u = self.student.average(state.x, s, t, cond)
        with torch.no_grad():
            u_m = own.average(state.x, s, m, cond)
            b = self._mean(own, State(state.x + rest * u_m), m, t, short, cond)
        return u - sg(b - rest * (u - u_m) / short), u

    def _mean(
        self, own: FlowMap, middle: State, m: Tensor, t: Tensor, short: Tensor, cond: Condition | None
    ) -> Tensor:
        """The velocity at m, or the mean one over the leg from m to t."""
        if self.leg is None:
            return self.end(own, middle, m, cond)
        return (self.leg(own, middle, self.interpolant, m, t, cond) - middle.x) / short
