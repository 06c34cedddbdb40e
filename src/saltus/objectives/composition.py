"""The semigroup loss: one jump is two, X_{s,t} = X_{m,t} o X_{s,m}, in terms of average velocities.

With m = s + gamma (t - s) the two jumps' average velocities average with weights gamma and 1 - gamma:

    u_{s,t}(x) - sg( gamma u_{s,m}(x) + (1 - gamma) u_{m,t}(X_{s,m}(x)) ),

which is the identity in X divided by t - s, so no small factor is left and nothing is rescaled.

References:
    Boffi, Albergo and Vanden-Eijnden, 2025, arXiv 2505.18825, eqs. (15), (22), (92) (their gamma is
    one minus ours); Frans et al., 2024, arXiv 2410.12557; Guo et al., "SplitMeanFlow", 2025,
    arXiv 2507.16884.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput
from saltus.interpolants import Interpolant, Linear
from saltus.states import DataStates, States, draw_pairing, locate
from saltus.streams import Streams
from saltus.tensors import like
from saltus.times import PairLaw, Split, Triangle, UniformSplit
from saltus.typing import Batch, Draws, FlowMap, Gradient, Term
from saltus.weights import Span, Squared, Weight

__all__ = ["Composition"]


@dataclass(frozen=True, eq=False)
class Composition:
    """Make one jump equal to two.

    Attributes:
        student: the flow map that learns.
        target: the flow map that makes the two jumps; None is the student, stopped.
        interpolant: the path between prior and data.
        coupling: how x0 and x1 are paired.
        states: where x_s comes from.
        times: the law of (s, t).
        split: the law of gamma.
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
    gradient: Gradient = Gradient.TARGET
    clip: float | None = None
    weight: Weight = Squared()
    guidance: GuidanceInput | None = None

    def __post_init__(self) -> None:
        if self.gradient not in (Gradient.TARGET, Gradient.FULL):
            raise ValueError(
                f"composition: takes no derivative, so expected Gradient.TARGET or FULL, got {self.gradient}"
            )

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The times (s, t) and gamma, each [B], and the pairing."""
        s, t = self.times(rng)
        gamma = self.split(rng, s)
        return {"s": s, "t": t, "gamma": gamma, **draw_pairing(self.coupling, self.guidance, batch, rng)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``composition``."""
        s, t, gamma = draws["s"], draws["t"], draws["gamma"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor) and isinstance(gamma, Tensor)
        state, cond = locate(self.states, self.interpolant, self.guidance, batch, draws, s)
        own, m = self.target or self.student, s + gamma * (t - s)
        g = like(gamma, state.x)
        u = self.student.average(state.x, s, t, cond)
        with torch.set_grad_enabled(self.gradient is Gradient.FULL and torch.is_grad_enabled()):
            first = own.average(state.x, s, m, cond)
            middle = self._bounded(state.x + like(m - s, state.x) * first)
            y = self._bounded(g * first + (1.0 - g) * own.average(middle, m, t, cond))
        return {"composition": Term(self.weight(u - y, Span(s, t)))}

    def _bounded(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)
