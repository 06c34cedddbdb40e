"""Interpolants I_t = alpha_t x0 + beta_t x1 between noise (t = 0) and data (t = 1).

Each gives alpha, beta and their time derivatives, elementwise and differentiable, so the path of a
pair (x0, x1) and its velocity ``dI_t = dalpha_t x0 + dbeta_t x1`` are exact in any dtype.

References:
    Albergo, Boffi and Vanden-Eijnden, "Stochastic interpolants", 2023, arXiv 2303.08797.
    Song et al., "Score-based generative modeling through SDEs", 2021, arXiv 2011.13456 (VP, VE).
    Nichol and Dhariwal, "Improved DDPM", 2021, arXiv 2102.09672 (cosine).
    Karras et al., "Elucidating the design space" (EDM), 2022, arXiv 2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from saltus.autodiff import derivative
from saltus.tensors import like

__all__ = ["VE", "VP", "Coefficients", "Cosine", "Custom", "Interpolant", "Linear", "Trigonometric"]


class Coefficients(NamedTuple):
    """alpha_t, beta_t and their derivatives in t; each has the shape of t."""

    alpha: Tensor
    beta: Tensor
    dalpha: Tensor
    dbeta: Tensor


class Interpolant(Protocol):
    """Anything that gives :class:`Coefficients` at a time; the rest is :func:`path` and friends."""

    def __call__(self, t: Tensor) -> Coefficients: ...


def path(interpolant: Interpolant, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The point I_t and the velocity dI_t of the pair (x0, x1) at times t [B].

    >>> x, v = path(Linear(), torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25]))
    >>> x, v
    (tensor([[0.2500, 0.2500]]), tensor([[1., 1.]]))
    """
    a, b, da, db = (like(c, x0) for c in interpolant(t))
    return (a * x0 + b * x1).to(x1.dtype), (da * x0 + db * x1).to(x1.dtype)


_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(24))


def slopes(interpolant: Interpolant, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Divided differences (alpha_t - alpha_s)/(t - s) and (beta_t - beta_s)/(t - s), smooth at s = t.

    They are the means of dalpha and dbeta over [s, t], taken by 24-point Gauss-Legendre quadrature,
    which is exact to rounding where those are smooth. For VP and Cosine dalpha is infinite at t = 1, and
    the slope of alpha (not of beta) loses digits as s or t comes near it.
    """
    theta = ((_NODES + 1.0) / 2.0).to(s)
    weight = (_WEIGHTS / 2.0).to(s)
    c = interpolant(s.unsqueeze(-1) + theta * (t - s).unsqueeze(-1))
    return (c.dalpha * weight).sum(-1), (c.dbeta * weight).sum(-1)


@dataclass(frozen=True)
class Linear:
    """alpha = 1 - t, beta = t: rectified flow, flow matching, the project's default."""

    def __call__(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(1.0 - t, t, -one, one)


@dataclass(frozen=True)
class Trigonometric:
    """alpha = cos(pi t / 2), beta = sin(pi t / 2): TrigFlow, variance preserving at unit data variance."""

    def __call__(self, t: Tensor) -> Coefficients:
        rate = math.pi / 2.0
        c, s = torch.cos(rate * t), torch.sin(rate * t)
        return Coefficients(c, s, -rate * s, rate * c)


@dataclass(frozen=True)
class VP:
    """The variance-preserving diffusion with a linear rate, tau = 1 - t its time.

    beta_t = exp(-tau^2 (b_max - b_min)/4 - tau b_min/2), alpha_t = sqrt(1 - beta_t^2).
    At t = 0 a trace exp(-(b_max + b_min)/4) of the data is left, 0.0066 by default; and
    dalpha is infinite at t = 1, where alpha = 0: evaluate at t < 1.
    """

    b_min: float = 0.1
    b_max: float = 20.0

    def __call__(self, t: Tensor) -> Coefficients:
        tau = 1.0 - t
        spread = self.b_max - self.b_min
        log_beta = -0.25 * tau * tau * spread - 0.5 * tau * self.b_min
        dlog_beta = 0.5 * tau * spread + 0.5 * self.b_min  # in t, so the sign of d tau is in it
        beta = torch.exp(log_beta)
        alpha = torch.sqrt(-torch.expm1(2.0 * log_beta))
        dbeta = beta * dlog_beta
        return Coefficients(alpha, beta, -beta * dbeta / alpha, dbeta)


@dataclass(frozen=True)
class Cosine:
    """The cosine schedule of improved DDPM: beta_t = cos(phi)/cos(phi_1), alpha_t = sqrt(1 - beta_t^2),
    phi = (pi/2)(1 - t + offset)/(1 + offset), phi_1 its value at t = 1.

    As with VP, dalpha is infinite at t = 1: evaluate at t < 1.
    """

    offset: float = 0.008

    def __call__(self, t: Tensor) -> Coefficients:
        rate = math.pi / 2.0 / (1.0 + self.offset)
        phi = rate * (1.0 - t + self.offset)
        phi_1 = rate * self.offset
        top = math.cos(phi_1)
        beta = torch.cos(phi) / top
        # 1 - beta^2 = sin(phi - phi_1) sin(phi + phi_1) / cos^2(phi_1): no cancellation near t = 1
        alpha = torch.sqrt(torch.sin(phi - phi_1) * torch.sin(phi + phi_1)) / top
        dbeta = rate * torch.sin(phi) / top
        return Coefficients(alpha, beta, -beta * dbeta / alpha, dbeta)


@dataclass(frozen=True)
class VE:
    """Variance exploding with the EDM grid: beta = 1, alpha = sigma(t),
    sigma(t) = (sigma_max^(1/rho) (1 - t) + sigma_min^(1/rho) t)^rho.

    The state at t = 0 is x1 + sigma_max x0, so its law is N(0, sigma_max^2) up to the data's spread,
    and sigma_min is left at t = 1.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, t: Tensor) -> Coefficients:
        high, low = self.sigma_max ** (1.0 / self.rho), self.sigma_min ** (1.0 / self.rho)
        root = high + t * (low - high)
        alpha = root**self.rho
        dalpha = self.rho * root ** (self.rho - 1.0) * (low - high)
        return Coefficients(alpha, torch.ones_like(t), dalpha, torch.zeros_like(t))


@dataclass(frozen=True)
class Custom:
    """Any alpha and beta, functions of t acting elementwise; the derivatives come by autodiff.

    >>> square = Custom(alpha=lambda t: (1 - t) ** 2, beta=lambda t: t)
    >>> square(torch.tensor([0.5])).dalpha
    tensor([-1.])
    """

    alpha: Callable[[Tensor], Tensor]
    beta: Callable[[Tensor], Tensor]

    def __call__(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        alpha, dalpha = derivative(self.alpha, (t,), (one,))
        beta, dbeta = derivative(self.beta, (t,), (one,))
        return Coefficients(alpha, beta, dalpha, dbeta)
