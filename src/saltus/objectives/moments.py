"""Moment matching: where two jumps from neighbouring times end, groups of them have one law.

Groups of M rows share their times s < m < t. With the ends X_j = X_{s,t}(x_s) and, m = s + d nearer to t,
Y_j = sg X_{m,t}(leg(x_s)), the loss of a group is the squared maximum mean discrepancy of the two crowds,

    Z = mean_{jk} k(X_j, X_k) + mean_{jk} k(Y_j, Y_k) - 2 mean_{jk} k(X_j, Y_k),

over all pairs (a V-statistic, never negative) or, ``unbiased``, over j != k: then its mean is the
discrepancy of the two laws. k is a function of c |x - y|. With one particle Z = 2 (k(0) - k(c |X - Y|)):
consistency training with a distance of its own, |X - Y|^2 for k(d) = -d^2/2.

The weight sees the square root of Z as an error of one entry, so that :class:`saltus.weights.Squared` is Z
itself; a negative Z keeps its sign. Autocast is off: both crowds nearly agree, and half precision would tell
of its rounding.

References:
    Zhou, Ermon and Song, "Inductive moment matching", 2025, arXiv 2503.07565, eqs. (7) to (12).
    Gretton et al., "A kernel two-sample test", 2012, JMLR 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Leg, Line, draw_noise
from saltus.radial import Kernel, Laplace
from saltus.states import DataStates, States, draw_pairing, locate
from saltus.streams import Streams
from saltus.tensors import sg, upcast
from saltus.times import Constant, PairLaw, StepLaw, Triangle, resolved
from saltus.typing import Batch, Draws, FlowMap, Term
from saltus.weights import Span, Squared, Weight

__all__ = ["Moments", "discrepancy"]


def discrepancy(x: Tensor, y: Tensor, kernel: Kernel, scale: Tensor, unbiased: bool = False) -> Tensor:
    """Z of every group, [G]: x and y [G, M, D], the kernel's argument scale [G] times the distance.

    >>> x, y = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    >>> discrepancy(x, y, lambda d: -0.5 * d.square(), torch.ones(1)).round(decimals=4)  # |x - y|^2
    tensor([2.])
    """
    count = x.shape[1]

    def mean(a: Tensor, b: Tensor) -> Tensor:
        square = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)
        tiny = torch.finfo(square.dtype).tiny  # where points meet the distance has no slope
        values = kernel(scale[:, None, None] * torch.sqrt(square.clamp(min=tiny)))
        if not unbiased:
            return values.mean((1, 2))
        others = ~torch.eye(count, dtype=torch.bool, device=x.device)
        return (values * others).sum((1, 2)) / (count * (count - 1))

    return mean(x, x) + mean(y, y) - 2.0 * mean(x, y)


@dataclass(frozen=True, eq=False)
class Moments:
    """Make groups of jumps from neighbouring times end in one law.

    Attributes:
        student: the flow map that learns.
        target: the flow map that jumps from m; None is the student, stopped.
        interpolant: the path between prior and data.
        coupling: how x0 and x1 are paired.
        states: where x_s comes from.
        times: the law of (s, t); a group has those of its first row.
        step: the finite step d.
        leg: how the start moves by it.
        kernel: k.
        scale: c, of a group's span, [G]; None is 1.
        per_dimension: whether distances are divided by D, the number of a sample's dimensions.
        particles: M, rows of a group: neighbours by their number in the run.
        unbiased: whether a row is kept from its own counterpart and itself.
        weight: error -> loss.
        guidance: label dropout, strengths as an input of the network, or None.
    """

    student: FlowMap
    target: FlowMap | None = None
    interpolant: Interpolant = Linear()
    coupling: Coupling = Independent()
    states: States = DataStates()
    times: PairLaw = Triangle()
    step: StepLaw = Constant(0.01)
    leg: Leg = Line()
    kernel: Kernel = Laplace((1.0,))
    scale: Callable[[Span], Tensor] | None = None
    per_dimension: bool = False
    particles: int = 4
    unbiased: bool = False
    weight: Weight = Squared()
    guidance: LabelDropout | GuidanceInput | None = None

    def __post_init__(self) -> None:
        if self.particles < 1 + self.unbiased:
            raise ValueError(
                f"moments: expected at least {1 + self.unbiased} particles in a group, got {self.particles}; "
                "one has no others to be compared with"
            )

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The times (s, t), each [B], the pairing, and the noise of a leg that needs some."""
        rng.places(self.particles)  # or it says what is wrong with the rows
        s, t = self.times(rng.together(self.particles))
        pairing = draw_pairing(self.coupling, self.guidance, batch, rng)
        return {"s": s, "t": t, **pairing, **draw_noise(self.leg, batch, rng)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``moments``, one value a group, [G]."""
        s, t = draws["s"], draws["t"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor)
        state, cond = locate(self.states, self.interpolant, self.guidance, batch, draws, s)
        own, (d, _) = self.target or self.student, resolved(self.step(s, t, batch.progress))
        m = torch.minimum(s + d, t)
        with torch.autocast(state.x.device.type, enabled=False):  # half precision would hide what d makes
            made = self.student(state.x, s, t, cond)
            with torch.no_grad():
                wanted = own(self.leg(own, state, self.interpolant, s, m, cond), m, t, cond)
        first = slice(None, None, self.particles)
        span = Span(s[first], t[first], d[first])
        size = math.prod(made.shape[1:])
        x, y = (upcast(z).reshape(-1, self.particles, size) for z in (made, wanted))
        scale = torch.ones_like(x[:, 0, 0]) if self.scale is None else self.scale(span).to(x)
        scale = scale / size if self.per_dimension else scale
        z = discrepancy(x, y, self.kernel, scale, self.unbiased)
        length = torch.sqrt(sg(z).abs().clamp(min=torch.finfo(z.dtype).tiny))
        sign = torch.where(sg(z) < 0.0, -1.0, 1.0).to(z)
        root = length + sign * (z - sg(z)) / (2.0 * length)
        return {"moments": Term(sign * self.weight(root.unsqueeze(1), span))}
