"""Are samples realistic, and do they cover the data: precision and recall by nearest neighbours.

References:
    Kynkaanniemi et al., "Improved precision and recall metric for assessing generative models",
    2019, arXiv 1904.06991.
    Naeem et al., "Reliable fidelity and diversity metrics", 2020, arXiv 2002.09797 (density, coverage).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saltus.metrics.neighbours import radii
from saltus.metrics.pairs import as_points, blocks

__all__ = ["PrecisionRecall", "precision_recall"]


class PrecisionRecall(NamedTuple):
    """Attributes:
    precision: the fraction of samples within the ball of some real point.
    recall: the fraction of real points within the ball of some sample.
    density: how many balls of real points hold a sample, divided by k, mean over samples; about 1
        for equal laws, and not bounded by it.
    coverage: the fraction of real points whose ball holds some sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(x: Tensor, real: Tensor, k: int = 3) -> PrecisionRecall:
    """Compare samples with data; the ball of a point reaches to its k-th nearest neighbour in its own set.

    Args:
        x: samples [n, ...], or their features.
        real: data [m, ...], in the same space; n = m keeps precision and recall comparable.
        k: 3 in the first paper; 5 is usual for density and coverage.
    """
    x, real = as_points(x, real)
    own, theirs = radii(x, k), radii(real, k)
    precise, balls = 0, 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=x.device)
    covered = torch.zeros_like(recalled)
    for rows, d in blocks(x, real):
        within = d <= theirs
        precise += int(within.any(dim=1).sum())
        balls += int(within.sum())
        covered |= within.any(dim=0)
        recalled |= (d <= own[rows].unsqueeze(1)).any(dim=0)
    return PrecisionRecall(
        precision=precise / len(x),
        recall=float(recalled.double().mean()),
        density=balls / (k * len(x)),
        coverage=float(covered.double().mean()),
    )
