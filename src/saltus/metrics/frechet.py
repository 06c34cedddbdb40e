"""The Frechet distance of two samples in a feature space.

References:
    Dowson and Landau, "The Frechet distance between multivariate normal distributions", 1982.
    Heusel et al., "GANs trained by a two time-scale update rule", 2017, arXiv 1706.08500.
    Chong and Forsyth, "Effectively unbiased FID and Inception score", 2019, arXiv 1911.07023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from saltus.metrics.pairs import as_points
from saltus.streams import Streams

__all__ = ["Moments", "frechet", "frechet_at_infinity", "frechet_of_moments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of features seen so far, in float64; add batches with :meth:`seen`.

    Attributes:
        count: rows seen.
        mean: [D].
        scatter: the sum of (f - mean)(f - mean)^T over rows, [D, D].

    >>> whole = torch.tensor([[0.0], [1.0], [5.0]])
    >>> Moments.of(whole[:1]).seen(whole[1:]).cov, Moments.of(whole).cov
    (tensor([[7.]], dtype=torch.float64), tensor([[7.]], dtype=torch.float64))
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of one batch of features [n, ...]."""
        (f,) = as_points(features)
        centred = f - f.mean(dim=0)
        return cls(len(f), f.mean(dim=0), centred.T @ centred)

    def seen(self, features: Tensor) -> Moments:
        """With one more batch, [n, ...]; merged in the centred form, which loses no digits."""
        other = Moments.of(features)
        count, gap = self.count + other.count, other.mean - self.mean
        between = torch.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, self.mean + gap * (other.count / count), self.scatter + other.scatter + between)

    @classmethod
    def weighted(cls, features: Tensor, weights: Tensor) -> Moments:
        """Of rows [n, ...] that count so often each, weights [n] of whole numbers: resampled rows."""
        (f,) = as_points(features)
        w = weights.to(f)
        mean = w @ f / w.sum()
        centred = f - mean
        return cls(int(w.sum()), mean, (centred * w.unsqueeze(1)).T @ centred)

    @property
    def cov(self) -> Tensor:
        """The unbiased covariance, [D, D]."""
        if self.count < 2:
            raise ValueError(f"covariance: expected at least 2 samples, got {self.count}; draw more")
        return self.scatter / (self.count - 1)

    @cached_property
    def root(self) -> Tensor:
        """The root of the covariance, [D, D]; computed once."""
        values, axes = torch.linalg.eigh(self.cov)
        root: Tensor = (axes * values.clamp(min=0.0).sqrt()) @ axes.T
        return root


def frechet_of_moments(a: Moments, b: Moments) -> Tensor:
    """|m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2), 0-d, float64, never below -rounding.

    Both roots are of symmetric matrices, by eigendecomposition: no complex numbers, and samples
    fewer than dimensions do no harm. It is symmetric; a's root is kept, so what is compared often comes
    first. This is the *squared* 2-Wasserstein distance of the Gaussians,
    as the literature reports it.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments: expected equal dimensions, got {len(a.mean)} and {len(b.mean)}")
    inner = torch.linalg.eigvalsh(a.root @ b.cov @ a.root).clamp(min=0.0).sqrt().sum()
    shift: Tensor = (a.mean - b.mean).square().sum()
    spread: Tensor = a.cov.trace() + b.cov.trace() - 2.0 * inner
    return shift + spread


def frechet(x: Tensor, y: Tensor, features: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The squared Frechet distance of samples x [n, ...] and y [m, ...] in a feature map.

    It grows by about D / n for few samples: compare only values of one n.

    Args:
        x, y: at least two samples each.
        features: samples [n, ...] -> features [n, D]; the samples themselves by default.
    """
    if features is not None:
        x, y = features(x), features(y)
    return frechet_of_moments(Moments.of(x), Moments.of(y))


def frechet_at_infinity(x: Tensor, reference: Moments, sizes: int = 10, seed: int = 0) -> float:
    """The squared Frechet distance of features x [n, D] as it would be for endlessly many samples.

    The bias of n samples falls as 1/n: a line in 1/n is fitted to the distance of random parts of x, of
    ``sizes`` sizes from a tenth to all of it, and taken at 1/n = 0. The reference's own bias stays.

    Args:
        x: at least 20 rows, and more than a few times D of them for the line to be one.
        reference: of the data.
        sizes: points of the fit.
        seed: of the order of rows, of which each part is the beginning of another.
    """
    (f,) = as_points(x, least=20)
    counts = torch.linspace(len(f) / 10, len(f), sizes).long()
    values = []
    for k, count in enumerate(counts.tolist()):
        order = Streams(seed, step=k, index=torch.arange(len(f))).permutation("infinity")
        values.append(frechet_of_moments(reference, Moments.of(f[order[:count].to(f.device)])))
    inverse = 1.0 / counts.double()
    design = torch.stack([torch.ones_like(inverse), inverse], dim=1)
    fit = torch.linalg.lstsq(design, torch.stack(values).cpu().unsqueeze(1)).solution
    return float(fit[0])
