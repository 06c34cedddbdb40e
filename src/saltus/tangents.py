"""The loss of simplified consistency models, as a weight of errors in u_{s,1} on any interpolant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.tensors import like, per_row_norm2, sg, upcast
from saltus.weights import LearnedLogVariance, Span

__all__ = ["AngleTangents", "simplified"]


@dataclass(frozen=True)
class AngleTangents:
    """(1/tan a) | n(g) + F - sg F |^2, the loss of simplified consistency models, of errors e in u_{s,1}.

    With a = atan(alpha/beta) the angle of the noise, g = cos(a) dX_{s,1}/da is cos(a) |ds/da| e, and

        n(g) = g/(|g|/sqrt(D) + c),   F - sg F = ((1 - s)/sin a)(u - sg u)

    for F the direction in which the paper's network turns a state, X_{s,1} = cos(a) x - sin(a) F on a circle.
    So the value is that of n(g) alone, and its gradient the one in F. With N^2 = alpha^2 + beta^2 and
    det = alpha dbeta - dalpha beta, da/ds = -det/N^2 for a state of length one. On the trigonometric
    interpolant cos(a) |ds/da| is (2/pi) cos(a).

    Attributes:
        interpolant: of the states.
        c: bounds the size of the normalised tangent.
        prior: whether the loss has the factor 1/tan(a); the rows at s = 0 then say nothing.
        per_dimension: whether the norm in n is over sqrt(D).

    References:
        Lu and Song, "Simplifying, stabilizing and scaling continuous-time consistency models",
        2024, arXiv 2410.11081, sec. 4 and algorithm 1.
    """

    interpolant: Interpolant
    c: float = 0.1
    prior: bool = True
    per_dimension: bool = True

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        error, at = upcast(error), self.interpolant(span.s)
        length, fixed = torch.hypot(at.alpha, at.beta), sg(error)
        g = like(at.beta * length / (at.alpha * at.dbeta - at.dalpha * at.beta), error) * fixed
        size = torch.sqrt(per_row_norm2(g) / (math.prod(error.shape[1:]) if self.per_dimension else 1))
        turned = like((1.0 - span.s) * length / at.alpha.clamp(min=1e-4), error) * (error - fixed)
        value = per_row_norm2(g / like(size + self.c, error) + turned)
        return at.beta / at.alpha.clamp(min=1e-4) * value if self.prior else value


def simplified(interpolant: Interpolant, device: torch.device) -> LearnedLogVariance:
    """The weight of simplified consistency models on any interpolant, of errors in u_{s,1}:
    exp(-w) l + w, with l that of :class:`AngleTangents` and w learned."""
    return LearnedLogVariance(AngleTangents(interpolant)).to(device)
