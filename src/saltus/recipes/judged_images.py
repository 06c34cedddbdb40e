"""How samples of images are judged: by features, against statistics of real images that are kept.

    system = System(..., judge=lambda: image_judge(gallery), gallery=lambda: gallery)

Every figure belongs to its protocol: the feature network and its digest, the real images and theirs, and both
counts. :attr:`Judge.note` says it, and it is printed below the table and written beside the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from saltus.metrics import (
    Interval,
    Moments,
    bootstrap,
    frechet_at_infinity,
    frechet_of_moments,
    kernel_mean,
    kid,
    precision_recall,
)
from saltus.metrics.features import FeatureNetwork
from saltus.recipes.cached import cached
from saltus.recipes.gallery import Gallery
from saltus.recipes.progress import Progress
from saltus.recipes.scoring import HELD_OUT, Scoring, feature_network, shuffled
from saltus.recipes.system import Drawn, Judge

__all__ = ["AGREEMENT", "FRECHET", "ImageTruth", "Scores", "image_judge", "image_truth"]

Statistic = Callable[[Tensor, Tensor], Tensor]
"""Rows [n, D] and their weights [B, n] -> values [B]."""
FRECHET, AGREEMENT = "Fréchet", "agreement %"
INFINITY, KERNEL = "Fréchet ∞", "KID × 1000"
USUAL = 2000
"""Samples a figure by default: enough to tell checkpoints apart, and cheap."""
KEPT = 10_000
"""Real images whose features are kept, and samples of which pairs are taken, for KID and neighbours."""
NEIGHBOURS, DENSE = 3, 5
"""k of precision and recall, and of density and coverage, as in their papers."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of real images.

    Attributes:
        moments: of all of them.
        features: of the first ones in shuffled order, at most KEPT, float32.
        classes: the moments of each class; empty unless they were asked for.
        count: images.
    """

    moments: Moments
    features: Tensor
    classes: list[Moments]
    count: int

    @cached_property
    def own(self) -> Tensor:
        """The part of the KID that is theirs alone."""
        return kernel_mean(self.features)


@dataclass(frozen=True, eq=False)
class Scores:
    """What was measured of one set of samples.

    Attributes:
        figures: by name.
        intervals: low and high, where the bootstrap gives them.
        per_class: the Fréchet distance of each class.
    """

    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    per_class: dict[int, float] = field(default_factory=dict)


class ImageTruth:
    """Figures of samples by their features.

    Args:
        gallery: the real images.
        network: of features, on the device that is to compute.
        scoring: what to measure.
        device: for batches and statistics.
        reference: the statistics; by default the gallery's, from the cache.
    """

    def __init__(
        self,
        gallery: Gallery,
        network: FeatureNetwork,
        scoring: Scoring,
        device: torch.device,
        reference: Reference | None = None,
    ) -> None:
        self.gallery, self.network, self.scoring, self.device = gallery, network, scoring, device
        self.count = min(USUAL, gallery.count) if scoring.count is None else scoring.count
        self.metrics = set(scoring.metrics)
        self.reference = reference or self._reference()

    @property
    def facts(self) -> dict[str, str]:
        """The protocol: what has to be said beside every figure."""
        few, kept = min(KEPT, self.count), len(self.reference.features)
        said = {
            "features": f"{self.network.name} ({self.network.digest})",
            "real": f"{self.reference.count:,} of {self.gallery.name} ({self.gallery.digest})",
            "samples": f"{self.count:,}, rounded to 8 bits",
        }
        if "kid" in self.metrics:
            said["KID"] = f"all pairs of {few:,} samples and {kept:,} real images"
        if self.metrics & {"precision", "density"}:
            said["neighbours"] = f"{few:,} samples, {min(few, kept):,} real images"
        return said

    def _batches(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        progress = Progress(len(rows), "real images")
        for part in torch.split(rows, self.scoring.batch):
            labels = None if self.gallery.labels is None else self.gallery.labels[part]
            yield self.network(self.gallery.images(part).to(self.device)), labels
            progress.more(len(part))
        progress.end()

    def _reference(self) -> Reference:
        count = min(self.scoring.reference or self.gallery.count, self.gallery.count)
        classes = (self.gallery.classes or 0) if self.scoring.per_class else 0
        if self.scoring.per_class and not classes:
            raise ValueError(f"per class: expected labelled images, got {self.gallery.name} without labels")
        key = {
            "data": self.gallery.digest,
            "network": self.network.digest,
            "count": count,
            "kept": KEPT,
            "classes": classes,
            "version": 1,
        }
        found = cached("statistics of real images", key, lambda: self._statistics(count, classes))
        moments = [
            Moments(int(n), mean.to(self.device), scatter.to(self.device))
            for n, mean, scatter in zip(found["count"], found["mean"], found["scatter"], strict=True)
        ]
        return Reference(moments[0], found["features"].to(self.device), moments[1:], count)

    def _statistics(self, count: int, classes: int) -> dict[str, Tensor]:
        """Of all images first, then of each class."""
        seen: list[Moments | None] = [None] * (1 + classes)
        kept, held = [], 0
        for f, labels in self._batches(shuffled(self.gallery.count)[:count]):
            groups = [f]
            if classes:
                assert labels is not None
                groups += [f[(labels == c).to(f.device)] for c in range(classes)]
            for k, group in enumerate(groups):
                before = seen[k]
                if len(group):
                    seen[k] = Moments.of(group) if before is None else before.seen(group)
            if held < KEPT:
                kept.append(f[: KEPT - held].cpu())
                held += len(kept[-1])
        empty = [k - 1 for k, m in enumerate(seen) if m is None]
        if empty:
            raise ValueError(f"per class: expected images of each class, found none of {empty}; leave it out")
        every = [m for m in seen if m is not None]
        return {
            "count": torch.tensor([m.count for m in every]),
            "mean": torch.stack([m.mean for m in every]),
            "scatter": torch.stack([m.scatter for m in every]),
            "features": torch.cat(kept),
        }

    def features(self, x: Tensor) -> Tensor:
        """Of samples in [-1, 1], a batch at a time, float32 [n, D] on the device of the judge."""
        parts = torch.split(x, self.scoring.batch)
        return torch.cat([self.network(part.to(self.device)) for part in parts])

    def scores(self, features: Tensor, labels: Tensor | None, intervals: bool = True) -> Scores:
        """Everything that was asked for, of samples' features [n, D] and the classes asked of them."""
        figures: dict[str, Interval] = {}
        if "frechet" in self.metrics:
            figures[FRECHET] = self._sure(self._frechet, features, intervals)
        if "infinity" in self.metrics:
            value = frechet_at_infinity(features, self.reference.moments)
            figures[INFINITY] = Interval(value, value, value)
        few = features[:KEPT]
        if "kid" in self.metrics:
            figures[KERNEL] = self._sure(self._kid, few, intervals)
        if self.metrics & {"precision", "density"}:
            figures |= self._neighbours(few)
        if "agreement" in self.metrics and labels is not None and self.network.head is not None:
            right = (self.network.classes(features).cpu() == labels.cpu()).double().unsqueeze(1)
            figures[AGREEMENT] = self._sure(_percent, right, intervals)
        return Scores(
            {name: v.value for name, v in figures.items()},
            {name: (v.low, v.high) for name, v in figures.items() if v.low < v.high},
            self._per_class(features, labels) if self.scoring.per_class and labels is not None else {},
        )

    def _sure(self, statistic: Statistic, rows: Tensor, intervals: bool) -> Interval:
        """The figure of the rows, with the bootstrap's interval if it is wanted."""
        if not intervals or not self.scoring.resamples:
            value = float(statistic(rows, torch.ones(1, len(rows), dtype=torch.float64)))
            return Interval(value, value, value)
        level, repeats = self.scoring.level, self.scoring.resamples
        return bootstrap(lambda w: statistic(rows, w), len(rows), level, repeats)

    def _frechet(self, features: Tensor, weights: Tensor) -> Tensor:
        values = [frechet_of_moments(self.reference.moments, Moments.weighted(features, w)) for w in weights]
        return torch.stack(values).cpu()

    def _kid(self, features: Tensor, weights: Tensor) -> Tensor:
        real = self.reference
        return 1000.0 * kid(features, real.features, weights.to(features.device), real.own).cpu()

    def _neighbours(self, few: Tensor) -> dict[str, Interval]:
        """Against as many real images as there are samples, by which the two fractions are comparable."""
        real = self.reference.features[: len(few)]
        found: dict[str, float] = {}
        if "precision" in self.metrics:
            near = precision_recall(few, real, NEIGHBOURS)
            found |= {"precision": near.precision, "recall": near.recall}
        if "density" in self.metrics:
            near = precision_recall(few, real, DENSE)
            found |= {"density": near.density, "coverage": near.coverage}
        return {name: Interval(v, v, v) for name, v in found.items()}

    def _per_class(self, features: Tensor, labels: Tensor) -> dict[int, float]:
        found = {}
        for c, real in enumerate(self.reference.classes):
            group = features[(labels == c).to(features.device)]
            if len(group) > 1 and real.count > 1:
                found[c] = float(frechet_of_moments(real, Moments.of(group)))
        return found

    def figures(self, drawn: Drawn) -> dict[str, float]:
        """Those of a judge: values alone."""
        return self.scores(self.features(drawn.x), drawn.label, intervals=False).figures

    @property
    def real_count(self) -> int:
        """How many real images stand in for samples in :meth:`real`; the others are the data then."""
        return min(self.count, len(self.reference.features) // 2)

    def real(self) -> dict[str, float]:
        """Real images in place of samples, held against other real ones; the classifier is asked of images
        that it has not learned."""
        kept = self.reference.features
        count = self.real_count
        others = kept[count:]
        against = Reference(Moments.of(others), others, [], len(others))
        apart = ImageTruth(self.gallery, self.network, self.scoring, self.device, against)
        order = shuffled(self.gallery.count)[:count]
        labels = None if self.gallery.labels is None else self.gallery.labels[order]
        found = apart.scores(kept[:count], labels, intervals=False).figures
        unseen = min(count, self.gallery.count // HELD_OUT)
        if AGREEMENT in found and labels is not None and unseen:
            right = self.network.classes(kept[:unseen]).cpu() == labels[:unseen]
            found[AGREEMENT] = 100.0 * float(right.double().mean())
        return found

    def labels(self) -> Tensor | None:
        """Classes to ask for, int64 [count]: as often as the data have them, in a fixed random order."""
        if self.gallery.labels is None:
            return None
        by_class = self.gallery.labels.cpu().sort().values
        evenly = by_class[torch.arange(self.count) * len(by_class) // self.count]
        return evenly[shuffled(self.count)]


def _percent(right: Tensor, weights: Tensor) -> Tensor:
    return 100.0 * (weights @ right).squeeze(1) / weights.sum(dim=1)


def image_truth(gallery: Gallery, scoring: Scoring, device: torch.device | None = None) -> ImageTruth:
    """What scores samples of the gallery's kind; networks and statistics come from the cache, or are made.

    Args:
        gallery: the real images.
        scoring: what to measure.
        device: that computes; by default CUDA where it is.
    """
    place = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ImageTruth(gallery, feature_network(scoring, gallery, place), scoring, place)


def image_judge(
    gallery: Gallery,
    labelled: bool = True,
    scoring: Scoring = Scoring(),
    device: torch.device | None = None,
) -> Judge:
    """The judge of a system of images.

    Args:
        gallery: the real images.
        labelled: whether the map is asked for classes, where the data have any.
        scoring: what to measure, and how many samples it takes.
        device: that computes; by default CUDA where it is.
    """
    truth = image_truth(gallery, scoring, device)
    return Judge(
        truth.count,
        truth.labels() if labelled else None,
        truth.figures,
        truth.real,
        scoring.steps,
        batch=scoring.batch,
        note="\n".join(f"{name}: {text}" for name, text in truth.facts.items()),
    )
