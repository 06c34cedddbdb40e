"""Imitation: the policy of a jump has the teacher's velocity wherever it leads.

From x_s the student names a policy pi for [s, t], one call of its network. It is followed, and at times
s = r_1 < r_2 < ... < r_n < t of the way the error is

    e_j = pi(x_j, r_j) - sg b(x_j, r_j),

live in what the network said and not in the states x_j, the loss the mean of w(e_j). On the way from r_j to
r_{j+1} the teacher leads for a share m of the time, by the velocity b(x_j, r_j) that it has been asked for
already, and the policy for the rest: with m = 1 the states are the teacher's own, with m = 0 the student's.

It is the Lagrangian identity d_t X_{s,t} = b_t(X_{s,t}) at several times for one call, without a derivative.
Any flow map is a policy by its own derivative in time (:class:`saltus.policies.OpenLoop`), of more calls.

References:
    Chen et al., "pi-Flow", 2025, arXiv 2510.14974; Yang et al., "ArcFlow", 2026, arXiv
    2602.09014.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.couplings import Independent
from saltus.guidance import GuidanceInput
from saltus.interpolants import Interpolant, Linear
from saltus.legs import slide
from saltus.policies import Policy, policy_of
from saltus.slots import Own, Slot
from saltus.states import PriorStates, State, States, draw_pairing, locate
from saltus.streams import Streams
from saltus.tensors import like
from saltus.times import Cells, PairLaw
from saltus.typing import Batch, Draws, FlowMap, Schedule, Term
from saltus.weights import Span, Squared, Weight

__all__ = ["Imitation"]


@dataclass(frozen=True, eq=False)
class Imitation:
    """Make a policy's velocity the teacher's where the policy leads.

    Attributes:
        student: the flow map that learns; best one that is made of policies.
        end: the velocity b.
        interpolant: the path between prior and data.
        states: where x_s comes from.
        times: the law of (s, t), s < t: a jump and the end of its policy.
        visits: n.
        mix: m as a function of progress; None is 0.
        substeps: of the policy on the way from one visit to the next, where it has no closed form.
        weight: error -> loss.
        guidance: strengths as an input of the network, or None.
    """

    student: FlowMap
    end: Slot = Own()
    interpolant: Interpolant = Linear()
    states: States = PriorStates()
    times: PairLaw = Cells(1)
    visits: int = 4
    mix: Schedule | None = None
    substeps: int = 4
    weight: Weight = Squared()
    guidance: GuidanceInput | None = None

    def __post_init__(self) -> None:
        if self.visits < 1 or self.substeps < 1:
            raise ValueError(
                f"imitation: expected at least 1 visit and substep, got {self.visits} and {self.substeps}"
            )

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The times (s, t), each [B], and the places of the visits in between, [B, n] in [0, 1): the first at
        0, the others each in a part of its own."""
        s, t = self.times(rng)
        parts = max(self.visits - 1, 1)
        part = torch.arange(self.visits, device=s.device) - 1.0
        place = (rng.uniform("visits", self.visits) + part) / parts
        pairing = draw_pairing(Independent(), self.guidance, batch, rng)
        return {"s": s, "t": t, "visits": place.clamp(min=0.0, max=1.0 - 2.0**-10), **pairing}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``imitation``."""
        s, t, places = draws["s"], draws["t"], draws["visits"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor) and isinstance(places, Tensor)
        state, cond = locate(self.states, self.interpolant, self.guidance, batch, draws, s)
        policy = policy_of(self.student, state.x, s, t, cond)
        x, values = state.x, []
        times = [s, *(s + place * (t - s) for place in places.unbind(1)[1:])]
        for k, now in enumerate(times):
            with torch.no_grad():
                b = self.end(self.student, State(x), now, cond)
            values.append(self.weight(policy.velocity(x, now) - b, Span(s, now)))
            if k + 1 < len(times):
                x = self._onward(policy, x, b, now, times[k + 1], batch.progress)
        return {"imitation": Term(torch.stack(values).mean(0))}

    @torch.no_grad()
    def _onward(
        self, policy: Policy, x: Tensor, b: Tensor, now: Tensor, then: Tensor, progress: Tensor
    ) -> Tensor:
        """The state at the next visit: led by the teacher for a share of the time, then by the policy."""
        change = now
        if self.mix is not None:
            change = torch.lerp(now, then, self.mix(progress).to(now))
            x = slide(self.interpolant, x, b, now, change)
        led = policy.mean(x, change, then, self.substeps)
        return (x + like(then - change, x) * led).to(x.dtype)
