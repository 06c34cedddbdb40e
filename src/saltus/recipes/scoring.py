"""How images are scored: which feature network, how many samples, which figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from saltus.metrics.features import (
    GRAPH,
    PORT,
    FeatureNetwork,
    components_from,
    components_tensors,
    dinov2_from,
    eight_bits,
    graph_from,
    inception_from,
    own_from,
    own_tensors,
    stored_tensors,
)
from saltus.recipes.cached import cached
from saltus.recipes.gallery import Gallery
from saltus.recipes.options import Flag

__all__ = ["Figure", "Scoring", "feature_network", "shuffled"]

Network = Literal["own", "components", "inception", "inception-pytorch-fid", "dinov2", "onnx"]
Group = Literal["own", "guided", "euler", "solver", "teacher"]
OWN: Group = "own"
GUIDED: Group = "guided"
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

    features: Network | None = None
    """own (the default): a small classifier of the data; components: principal ones; the others are files."""
    features_weights: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The file of the feature network (.safetensors, .pth, .onnx); of DINOv2 the folder."""
    count: int | None = None
    """Samples a figure; None is 2,000, or the number of images where that is less."""
    seeds: int = 1
    """So many independent sets of samples; their mean, and Student's interval in place of the bootstrap's."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Step counts, all in one pass."""
    metrics: tuple[Figure, ...] = ("frechet", "kid", "precision", "agreement")
    """Figures. infinity: the Fréchet distance extrapolated to endless samples; agreement: how many of 100 the
    small classifier takes for the class that was asked for."""
    per_class: Flag = False
    """The Fréchet distance of each class too."""
    level: float = 0.95
    """Confidence of intervals."""
    resamples: int = 100
    """Of the bootstrap; 0 gives no intervals with one seed."""
    reference: int | None = None
    """Real images that samples are held against; None is all of them."""
    samplers: tuple[Group, ...] = (OWN, GUIDED)
    """Samplers: the method's own, that with guidance, Euler or Heun on its velocity, its teacher's ODE."""
    batch: int = 256
    """Images at a time, in sampling and in the feature network."""


def shuffled(count: int) -> torch.Tensor:
    """The order in which images are taken, int64 [count]: the first are those that no classifier learned."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def feature_network(scoring: Scoring, gallery: Gallery, device: torch.device) -> FeatureNetwork:
    """The network on a device; what is trained on the data is kept in the cache."""
    order = shuffled(gallery.count)
    stored: dict[str, Callable[[Path], FeatureNetwork]] = {
        "inception": lambda path: inception_from(stored_tensors(path), GRAPH, str(path)),
        "inception-pytorch-fid": lambda path: inception_from(stored_tensors(path), PORT, str(path)),
        "dinov2": dinov2_from,
        "onnx": graph_from,
    }
    name, path = scoring.features or "own", scoring.features_weights
    if (name in stored) != (path is not None):
        needs = "needs a file: give it with" if path is None else "is made of the data: leave out"
        raise ValueError(f"features: {name} {needs} --features-weights")
    if path is not None:
        return stored[name](path).to(device)
    builds = {"own": _own, "components": _components}
    return builds[name](gallery, order, device).to(device)


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
        "version": 2,
    }
    return own_from(cached("features of a small classifier", key, make), labels is not None)


def _components(gallery: Gallery, order: torch.Tensor, device: torch.device) -> FeatureNetwork:
    def make() -> dict[str, torch.Tensor]:
        return components_tensors(eight_bits(gallery.images(order[:FIT])).to(device))

    key = {"data": gallery.digest, "images": FIT, "version": 1, "device": device.type}
    return components_from(cached("principal components", key, make))
