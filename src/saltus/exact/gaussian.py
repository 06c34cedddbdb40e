"""Gaussian data: velocity, score, density, posterior mean and flow map, all in closed form.

With x0 ~ N(0, I) and x1 ~ N(mean, cov) independent, the state I_t = alpha_t x0 + beta_t x1 is Gaussian
with mean beta_t mean and covariance S_t^2 = alpha_t^2 I + beta_t^2 cov, so that

    b_t(x)      = dbeta mean + (alpha dalpha + beta dbeta cov) S_t^-2 (x - beta mean)
    score       = -S_t^-2 (x - beta mean)
    E[x1 | x]   = mean + beta cov S_t^-2 (x - beta mean)
    X_{s,t}(x)  = beta_t mean + S_t S_s^-1 (x - beta_s mean).

References:
    Albergo, Boffi and Vanden-Eijnden, "Stochastic interpolants", 2023, arXiv 2303.08797.
    Boffi, Albergo and Vanden-Eijnden, "Flow map matching", 2024, arXiv 2406.07507.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from saltus.interpolants import Coefficients, Interpolant, Linear, slopes
from saltus.streams import Streams
from saltus.tensors import check_finite, check_times
from saltus.typing import Condition, Output

__all__ = ["Gaussian", "GaussianMap"]


def spectrum(cov: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [..., D] and orthonormal axes [..., D, D] (columns) of covariances [..., D, D].

    Raises a ValueError unless each is symmetric and positive definite.
    """
    if not torch.allclose(cov, cov.transpose(-1, -2), rtol=1e-6, atol=1e-9):
        raise ValueError("covariance: expected symmetric matrices, got an asymmetric one; use (C + C.T) / 2")
    variances, axes = torch.linalg.eigh(cov)
    check_variances(variances)
    return variances, axes


def check_variances(variances: Tensor) -> None:
    """Raise a ValueError unless every variance is positive."""
    if not bool((variances > 0).all()):
        raise ValueError(
            f"covariance: expected positive variances, got a smallest one of {float(variances.min()):.3g}; "
            "add a small multiple of the identity"
        )


@dataclass(frozen=True, eq=False)
class Gaussian:
    """x1 ~ N(mean, cov) against the prior N(0, I): a :class:`saltus.typing.Velocity`.

    Conditions are accepted and have no effect. Everything is differentiable, forward and reverse, and
    computed in float64 whatever the dtype of x.

    Attributes:
        mean: [D].
        cov: a variance, variances [D] or a covariance matrix [D, D], in data units squared.
        interpolant: alpha and beta.

    >>> system = Gaussian(torch.tensor([1.0, 0.0]), 0.25)
    >>> system(torch.tensor([[0.5, 0.0]]), torch.tensor([0.5]))
    tensor([[1., 0.]])
    """

    mean: Tensor
    cov: Tensor | float
    interpolant: Interpolant = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or not self.mean.is_floating_point():
            raise ValueError(
                f"mean: expected a floating-point tensor [D], got {self.mean.dtype} of shape "
                f"{list(self.mean.shape)}; flatten samples first"
            )
        check_finite(self.mean, "mean")
        _ = self._spectrum  # a wrong covariance fails here, not at the first call

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor | None]:
        """Variances [D] along the principal axes [D, D] (None: the coordinate axes), in float64."""
        dim = self.dim
        cov = torch.as_tensor(self.cov, dtype=torch.float64)
        if cov.shape == (dim, dim) and cov.ndim == 2:
            return spectrum(cov)
        if cov.shape not in ((), (dim,)):
            want = f"a scalar, [{dim}] or [{dim}, {dim}]"
            raise ValueError(f"cov: expected {want}, got shape {list(cov.shape)}")
        check_variances(cov)
        return cov.expand(dim), None

    @property
    def dim(self) -> int:
        """D, the number of coordinates of a sample."""
        return self.mean.shape[0]

    def sample(self, rng: Streams) -> Tensor:
        """Samples x1 of the data, [B, D], from the stream "x1"."""
        z = rng.normal("x1", self.dim)
        spread = self._spectrum[0].sqrt().to(z.device)
        return (self.mean.to(z.device) + self._along(z.double(), spread)).to(z.dtype)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The velocity b_t(x) = E[dI_t | I_t = x], [B, D]."""
        c, mean, var, spread2 = self._state(x, t)
        rate = (c.alpha * c.dalpha + c.beta * c.dbeta * var) / spread2
        return (c.dbeta * mean + self._along(x - c.beta * mean, rate)).to(x.dtype)

    def score(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The gradient in x of the log-density of I_t, [B, D]."""
        c, mean, _, spread2 = self._state(x, t)
        return -self._along(x - c.beta * mean, 1.0 / spread2).to(x.dtype)

    def posterior_mean(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The denoiser E[x1 | I_t = x], [B, D]."""
        c, mean, var, spread2 = self._state(x, t)
        return (mean + self._along(x - c.beta * mean, c.beta * var / spread2)).to(x.dtype)

    def log_density(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """log rho_t(x) in nats, [B]."""
        c, mean, _, spread2 = self._state(x, t)
        z = self._into(x - c.beta * mean)
        energy = (z.square() / spread2 + torch.log(spread2)).sum(dim=1)
        return (-0.5 * energy - 0.5 * self.dim * math.log(2.0 * math.pi)).to(x.dtype)

    def flow_map(self) -> GaussianMap:
        """The exact flow map of this velocity."""
        return GaussianMap(self)

    def _into(self, x: Tensor) -> Tensor:
        """Coordinates along the principal axes."""
        axes = self._spectrum[1]
        return x if axes is None else x @ axes.to(x)

    def _along(self, x: Tensor, factor: Tensor) -> Tensor:
        """Multiply x by the matrix whose eigenvalues along the principal axes are ``factor``."""
        axes = self._spectrum[1]
        return factor * x if axes is None else (factor * self._into(x)) @ axes.to(x).T

    def _state(self, x: Tensor, t: Tensor) -> tuple[Coefficients, Tensor, Tensor, Tensor]:
        """Coefficients [B, 1], the mean [D], the variances [D], and S_t^2 [B, D], in float64."""
        check_times(x, t=t)
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"x: expected shape [B, {self.dim}], got {list(x.shape)}")
        c = Coefficients(*(v.unsqueeze(1) for v in self.interpolant(t.double())))
        var = self._spectrum[0].to(x.device)
        return c, self.mean.double().to(x.device), var, c.alpha.square() + c.beta.square() * var


@dataclass(frozen=True)
class Squares:
    """alpha^2 and beta^2 with their derivatives, in the form of an interpolant.

    Their divided differences are smooth where those of alpha are not: alpha ~ sqrt(1 - t) near t = 1
    for the variance-preserving interpolants.
    """

    interpolant: Interpolant

    def __call__(self, t: Tensor) -> Coefficients:
        a, b, da, db = self.interpolant(t)
        return Coefficients(a * a, b * b, 2.0 * a * da, 2.0 * b * db)


@dataclass(frozen=True, eq=False)
class GaussianMap:
    """X_{s,t}(x) = beta_t mean + S_t S_s^-1 (x - beta_s mean), s and t in either order.

    The average velocity takes (S_t - S_s)/(t - s) as (S_t^2 - S_s^2)/((t - s)(S_t + S_s)), whose
    divided difference is a mean of derivatives and so smooth at s = t.

    >>> X = Gaussian(torch.zeros(2), 0.25).flow_map()
    >>> X(torch.ones(1, 2), torch.tensor([0.0]), torch.tensor([1.0]))
    tensor([[0.5000, 0.5000]])
    """

    gaussian: Gaussian

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """X_{s,t}(x), [B, D]."""
        g = self.gaussian
        from_c, mean, _, from2 = g._state(x, s)
        to_c, _, _, to2 = g._state(x, t)
        return (to_c.beta * mean + g._along(x - from_c.beta * mean, torch.sqrt(to2 / from2))).to(x.dtype)

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{s,t}(x) = (X_{s,t}(x) - x)/(t - s), smooth at s = t, [B, D]."""
        g = self.gaussian
        c, mean, var, from2 = g._state(x, s)
        _, _, _, to2 = g._state(x, t)
        s, t = s.double(), t.double()
        _, dbeta = (v.unsqueeze(1) for v in slopes(g.interpolant, s, t))
        dalpha2, dbeta2 = (v.unsqueeze(1) for v in slopes(Squares(g.interpolant), s, t))
        spread = torch.sqrt(from2)
        dspread = (dalpha2 + dbeta2 * var) / (torch.sqrt(to2) + spread)
        return (dbeta * mean + g._along(x - c.beta * mean, dspread / spread)).to(x.dtype)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{t,t}(x) = b_t(x), [B, D]."""
        return self.gaussian(x, t, cond)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """The average velocity; an exact map has no second heads."""
        return Output(self.average(x, s, t, cond), {})
