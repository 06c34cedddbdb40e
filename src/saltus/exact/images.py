"""A set of images as a Gaussian mixture: real data whose velocity and density are known exactly.

x1 is an image of the set, each equally likely, plus noise N(0, sigma^2 I): the law that a network
trained on the set to perfection, without generalising, would have at sigma -> 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from saltus.exact.mixture import Mixture
from saltus.interpolants import Interpolant, Linear
from saltus.streams import Streams
from saltus.typing import Condition

__all__ = ["ImageMixture"]


@dataclass(frozen=True, eq=False)
class ImageMixture:
    """Equal Gaussians of s.d. sigma at images [N, ...]: a :class:`saltus.typing.Velocity`.

    Samples keep the shape of an image. Thousands of images are two matrix products a call.

    Attributes:
        images: floating point, [N, ...].
        sigma: the standard deviation of each pixel around its image.
        labels: the class of each image, int64 [N], or None.
        interpolant: alpha and beta.

    >>> system = ImageMixture(torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]), sigma=0.1)
    >>> system.posterior_mean(torch.full((1, 1, 2, 2), 0.9), torch.tensor([1.0])).shape
    torch.Size([1, 1, 2, 2])
    """

    images: Tensor
    sigma: float
    labels: Tensor | None = None
    interpolant: Interpolant = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if self.images.ndim < 2 or not self.images.is_floating_point():
            raise ValueError(
                f"images: expected floating-point [N, ...], got {self.images.dtype} of shape "
                f"{list(self.images.shape)}; scale integers to [-1, 1] first"
            )
        if not self.sigma > 0.0:
            raise ValueError(f"sigma: expected a positive standard deviation, got {self.sigma}")
        _ = self.mixture  # wrong images or labels fail here, not at the first call

    @cached_property
    def mixture(self) -> Mixture:
        """The same law on flattened images, [N, D]."""
        means = self.images.flatten(start_dim=1)
        weights = torch.ones(len(means), dtype=torch.float64, device=means.device)
        return Mixture(means, weights, self.sigma**2, self.labels, self.interpolant)

    def sample(self, rng: Streams) -> tuple[Tensor, Tensor | None]:
        """Samples x1 [B, ...] and their labels (int64 [B], or None)."""
        x1, label = self.mixture.sample(rng)
        return x1.reshape(-1, *self.images.shape[1:]), label

    def restricted(self, label: int) -> ImageMixture:
        """The images of one class, without labels."""
        if self.labels is None or not bool((self.labels == label).any()):
            raise ValueError(f"restricted: no image has the label {label}")
        return ImageMixture(self.images[self.labels == label], self.sigma, None, self.interpolant)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The velocity b_t(x) = E[dI_t | I_t = x], [B, ...]."""
        return self.mixture(self._flat(x), t, cond).reshape(x.shape)

    def score(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The gradient in x of the log-density of I_t, [B, ...]."""
        return self.mixture.score(self._flat(x), t, cond).reshape(x.shape)

    def posterior_mean(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The denoiser E[x1 | I_t = x], [B, ...]."""
        return self.mixture.posterior_mean(self._flat(x), t, cond).reshape(x.shape)

    def log_density(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """log rho_t(x) in nats, [B]."""
        return self.mixture.log_density(self._flat(x), t, cond)

    def responsibilities(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """P(x came from image k), [B, N]."""
        return self.mixture.responsibilities(self._flat(x), t, cond)

    def _flat(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.images.shape[1:]:
            want = ["B", *self.images.shape[1:]]
            raise ValueError(f"x: expected shape {want}, got {list(x.shape)}")
        return x.flatten(start_dim=1)
