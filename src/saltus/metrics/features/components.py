"""Principal components of pixels as features: no weights, no labels, no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saltus.metrics.features.classifier import Pixels
from saltus.metrics.features.network import FeatureNetwork, digest_of

__all__ = ["PrincipalComponents", "components_from", "components_tensors"]

COUNT = 64


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """(x - mean) @ axes: x [n, ...] -> [n, count].

    Attributes:
        mean: of the data, flattened, [D].
        axes: unit vectors along which it spreads most, [D, count].

    >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> PrincipalComponents.of(x, 1)(x).abs()
    tensor([[3.],
            [3.],
            [0.],
            [0.]], dtype=torch.float64)
    """

    mean: Tensor
    axes: Tensor

    @classmethod
    def of(cls, x: Tensor, count: int) -> PrincipalComponents:
        """The first components of x [N, ...], or as many as there are, in float64."""
        flat = x.flatten(1).double()
        mean = flat.mean(dim=0)
        _, _, axes = torch.linalg.svd(flat - mean, full_matrices=False)
        return cls(mean, axes[:count].T)

    def __call__(self, x: Tensor) -> Tensor:
        return (x.flatten(1).to(self.mean.dtype) - self.mean) @ self.axes


class Components(nn.Module):
    """Principal components of pixels."""

    mean: Tensor
    axes: Tensor

    def __init__(self, mean: Tensor, axes: Tensor) -> None:
        super().__init__()
        self.pixels = Pixels()
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes)

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] in [0, 255] -> [n, COUNT]."""
        return PrincipalComponents(self.mean, self.axes)(self.pixels(x))


def components_tensors(x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The mean and the first 64 axes (or as many as there are) of images x in [0, 255], [N, C, H, W].

    By subspace iteration from a seeded start; a few thousand images are enough.
    """
    flat = Pixels()(x).flatten(1)
    mean = flat.mean(dim=0)
    kept = min(COUNT, *flat.shape)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        _, _, axes = torch.svd_lowrank(flat - mean, q=min(kept + 8, *flat.shape), niter=4)
    return {"mean": mean.cpu(), "axes": axes[:, :kept].contiguous().cpu()}


def components_from(tensors: Mapping[str, Tensor]) -> FeatureNetwork:
    """The features of :func:`components_tensors`."""
    axes = tensors["axes"]
    name = f"{axes.shape[1]} principal components of the data's pixels"
    return FeatureNetwork(name, digest_of(tensors, name), Components(tensors["mean"], axes))
