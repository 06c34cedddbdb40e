"""The parts of a folder that come from diffusers: a student's network, and what its teacher's pipeline has
beside the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saltus.teachers.diffusers.merged import plain_weights
from saltus.teachers.diffusers.student import DiffusersBackbone

__all__ = ["autoencoder_part", "beside", "network_of", "second_time"]

INDEX, CONFIG = "model_index.json", "config.json"
BESIDE = ("vae", *(f"{part}{k}" for part in ("text_encoder", "tokenizer") for k in ("", "_2", "_3")))
_APART = ("base", "lora")


def second_time(
    backbone: DiffusersBackbone, spec: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of what a student has beside its network, the teacher's folder left out."""
    foreign = {k: v for k, v in spec["foreign"].items() if k not in _APART}
    config = {"spec": {**spec, "foreign": foreign}, "width": backbone.gap.last.out_features}
    state = backbone.state_dict()
    return config, {k: v for k, v in state.items() if k.startswith(("gap.", "null_"))}


def network_of(
    backbone: DiffusersBackbone, spec: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Name of the part, configuration and weights of a student's network, in diffusers' own format."""
    config = dict(spec["foreign"]["network"])
    name = "unet" if config["_class_name"].startswith("UNet") else "transformer"
    return name, config, plain_weights(backbone)


def beside(spec: Mapping[str, Any], draft: Path, link: bool) -> tuple[dict[str, list[str]], str | None]:
    """Copy, or link, what the teacher's pipeline has beside its network.

    Args:
        spec: of the student.
        draft: the folder that is written.
        link: refer to the teacher's folder instead of copying.

    Returns:
        The entries of the index, and the class of the pipeline that encodes texts, None without texts.

    Raises:
        ValueError: if the teacher's folder is gone.
    """
    base = spec["foreign"].get("base")
    if base is None:
        return {}, None
    place = Path(base["folder"])
    if not place.is_dir():
        raise ValueError(
            f"teacher {place}: expected its folder, whose autoencoder and text encoders the student uses, "
            "found nothing there; put it back"
        )
    if not (place / INDEX).is_file():
        return {}, None
    index = json.loads((place / INDEX).read_text(encoding="utf-8"))
    entries = {name: index[name] for name in BESIDE if (index.get(name) or [None])[0] is not None}
    for name in entries:
        taken(place / name, draft / name, link)
    textual = any(name.startswith("text_encoder") for name in entries)
    return entries, str(index["_class_name"]) if textual else None


def autoencoder_part(folder: Path, draft: Path, link: bool) -> dict[str, list[str]]:
    """Copy, or link, an autoencoder of diffusers, which lies in a folder or in its ``vae``; the entry of the
    index."""
    place = folder / "vae" if (folder / "vae" / CONFIG).is_file() else folder
    kind = json.loads((place / CONFIG).read_text(encoding="utf-8"))["_class_name"]
    taken(place, draft / "vae", link)
    return {"vae": ["diffusers", kind]}


def taken(place: Path, to: Path, link: bool) -> None:
    """Copy a folder, or link to it."""
    if link:
        to.symlink_to(place.resolve(), target_is_directory=True)
    else:
        shutil.copytree(place, to)
