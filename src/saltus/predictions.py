"""What a network may predict, and how to turn one prediction into another.

Every prediction is a row (p, q) of the pair: p x0 + q x1. With the state x = alpha x0 + beta x1 it
makes a 2x2 system

    [alpha beta] [x0]   [    x     ]
    [  p    q  ] [x1] = [prediction]

whose solution gives every other prediction. All are linear in (x0, x1), so the same formula converts
conditional means: E[x1|x], the velocity b and the score are related exactly as the pair is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from saltus.interpolants import Coefficients, Interpolant
from saltus.tensors import like, sg, upcast
from saltus.typing import Condition, Velocity

__all__ = ["Converted", "Prediction", "Reinterpolated", "convert", "matching_time"]


class Prediction(Enum):
    """The kinds, each with its row (p, q) as a function of the coefficients at t."""

    X0 = "x0"  # the prior sample
    NOISE = "noise"  # the same thing under the name that diffusion models use
    X1 = "x1"  # the data
    VELOCITY = "velocity"  # dI_t
    V = "v"  # beta x0 - alpha x1: the v-prediction of progressive distillation, arXiv 2202.00512
    SCORE = "score"  # grad log rho_t(x) = -E[x0|x]/alpha, for a standard normal prior

    def row(self, c: Coefficients) -> tuple[Tensor, Tensor]:
        """(p, q) at the times of ``c``, each [B]."""
        return _ROWS[self](c)


_ROWS: dict[Prediction, Callable[[Coefficients], tuple[Tensor, Tensor]]] = {
    Prediction.X0: lambda c: (torch.ones_like(c.alpha), torch.zeros_like(c.alpha)),
    Prediction.NOISE: lambda c: (torch.ones_like(c.alpha), torch.zeros_like(c.alpha)),
    Prediction.X1: lambda c: (torch.zeros_like(c.alpha), torch.ones_like(c.alpha)),
    Prediction.VELOCITY: lambda c: (c.dalpha, c.dbeta),
    Prediction.V: lambda c: (c.beta, -c.alpha),
    Prediction.SCORE: lambda c: (-1.0 / c.alpha, torch.zeros_like(c.alpha)),
}


def convert(
    value: Tensor, x: Tensor, t: Tensor, interpolant: Interpolant, have: Prediction, want: Prediction
) -> Tensor:
    """Turn a prediction at state x [B, ...] and time t [B] into another, exactly.

    The determinant alpha q - beta p vanishes where a prediction says nothing: noise at t = 0, x1 at
    t = 1. There the result is infinite or NaN, as it must be.

    >>> from saltus.interpolants import Linear
    >>> x, t = torch.tensor([[1.0]]), torch.tensor([0.5])
    >>> convert(torch.tensor([[2.0]]), x, t, Linear(), Prediction.X1, Prediction.VELOCITY)
    tensor([[2.]])
    """
    c = interpolant(t)
    p, q = have.row(c)
    p_new, q_new = want.row(c)
    determinant = c.alpha * q - c.beta * p
    of_x = (p_new * q - q_new * p) / determinant
    of_value = (q_new * c.alpha - p_new * c.beta) / determinant
    return (like(of_x, x) * x + like(of_value, x) * value).to(upcast(x).dtype)


@dataclass(frozen=True, eq=False)
class Converted:
    """A model that predicts ``have`` along an interpolant, seen as a Velocity of that interpolant.

    Attributes:
        model: (x, t, cond) -> prediction in the shape of x.
    """

    model: Velocity
    interpolant: Interpolant
    have: Prediction

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        value = self.model(x, t, cond)
        return convert(value, x, t, self.interpolant, self.have, Prediction.VELOCITY)


def matching_time(t: Tensor, given: Interpolant, other: Interpolant, halvings: int = 80) -> Tensor:
    """The time of ``other`` with the signal-to-noise ratio that ``given`` has at t.

    Solves beta'(tau) alpha(t) = alpha'(tau) beta(t) by bisection in float64, division-free, so that
    the ends 0 and 1 are found too; a ratio that ``other`` never has gives its nearer end. [B] -> [B], in
    t's dtype, differentiable once in t.
    """
    c = given(t.double())
    low, high = torch.zeros_like(c.alpha), torch.ones_like(c.alpha)
    for _ in range(halvings):
        middle = 0.5 * (low + high)
        m = other(middle)
        too_clean = m.beta * c.alpha > m.alpha * c.beta
        low, high = torch.where(too_clean, low, middle), torch.where(too_clean, middle, high)
    tau = 0.5 * (low + high)
    # bisection has no derivative: this adds that of the implicit function, and the value 0
    m = other(tau)
    gap, slope = m.beta * c.alpha - m.alpha * c.beta, m.dbeta * c.alpha - m.dalpha * c.beta
    return (tau - (gap - sg(gap)) / sg(slope)).to(t)


@dataclass(frozen=True, eq=False)
class Reinterpolated:
    """A velocity of the interpolant ``given`` as the velocity of the interpolant ``wanted``.

    With the same pairs (x0, x1), the state x of ``wanted`` at t is a multiple of a state of ``given``
    at the time tau of equal signal-to-noise ratio: x' = (alpha'_tau/alpha_t) x. There the model's
    velocity yields E[x0|x] and E[x1|x], and those the velocity dalpha_t E[x0|x] + dbeta_t E[x1|x].
    """

    velocity: Velocity
    given: Interpolant
    wanted: Interpolant

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        tau = matching_time(t, self.wanted, self.given)
        ours, theirs = self.wanted(t), self.given(tau)
        # (alpha', beta') at tau is a multiple of (alpha, beta) at t, so this is the ratio of either, safely
        scale = torch.sqrt(
            (theirs.alpha.square() + theirs.beta.square()) / (ours.alpha.square() + ours.beta.square())
        )
        y = (like(scale, x) * x).to(x.dtype)
        b = self.velocity(y, tau, cond)
        x0 = convert(b, y, tau, self.given, Prediction.VELOCITY, Prediction.X0)
        x1 = convert(b, y, tau, self.given, Prediction.VELOCITY, Prediction.X1)
        return (like(ours.dalpha, x) * x0 + like(ours.dbeta, x) * x1).to(upcast(x).dtype)
