"""The semigroup loss: one jump is two, X_{s,t} = X_{m,t} o X_{s,m}, in terms of average velocities.

With m = s + gamma (t - s) the two jumps' average velocities average with weights gamma and 1 - gamma:

    u_{s,t}(x) - sg( gamma u_{s,m}(x) + (1 - gamma) u_{m,t}(X_{s,m}(x)) ),

which is the identity in X divided by t - s, so no small factor is left and nothing is rescaled.

Another first leg, a teacher's steps say, stands in for the first jump: x_m = leg(x), with the average
velocity (x_m - x)/(m - s). With gamma = 1 it is all there is, and the loss is :class:`Endpoint`'s.

With a push P from t to 1 the error is that of the states at the end, live through P,

    P( X_{s,t}(x) ) - sg P( X_{m,t}(x_m) ).

References:
    Boffi, Albergo and Vanden-Eijnden, 2025, arXiv 2505.18825, eqs. (15), (22), (92) (their gamma is
    one minus ours); Frans et al., 2024, arXiv 2410.12557; Guo et al., "SplitMeanFlow", 2025,
    arXiv 2507.16884; Kim et al., "Consistency trajectory models", 2023, arXiv 2310.02279 (a teacher's
    leg, and the push).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Leg, draw_noise
from saltus.states import DataStates, State, States, draw_pairing, locate
from saltus.streams import Streams
from saltus.tensors import like, sg
from saltus.times import PairLaw, Split, Triangle, UniformSplit, resolved
from saltus.typing import Batch, Condition, Draws, FlowMap, Gradient, Term
from saltus.weights import Span, Squared, Weight

__all__ = ["Composition"]


@dataclass(frozen=True, eq=False)
class Composition:
    """Make one jump equal to two.

    Attributes:
        student: the flow map that learns.
        target: the flow map that makes the two jumps; None is the student, stopped. With a push its
            parameters must not require gradients, or they collect them.
        interpolant: the path between prior and data.
        coupling: how x0 and x1 are paired.
        states: where x_s comes from.
        times: the law of (s, t).
        split: the law of gamma.
        leg: how x_s reaches x_m; None is a jump of the target.
        push: how the two ends at t reach 1 before they are compared; None compares velocities at once.
        gradient: TARGET, or FULL to differentiate the two jumps as well.
        clip: bound on every entry of the middle state and of the target, or None.
        weight: error -> loss.
        guidance: strengths as an input of the network, or None.
    """

    student: FlowMap
    target: FlowMap | None = None
    interpolant: Interpolant = Linear()
    coupling: Coupling = Independent()
    states: States = DataStates()
    times: PairLaw = Triangle()
    split: Split = UniformSplit()
    leg: Leg | None = None
    push: Leg | None = None
    gradient: Gradient = Gradient.TARGET
    clip: float | None = None
    weight: Weight = Squared()
    guidance: GuidanceInput | None = None

    def __post_init__(self) -> None:
        if self.gradient not in (Gradient.TARGET, Gradient.FULL):
            raise ValueError(
                f"composition: takes no derivative, so expected Gradient.TARGET or FULL, got {self.gradient}"
            )
        if self.push is not None and (self.target is None or self.gradient is not Gradient.TARGET):
            raise ValueError(
                "composition: a push passes the gradient through its states only, so it takes a target whose "
                f"parameters are frozen, and Gradient.TARGET; got target={self.target} and {self.gradient}"
            )

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The times (s, t) and gamma, each [B], the pairing, and the noise of a leg that needs some."""
        s, t = self.times(rng)
        gamma = self.split(rng, s)
        pairing = draw_pairing(self.coupling, self.guidance, batch, rng)
        return {"s": s, "t": t, "gamma": gamma, **pairing, **draw_noise(self.leg, batch, rng)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``composition``."""
        s, t, gamma = draws["s"], draws["t"], draws["gamma"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor) and isinstance(gamma, Tensor)
        state, cond = locate(self.states, self.interpolant, self.guidance, batch, draws, s)
        own, m = self.target or self.student, s + gamma * (t - s)
        g = like(gamma, state.x)
        u = self.student.average(state.x, s, t, cond)
        with torch.set_grad_enabled(self.gradient is Gradient.FULL and torch.is_grad_enabled()):
            first = self._first(own, state, s, m, cond)
            middle = self._bounded(state.x + like(m - s, state.x) * first)
            y = self._bounded(g * first + (1.0 - g) * own.average(middle, m, t, cond))
        span = Span(s, t, None, state.x, sg(u)) if self.push is None else Span(s, t)
        return {"composition": Term(self.weight(self._error(own, state.x, u, y, s, t, cond), span))}

    def _first(self, own: FlowMap, state: State, s: Tensor, m: Tensor, cond: Condition | None) -> Tensor:
        """The average velocity of the first leg."""
        if self.leg is None:
            return own.average(state.x, s, m, cond)
        d, _ = resolved(m - s)  # a shorter leg has no length, and counts for nothing beside the second
        return (self.leg(own, state, self.interpolant, s, m, cond) - state.x) / like(d, state.x)

    def _error(
        self, own: FlowMap, x: Tensor, u: Tensor, y: Tensor, s: Tensor, t: Tensor, cond: Condition | None
    ) -> Tensor:
        """u - y, or the distance of the ends where they have been pushed to 1."""
        if self.push is None:
            return u - y
        h, one = like(t - s, x), torch.ones_like(t)
        with torch.no_grad():
            wanted = self.push(own, State(x + h * y), self.interpolant, t, one, cond)
        return self.push(own, State(x + h * u), self.interpolant, t, one, cond) - wanted

    def _bounded(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)
