"""Latents that ``saltus encode`` made of pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from saltus.data.latents import Latents as Data
from saltus.data.latents import open_latents
from saltus.methods import Method, Need
from saltus.recipes.assemble import assemble
from saltus.recipes.decoded import Decoder
from saltus.recipes.encoding import AUTOENCODER
from saltus.recipes.experiment import Experiment
from saltus.recipes.judged_latents import decoded_gallery, latent_judge, pixel_judge
from saltus.recipes.named import meta_of
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.system import Judge, System

__all__ = ["RECIPE", "Decoding", "Latents", "latents", "latents_system"]

RECIPE = "latents of your pictures: saltus encode, then --data FOLDER"

DEFAULT = Training(steps=100_000, batch=256, lr=1e-4, clip=1.0, ema=(0.9999,))
JUDGES = {"latents": False, "pixels": True}


@dataclass(frozen=True)
class Latents:
    """The latents."""

    sampled: bool = True
    """Draw the encoder's noise anew each time, if its deviations are stored; else take the means."""
    flip: bool = True
    """Take the mirror images half of the time, if they are stored."""
    judge: Literal["latents", "pixels"] = "latents"
    """Measure samples as they are, or decoded, by features of pictures."""


@dataclass(frozen=True)
class Decoding:
    """How latents become pictures; an unfinished run goes on with another value."""

    autoencoder: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the autoencoder; None is the one that the latents were made with, where it was."""


def usual(method: Method, _: str | None) -> dict[str, object]:
    """A student of a teacher is trained for less: it starts with the teacher's weights."""
    taught = Need.TEACHER in method.card.needs
    return {"training": replace(DEFAULT, steps=DEFAULT.steps // 4)} if taught else {}


def latents_system(data: Data, decoder: Decoder, pixels: bool) -> System:
    """What a run learns of latents.

    Args:
        data: the latents.
        decoder: makes them pictures.
        pixels: whether samples are judged as pictures.
    """
    classes = data.manifest.about.classes

    def judge() -> Judge:
        return pixel_judge(data, decoder) if pixels else latent_judge(data)

    return System(
        "latents",
        shape=data.shape,
        sigma_data=round(data.std, 6) or 1.0,
        classes=None if data.label is None or classes is None else len(classes),
        source=data,
        judge=judge,
        gallery=lambda: decoded_gallery(data, decoder),
        decode=decoder,
        meta={**decoder.meta, **meta_of(None if data.label is None else classes)},
        digests={"data": data.digest},
    )


def latents(
    data: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
    method: str = "lsd",
    plain: bool = False,
    labels: bool = True,
    guidance: float | None = None,
    dropout: float | None = None,
    teacher_steps: int = 100_000,
    jump_weight: float = 1.0,
    latents: Latents = Latents(),
    decoding: Decoding = Decoding(),
    network: Network = Network(backbone="dit"),
    training: Training = DEFAULT,
    output: Output = Output(),
) -> Experiment:
    """Learn to draw pictures in the latents of an autoencoder, by class if they have classes.

    saltus encode makes the latents, once. Grids and samples are decoded where the autoencoder is still there.

    examples:
      saltus encode photos latents --autoencoder vae --image-size 256 --flip
      saltus run latents-lsd --data latents
      saltus run latents-mean_flow --data latents --size base --judge pixels
      saltus run latents-freeflow --data latents --autoencoder elsewhere/vae

    Args:
        data: Folder that saltus encode wrote.
        method: Any method that saltus methods lists.
        plain: Take the method's squared-error form instead of its paper's weights.
        labels: Give the network the class of each picture, if the pictures have classes.
        guidance: Learn the map at every strength of guidance up to this one; 1 is none.
        dropout: Share of labels dropped in training; None drops some where guidance needs it.
        teacher_steps: For methods that need a teacher: steps that train it first.
        jump_weight: Factor on the terms of the loss that teach jumps; 1 is the method's own.
        latents: The latents.
        decoding: How they become pictures.
        network: The network.
        training: How it is trained.
        output: Where results go.
    """
    source = open_latents(data, training.batch, labels=labels, sampled=latents.sampled, flips=latents.flip)
    asked = decoding.autoencoder
    decoder = Decoder(
        source.manifest.places.get(AUTOENCODER, "") if asked is None else str(asked.resolve()),
        str(source.manifest.about.autoencoder.get("digest", "")) or None,
        asked is not None,
    )
    pixels = JUDGES[latents.judge]
    if pixels or asked is not None:
        decoder.check()
    own: dict[str, object] = {
        "data": str(data.resolve()),
        "labels": labels,
        "guidance": guidance,
        "dropout": dropout,
        "teacher_steps": teacher_steps,
        "jump_weight": jump_weight,
        "latents": asdict(latents),
        "loading": {AUTOENCODER: None if asked is None else str(asked.resolve())},
    }
    system = latents_system(source, decoder, pixels)
    parts = (system, method, plain, network, training, output, own)
    lesson = replace(training, steps=teacher_steps)
    return assemble(*parts, guidance, jump_weight, dropout, lesson)
