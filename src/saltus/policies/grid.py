"""Policies of estimates of the data on a grid of times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saltus.interpolants import Interpolant, Linear
from saltus.policies.policy import PolicyNetwork, count_of, led, stacked
from saltus.tensors import like
from saltus.typing import Condition

__all__ = ["GridMap", "GridPolicy", "grid_heads"]


def grid_heads(nodes: int) -> tuple[str, ...]:
    """The second heads of a network whose policy has so many nodes.

    >>> grid_heads(3)
    ('node1', 'node2')
    """
    return tuple(f"node{k}" for k in range(1, nodes))


@dataclass(frozen=True, eq=False)
class GridPolicy:
    """The velocity of the path from x to the estimate of x1 that belongs to t.

    Attributes:
        s, t: the ends of the grid, [B].
        estimates: of x1 at N even times from s to t, [B, N, ...].
        interpolant: the path.
    """

    s: Tensor
    t: Tensor
    estimates: Tensor
    interpolant: Interpolant

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dalpha (x - beta y)/alpha + dbeta y with y the estimate, linear between the nodes."""
        last = self.estimates.shape[1] - 1
        whole = self.t - self.s
        place = torch.where(whole > 0.0, (t - self.s) / torch.where(whole > 0.0, whole, 1.0), 0.0)
        nodes = torch.arange(last + 1, device=x.device, dtype=place.dtype)
        hats = (1.0 - (place.clamp(0.0, 1.0).unsqueeze(1) * last - nodes).abs()).clamp(min=0.0)
        y = (like(hats, self.estimates).to(x.dtype) * self.estimates).sum(1)
        alpha, beta, dalpha, dbeta = (like(c, x).to(x.dtype) for c in self.interpolant(t))
        return dalpha * (x - beta * y) / alpha.clamp(min=1e-6) + dbeta * y

    def mean(self, x: Tensor, a: Tensor, b: Tensor, substeps: int) -> Tensor:
        """By midpoint steps."""
        return led(self, x, a, b, substeps)


class GridMap(PolicyNetwork):
    """N estimates of x1 on even times of [s, t]; at the start all are where u points.

    Asked at s < 1 only: estimates and velocities are not one another's function at the data.
    """

    def __init__(self, backbone: nn.Module, interpolant: Interpolant = Linear(), substeps: int = 32) -> None:
        super().__init__(backbone, substeps)
        self.interpolant = interpolant

    def policy(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> GridPolicy:
        """The policy from x at s."""
        said = self._said(x, s, t, cond)
        zero = torch.zeros_like(said.u)
        velocities = said.u.unsqueeze(1) + stacked(said, "node", count_of(said, "node"), zero)
        alpha, beta, dalpha, dbeta = (like(c, velocities).to(x.dtype) for c in self.interpolant(s))
        ends = (alpha * velocities - dalpha * x.unsqueeze(1)) / (alpha * dbeta - dalpha * beta)
        return GridPolicy(s, t, ends, self.interpolant)
