"""The Eulerian loss: the end of a jump does not notice that its start moves along the flow.

With h = t - s, D = d_s u + grad u w the derivative of u_{s,t}(x_s) along the tangent w, v the target
velocity and r in [0, 1] a warm-up, the error is, by how far the gradient reaches,

    TARGET       u - sg( v + r h D )
    TIME         u - r h d_s u - sg( v + r h grad u w )
    DERIVATIVE   u - r h D - sg v
    FULL         u - r h D - v

D is linear in w, so with data velocities w = v = dI_s the target is unbiased for any h. With a finite
step d, m = s + d, x_m = leg(x_s) and u' = u_{m,t}(x_m), in target form

    u - sg( (x_m - x_s)/d + (h - d)(u' - u)/d ),

which is the leg followed by a jump, rescaled so that its error in u does not vanish with d; as d -> 0
it is TARGET. Other legs may lead on from x_m, several jumps say; u' is then their average velocity. A
finite step along data (a line between the same x0 and x1) is biased: u' is not linear in x_m. The bias is
O(d). Rows whose step is below the resolution of their times have the error 0; autocast is off, for
u' - u of half precision divided by d would be noise.

References:
    Boffi, Albergo and Vanden-Eijnden, 2025, arXiv 2505.18825, eqs. (14), (28), (38)-(42), (94).
    Song et al., "Consistency models", 2023, arXiv 2303.01469 (finite d, t = 1).
    Geng et al., "Mean flows", 2025, arXiv 2505.13447 (data velocities).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.adversaries import Adversary
from saltus.autodiff import Derivative, Forward, derivative
from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.identities import along
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Leg, Line, draw_noise
from saltus.samples import Made
from saltus.slots import Data, Slot
from saltus.states import DataStates, State, States, draw_pairing, locate
from saltus.streams import Streams
from saltus.tensors import like, sg
from saltus.times import PairLaw, StepLaw, Triangle, resolved
from saltus.typing import Batch, Condition, Draws, FlowMap, Gradient, Schedule, Term
from saltus.weights import Span, Squared, Weight

__all__ = ["Eulerian"]


@dataclass(frozen=True, eq=False)
class Eulerian:
    """Make the end of a jump invariant as its start moves along the flow.

    Attributes:
        student: the flow map that learns.
        target: the flow map asked by slots and jumps that bootstrap; None is the student, stopped.
        interpolant: the path between prior and data.
        coupling: how x0 and x1 are paired.
        states: where x_s comes from.
        times: the law of (s, t).
        near: how the derivative along the start is taken.
        step: a finite step d instead of a derivative (target form), or None.
        leg: how the start moves by a finite step.
        onward: how x_m, where the start has moved to, goes on to t; None is one jump of the target.
        tangent: the velocity w that the start moves along.
        velocity: the velocity v in the target.
        gradient: how far the gradient reaches.
        warm_up: the factor r on the derivative as a function of progress, or None for 1.
        weight: error -> loss.
        guidance: label dropout, strengths as an input of the network, or None.
        head: the name of a second head to train on v in the same network call, or None.
        adversary: a discriminator that the jumps X_{s,t}(x_s) of the same network call are to fool, or None.
    """

    student: FlowMap
    target: FlowMap | None = None
    interpolant: Interpolant = Linear()
    coupling: Coupling = Independent()
    states: States = DataStates()
    times: PairLaw = Triangle()
    near: Derivative = Forward()
    step: StepLaw | None = None
    leg: Leg = Line()
    onward: Leg | None = None
    tangent: Slot = Data()
    velocity: Slot = Data()
    gradient: Gradient = Gradient.TARGET
    warm_up: Schedule | None = None
    weight: Weight = Squared()
    guidance: LabelDropout | GuidanceInput | None = None
    head: str | None = None
    adversary: Adversary | None = None

    def __post_init__(self) -> None:
        if self.step is not None and (self.gradient is not Gradient.TARGET or self.head is not None):
            raise ValueError(
                f"eulerian: a finite step has a target form only and no head, got {self.gradient} and "
                f"head {self.head}; use Gradient.TARGET and head=None"
            )
        if self.head is not None and self.gradient is not Gradient.TARGET:
            raise ValueError(f"eulerian: a head goes with Gradient.TARGET, got {self.gradient}")

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The times (s, t), each [B], the pairing, the noise of a leg that needs some, and what the adversary
        draws."""
        s, t = self.times(rng)
        pairing = draw_pairing(self.coupling, self.guidance, batch, rng)
        draws: Draws = {"s": s, "t": t, **pairing, **draw_noise(self.leg, batch, rng)}
        if self.adversary is not None:
            draws["adversary"] = self.adversary.draw(batch, rng.named("adversary"))
        return draws

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``eulerian``, one of the head's name with a head, ``adversarial`` with an adversary."""
        s, t = draws["s"], draws["t"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor)
        state, cond = locate(self.states, self.interpolant, self.guidance, batch, draws, s)
        if self.step is not None:
            d, seen = resolved(self.step(s, t, batch.progress))
            with torch.autocast(state.x.device.type, enabled=False):  # half precision over d is noise
                error, u = self._finite(state, s, t, d, cond)
                error = torch.where(like(seen, state.x), error, 0.0)
            term = Term(self.weight(error, Span(s, t, d, state.x, sg(u))))
            return {"eulerian": term, **self._fooled(state, s, t, u, cond, draws)}
        h = like(t - s, state.x)
        if self.warm_up is not None:
            h = h * self.warm_up(batch.progress).to(h)
        own = self.target or self.student
        with torch.set_grad_enabled(self.gradient is Gradient.FULL and torch.is_grad_enabled()):
            w = self.tangent(own, state, s, cond)
            v = w if self.velocity is self.tangent else self.velocity(own, state, s, cond)
        if self.head is not None:
            terms = self._with_head(state, s, t, w, v, h, cond)
        else:
            terms = {"eulerian": self._differential(state, s, t, w, v, h, cond)}
        found = {
            name: Term(self.weight(e, Span(s, t, None, state.x, sg(u)))) for name, (e, u) in terms.items()
        }
        return {**found, **self._fooled(state, s, t, terms["eulerian"][1], cond, draws)}

    @torch.no_grad()
    def ends(
        self, batch: Batch, draws: Draws, compared: bool = True
    ) -> tuple[Made, Tensor | None, Condition | None]:
        """The jumps X_{s,t}(x_s) without gradient; where the step's legs lead instead, if there is a step and
        it is asked for, which costs the calls of a target; and the rows' condition. A discriminator learns on
        them."""
        s, t = draws["s"], draws["t"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor)
        state, cond = locate(self.states, self.interpolant, self.guidance, batch, draws, s)
        u, wanted = self.student.average(state.x, s, t, cond), None
        if compared and self.step is not None:
            m = s + resolved(self.step(s, t, batch.progress))[0]
            x_m, u_m = self._onward(self.target or self.student, state, s, m, t, cond)
            wanted = x_m + like(t - m, x_m) * u_m
        return Made(state.x + like(t - s, u) * u, t, state, s), wanted, cond

    def _fooled(
        self, state: State, s: Tensor, t: Tensor, u: Tensor, cond: Condition | None, draws: Draws
    ) -> dict[str, Term]:
        """The adversary's term on the jump, if there is one."""
        if self.adversary is None:
            return {}
        drawn = draws["adversary"]
        assert isinstance(drawn, dict)
        made = Made(state.x + like(t - s, u) * u, t, state, s)
        return {"adversarial": self.adversary.fool(made, cond, drawn)}

    def _differential(
        self, state: State, s: Tensor, t: Tensor, w: Tensor, v: Tensor, h: Tensor, cond: Condition | None
    ) -> tuple[Tensor, Tensor]:
        """The error, and u."""
        if self.gradient is Gradient.TIME:
            u, du_ds = derivative(
                lambda start: self.student.average(state.x, start, t, cond),
                (s,),
                (torch.ones_like(s),),
                self.near,
            )
            with torch.no_grad():
                _, transport = derivative(
                    lambda x: self.student.average(x, s, t, cond), (state.x,), (w,), self.near
                )
            return u - h * du_ds - (v + h * transport), u
        u, du = along(self.student, state.x, s, t, w, cond, self.near)
        return u - sg(v + h * du) if self.gradient is Gradient.TARGET else u - h * du - v, u

    def _with_head(
        self, state: State, s: Tensor, t: Tensor, w: Tensor, v: Tensor, h: Tensor, cond: Condition | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """By term: the error, and the velocity that it is of."""
        assert self.head is not None
        output, tangent = derivative(
            lambda x, start: self.student.evaluate(x, start, t, cond),
            (state.x, s),
            (w, torch.ones_like(s)),
            self.near,
        )
        of_head = output.heads[self.head]
        return {
            "eulerian": (output.u - sg(v + h * tangent.u), output.u),
            self.head: (of_head - v, of_head),
        }

    def _finite(
        self, state: State, s: Tensor, t: Tensor, d: Tensor, cond: Condition | None
    ) -> tuple[Tensor, Tensor]:
        own, m = self.target or self.student, s + d
        rest, short = like(t - m, state.x), like(d, state.x)
        u = self.student.average(state.x, s, t, cond)
        with torch.no_grad():
            x_m, u_m = self._onward(own, state, s, m, t, cond)
        return u - sg((x_m - state.x) / short + rest * (u_m - u) / short), u

    def _onward(
        self, own: FlowMap, state: State, s: Tensor, m: Tensor, t: Tensor, cond: Condition | None
    ) -> tuple[Tensor, Tensor]:
        """x_m, and the average velocity from there to t."""
        x_m = self.leg(own, state, self.interpolant, s, m, cond)
        if self.onward is None:
            return x_m, own.average(x_m, m, t, cond)
        return x_m, self._mean(own, x_m, m, t, cond)

    def _mean(self, own: FlowMap, x_m: Tensor, m: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """The average velocity of the legs from x_m to t; of no length, it counts for nothing."""
        assert self.onward is not None
        length, _ = resolved(t - m)
        return (self.onward(own, State(x_m), self.interpolant, m, t, cond) - x_m) / like(length, x_m)
