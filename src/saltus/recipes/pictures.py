"""Pictures of one's own: a folder, an archive, Parquet, a data set on the disk, an array."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import tyro

from saltus.data.latents import is_latents
from saltus.methods import Method, Need
from saltus.recipes.assemble import assemble
from saltus.recipes.experiment import Experiment
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.pictured import Bringing, Pictures, loading_of, opened, pictures_system

__all__ = ["RECIPE", "pictures"]

RECIPE = "your own pictures: --data FOLDER, or .zip, .parquet, .npy (a dry run says how long)"

DEFAULT = Training(steps=20_000, batch=128, lr=5e-4, ema=(0.9995,))


def usual(method: Method, _: str | None) -> dict[str, object]:
    """A student of a teacher is trained for less: it starts with the teacher's weights."""
    taught = Need.TEACHER in method.card.needs
    return {"training": replace(DEFAULT, steps=DEFAULT.steps // 2)} if taught else {}


def pictures(
    data: Annotated[Path, tyro.conf.arg(metavar="PATH")],
    method: str = "lsd",
    plain: bool = False,
    labels: bool = True,
    guidance: float | None = None,
    dropout: float | None = None,
    teacher_steps: int = 20_000,
    jump_weight: float = 1.0,
    pictures: Pictures = Pictures(),
    loading: Bringing = Bringing(),
    network: Network = Network(backbone="unet"),
    training: Training = DEFAULT,
    output: Output = Output(),
) -> Experiment:
    """Learn to draw pictures like those in a folder, an archive or a table, by class if they have classes.

    Pictures lie in folders that name their classes, or all in one; or in a .zip of that; in Parquet as the
    Hub keeps them; in a folder that Dataset.save_to_disk wrote; or in .npy and .npz arrays of uint8.

    examples:
      saltus run pictures-lsd --data photos --image-size 32 --flip
      saltus run pictures-lsd --data photos.zip --image-size 64 --corrupt skip
      saltus run pictures-mean_flow --data train.parquet --no-labels
      saltus run pictures-freeflow --data photos --image-size 32

    Args:
        data: Folder or file.
        method: Any method that saltus methods lists.
        plain: Take the method's squared-error form instead of its paper's weights.
        labels: Give the network the class of each picture, if the pictures have classes.
        guidance: Learn the map at every strength of guidance up to this one; 1 is none.
        dropout: Share of labels dropped in training; None drops some where guidance needs it.
        teacher_steps: For methods that need a teacher: steps that train it first.
        jump_weight: Factor on the terms of the loss that teach jumps; 1 is the method's own.
        pictures: The pictures.
        loading: How they come from the disk.
        network: The network.
        training: How it is trained.
        output: Where results go.
    """
    if is_latents(data):
        raise ValueError(
            f"data {data}: expected pictures, got latents that saltus encode made; saltus run "
            f"latents-{method} --data {data} learns them"
        )
    images = opened(data, pictures, labels, output.quiet)
    system = pictures_system("pictures", images, training.batch, pictures.flip, loading_of(loading))
    folder = loading.cache_folder
    own: dict[str, object] = {
        "data": str(data.resolve()),
        "labels": labels,
        "guidance": guidance,
        "dropout": dropout,
        "teacher_steps": teacher_steps,
        "jump_weight": jump_weight,
        "pictures": asdict(pictures),
        "loading": {**asdict(loading), "cache_folder": None if folder is None else str(folder.resolve())},
    }
    parts = (system, method, plain, network, training, output, own)
    lesson = replace(training, steps=teacher_steps)
    return assemble(*parts, guidance, jump_weight, dropout, lesson)
