"""Policies that are Gaussian mixtures: Bayes' rule carries a law of the data from (x_s, s) to (x, t)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saltus.interpolants import Interpolant, Linear
from saltus.policies.policy import PolicyNetwork, count_of, led, stacked, weights_of
from saltus.tensors import like
from saltus.typing import Condition

__all__ = ["MixtureMap", "MixturePolicy", "mixture_heads"]


def mixture_heads(components: int, own_spread: bool = False) -> tuple[str, ...]:
    """The second heads of a network whose policy has so many components, of one variance or their own.

    >>> mixture_heads(2), mixture_heads(2, own_spread=True)
    (('mean1', 'weight1', 'spread'), ('mean1', 'weight1', 'spread', 'spread1'))
    """
    names = [f"{name}{k}" for name in ("mean", "weight") for k in range(1, components)]
    return (*names, "spread", *(f"spread{k}" for k in range(1, components) if own_spread))


@dataclass(frozen=True, eq=False)
class MixturePolicy:
    """The velocity of a law of x1 given x_s that is a Gaussian mixture.

    At (x_s, s) component k has the mean c + alpha_s d_k, d_1 = 0, and the variance alpha_s^2 g_k. With e the
    noise of x_s and c, y = (x - beta c)/alpha_s, q = (alpha/alpha_s)^2, z = beta^2 - q beta_s^2 and
    n = beta y - q beta_s e it has at (x, t), where N_k = q + g_k z,

        the mean c + alpha_s (g_k n + q d_k)/N_k   and the logarithm of the weight, as it was, plus
        (d_k n - z |d_k|^2/2)/N_k + |n|^2 (g_k - g)/(2 N_k N) - (D/2) log N_k

    up to what is common to all (g any number, N = q + g z, D the channels). Nothing is divided by alpha.

    Attributes:
        x, s: where it starts, [B, ...] and [B].
        u: the first component's velocity, [B, ...].
        apart: d_k, the others' velocities less the first, by alpha dbeta - dalpha beta: [B, K, ...].
        weights: logits, [B, K, 1, ...].
        spread: log g_k, [B, K or 1, 1, ...].
        interpolant: the path.
    """

    x: Tensor
    s: Tensor
    u: Tensor
    apart: Tensor
    weights: Tensor
    spread: Tensor
    interpolant: Interpolant

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dalpha E[x0 | x] + dbeta E[x1 | x]."""
        start, here = self.interpolant(self.s), self.interpolant(t)
        alpha_s, beta_s, dalpha_s, dbeta_s = (like(c, x).to(x.dtype) for c in start)
        alpha, beta, dalpha, dbeta = (like(c, x).to(x.dtype) for c in here)
        alpha_s = alpha_s.clamp(min=1e-6)
        det = alpha_s * dbeta_s - dalpha_s * beta_s
        c = (alpha_s * self.u - dalpha_s * self.x) / det
        noise = (dbeta_s * self.x - beta_s * self.u) / det
        ratio = alpha / alpha_s
        q = ratio.square()
        z = beta.square() - q * beta_s.square()
        y = (x - beta * c) / alpha_s
        n = beta * y - q * beta_s * noise
        g = self.spread.exp()
        q, z, n, y, noise = (part.unsqueeze(1) for part in (q, z, n, y, noise))
        size = q + g * z
        usual = g.mean(1, keepdim=True)
        shift = (self.apart * (n - 0.5 * z * self.apart)).sum(2, keepdim=True) / size
        shift = shift + 0.5 * n.square().sum(2, keepdim=True) * (g - usual) / (size * (q + usual * z))
        shift = shift - 0.5 * x.shape[1] * torch.log(size)
        share = (self.weights + shift).softmax(1)
        b, b_s = beta.unsqueeze(1), beta_s.unsqueeze(1)
        x1 = (share * (g * n + q * self.apart) / size).sum(1)
        x0 = (share * (y * (1.0 - g * b_s.square()) + g * b * b_s * noise - b * self.apart) / size).sum(1)
        return dalpha * ratio * x0 + dbeta * (c + alpha_s * x1)

    def mean(self, x: Tensor, a: Tensor, b: Tensor, substeps: int) -> Tensor:
        """By midpoint steps."""
        return led(self, x, a, b, substeps)


class MixtureMap(PolicyNetwork):
    """A Gaussian mixture for x1 in each place; at the start its components lie apart from where u points by
    fixed offsets about as large as the noise, and their variance is that of the noise at s."""

    def __init__(self, backbone: nn.Module, interpolant: Interpolant = Linear(), substeps: int = 32) -> None:
        super().__init__(backbone, substeps)
        self.interpolant = interpolant

    def policy(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> MixturePolicy:
        """The policy from x at s."""
        said = self._said(x, s, t, cond)
        count = count_of(said, "mean")
        zero = torch.zeros_like(said.u)
        apart = stacked(said, "mean", count, zero) + offsets(count, x)
        spread = said.heads.get("spread")
        if spread is None:
            raise ValueError(
                f"policy: expected a network with a head 'spread', got {sorted(said.heads)}; build it with "
                "saltus.policies.mixture_heads"
            )
        own = count_of(said, "spread") - 1  # "spread" itself begins with it
        spreads = stacked(said, "spread", own, spread).mean(dim=2, keepdim=True)
        return MixturePolicy(x, s, said.u, apart, weights_of(said, count), spreads, self.interpolant)


def offsets(count: int, x: Tensor) -> Tensor:
    """Where the components begin: the first at 0, the others at fixed normal numbers, [1, K, C, 1, ...]."""
    channels = x.shape[1]
    places = torch.arange(1, (count - 1) * channels + 1, device=x.device, dtype=torch.float64)
    unit = (places * 0.6180339887498949).remainder(1.0).clamp(1e-6, 1.0 - 1e-6)
    normal = torch.special.ndtri(unit).to(x.dtype).reshape(count - 1, channels)
    whole = torch.cat([torch.zeros(1, channels, device=x.device, dtype=x.dtype), normal])
    return whole.reshape(1, count, channels, *(1,) * (x.ndim - 2))
