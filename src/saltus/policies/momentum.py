"""Policies of momentum modes: velocities that grow or fade exponentially, with integrals in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.policies.policy import PolicyNetwork, count_of, stacked, weights_of
from saltus.tensors import like
from saltus.typing import Condition

__all__ = ["MomentumMap", "MomentumPolicy", "momentum_heads"]


def momentum_heads(modes: int) -> tuple[str, ...]:
    """The second heads of a network with so many momentum modes.

    >>> momentum_heads(2)
    ('mode1', 'weight1', 'rate1')
    """
    return tuple(f"{name}{k}" for name in ("mode", "weight", "rate") for k in range(1, modes))


def _phi(z: Tensor) -> Tensor:
    """(e^z - 1)/z, smooth at 0."""
    small = z.abs() < 1e-4
    safe = torch.where(small, 1.0, z)
    return torch.where(small, 1.0 + 0.5 * z + z.square() / 6.0, torch.expm1(safe) / safe)


@dataclass(frozen=True, eq=False)
class MomentumPolicy:
    """sum_k w_k mu_k exp(l_k (t - s)).

    Attributes:
        s: [B].
        modes: w_k mu_k, [B, K, ...].
        rates: l_k, [B, K, 1, ...].
    """

    s: Tensor
    modes: Tensor
    rates: Tensor

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at t, whatever x is."""
        return (self.modes * torch.exp(self.rates * like(t - self.s, self.rates))).sum(1)

    def mean(self, x: Tensor, a: Tensor, b: Tensor, substeps: int) -> Tensor:
        """Its integral over [a, b] by b - a, in closed form."""
        begun = torch.exp(self.rates * like(a - self.s, self.rates))
        return (self.modes * begun * _phi(self.rates * like(b - a, self.rates))).sum(1)


class MomentumMap(PolicyNetwork):
    """A mixture of momentum modes: at the start velocities mu_k = u and rates l_k apart in [-1, 1].

    One mode is an Euler step of u.
    """

    def policy(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> MomentumPolicy:
        """The policy from x at s."""
        said = self._said(x, s, t, cond)
        count = count_of(said, "mode")
        zero = torch.zeros_like(said.u)
        mu = said.u.unsqueeze(1) + stacked(said, "mode", count, zero)
        rates = stacked(said, "rate", count, zero).mean(dim=2, keepdim=True) + _rates(count, x)
        return MomentumPolicy(s, weights_of(said, count).softmax(1) * mu, rates)


def _rates(count: int, x: Tensor) -> Tensor:
    """0, and the others apart from one another in [-1, 1]: -1/M, 1/M, -2/M, ..., [1, K, 1, ...]."""
    k = torch.arange(count, device=x.device, dtype=x.dtype)
    size = torch.ceil(k / 2.0) / max(count // 2, 1)
    return torch.where(k % 2 == 1, -size, size).reshape(1, count, *(1,) * (x.ndim - 1))
