"""The mixtures that tests, figures and recipes share."""

from __future__ import annotations

import math

import torch

from saltus.exact.mixture import Mixture
from saltus.interpolants import Interpolant, Linear

__all__ = ["line_mixture", "reference_mixture", "ring"]


def reference_mixture(interpolant: Interpolant | None = None) -> Mixture:
    """The reference problem of the project's figures: four Gaussians in the plane, one class each.

    Means (2 cos(k pi/2) + 0.4, 2 sin(k pi/2) - 0.2), weights 0.4, 0.3, 0.2, 0.1, s.d. 0.35.

    >>> reference_mixture().means[0]
    tensor([ 2.4000, -0.2000], dtype=torch.float64)
    """
    angle = torch.arange(4, dtype=torch.float64) * (math.pi / 2.0)
    means = torch.stack([2.0 * angle.cos() + 0.4, 2.0 * angle.sin() - 0.2], dim=1)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    return Mixture(means, weights, 0.35**2, torch.arange(4), interpolant or Linear())


def line_mixture(interpolant: Interpolant | None = None) -> Mixture:
    """Two Gaussians on the line, one class each: weights 0.4, 0.6, means -1, 1.5, s.d. 0.3, 0.4."""
    means = torch.tensor([[-1.0], [1.5]], dtype=torch.float64)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    variances = torch.tensor([0.3**2, 0.4**2], dtype=torch.float64)
    return Mixture(means, weights, variances, torch.arange(2), interpolant or Linear())


def ring(interpolant: Interpolant | None = None) -> Mixture:
    """Eight equal Gaussians of s.d. 0.15 on the circle of radius 2, one class each."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4.0)
    means = 2.0 * torch.stack([angle.cos(), angle.sin()], dim=1)
    weights = torch.ones(8, dtype=torch.float64)
    return Mixture(means, weights, 0.15**2, torch.arange(8), interpolant or Linear())
