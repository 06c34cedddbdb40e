"""The endpoint loss: regress a jump on where its trajectory is known to end.

    u_{s,t}(x_s) - (x_t - x_s)/(t - s),

with x_t from a leg: a stored pair, an integration of a teacher, other jumps. s < t strictly.

References:
    Luhman and Luhman, "Knowledge distillation in iterative generative models", 2021,
    arXiv 2101.02388; Liu et al., "InstaFlow", 2023, arXiv 2309.06380.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Leg, Line, draw_noise
from saltus.states import DataStates, States, draw_pairing, locate
from saltus.streams import Streams
from saltus.tensors import like, sg
from saltus.times import FromStart, PairLaw, Uniform
from saltus.typing import Batch, Draws, FlowMap, Term
from saltus.weights import Span, Squared, Weight

__all__ = ["Endpoint"]


@dataclass(frozen=True, eq=False)
class Endpoint:
    """Make jumps end where a leg ends.

    With the defaults (from x0 to x1 of the same pair, along their line) and pairs that a teacher's flow
    made, this is knowledge distillation; with independent pairs it would learn the mean of the data.

    Attributes:
        student: the flow map that learns.
        target: the flow map asked by legs that jump; None is the student, stopped.
        interpolant: the path between prior and data.
        coupling: how x0 and x1 are paired.
        states: where x_s comes from.
        times: the law of (s, t), s < t.
        leg: how x_s reaches x_t.
        weight: error -> loss.
        guidance: label dropout, strengths as an input of the network, or None.
    """

    student: FlowMap
    target: FlowMap | None = None
    interpolant: Interpolant = Linear()
    coupling: Coupling = Independent()
    states: States = DataStates()
    times: PairLaw = FromStart(Uniform(1.0, 1.0))
    leg: Leg = Line()
    weight: Weight = Squared()
    guidance: LabelDropout | GuidanceInput | None = None

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The times (s, t), each [B], the pairing, and the noise of a leg that needs some."""
        s, t = self.times(rng)
        pairing = draw_pairing(self.coupling, self.guidance, batch, rng)
        return {"s": s, "t": t, **pairing, **draw_noise(self.leg, batch, rng)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``endpoint``."""
        s, t = draws["s"], draws["t"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor)
        state, cond = locate(self.states, self.interpolant, self.guidance, batch, draws, s)
        own = self.target or self.student
        with torch.no_grad():
            end = self.leg(own, state, self.interpolant, s, t, cond)
        u = self.student.average(state.x, s, t, cond)
        span = Span(s, t, None, state.x, sg(u))
        return {"endpoint": Term(self.weight(u - (end - state.x) / like(t - s, end), span))}
