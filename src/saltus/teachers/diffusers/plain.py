"""A student of a diffusers model as plain data, and back: what a weights file says of how to build it.

A student whose weights are all its own is built from that description alone. One of adapters needs the folder
of its base, whose digest the description holds: other weights there are an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path as Folder
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

from saltus.interpolants import Interpolant, Linear, Trigonometric
from saltus.teachers.diffusers.families import family_of, known_families
from saltus.teachers.diffusers.lora import AdaptedBackbone, LoRA
from saltus.teachers.diffusers.opened import CONFIG, PARTS, SCHEDULER, DiffusersModel, open_diffusers
from saltus.teachers.diffusers.packages import part, quietly
from saltus.teachers.diffusers.schedules import path_of
from saltus.teachers.diffusers.student import FIELDS, DiffusersBackbone, actually
from saltus.typing import Condition

__all__ = ["PATHS", "UnknownOrigin", "Opened", "build", "described", "files_of", "opened", "prompts_of"]

PATHS: dict[str, Interpolant] = {"linear": Linear(), "trigonometric": Trigonometric()}
"""The paths that a student may be on, by name."""
_KNOWN = {"network", "scheduler", "shape", "classes", "pixels", "strength", "null", "onto", "lora", "base"}
_NEEDED = _KNOWN - {"lora", "base"}
_COUNTED: list[tuple[Any, DiffusersModel]] = []
"""Where memory is counted with tensors that have none: the count, and the first model that it made, which is
the teacher and so the base of adapters."""


class UnknownOrigin(ValueError):
    """The model that adapters belong to is not where it was, or is another one."""


class Opened(NamedTuple):
    """A folder's model, and the same network as one of two times on the line."""

    model: DiffusersModel
    backbone: DiffusersBackbone


def files_of(folder: Folder) -> list[Folder]:
    """What the answers of the model in a folder depend on: its network's weights, and the two settings."""
    network = next((folder / name for name in PARTS if (folder / name).is_dir()), folder)
    found = [*network.glob("*.safetensors"), network / CONFIG, folder / "scheduler" / SCHEDULER]
    return sorted(path for path in found if path.is_file())


def opened(folder: Folder) -> Opened:
    """The model in a folder, kept as long as its files stay as they are: a teacher, its students and their
    critic are made of the same weights."""
    stats = [(path, path.stat()) for path in files_of(folder)]
    return _opened(folder, tuple((path, s.st_size, s.st_mtime_ns) for path, s in stats))


@lru_cache(maxsize=1)
def _opened(folder: Folder, seen: tuple[object, ...]) -> Opened:
    with actually():
        model = open_diffusers(folder)
        return Opened(model, DiffusersBackbone(model).requires_grad_(False))


def prompts_of(folder: Folder, prompts: tuple[str, ...]) -> Condition:
    """Texts as the pipeline in a folder encodes them, on the CPU."""
    return opened(folder).model.condition(list(prompts)).to(torch.device("cpu"))


def described(
    model: DiffusersModel, onto: Interpolant = Linear(), lora: LoRA | None = None
) -> dict[str, Any]:
    """The description of a student, JSON as it comes back from a file.

    Args:
        model: the teacher, opened from a folder.
        onto: the student's path.
        lora: its adapters; None trains every weight.

    Raises:
        ValueError: for a path without a name, or adapters of a model without a folder.
    """
    name = next((name for name, path in PATHS.items() if path == onto), None)
    if name is None:
        raise ValueError(
            f"student of a diffusers model: expected a method on the path {' or '.join(PATHS)}, got "
            f"{type(onto).__name__}; choose another --method"
        )
    config: Any = model.module.config  # type: ignore[union-attr]
    nothing = model.nothing
    plain: dict[str, Any] = {
        "network": {"_class_name": type(model.module).__name__, **_own(config)},
        "scheduler": {"_class_name": model.path.config["_class_name"], **_own(model.path.config)},
        "shape": list(model.shape),
        "classes": model.classes,
        "pixels": model.family.pixels,
        "strength": model.strength,
        "null": {} if nothing is None else {n: list(v.shape) for n, v in _fields(nothing).items()},
        "onto": name,
    }
    if model.folder is not None:
        plain["base"] = {"folder": str(model.folder), "digest": model.digest}
    if lora is not None:
        if model.folder is None:
            raise ValueError("lora: expected a model from a folder, which keeps its weights, got one without")
        plain["lora"] = asdict(replace(lora, targets=lora.layers(model.module)))
    found: dict[str, Any] = json.loads(json.dumps(plain))
    return found


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without notes of who wrote it and where."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _fields(cond: Condition) -> dict[str, Tensor]:
    return {name: vars(cond)[name] for name in FIELDS if vars(cond)[name] is not None}


def build(plain: Mapping[str, Any], guidance: bool = False) -> DiffusersBackbone:
    """The student of a description: with random weights, or, if it has adapters, around those of its base.

    Raises:
        ValueError: for what is no description, or a base that is not there or is another one.
    """
    if not _NEEDED <= plain.keys() <= _KNOWN or plain["onto"] not in PATHS:
        raise ValueError(
            f"student of a diffusers model: expected its description ({', '.join(sorted(_KNOWN))}), got "
            f"{', '.join(sorted(plain))[:200]}; the weights file is damaged"
        )
    onto, size, mode = PATHS[plain["onto"]], plain.get("lora"), detect_fake_mode()
    if size is None:
        model = _rebuilt(plain)
        if mode is not None and mode not in (m for m, _ in _COUNTED):
            _COUNTED[:] = [(mode, model)]
        return DiffusersBackbone(model, onto, guidance)
    lora = LoRA(size["rank"], size["alpha"], tuple(size["targets"]))
    if mode is not None:
        known = [model for m, model in _COUNTED if m is mode]
        return AdaptedBackbone(known[0] if known else _rebuilt(plain), onto, guidance, lora)
    with torch.device("cpu"):  # where its base is, also if only the sizes of the adapters are wanted
        return AdaptedBackbone(_base(plain), onto, guidance, lora)


def _rebuilt(plain: Mapping[str, Any]) -> DiffusersModel:
    """The model without its folder."""
    config = dict(plain["network"])
    name = config.pop("_class_name", "")
    known = sorted({c for f in known_families() for c in f.classes})
    if name not in known:
        raise ValueError(
            f"student of a diffusers model: expected a class of {', '.join(known)}, got {name!r}; the "
            "weights file is damaged"
        )
    with quietly():
        module = part(name).from_config(config)
    family = replace(family_of(module), pixels=int(plain["pixels"]))
    null = {name: _blank(name, size) for name, size in plain["null"].items()}
    with actually():
        path = path_of(plain["scheduler"]).per_step(family.per_step)
    return DiffusersModel(
        module=module,
        family=family,
        path=path,
        shape=tuple(plain["shape"]),
        classes=plain["classes"],
        null=Condition(**null) if null else None,
        strength=plain["strength"],
    )


def _blank(name: str, size: list[int]) -> Tensor:
    kinds = {"label": torch.int64, "mask": torch.bool}
    return torch.zeros(size, dtype=kinds.get(name, torch.float32))


def _base(plain: Mapping[str, Any]) -> DiffusersModel:
    folder, digest = Folder(plain["base"]["folder"]), plain["base"]["digest"]
    try:
        model = opened(folder).model
    except ValueError as wrong:
        raise UnknownOrigin(
            f"adapters: expected the model that they belong to in {folder}, got: {wrong}; put it back there"
        ) from None
    if model.digest != digest:
        raise UnknownOrigin(
            f"adapters: expected the model that they belong to in {folder}, found other weights there; put "
            "those back that they were trained on"
        )
    return model
