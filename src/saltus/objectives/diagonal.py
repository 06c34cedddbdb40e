"""The diagonal s = t: flow matching, which makes u_{t,t} the velocity b_t.

    L = E w( u_{t,t}(I_t) - sg v ),   v = dI_t unless the slot says otherwise.

Its minimiser is E[v | I_t] = b_t. The minimum itself is E Var[dI_t | I_t], not zero.

References:
    Lipman et al., "Flow matching for generative modeling", 2022, arXiv 2210.02747.
    Albergo and Vanden-Eijnden, 2022, arXiv 2209.15571; Liu et al., 2022, arXiv 2209.03003.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.slots import Data, Slot
from saltus.states import DataStates, States, draw_pairing, locate
from saltus.streams import Streams
from saltus.tensors import sg
from saltus.times import Law, PairLaw, Uniform
from saltus.typing import Batch, Draws, FlowMap, Term
from saltus.weights import Span, Squared, Weight

__all__ = ["Diagonal"]


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Regress u_{t,t}(x_t) on a velocity.

    Attributes:
        student: the flow map that learns.
        target: the flow map asked by slots that bootstrap; None is the student, stopped.
        interpolant: the path between prior and data.
        coupling: how x0 and x1 are paired.
        states: where x_t comes from.
        times: the law of t.
        velocity: what u is compared with.
        weight: error -> loss.
        guidance: label dropout, strengths as an input of the network, or None.
        head: the name of a second head to train on the same velocity, or None.
        nodes: where the states are those of trajectories, the law whose s the rows take instead of
            ``times``, or None.
    """

    student: FlowMap
    target: FlowMap | None = None
    interpolant: Interpolant = Linear()
    coupling: Coupling = Independent()
    states: States = DataStates()
    times: Law = Uniform()
    velocity: Slot = Data()
    weight: Weight = Squared()
    guidance: LabelDropout | GuidanceInput | None = None
    head: str | None = None
    nodes: PairLaw | None = None

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The time t [B], stratified over the global batch or a node of its row's trajectory, and the
        pairing."""
        t = self.times(rng.stratified("t")).clamp(0.0, 1.0) if self.nodes is None else self.nodes(rng)[0]
        return {"t": t, **draw_pairing(self.coupling, self.guidance, batch, rng)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``diagonal`` and, with a head, a term of the head's name."""
        t = draws["t"]
        assert isinstance(t, Tensor)
        state, cond = locate(self.states, self.interpolant, self.guidance, batch, draws, t)
        with torch.no_grad():
            v = self.velocity(self.target or self.student, state, t, cond)
        output = self.student.evaluate(state.x, t, t, cond)
        span = Span(t, t, None, state.x, sg(output.u))
        terms = {"diagonal": Term(self.weight(output.u - v, span))}
        if self.head is not None:
            span = Span(t, t, None, state.x, sg(output.heads[self.head]))
            terms[self.head] = Term(self.weight(output.heads[self.head] - v, span))
        return terms
