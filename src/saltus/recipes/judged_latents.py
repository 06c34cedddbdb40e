"""How samples of latents are judged: as they are, or decoded, by the features of pictures."""

from __future__ import annotations

from dataclasses import replace

import torch

from saltus.data.latents import Latents
from saltus.metrics.features import PrincipalComponents
from saltus.recipes.decoded import Decoder
from saltus.recipes.digits import COMPONENTS, distances
from saltus.recipes.gallery import Gallery
from saltus.recipes.judged_images import image_judge
from saltus.recipes.scoring import Scoring
from saltus.recipes.system import Drawn, Judge
from saltus.streams import Streams

__all__ = ["decoded_gallery", "latent_judge", "pixel_judge"]

MOST = 1024
"""Latents that samples are held against, and samples of a judgement."""


def latent_judge(data: Latents) -> Judge:
    """Figures in the space that the flow is learned in; no autoencoder is needed.

    Fréchet: the distance of two Gaussians fitted in 32 principal components of the real latents. Energy: the
    energy distance. Nearest: the mean distance to the nearest real latents.
    """
    count = min(MOST, len(data))
    rows = torch.arange(count) * len(data) // count
    real = data.samples(rows, Streams(0, index=torch.arange(count), prefix="judge/"))
    features = PrincipalComponents.of(real, COMPONENTS)

    def figures(drawn: Drawn) -> dict[str, float]:
        return distances(drawn.x, real, features)

    def halves() -> dict[str, float]:
        one, two = real[::2], real[1::2]
        return distances(two, one, features)

    note = f"space: latents; Fréchet in {COMPONENTS} principal components of {count:,} real ones"
    return Judge(count, None if data.label is None else data.label[rows], figures, halves, note=note)


def decoded_gallery(data: Latents, decoder: Decoder) -> Gallery:
    """The real images as the autoencoder gives them back: what the best of flows would draw.

    Raises:
        ValueError: if the autoencoder cannot be opened, for latents as they are have other figures.
    """
    decoder.check()
    about = data.manifest.about
    return Gallery(
        "decoded latents",
        len(data),
        f"{data.digest}-{decoder.used}",
        lambda rows: decoder(data.read(rows.cpu()).float()).clamp(-1.0, 1.0),
        data.label,
        None if about.classes is None or data.label is None else len(about.classes),
    )


def pixel_judge(data: Latents, decoder: Decoder, scoring: Scoring = Scoring()) -> Judge:
    """Figures of decoded samples by features of pictures, against real images that went through the same
    autoencoder.

    Args:
        data: the latents.
        decoder: that of the latents.
        scoring: what to measure.

    Raises:
        ValueError: if the autoencoder cannot be opened.
    """
    judge = image_judge(decoded_gallery(data, decoder), data.label is not None, scoring)

    def figures(drawn: Drawn) -> dict[str, float]:
        return judge.figures(replace(drawn, x=decoder(drawn.x)))

    return replace(judge, figures=figures)
