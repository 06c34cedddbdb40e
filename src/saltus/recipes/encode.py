"""``saltus encode``: a data set of pictures to latents, once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro import conf

from saltus.data.images import Channels, Corrupt, open_images
from saltus.recipes.encoding import AUTOENCODER, encode_images
from saltus.recipes.machine import device_of
from saltus.recipes.options import Flag
from saltus.teachers.diffusers.autoencoder import open_autoencoder

__all__ = ["encode"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bf16": torch.bfloat16}
Folder = Annotated[Path, conf.arg(metavar="OUT")]
Data = Annotated[Path, conf.arg(metavar="DATA")]


def encode(
    data: conf.Positional[Data],
    out: conf.Positional[Folder],
    *,
    autoencoder: Annotated[Path, conf.arg(metavar="DIR")],
    image_size: int | None = 256,
    posterior: bool = True,
    flip: Flag = False,
    labels: bool = True,
    limit: int | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    corrupt: Literal["stop", "skip"] = "stop",
    batch: int = 16,
    shard_rows: int = 2048,
    store: Literal["float32", "float16"] = "float32",
    precision: Literal["float32", "bf16"] = "float32",
    tiling: Flag = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    quiet: Flag = False,
) -> None:
    """Encode a data set of pictures to latents, once, for saltus run latents --data OUT.

    What was interrupted goes on with the same command, and comes out as if it had not been.

    examples:
      saltus encode photos latents --autoencoder vae
      saltus encode train.parquet latents --autoencoder vae --image-size 64 --flip
      saltus encode photos latents --autoencoder pipeline --precision bf16 --store float16

    Args:
        data: Folder or .zip of pictures, .parquet, .npy or .npz.
        out: Folder of the latents: a new one, or one to go on with.
        autoencoder: Folder of an AutoencoderKL, AutoencoderTiny or AutoencoderDC of diffusers, or a pipeline.
        image_size: Crop and resample to squares of this side; None takes pictures as they are.
        posterior: Store the deviations of the encoder's noise too, so that training can draw it anew;
            --no-posterior stores means alone, half as much.
        flip: Store the latents of mirrored pictures too, so that training can flip.
        labels: Store the classes, if the data has any.
        limit: Encode the first so many pictures only.
        split: Part of the data, where there are several.
        image_column: Column of the pictures in a table.
        label_column: Column of the classes in a table.
        corrupt: What a picture that cannot be decoded does: stop the encoding, or be left out.
        batch: Pictures that pass through the autoencoder together.
        shard_rows: Pictures in a file; what is lost at most by an interruption.
        store: Number format on disk.
        precision: Number format of the autoencoder.
        tiling: Encode large pictures in overlapping tiles: less memory, a little another result.
        device: Where to compute.
        quiet: No progress, only errors.
    """
    model = open_autoencoder(autoencoder, dtype=DTYPES[precision], tiling=tiling, at_once=max(batch, 1))
    images = open_images(
        data,
        size=image_size,
        channels=Channels.RGB,
        labels=None if labels else False,
        split=split,
        image_column=image_column,
        label_column=label_column,
        corrupt=Corrupt(corrupt),
    )
    if images.corrupt and not quiet:
        print(f"left out {len(images.corrupt)} pictures: {', '.join(images.corrupt[:3])}", file=sys.stderr)
    model.model.to(device_of(device))
    encode_images(
        images,
        model,
        out,
        batch=batch,
        shard_rows=shard_rows,
        posterior=posterior and model.noisy,
        flip=flip,
        limit=limit,
        store=DTYPES[store],
        places={"data": str(data.resolve()), AUTOENCODER: str(model.folder)},
        quiet=quiet,
    )
