"""Principal components of pixels as features: no weights, no labels, no training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from saltus.metrics.features.classifier import Pixels
from saltus.metrics.features.network import FeatureNetwork, digest_of

__all__ = ["components_from", "components_tensors"]

COUNT = 64


class Components(nn.Module):
    """(pixels - mean) @ axes."""

    mean: Tensor
    axes: Tensor

    def __init__(self, mean: Tensor, axes: Tensor) -> None:
        super().__init__()
        self.pixels = Pixels()
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes)

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] in [0, 255] -> [n, COUNT]."""
        found: Tensor = (self.pixels(x).flatten(1) - self.mean) @ self.axes
        return found


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
