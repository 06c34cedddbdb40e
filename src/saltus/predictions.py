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
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from saltus.interpolants import Coefficients, Interpolant
from saltus.tensors import like, sg, upcast
from saltus.typing import Condition, Velocity

__all__ = ["Converted", "Prediction", "convert", "matching_time", "means"]


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


@runtime_checkable
class Invertible(Protocol):
    """An interpolant that knows the time of a signal-to-noise ratio without a search."""

    def time_of(self, alpha: Tensor, beta: Tensor) -> Tensor:
        """The time of the ratio beta/alpha [B], or the nearer end, in float64; a constant."""
        ...


def matching_time(t: Tensor, given: Interpolant, other: Interpolant, halvings: int = 64) -> Tensor:
    """The time of ``other`` with the signal-to-noise ratio that ``given`` has at t.

    Solves beta'(tau) alpha(t) = alpha'(tau) beta(t) in float64, by bisection unless ``other`` is
    :class:`Invertible`, division-free, so that the ends 0 and 1 are found too; a ratio that ``other`` never
    has gives its nearer end. [B] -> [B], in t's dtype, differentiable once in t.
    """
    c = given(t.double())
    if isinstance(other, Invertible):
        tau = other.time_of(sg(c.alpha), sg(c.beta))
    else:
        tau = _bisected(c, other, halvings)
    # the search has no derivative: this adds that of the implicit function, and the value 0
    m = other(tau)
    gap, slope = m.beta * c.alpha - m.alpha * c.beta, sg(m.dbeta * c.alpha - m.dalpha * c.beta)
    slope = torch.where(slope == 0.0, torch.ones_like(slope), slope)  # 0 beyond the end of a constant beta
    return (tau - (gap - sg(gap)) / slope).to(t)


def _bisected(c: Coefficients, other: Interpolant, halvings: int) -> Tensor:
    low, high = torch.zeros_like(c.alpha), torch.ones_like(c.alpha)
    for _ in range(halvings):
        middle = 0.5 * (low + high)
        m = other(middle)
        too_clean = m.beta * c.alpha > m.alpha * c.beta
        low, high = torch.where(too_clean, low, middle), torch.where(too_clean, middle, high)
    return 0.5 * (low + high)


_MOST_GAIN = 1e6
"""By how much at most a prediction's error may be multiplied; beyond it, rounding is all that is left."""


def means(
    value: Tensor, x: Tensor, t: Tensor, interpolant: Interpolant, have: Prediction
) -> tuple[Tensor, Tensor]:
    """E[x0|x] and E[x1|x] at state x [B, ...] and time t [B], from a prediction there.

    NaN where the prediction says nothing of one of them: noise at beta_t = 0, x1 at alpha_t = 0.
    """
    c = interpolant(t)
    if have is Prediction.SCORE:  # its row is infinite at alpha = 0, and alpha times it is not
        value, have = -like(c.alpha, x) * value, Prediction.X0
    p, q = have.row(c)
    determinant = c.alpha * q - c.beta * p
    x0 = like(q / determinant, x) * x - like(c.beta / determinant, x) * value
    x1 = like(c.alpha / determinant, x) * value - like(p / determinant, x) * x
    return x0, x1


@dataclass(frozen=True, eq=False)
class Converted:
    """A model that predicts ``have`` along ``interpolant``, as a Velocity of the interpolant ``onto``.

    With the same pairs (x0, x1), the state x of ``onto`` at t is a multiple of a state of ``interpolant``
    at the time tau of equal signal-to-noise ratio: y = (alpha'_tau/alpha_t) x. There the model's
    prediction yields E[x0|x] and E[x1|x], and those the velocity dalpha_t E[x0|x] + dbeta_t E[x1|x].
    That is exact for every tau at which the model is asked.

    A noise prediction says nothing of x1 where beta = 0, and an x1 prediction nothing of x0 where
    alpha = 0. ``between`` keeps such times out: the model is asked at tau clamped to it, at y of the
    length that states have there, and of its two means the nearest with alpha_t x0 + beta_t x1 = x are
    taken. So b_0 = dalpha_0 x + dbeta_0 E[x1 | y at low], whose error is of first order in ``low``:
    low Cov(x1) x on the line. The same happens to a ratio that ``interpolant`` never reaches, as t = 0
    for a variance-exploding one that stops at sigma = 80.

    Attributes:
        model: (y, tau, cond) -> prediction in the shape of y.
        have: what it predicts.
        onto: the interpolant whose velocity is wanted; None is ``interpolant`` itself.
        between: the lowest and the highest time tau at which the model is asked.

    Raises:
        ValueError: at construction, if ``have`` says nothing at an end of ``between``.
    """

    model: Velocity
    interpolant: Interpolant
    have: Prediction = Prediction.VELOCITY
    onto: Interpolant | None = None
    between: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.between
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(
                f"between: expected two times with 0 <= low < high <= 1, got ({low}, {high}); t = 0 is noise"
            )
        ends = torch.tensor([low, high]).double()  # in float32 first, as most models are asked
        one, none = torch.ones_like(ends), torch.zeros_like(ends)
        pairs = [means(*of, ends, self.interpolant, self.have) for of in ((one, none), (none, one))]
        gains = torch.stack([g for pair in pairs for g in pair])  # of the prediction and of the state
        silent = [not bool(fine) for fine in (gains.abs() < _MOST_GAIN).all(dim=0)]  # NaN is not below it
        if any(silent):
            safe = (max(low, 1e-3) if silent[0] else low, min(high, 1.0 - 1e-3) if silent[1] else high)
            raise ValueError(
                f"between: expected times at which {self.have.value} determines x0 and x1, got t = "
                f"{low if silent[0] else high:g} of {self.interpolant}, where it does not; "
                f"between=({safe[0]:g}, {safe[1]:g}) asks the model no nearer to it"
            )

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        onto = self.interpolant if self.onto is None else self.onto
        tau = t if onto == self.interpolant else matching_time(t, onto, self.interpolant)
        tau = tau.clamp(*self.between)
        ours, theirs = onto(t), self.interpolant(tau)
        # (alpha', beta') at tau is a multiple of (alpha, beta) at t, so this is the ratio of either, safely
        length2 = ours.alpha.square() + ours.beta.square()
        scale = torch.sqrt((theirs.alpha.square() + theirs.beta.square()) / length2)
        y = (like(scale, x) * x).to(x.dtype)
        x0, x1 = means(self.model(y, tau, cond), y, tau, self.interpolant, self.have)
        # nothing but rounding is left over unless tau was clamped
        left = (x - like(ours.alpha, x) * x0 - like(ours.beta, x) * x1) / like(length2, x)
        x0, x1 = x0 + like(ours.alpha, x) * left, x1 + like(ours.beta, x) * left
        return (like(ours.dalpha, x) * x0 + like(ours.dbeta, x) * x1).to(upcast(x).dtype)
