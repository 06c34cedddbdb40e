"""The exact flow map of a mixture on the line.

In one dimension the flow of b_t preserves order and carries the law of I_s to that of I_t, so it is
the monotone map X_{s,t} = F_t^-1 o F_s with F_t the distribution function of I_t,

    F_t(x) = sum_k w_k Phi((x - beta_t mu_k) / S_k).

The equation F_t(y) = F_s(x) is solved for log F below the median and for log(1 - F) above it, so the
tails keep their digits. The root is found by safeguarded Newton steps on constants and then
polished by two Newton steps on live tensors: each doubles the order to which the derivatives agree
with those of the root, so two make every derivative up to the third exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saltus.exact.mixture import Mixture
from saltus.tensors import check_times
from saltus.typing import Condition, Output

__all__ = ["MixtureMap1D"]

_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(16))
_ROUNDS = 100
_NEAR = 0.05


@dataclass(frozen=True, eq=False)
class MixtureMap1D:
    """X_{s,t} = F_t^-1 o F_s of a one-dimensional mixture, s and t in either order.

    Computed in float64 whatever the dtype of x. Labels select the class's own distribution.

    >>> from saltus.exact.problems import line_mixture
    >>> X = MixtureMap1D(line_mixture())
    >>> t = torch.tensor([0.7], dtype=torch.float64)
    >>> X(torch.tensor([[0.3]]), t, t)
    tensor([[0.3000]])
    """

    mixture: Mixture

    def __post_init__(self) -> None:
        if self.mixture.dim != 1:
            raise ValueError(
                f"mixture: expected one dimension, got {self.mixture.dim}; use exact.reference_map instead"
            )

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """X_{s,t}(x), [B, 1]."""
        check_times(x, s=s, t=t)
        log_w = self.mixture.log_weights(x.double(), cond)
        return self._map(x.double(), s.double(), t.double(), log_w).to(x.dtype)

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{s,t}(x), [B, 1], smooth at s = t.

        Rows with |t - s| >= 0.05 divide (X - x) by t - s, which costs two digits at most. The others
        take the mean of b along the exact trajectory by 16-point Gauss-Legendre quadrature, whose
        error on so short a span is rounding.
        """
        check_times(x, s=s, t=t)
        args = x.double(), s.double(), t.double(), self.mixture.log_weights(x.double(), cond)
        near = (t - s).detach().abs() < _NEAR
        if bool(near.all()):
            return self._mean_velocity(*args).to(x.dtype)
        if not bool(near.any()):
            return self._quotient(*args).to(x.dtype)
        order = torch.cat([near.nonzero(), (~near).nonzero()]).flatten()
        short = self._mean_velocity(*(a[near] for a in args))
        long = self._quotient(*(a[~near] for a in args))
        return torch.cat([short, long])[torch.argsort(order)].to(x.dtype)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{t,t}(x) = b_t(x), [B, 1]."""
        return self.mixture(x, t, cond)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """The average velocity; an exact map has no second heads."""
        return Output(self.average(x, s, t, cond), {})

    def _quotient(self, x: Tensor, s: Tensor, t: Tensor, log_w: Tensor) -> Tensor:
        return (self._map(x, s, t, log_w) - x) / (t - s).unsqueeze(1)

    def _mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, log_w: Tensor) -> Tensor:
        """The integral over theta in [0, 1] of b_m(X_{s,m}(x)) at m = s + theta (t - s), [B, 1]."""
        n = len(_NODES)
        theta = ((_NODES + 1.0) / 2.0).to(x.device)
        m = (s.unsqueeze(1) + theta * (t - s).unsqueeze(1)).flatten()
        log_w = log_w.repeat_interleave(n, dim=0)
        y = self._map(x.repeat_interleave(n, dim=0), s.repeat_interleave(n), m, log_w)
        b = self.mixture.velocity_given(y, m, log_w).reshape(-1, n)
        return (b * (_WEIGHTS / 2.0).to(x.device)).sum(dim=1, keepdim=True)

    def _map(self, x: Tensor, s: Tensor, t: Tensor, log_w: Tensor) -> Tensor:
        centres_s, widths_s = self.mixture.components(s)
        centres_t, widths_t = self.mixture.components(t)
        z = (x - centres_s) / widths_s
        # Above the median, mirror the line: the equation is then always one between small tails.
        flip = (_log_cdf(z, log_w) > _log_cdf(-z, log_w)).detach()
        sign = torch.where(flip, -1.0, 1.0).to(z).unsqueeze(1)
        level = _log_cdf(sign * z, log_w)
        y = _root(sign, z.detach(), level.detach(), centres_t.detach(), widths_t.detach(), log_w)
        for _ in range(2):
            y = y - _newton(y, sign, level, centres_t, widths_t, log_w)[1]
        return y


def _root(
    sign: Tensor, z: Tensor, level: Tensor, centres: Tensor, widths: Tensor, log_w: Tensor
) -> Tensor:
    """The root y [B, 1] of log F_t(y) = level: Newton inside a bracket, bisection when it leaves.

    F_s(x) lies between the least and the greatest Phi(z_k), hence the root between the least
    and the greatest component quantile at these z.
    """
    live = torch.isfinite(log_w)
    bottom = torch.where(live, z, torch.inf).amin(dim=1, keepdim=True)
    top = torch.where(live, z, -torch.inf).amax(dim=1, keepdim=True)
    low = torch.where(live, centres + widths * bottom, torch.inf).amin(dim=1, keepdim=True)
    high = torch.where(live, centres + widths * top, -torch.inf).amax(dim=1, keepdim=True)
    y = (low + high) / 2.0
    for _ in range(_ROUNDS):
        gap, step = _newton(y, sign, level, centres, widths, log_w)
        low, high = torch.where(gap < 0, y, low), torch.where(gap > 0, y, high)
        inside = (y - step > low) & (y - step < high)
        new = torch.where(inside, y - step, (low + high) / 2.0)
        new = torch.where(gap == 0, y, new)
        done = (new - y).abs() <= 1e-12 * (1.0 + y.abs())
        y = new
        if bool(done.all()):
            break
    return y


def _log_cdf(z: Tensor, log_w: Tensor) -> Tensor:
    """log sum_k w_k Phi(z_k), [B]."""
    return torch.logsumexp(log_w + torch.special.log_ndtr(z), dim=1)


def _newton(
    y: Tensor, sign: Tensor, level: Tensor, centres: Tensor, widths: Tensor, log_w: Tensor
) -> tuple[Tensor, Tensor]:
    """How far F_t(y) is above its level (in the log, with the sign of y - root) and Newton's step, [B, 1]."""
    z = (y - centres) / widths
    log_cdf = _log_cdf(sign * z, log_w)
    log_pdf = torch.logsumexp(log_w - 0.5 * z.square() - torch.log(widths) - 0.9189385332046727, dim=1)
    gap = (log_cdf - level).unsqueeze(1) * sign
    return gap, gap * torch.exp(log_cdf - log_pdf).unsqueeze(1)
