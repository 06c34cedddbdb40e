"""How images are scored: which feature network, how many samples, which figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from saltus.metrics.features import (
    FeatureNetwork,
    components_from,
    components_tensors,
    eight_bits,
    own_from,
    own_tensors,
)
from saltus.recipes.cached import cached
from saltus.recipes.gallery import Gallery
from saltus.recipes.options import Flag

__all__ = ["Figure", "Scoring", "feature_network", "shuffled"]

Network = Literal["own", "components"]
Figure = Literal["frechet", "infinity", "kid", "precision", "density", "agreement"]
FIT = 5000
"""Images of which principal components are taken."""
TRAINED = 600
"""Steps of the small classifier."""
HELD_OUT = 10
"""One image in so many is kept from the small classifier."""


@dataclass(frozen=True)
class Scoring:
    """How samples of images are scored by features."""

    features: Network = "own"
    """Feature network: a small classifier of the data; principal components of it."""
    count: int | None = None
    """Samples a figure; None is 2,000, or the number of images where that is less."""
    seeds: int = 1
    """So many independent sets of samples; their mean, and Student's interval in place of the bootstrap's."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Step counts, all in one pass."""
    metrics: tuple[Figure, ...] = ("frechet", "kid", "precision", "agreement")
    """Figures; infinity is the Fréchet distance extrapolated to endless samples."""
    per_class: Flag = False
    """The Fréchet distance of each class too."""
    level: float = 0.95
    """Confidence of intervals."""
    resamples: int = 100
    """Of the bootstrap; 0 gives no intervals with one seed."""
    reference: int | None = None
    """Real images that samples are held against; None is all of them."""
    score_batch: int = 256
    """Images at a time, in sampling and in the feature network."""


def shuffled(count: int) -> torch.Tensor:
    """The order in which images are taken, int64 [count]: the first are those that no classifier learned."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def feature_network(scoring: Scoring, gallery: Gallery, device: torch.device) -> FeatureNetwork:
    """The network on a device; what is trained on the data is kept in the cache."""
    order = shuffled(gallery.count)
    builds = {"own": _own, "components": _components}
    return builds[scoring.features](gallery, order, device).to(device)


def _own(gallery: Gallery, order: torch.Tensor, device: torch.device) -> FeatureNetwork:
    rows = order[gallery.count // HELD_OUT :]
    labels = None if gallery.labels is None else gallery.labels[rows]

    def make() -> dict[str, torch.Tensor]:
        return own_tensors(
            lambda k: eight_bits(gallery.images(rows[k])),
            labels,
            len(rows),
            gallery.classes,
            TRAINED,
            device=device,
        )

    key = {
        "data": gallery.digest,
        "labels": labels is not None,
        "held out": HELD_OUT,
        "steps": TRAINED,
        "device": device.type,
        "version": 1,
    }
    return own_from(cached("features of a small classifier", key, make), labels is not None)


def _components(gallery: Gallery, order: torch.Tensor, device: torch.device) -> FeatureNetwork:
    def make() -> dict[str, torch.Tensor]:
        return components_tensors(eight_bits(gallery.images(order[:FIT])).to(device))

    key = {"data": gallery.digest, "images": FIT, "version": 1, "device": device.type}
    return components_from(cached("principal components", key, make))
