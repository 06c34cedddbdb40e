"""Multistep consistency models: a consistency model for each of a few segments of the way.

    L = E w(s, t) | x1(X_{s,t}(I_s)) - x1(sg X_{m,t}(x_m)) |^2,   t the end of the segment that s lies in,
    x_m = beta_m x1^ + sqrt( alpha_m^2 + eta r^2 |x1^ - x1|^2/|x0^|^2 ) x0^,
    r = beta_m - beta_s alpha_m/alpha_s,
    x0^ = E[x0 | I_s],  x1^ = E[x1 | I_s],

with m = s + 1/T, or t where that is nearer, and T growing as 64 (1280/64)^(2 progress) up to 1280. x1(X) is
the data that a DDIM step to X would need, and w the weight SNR + 1; for the linear path in all

    w |x1(X) - x1(X')|^2 = (s^2 + (1 - s)^2) |X - X'|^2/(t - s)^2.

x_m is the "adjusted" DDIM step of the teacher, aDDIM: a denoiser is an average, so a DDIM step loses some
variance; what the denoiser missed by, known where there is data, gives it back. Had the data been drawn given
I_s, |x_m|^2 would be larger by r^2 |x1^ - x1|^2 in the mean, and so it is with eta = 1 where x1^ and x0^ are
orthogonal; a Gaussian's are parallel, and it gives too much. With eta = 0 it is DDIM. The target is the
student itself, stopped, not its moving average: with many cells from the beginning it would stall, with few
it stays coarse, so T grows.

Use it where the number of steps is known beforehand. With one segment it is consistency distillation, with
many a diffusion model.

References:
    Heek, Hoogeboom and Salimans, "Multistep consistency models", 2024, arXiv 2403.06807, algorithms 1 and 3,
    eq. (14) and A.1 (eta 0.75, T from 64 to 1280 in half of the run, SNR + 1). The paper's path is a variance
    preserving one with a cosine schedule and its cells are a grid; here any s has a neighbour, and cells are
    equal in the time of the interpolant in use. The default weight is the one of the linear path. The paper
    takes a Huber loss of the weighted distance, near its norm for images (1e-4) and near its square for texts
    (1); here it is the square.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.curricula import Phases
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import ends
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.slots import Slot, Teacher
from saltus.states import State
from saltus.tensors import like, per_row_norm2
from saltus.times import Law, StepLaw, Uniform
from saltus.typing import Condition, FlowMap, Objective, Velocity
from saltus.weights import InStates, Scaled, Span, Squared, Weight

CARD = Card(
    title="Multistep consistency models",
    paper="Heek, Hoogeboom and Salimans 2024, arXiv 2403.06807",
    needs=frozenset({Need.DATA, Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(4,),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0, teacher=1.0),
    threshold=0.27,
    quick_threshold=0.66,
    bias="an adjusted DDIM step of the teacher: O(d); above eta = 0 it gives back too much in low dimension, "
    "where x1^ and x0^ are not orthogonal",
    plain={"eta": 0.0},
    second_hand=("the square of the distance, the paper's Huber loss for texts in its limit",),
)


@dataclass(frozen=True)
class Refined:
    """d = min(1/T, t - s), T = first (last/first)^min(1, progress/until)."""

    first: float = 64.0
    last: float = 1280.0
    until: float = 0.5

    def __call__(self, s: Tensor, t: Tensor, progress: Tensor) -> Tensor:
        risen = torch.clamp(progress / self.until, max=1.0)
        return torch.minimum(t - s, ((self.first / self.last) ** risen / self.first).to(s))


@dataclass(frozen=True, eq=False)
class AdjustedSlide:
    """One DDIM step along a velocity that gives back the variance which its denoiser took away (aDDIM):

        x_m = beta_m x1^ + sqrt(alpha_m^2 + eta r^2 |x1^ - x1|^2/|x0^|^2) x0^,
        r = beta_m - beta_s alpha_m/alpha_s,   |x_m|^2 = |DDIM|^2 + eta r^2 |x1^ - x1|^2   if x1^ . x0^ = 0.

    Attributes:
        velocity: who supplies it.
        eta: the share given back.
    """

    velocity: Slot
    eta: float = 0.75

    def __call__(
        self,
        own: FlowMap,
        state: State,
        interpolant: Interpolant,
        s: Tensor,
        m: Tensor,
        cond: Condition | None,
    ) -> Tensor:
        if state.x1 is None:
            raise ValueError("an adjusted step needs the data that made the state; use data states")
        x0, x1 = ends(interpolant, state.x, self.velocity(own, state, s, cond), s)
        missed = per_row_norm2(x1 - state.x1) / per_row_norm2(x0).clamp(min=1e-12)
        start, end = interpolant(s), interpolant(m)
        kept = end.beta - start.beta * end.alpha / start.alpha
        noise = torch.sqrt(end.alpha.square() + self.eta * kept.square() * missed)
        return (like(end.beta, x1) * x1 + like(noise, x0) * x0).to(state.x.dtype)


def in_data(span: Span) -> Tensor:
    """From squared distances of jumps to (SNR + 1) times those of the data that they lead to, [n]."""
    return (span.s.square() + (1.0 - span.s).square()) / (span.t - span.s).square().clamp(min=1e-12)


def multistep_consistency(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    segments: int = 4,
    times: Law = Uniform(),
    step: StepLaw = Refined(),
    eta: float = 0.75,
    weight: Weight = InStates(Scaled(Squared(), factor=in_data)),
    guidance: GuidanceInput | None = None,
) -> Objective:
    """Multistep consistency distillation.

    Args:
        student: the flow map that learns; of it X_{s,t}, t the end of a segment.
        teacher: the velocity on the interpolant's path that the neighbour is reached with.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; with ``eta`` the pairs' data tell what a denoiser misses.
        segments: their number, which is the number of steps to sample with; the card is that of four.
        times: the law of s.
        step: the distance of the neighbour.
        eta: the share of the variance that is given back.
        weight: error in velocities -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    velocity = Teacher(guided(teacher, guidance))
    return Eulerian(
        student,
        None,
        interpolant,
        coupling,
        times=Phases(segments, times, stratified=True),
        step=step,
        leg=AdjustedSlide(velocity, eta),
        tangent=velocity,
        velocity=velocity,
        weight=weight,
        guidance=guidance,
    )
