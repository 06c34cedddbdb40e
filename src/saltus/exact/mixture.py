"""Gaussian mixtures: velocity, score, density, responsibilities and denoiser in closed form.

With x1 ~ sum_k w_k N(mu_k, C_k) the state I_t is the mixture of N(beta_t mu_k, S_k^2),
S_k^2 = alpha_t^2 I + beta_t^2 C_k, and with the responsibilities r_k(x) = P(k | I_t = x)

    b_t(x)     = sum_k r_k [alpha (alpha dbeta - beta dalpha) S_k^-2 mu_k
                            + (alpha dalpha + beta dbeta C_k) S_k^-2 x]
    score      = sum_k r_k S_k^-2 (beta mu_k - x)
    E[x1 | x]  = sum_k r_k S_k^-2 (alpha^2 mu_k + beta C_k x).

All three blend means and x with one factor for each, written without a subtraction of nearly equal
numbers at either end of time. A class label restricts the sums to the components of the class.

References:
    Albergo, Boffi and Vanden-Eijnden, "Stochastic interpolants", 2023, arXiv 2303.08797.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from saltus.exact.gaussian import check_variances, spectrum
from saltus.interpolants import Coefficients, Interpolant, Linear
from saltus.streams import Streams
from saltus.tensors import check_finite, check_times
from saltus.typing import Condition

__all__ = ["Mixture"]

_CHUNK = 1 << 24  # numbers in the largest intermediate tensor of one call


class _Parts(NamedTuple):
    """The mixture in its working form. Rows K' are K, or 1 when shared; columns D' are D, or 1.

    Attributes:
        offset: [D]; the means are kept relative to it, which loses fewer digits in their products.
        means: [K, D], relative to the offset; along ``turn`` if there is one.
        variances: [K', D'] along the principal axes.
        axes: [K, D, D], a set of axes for each component, or None.
        turn: [D, D], one set of axes for all of them, or None.
        table: normalised log-weights, [1 + classes, K]: row 0 for no label, row 1 + c for label c.
    """

    offset: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor | None
    turn: Tensor | None
    table: Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """x1 ~ sum_k w_k N(mu_k, C_k) against the prior N(0, I): a :class:`saltus.typing.Velocity`.

    The cost of a call is that of two matrix products when the covariances are isotropic, or diagonal
    and shared; other covariances build [B, K, D] tensors, a chunk of rows at a time. Computed in
    float64 whatever the dtype of x, also under autocast: near t = 1 the squared distances over small
    variances lose too many digits of float32.
    With VP and Cosine evaluate at t < 1, where their dalpha is finite.

    Attributes:
        means: mu_k, [K, D].
        weights: w_k, non-negative, normalised here, [K].
        covs: a variance; variances [K] (isotropic); [K, D] (diagonal); covariances [K, D, D]; or
            one for all components, [1, D] or [1, D, D].
        labels: the class of each component, int64 [K], or None.
        interpolant: alpha and beta.

    >>> pair = Mixture(torch.tensor([[-1.0], [1.0]]), torch.ones(2), 0.1, torch.tensor([0, 1]))
    >>> x, t = torch.zeros(2, 1), torch.full((2,), 0.5)
    >>> pair(x, t, Condition(label=torch.tensor([0, 1]))).sign()
    tensor([[-1.],
            [ 1.]])
    """

    means: Tensor
    weights: Tensor
    covs: Tensor | float
    labels: Tensor | None = None
    interpolant: Interpolant = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if self.means.ndim != 2 or not self.means.is_floating_point() or self.means.shape[0] == 0:
            raise ValueError(
                f"means: expected floating-point [K, D] with K >= 1, got {self.means.dtype} of shape "
                f"{list(self.means.shape)}"
            )
        check_finite(self.means, "means")
        count = self.means.shape[:1]
        if self.weights.shape != count or not bool((self.weights >= 0).all() & (self.weights.sum() > 0)):
            raise ValueError(
                f"weights: expected {count[0]} non-negative numbers, not all zero, got shape "
                f"{list(self.weights.shape)} with minimum {float(self.weights.min()):.3g}"
            )
        if self.labels is not None and (
            self.labels.shape != count or self.labels.dtype != torch.int64 or int(self.labels.min()) < 0
        ):
            raise ValueError(
                f"labels: expected {count[0]} non-negative int64 numbers, one a component, got "
                f"{self.labels.dtype} of shape {list(self.labels.shape)}"
            )
        _ = self._parts  # a wrong covariance fails here, not at the first call

    @property
    def dim(self) -> int:
        """D, the number of coordinates of a sample."""
        return self.means.shape[1]

    @cached_property
    def _parts(self) -> _Parts:
        means = self.means.double()
        offset = means.mean(dim=0)
        variances, axes = self._spectrum()
        turn = None
        if axes is not None and axes.shape[0] == 1:
            turn, axes = axes[0], None
        means = means - offset if turn is None else (means - offset) @ turn
        return _Parts(offset, means, variances, axes, turn, self._log_weights())

    def _spectrum(self) -> tuple[Tensor, Tensor | None]:
        """Variances [K', D'] and axes [K', D, D] or None."""
        count, dim = self.means.shape
        covs = torch.as_tensor(self.covs, dtype=torch.float64)
        if covs.ndim == 3 and covs.shape in ((count, dim, dim), (1, dim, dim)):
            return spectrum(covs)
        if covs.shape not in ((), (count,), (count, dim), (1, dim)):
            raise ValueError(
                f"covs: expected a scalar, [{count}], [{count}, {dim}], [1, {dim}], [{count}, {dim}, {dim}] "
                f"or [1, {dim}, {dim}], got shape {list(covs.shape)}"
            )
        check_variances(covs)
        return (covs if covs.ndim == 2 else covs.reshape(-1, 1)), None

    def _log_weights(self) -> Tensor:
        log_w = torch.log(self.weights.double())
        if self.labels is None:
            return torch.log_softmax(log_w, dim=0).unsqueeze(0)
        classes = torch.arange(int(self.labels.max()) + 1, device=self.labels.device)
        own = torch.where(self.labels == classes.unsqueeze(1), log_w, -torch.inf)
        return torch.cat([log_w.unsqueeze(0), own]).log_softmax(dim=1)

    def log_weights(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Log-weights of the components that each row of x may belong to, [B, K].

        Raises a ValueError for a label when the mixture has none, or has no component of it.
        """
        table = self._parts.table.to(x.device)
        if cond is None or cond.label is None:
            return table[:1].expand(x.shape[0], -1)
        if self.labels is None:
            raise ValueError("cond: got class labels, but the mixture has none; give Mixture(labels=...)")
        asked = cond.label if cond.null is None else cond.label.masked_fill(cond.null, 0)
        known = (asked >= 0) & (asked < table.shape[0] - 1)
        rows = table[torch.where(known, asked + 1, 0)]
        known = known & torch.isfinite(rows).any(dim=1)
        if cond.null is not None:
            known, rows = known | cond.null, torch.where(cond.null.unsqueeze(1), table[0], rows)
        if not bool(known.all()):
            raise ValueError(
                f"cond.label: expected labels in {sorted(set(self.labels.tolist()))}, got "
                f"{sorted(set(cond.label.tolist()))}"
            )
        return rows

    def sample(self, rng: Streams) -> tuple[Tensor, Tensor | None]:
        """Samples x1 [B, D] and their labels (int64 [B], or None), from the streams "component" and "x1"."""
        parts = self._parts
        edges = parts.table[0].exp().cumsum(dim=0)
        u = rng.uniform("component").double()
        which = torch.searchsorted(edges, u.to(edges) * edges[-1]).clamp_(max=len(edges) - 1)
        z = rng.normal("x1", self.dim)
        rows = torch.zeros_like(which) if parts.variances.shape[0] == 1 else which
        x1 = z.double() * parts.variances.sqrt()[rows]
        if parts.axes is not None:
            x1 = torch.einsum("bij,bj->bi", parts.axes[which], x1)
        x1 = x1 + parts.means[which]
        x1 = (x1 if parts.turn is None else x1 @ parts.turn.T) + parts.offset
        return x1.to(z), None if self.labels is None else self.labels[which]

    def restricted(self, label: int) -> Mixture:
        """The mixture of the components of one class, without labels."""
        if self.labels is None or not bool((self.labels == label).any()):
            raise ValueError(f"restricted: the mixture has no component of label {label}")
        own = self.labels == label
        covs = self.covs
        if isinstance(covs, Tensor) and covs.ndim > 0 and covs.shape[0] == len(own):
            covs = covs[own]
        return Mixture(self.means[own], self.weights[own], covs, None, self.interpolant)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The velocity b_t(x) = E[dI_t | I_t = x], [B, D]."""
        return self.velocity_given(x, t, self.log_weights(x, cond))

    def velocity_given(self, x: Tensor, t: Tensor, log_w: Tensor) -> Tensor:
        """The velocity for log-weights of each row's own, log_w [B, K], [B, D]."""

        def factors(c: Coefficients, var: Tensor, spread2: Tensor) -> tuple[Tensor, Tensor]:
            mean = c.alpha * (c.alpha * c.dbeta - c.beta * c.dalpha)
            return mean / spread2, (c.alpha * c.dalpha + c.beta * c.dbeta * var) / spread2

        return self._blend(x, t, log_w, factors)

    def score(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The gradient in x of the log-density of I_t, [B, D]."""
        log_w = self.log_weights(x, cond)
        return self._blend(x, t, log_w, lambda c, var, spread2: (c.beta / spread2, -1.0 / spread2))

    def posterior_mean(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The denoiser E[x1 | I_t = x], [B, D]."""

        def factors(c: Coefficients, var: Tensor, spread2: Tensor) -> tuple[Tensor, Tensor]:
            return c.alpha.square() / spread2, c.beta * var / spread2

        return self._blend(x, t, self.log_weights(x, cond), factors)

    def log_density(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """log rho_t(x) in nats, [B]; with a label, of the class."""

        def rows(x: Tensor, t: Tensor, log_w: Tensor) -> Tensor:
            return torch.logsumexp(self._joint(x, t, log_w), dim=1)

        return self._chunked(rows, x, t, self.log_weights(x, cond))

    def responsibilities(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """P(component k | I_t = x), [B, K]."""
        log_w = self.log_weights(x, cond)
        return self._chunked(lambda x, t, w: torch.softmax(self._joint(x, t, w), dim=1), x, t, log_w)

    def _blend(
        self,
        x: Tensor,
        t: Tensor,
        log_w: Tensor,
        factors: Callable[[Coefficients, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """sum_k r_k (p_k mu_k + q_k x), with p and q of shape [B, K', D'] from ``factors``."""

        def rows(x: Tensor, t: Tensor, log_w: Tensor) -> Tensor:
            parts = self._parts
            r = torch.softmax(self._joint(x, t, log_w), dim=1)
            p, q = factors(*self._state(x, t))
            mu, offset = parts.means.to(x), self._turned(parts.offset.to(x))
            x = self._turned(x)
            if p.shape[1] == 1:  # shared: [B, D']
                out = p[:, 0] * (r @ mu + offset) + q[:, 0] * x
            elif p.shape[2] == 1:  # isotropic: [B, K]
                rp = r * p[:, :, 0]
                out = rp @ mu + rp.sum(1, keepdim=True) * offset + (r * q[:, :, 0]).sum(1, keepdim=True) * x
            elif parts.axes is None:
                r = r.unsqueeze(2)
                out = (r * p * (mu + offset)).sum(dim=1) + (r * q).sum(dim=1) * x
            else:
                axes = parts.axes.to(x)
                own_mu = torch.einsum("kij,ki->kj", axes, mu + offset)
                own = r.unsqueeze(2) * (p * own_mu + q * torch.einsum("kij,bi->bkj", axes, x))
                out = torch.einsum("kij,bkj->bi", axes, own)
            return out if parts.turn is None else out @ parts.turn.to(x).T

        return self._chunked(rows, x, t, log_w)

    def _joint(self, x: Tensor, t: Tensor, log_w: Tensor) -> Tensor:
        """log (w_k N(x; beta mu_k, S_k^2)), [B, K]."""
        parts = self._parts
        c, _, spread2 = self._state(x, t)
        mu, beta = parts.means.to(x), c.beta[:, :, 0]
        y = self._turned(x) - beta * self._turned(parts.offset.to(x))
        log_det = torch.log(spread2).sum(dim=2) * (self.dim if spread2.shape[2] == 1 else 1)
        if spread2.shape[1] == 1:  # shared: |y - beta mu|^2 expanded, each term over S^2
            scale = (1.0 / spread2[:, 0]).expand_as(y)
            energy = (
                (y.square() * scale).sum(dim=1, keepdim=True)
                - 2.0 * beta * ((y * scale) @ mu.T)
                + beta.square() * (scale @ mu.square().T)
            )
        elif spread2.shape[2] == 1:
            distance2 = y.square().sum(1, keepdim=True) - 2.0 * beta * (y @ mu.T)
            energy = (distance2 + beta.square() * mu.square().sum(dim=1)) / spread2[:, :, 0]
        else:
            z = y.unsqueeze(1) - c.beta * mu
            if parts.axes is not None:
                z = torch.einsum("kij,bki->bkj", parts.axes.to(x), z)
            energy = (z.square() / spread2).sum(dim=2)
        return log_w - 0.5 * (energy + log_det + self.dim * math.log(2.0 * math.pi))

    def components(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Centres beta_t mu_k and standard deviations S_k of a mixture on the line, [B, K], in float64."""
        a, b, _, _ = (v.double().unsqueeze(1) for v in self.interpolant(t))
        spread2 = a.square() + b.square() * self._parts.variances[:, 0].to(b)
        return b * self.means.double()[:, 0].to(b), torch.sqrt(spread2).expand(-1, len(self.means))

    def _state(self, x: Tensor, t: Tensor) -> tuple[Coefficients, Tensor, Tensor]:
        """Coefficients [B, 1, 1], variances [K', D'] and S^2 [B, K', D']."""
        c = Coefficients(*(v.reshape(-1, 1, 1) for v in self.interpolant(t)))
        var = self._parts.variances.to(x)
        return c, var, c.alpha.square() + c.beta.square() * var

    def _turned(self, x: Tensor) -> Tensor:
        """Coordinates along the axes that all components share."""
        turn = self._parts.turn
        return x if turn is None else x @ turn.to(x)

    def _chunked(
        self,
        rows: Callable[[Tensor, Tensor, Tensor], Tensor],
        x: Tensor,
        t: Tensor,
        log_w: Tensor,
    ) -> Tensor:
        """Apply ``rows`` to (x, t, log-weights), as many rows at a time as memory allows."""
        check_times(x, t=t)
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(f"x: expected shape [B, {self.dim}], got {list(x.shape)}")
        dtype, x, t = x.dtype, x.double(), t.double()
        variances = self._parts.variances
        wide = self.dim if min(variances.shape) > 1 else 1
        step = max(1, _CHUNK // (self.means.shape[0] * wide))
        if len(x) <= step:
            return rows(x, t, log_w).to(dtype)
        spans = zip(torch.split(x, step), torch.split(t, step), torch.split(log_w, step), strict=True)
        return torch.cat([rows(*span) for span in spans]).to(dtype)
