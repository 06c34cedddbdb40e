"""From an error to a loss: [n, ...] -> [n], summed over dimensions.

An error is u - y in units of velocity, live in u, with the target y stopped (or live, for losses
that differentiate through it). :class:`Span` says where the rows live: (s, t), for finite splits the step d,
and the state and velocity that the error is of. :class:`Scaled` puts an error into the units that a paper
uses; :class:`InStates` makes it the distance of two jumps, :class:`InFeatures` that of what a feature map
sees in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from saltus.autodiff import derivative
from saltus.tensors import like, per_row_norm2, sg, upcast

__all__ = [
    "AdaptivePower",
    "Clipped",
    "Differences",
    "Directed",
    "EntryHuber",
    "InFeatures",
    "InStates",
    "LearnedLogVariance",
    "PerEntry",
    "PseudoHuber",
    "Scaled",
    "Span",
    "Squared",
    "TangentNormalised",
    "Weight",
    "per_noise_step",
    "slope",
]


class Span(NamedTuple):
    """The times of the rows: s, t [n]; d [n] is the finite step, or None.

    x [n, ...] is the state at s and u [n, ...] the average velocity from it, of which the error is the live
    part, without gradient; None where the error is not of one jump.
    """

    s: Tensor
    t: Tensor
    d: Tensor | None = None
    x: Tensor | None = None
    u: Tensor | None = None


def _size(error: Tensor) -> int:
    """D, the number of dimensions of a row, also where there are no rows."""
    return math.prod(error.shape[1:])


class Weight(Protocol):
    """error [n, ...] and the rows' times -> loss [n], in at least float32."""

    def __call__(self, error: Tensor, span: Span) -> Tensor: ...


def slope(weight: Weight, error: Tensor, span: Span) -> Tensor:
    """|d weight(e)/d e|, the norm of each row's gradient in the error, as constants [n].

    Most weights depend on the size of e alone, so their gradient is along e and its norm is the derivative
    along e/|e|; of those that look at a jump it is the part along e. Where e = 0 it is 0.

    >>> slope(Squared(), torch.tensor([[3.0, 4.0]]), Span(torch.zeros(1), torch.ones(1)))
    tensor([10.])
    """
    with torch.no_grad():
        fixed = upcast(error)
        length = torch.sqrt(per_row_norm2(fixed))
        unit = fixed / like(length.clamp(min=torch.finfo(length.dtype).tiny), fixed)
        _, along = derivative(lambda e: weight(e, span), (fixed,), (unit,))
    return along.abs()


@dataclass(frozen=True)
class Squared:
    """|e|^2.

    >>> Squared()(torch.tensor([[3.0, 4.0]]), Span(torch.zeros(1), torch.ones(1)))
    tensor([25.])
    """

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        return per_row_norm2(error)


@dataclass(frozen=True)
class PseudoHuber:
    """sqrt(|e|^2 + c^2) - c; with c = 0 the plain norm, whose gradient at e = 0 is taken as 0.

    With ``per_dimension`` the constant is c sqrt(D), D the number of dimensions of a row
    (Song and Dhariwal, 2023, arXiv 2310.14189: 0.00054 sqrt(D)).
    """

    c: float
    per_dimension: bool = False

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        c = self.c * math.sqrt(_size(error)) if self.per_dimension else self.c
        tiny = torch.finfo(upcast(error).dtype).tiny
        return torch.sqrt(per_row_norm2(error) + max(c * c, tiny)) - c


@dataclass(frozen=True)
class EntryHuber:
    """sum_i sqrt(e_i^2 + c^2) - c over the entries e_i of the error.

    Unlike the other weights it is not a function of |e| alone.

    References:
        Luo et al., "Latent consistency models", 2023, arXiv 2310.04378, in the code of diffusers.
    """

    c: float

    def __post_init__(self) -> None:
        if not self.c > 0.0:
            raise ValueError(f"EntryHuber: expected c > 0, got {self.c}; at 0 the gradient jumps")

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        return (torch.sqrt(upcast(error).square() + self.c * self.c) - self.c).flatten(1).sum(1)


@dataclass(frozen=True)
class PerEntry:
    """inner/D: a mean over the D entries of what inner is given, where inner is a sum over them.

    For losses beside a term that does not grow with D, an adversary's say. Inside of :class:`InStates` or
    :class:`InFeatures` the entries are those of the state or of the features.

    >>> PerEntry(Squared())(torch.tensor([[3.0, 4.0]]), Span(torch.zeros(1), torch.ones(1)))
    tensor([12.5000])
    """

    inner: Weight

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        return self.inner(error, span) / _size(error)


@dataclass(frozen=True)
class AdaptivePower:
    """l / sg(l + c)^p, or l / sg(l/D + c)^p ``per_dimension``, D being their number, with l = |e|^2 or the
    inner weight's.

    p = 1 divides every row by its own squared error. With data velocities in low dimension that
    moves the fixed point (an M-estimator of the mean); p = 0 is the inner weight.

    References:
        Geng et al., "Mean flows for one-step generative modeling", 2025, arXiv 2505.13447, sec. 4.3.
    """

    p: float = 1.0
    c: float = 1e-2
    per_dimension: bool = False
    inner: Weight = Squared()

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        value = self.inner(error, span)
        size = value / _size(error) if self.per_dimension else value
        return value / sg(size + self.c) ** self.p


@dataclass(frozen=True)
class TangentNormalised:
    """The gradient 2 e / (|e|/sqrt(D) + c): the error's direction, its size bounded.

    The value is that of the squared normalised error; the gradient in e is 2 sg(e)/(|e|/sqrt(D) + c).

    References:
        Lu and Song, "Simplifying, stabilizing and scaling continuous-time consistency models",
        2024, arXiv 2410.11081, sec. 4.2 (c = 0.1).
    """

    c: float = 0.1

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        error = upcast(error)
        size = torch.sqrt(sg(per_row_norm2(error)) / _size(error))
        normalised = sg(error) / like(size + self.c, error)
        return per_row_norm2(error - sg(error) + normalised)


@dataclass(frozen=True)
class Scaled:
    """factor(span) * inner(scale(span) e): a weight in the units that a paper uses.

    Attributes:
        inner: the weight of the scaled error.
        scale: Span -> [n], multiplies the error; None leaves it.
        factor: Span -> [n], multiplies the loss; None leaves it.
    """

    inner: Weight
    scale: Callable[[Span], Tensor] | None = None
    factor: Callable[[Span], Tensor] | None = None

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        if self.scale is not None:
            error = like(self.scale(span), error) * error
        value = self.inner(error, span)
        return value if self.factor is None else self.factor(span) * value


@dataclass(frozen=True)
class InStates:
    """inner of the error in states: X_{s,t}(x_s) - sg X'_{m,t}(x_m), of a finite step d, m = s + d.

    An error e = u - y in velocities is (X - X')/d. X is x + (t - s) u, so the gradient of the result in
    u is t - s, where d e alone would have the smaller d.
    """

    inner: Weight

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        if span.d is None:
            raise ValueError(
                "InStates: expected rows with a finite step, got a derivative; give the objective a step"
            )
        fixed = sg(error)
        live = like(span.t - span.s, error) * (error - fixed)
        return self.inner(like(span.d, error) * fixed + live, span)


@dataclass(frozen=True)
class Clipped:
    """inner of scale(span) clamp(e, -bound, bound), stopped, with the gradient in e of e itself: a bounded
    step of the target, u - sg(u - scale clamp(e)).

    Attributes:
        inner: the weight of the bounded error.
        bound: of every entry.
        scale: Span -> [n], multiplies what has been bounded; None leaves it.
    """

    inner: Weight
    bound: float = 1.0
    scale: Callable[[Span], Tensor] | None = None

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        fixed = sg(error)
        step = fixed.clamp(-self.bound, self.bound)
        if self.scale is not None:
            step = like(self.scale(span), error) * step
        return self.inner(step + (error - fixed), span)


@dataclass(frozen=True)
class Directed:
    """inner(e) + D mean(1 - cos(u, y)), y = u - e stopped: the target's direction counts beside its size.

    The cosine is along the first axis of a row (channels), its mean over the others (places), and D the
    number of dimensions, for weights here are sums over them. Where y is noisy it moves the fixed point:
    directions of noise do not average to the direction of the mean. Where |u| is below |y|/100 the
    cosine is 100 u y/|y|^2, for its slope grows as 1/|u| and a network begins at u = 0.
    """

    inner: Weight = Squared()

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        if span.u is None:
            raise ValueError("Directed: expected the error of a jump, got one of no velocity; use Squared()")
        fixed = sg(upcast(error))
        wanted = upcast(span.u) - fixed
        live = upcast(span.u) + (upcast(error) - fixed)
        tiny = torch.finfo(live.dtype).eps
        length = wanted.square().sum(1)
        sizes = live.square().sum(1).clamp(min=1e-4 * length) * length
        cosine = (live * wanted).sum(1) * torch.rsqrt(sizes.clamp(min=tiny * tiny))
        return self.inner(error, span) + _size(error) * (1.0 - cosine.unsqueeze(1).flatten(1).mean(1))


@dataclass(frozen=True)
class Differences:
    """x_{k+1} - x_k along an axis: of a clip's frames, its motion. What all frames share is not seen.

    >>> Differences()(torch.tensor([[1.0, 4.0, 9.0]]))
    tensor([[3., 5.]])
    """

    dim: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        return x.diff(dim=self.dim)


@dataclass(frozen=True, eq=False)
class InFeatures:
    """inner of phi(X) - sg phi(Y): two ends of a jump as a feature map sees them.

    X = x_s + (t - s) u, through which the gradient passes, and Y is where the target ends: X - d e with a
    finite step d (as in :class:`InStates`), else X - (t - s) e. With phi the identity it is InStates' error.
    On the diagonal no jump has a length and nothing is seen.

    Attributes:
        inner: the weight of the features' difference.
        features: phi: [n, ...] -> [n, ...], row by row; its parameters, if any, take no gradient. Frame
            differences, a frequency band, the layers of a perceptual network.
    """

    inner: Weight
    features: Callable[[Tensor], Tensor]

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        if span.x is None or span.u is None:
            raise ValueError(
                "InFeatures: expected the error of one jump from a state, got none; compare features where a "
                "jump ends, without a push"
            )
        h, fixed = like(span.t - span.s, error), sg(error)
        end = span.x + h * span.u
        reach = h if span.d is None else like(span.d, error)
        with torch.no_grad():
            wanted = self.features(end - reach * fixed)
        return self.inner(self.features(end + h * (error - fixed)) - wanted, span)


def per_noise_step(span: Span) -> Tensor:
    """1/(sigma_s - sigma_m), [n], of a finite step to m = s + d, with sigma = (1 - s)/s: s m/d. A factor."""
    if span.d is None:
        raise ValueError("per_noise_step: expected rows with a finite step, got none; give a step")
    return span.s * (span.s + span.d) / span.d


class LearnedLogVariance(nn.Module):
    """exp(-w) l + w, with l the inner loss and w = w(s, t) a learned function of the times.

    Where w is the logarithm of the mean loss at (s, t), it is at its optimum and every pair of times
    contributes alike. A row whose loss is exactly 0, left out by its step or its time, would drive w down
    without end: it has the loss 0. As in the source, w(s, t) = g(s) + g(t) with one g, linear in sinusoidal
    features and 0 at the start: exact on the diagonal, the best fit of that form off it.

    References:
        Boffi, Albergo and Vanden-Eijnden, "How to build a consistency model", 2025,
        arXiv 2505.18825, eq. (19); Karras et al., 2023, arXiv 2312.02696, sec. 2.2 (EDM2).
    """

    frequencies: Tensor

    def __init__(self, inner: Weight | None = None, features: int = 64) -> None:
        super().__init__()
        self.inner = Squared() if inner is None else inner
        self.register_buffer("frequencies", torch.arange(features // 2), persistent=False)
        self.linear = nn.Linear(2 * (features // 2), 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def log_variance(self, s: Tensor, t: Tensor) -> Tensor:
        """w(s, t), [n]."""
        # whole numbers, which a cast of the module to half precision leaves alone
        angles = torch.stack([s, t]).unsqueeze(-1) * (math.pi * self.frequencies.to(s))
        features = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).sum(0) * math.sqrt(0.5)
        return (features.to(self.linear.weight) * self.linear.weight[0]).sum(-1)

    def forward(self, error: Tensor, span: Span) -> Tensor:
        value = self.inner(error, span)
        w = self.log_variance(span.s, span.t).to(value)
        return torch.where(value > 0.0, torch.exp(-w) * value + w, value)
