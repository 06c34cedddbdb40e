"""Systems in the plane: fresh data at every step, judged by distances and by the exact flow map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.data import from_density
from saltus.exact import reference_map
from saltus.metrics import energy_distance, sliced_wasserstein
from saltus.recipes.system import Drawn, System
from saltus.streams import Streams
from saltus.tensors import full_like_rows
from saltus.typing import Velocity

__all__ = ["PlanarJudge", "planar"]

REAL = 2**40
"""First index of the streams of fresh data, far from those of training and of noise."""


@dataclass(frozen=True, eq=False)
class PlanarJudge:
    """Distances between samples and fresh data, and to where the exact map sends their noise.

    Attributes:
        data: streams -> x1 [B, 2].
        count: of samples.
        velocity: the exact one, or None where no closed form is at hand.
        further: other figures of samples [n, 2], or None.
    """

    data: Callable[[Streams], Tensor]
    count: int
    velocity: Velocity | None = None
    further: Callable[[Tensor], dict[str, float]] | None = None

    @property
    def labels(self) -> Tensor | None:
        """No labels: the density is learned as a whole."""
        return None

    def __call__(self, drawn: Drawn) -> dict[str, float]:
        return self.map_error(drawn) | self._distances(drawn.x)

    def map_error(self, drawn: Drawn) -> dict[str, float]:
        """The root of the mean squared distance to X_{0,1}(x0), summed over dimensions."""
        if self.velocity is None:
            return {}
        s = full_like_rows(0.0, drawn.x0)
        truth = reference_map(self.velocity, drawn.x0, s, torch.ones_like(s), tolerance=1e-7)
        return {"map RMSE": float((drawn.x - truth).square().sum(dim=1).mean().sqrt())}

    def real(self) -> dict[str, float]:
        """Distances between two sets of fresh data."""
        return self._distances(self._fresh(1))

    def _fresh(self, part: int) -> Tensor:
        start = REAL + part * self.count
        return self.data(Streams(0, index=torch.arange(start, start + self.count)))

    def _distances(self, x: Tensor) -> dict[str, float]:
        raise NotImplementedError


def planar(
    name: str,
    data: Callable[[Streams], Tensor],
    sigma_data: float,
    velocity: Velocity | None = None,
    further: Callable[[Tensor], dict[str, float]] | None = None,
    count: int = 4096,
) -> System:
    """A system of points in the plane.

    Args:
        name: of the recipe.
        data: streams -> x1 [B, 2].
        sigma_data: its standard deviation.
        velocity: the exact one, if there is one.
        further: other figures of samples, if any.
        count: of samples in an evaluation.
    """
    return System(
        name,
        shape=(2,),
        sigma_data=sigma_data,
        classes=None,
        source=from_density(data),
        judge=lambda: PlanarJudge(data, count, velocity, further),
    )
