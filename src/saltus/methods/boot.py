"""BOOT: distillation from the prior alone, a little further along the trajectory each time.

With y_t = (X_{0,t}(x0) - alpha_t x0)/beta_t the signal of the jump, l = log(beta/alpha) and f the
teacher's denoiser, dy/dt = l' (f(x_t, t) - y_t). One step of it, with f held fixed, is

    L = E | y_t - sg( y_m + (1 - exp(l_m - l_t)) (f(x_m, m) - y_m) ) |^2 / d^2,   m = t - d
      + E | y_0 - f(x0, 0) |^2                                                     (boundary)

The step is the teacher's DDIM step from X_{0,m}(x0) to t, on any interpolant, so in average velocities L
is the Lagrangian loss from the prior with a finite step, and the boundary asks u_{0,0} = b_0. With e the
error there, the residual over d is e/beta_t in value, t e/(beta_t d) in gradient.

Use it where there is a teacher, no data and no derivative to be had. Only X_{0,t} is learned: sample one
step. The end of a short step is off by O(d), and so is the map.

References:
    Gu et al., "BOOT: data-free distillation of denoising diffusion models with bootstrapping", 2023,
    arXiv 2306.05544. Second-hand: the loss, from a description; d = 0.04 and the boundary's share are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from saltus.autodiff import Derivative, Forward
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Slide
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Lagrangian, Part, Sum
from saltus.slots import Teacher
from saltus.states import PriorStates
from saltus.tensors import like, sg
from saltus.times import Constant, FromStart, Law, StepLaw, Uniform
from saltus.typing import FlowMap, Gradient, Objective, Velocity
from saltus.weights import Span, Squared, Weight

CARD = Card(
    title="BOOT",
    paper="Gu et al. 2023, arXiv 2306.05544",
    needs=frozenset({Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(1,),
    two_times=False,
    cost=Cost(live=1.0, stopped=0.875, teacher=1.0),
    threshold=0.28,
    quick_threshold=0.68,
    bias="a finite DDIM step of the teacher: O(d)",
    plain={"weight": Squared()},
    second_hand=("the loss", "d = 0.04", "an eighth of the rows at the boundary"),
)


@dataclass(frozen=True)
class InSignal:
    """inner of the error in signals over d, (y_t - sg y'_t)/d, of rows from s = 0 with a step.

    An error e in velocities is (t/d)(u - u') and dy = (t/beta_t) du, so the value is e/beta_t and the
    derivative in u is t/(beta_t d).
    """

    inner: Weight
    interpolant: Interpolant

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        if span.d is None:
            raise ValueError("InSignal: expected rows with a finite step, got a derivative; give BOOT a step")
        beta, fixed = self.interpolant(span.t).beta, sg(error)
        live = like(span.t / span.d, error) * (error - fixed)
        return self.inner((fixed + live) / like(beta, error), span)


def boot(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    times: Law = Uniform(0.04, 1.0),
    step: StepLaw | None = Constant(0.04),
    boundary: float = 0.125,
    near: Derivative = Forward(),
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
) -> Objective:
    """BOOT.

    Args:
        student: the flow map of which X_{0,t} learns.
        teacher: its velocity on this interpolant.
        interpolant: the path between prior and data.
        times: the law of t; the weight in signals grows without bound at t = 0, so it starts at d.
        step: the step d; None takes the derivative in t, which has no bias.
        boundary: the share of rows that learn u_{0,0}.
        near: how the derivative is taken, where there is no step.
        weight: error -> loss; None is the paper's, :class:`InSignal`, for a step, and the squared error in
            velocities for the boundary and for the derivative.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    if not 0.0 < boundary < 1.0:
        raise ValueError(
            f"boot: expected a share of rows at the boundary in (0, 1), got {boundary}; an eighth is usual, "
            "and without any nothing fixes where the signal begins"
        )
    velocity, states = Teacher(guided(teacher, guidance)), PriorStates()
    squared = weight or Squared()
    start = Diagonal(
        student,
        interpolant=interpolant,
        states=states,
        times=Uniform(0.0, 0.0),
        velocity=velocity,
        weight=squared,
        guidance=guidance,
    )
    jump = Lagrangian(
        student,
        interpolant=interpolant,
        states=states,
        times=FromStart(times),
        near=near,
        step=step,
        leg=Slide(velocity),
        end=velocity,
        gradient=Gradient.TARGET,
        weight=squared if weight is not None or step is None else InSignal(squared, interpolant),
        guidance=guidance,
    )
    rest = 1.0 - boundary
    return Sum((Part("boundary", start, boundary, boundary), Part("lagrangian", jump, rest, rest)))
