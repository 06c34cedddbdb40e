"""Systems in the plane: fresh data at every step, judged by distances and by the exact flow map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saltus.data import from_density
from saltus.metrics import energy_distance, rmse, sliced_wasserstein
from saltus.recipes.system import MAP_ERROR, Drawn, Judge, System
from saltus.streams import Streams
from saltus.tensors import full_like_rows
from saltus.typing import FlowMap, Velocity

__all__ = ["PlanarTruth", "planar"]

REAL = 2**40
"""First index of the streams of fresh data, far from those of training and of noise."""


MOST_PAIRS = 10_000
"""Samples up to which the energy distance is measured: it takes all pairs."""


@dataclass(frozen=True, eq=False)
class PlanarTruth:
    """Distances between samples and fresh data, and to where the exact map sends their noise.

    Attributes:
        data: streams -> x1 [B, 2].
        count: of samples.
        exact: the exact flow map, or None where there is none at hand.
        further: other figures of samples [n, 2], or None.
        kept: the last noise and where the exact map sends it.
    """

    data: Callable[[Streams], Tensor]
    count: int
    exact: FlowMap | None = None
    further: Callable[[Tensor], dict[str, float]] | None = None
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def figures(self, drawn: Drawn) -> dict[str, float]:
        """The map error, where the exact map is known, and the distances to fresh data."""
        return self.map_error(drawn) | self._distances(drawn.x)

    def map_error(self, drawn: Drawn) -> dict[str, float]:
        """The root of the mean squared distance to X_{0,1}(x0), summed over dimensions."""
        if self.exact is None:
            return {}
        return {MAP_ERROR: float(rmse(drawn.x, self._sent(drawn.x0)))}

    def _sent(self, x0: Tensor) -> Tensor:
        """X_{0,1}(x0), kept for the next sampler with the same noise."""
        assert self.exact is not None
        if not self.kept or self.kept[0][0] is not x0:
            s = full_like_rows(0.0, x0)
            self.kept[:] = [(x0, self.exact(x0, s, torch.ones_like(s)))]
        return self.kept[0][1]

    def real(self) -> dict[str, float]:
        """Distances between two sets of fresh data."""
        return self._distances(self._fresh(1))

    def _fresh(self, part: int) -> Tensor:
        start = REAL + part * self.count
        return self.data(Streams(0, index=torch.arange(start, start + self.count)))

    def _distances(self, x: Tensor) -> dict[str, float]:
        y = self._fresh(0)
        figures = {"sliced W2": float(sliced_wasserstein(x, y))}
        if len(x) <= MOST_PAIRS:
            figures["energy"] = float(energy_distance(x, y))
        return figures | (self.further(x) if self.further is not None else {})


def planar(
    name: str,
    data: Callable[[Streams], Tensor],
    sigma_data: float,
    exact: FlowMap | None = None,
    further: Callable[[Tensor], dict[str, float]] | None = None,
    count: int = 4096,
    counts: tuple[int, ...] = (1, 2, 4, 8),
    published: Mapping[int, dict[str, float]] | None = None,
    velocity: Velocity | None = None,
) -> System:
    """A system of points in the plane.

    Args:
        name: of the recipe.
        data: streams -> x1 [B, 2].
        sigma_data: its standard deviation.
        exact: the exact flow map, if there is one.
        further: other figures of samples, if any.
        count: of samples in an evaluation.
        counts: the step counts of its table.
        published: figures in print, by step count.
        velocity: the exact velocity, if it is known.
    """

    def judge() -> Judge:
        truth = PlanarTruth(data, count, exact, further)
        return Judge(count, None, truth.figures, truth.real, counts, published or {})

    return System(
        name,
        shape=(2,),
        sigma_data=sigma_data,
        classes=None,
        source=from_density(data),
        judge=judge,
        velocity=velocity,
    )
