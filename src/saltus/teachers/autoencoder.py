"""Between images and the latents in which a flow is learned.

Latents here are always *normalised*: an autoencoder's raw code y becomes z = (y - offset) * scale, one pair
of numbers a channel, so that z has about unit variance and can be a flow's data. Whoever stores or draws
latents knows nothing of these numbers; decoding inverts them.

References:
    Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022, arXiv 2112.10752
        (flows of latents, section 3.1; their scale, appendix G).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from saltus.streams import Streams

__all__ = ["Autoencoder", "Posterior"]


class Posterior(NamedTuple):
    """The law of an image's latents: N(mean, std^2), independent numbers.

    Attributes:
        mean: normalised, [B, C, h, w].
        std: in the same units, [B, C, h, w]; None for an encoder without noise.
    """

    mean: Tensor
    std: Tensor | None = None

    def sample(self, rng: Streams) -> Tensor:
        """mean + std * eps, [B, C, h, w], with eps from the stream "posterior" of each row."""
        if self.std is None:
            return self.mean
        return self.mean + self.std * rng.normal_like("posterior", self.mean)


class Autoencoder(Protocol):
    """Images [B, 3, H, W] in [-1, 1] to normalised latents [B, C, h, w] and back."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of an image of this size; a ValueError if it takes none of this size."""
        ...

    def posterior(self, x: Tensor) -> Posterior:
        """The law of the latents of x."""
        ...

    def encode(self, x: Tensor, rng: Streams | None = None) -> Tensor:
        """Latents of x: the posterior's mean, or a sample of it with the rows' streams."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents; slightly outside of [-1, 1] where the decoder says so."""
        ...

    def described(self) -> dict[str, object]:
        """What latents depend on, as plain data: a digest of its configuration and its weights above all."""
        ...
