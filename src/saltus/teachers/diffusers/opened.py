"""A model of diffusers in a local folder, opened as a teacher.

>>> model = open_diffusers("stable-diffusion", dtype=torch.bfloat16, device="cuda")     # doctest: +SKIP
>>> b = CFG(model.velocity(), w=5.0)                                                    # doctest: +SKIP
>>> x1 = integrate(b, x0, 32, HEUN, model.condition(["a cat"] * len(x0)))               # doctest: +SKIP

Nothing is downloaded, nothing is unpickled (weights are safetensors), and no code of the folder is run: every
class is named in :mod:`saltus.teachers.diffusers.families`, or is a part of diffusers or transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saltus.interpolants import Interpolant, Linear
from saltus.teachers.diffusers.conditions import filled
from saltus.teachers.diffusers.families import Family, family_of, known_families
from saltus.teachers.diffusers.packages import part, quietly
from saltus.teachers.diffusers.schedules import Path, path_of
from saltus.teachers.diffusers.texts import PIPELINES, encode
from saltus.typing import Condition, Velocity

if TYPE_CHECKING:
    from saltus.teachers.diffusers.autoencoder import DiffusersAutoencoder

__all__ = ["DiffusersModel", "open_diffusers"]

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
PARTS = ("transformer", "unet")
STRENGTH = 3.5
"""What Flux's pipeline gives to a network distilled with guidance."""
_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class DiffusersModel:
    """A network of diffusers, with all that is needed to ask it.

    Attributes:
        module: the network, in evaluation mode, without gradients for its weights.
        family: how it is called.
        path: what its times and its answers mean; the clock gives the network's own times.
        shape: of one sample, [C, H, W].
        classes: how many labels it knows, or None.
        folder: where it came from, or None.
        pipeline: the class of the pipeline, which says how texts are encoded; "" for a bare network.
        null: what stands for no condition, of one row, or None: the texts' own is encoded when first needed.
        strength: of guidance for networks that take it as an input, where the condition has none.
        variant: of the weights' file names.
        length: of the sequence that texts are encoded to; None is the pipeline's own.
    """

    module: nn.Module
    family: Family
    path: Path
    shape: tuple[int, ...]
    classes: int | None = None
    folder: Folder | None = None
    pipeline: str = ""
    null: Condition | None = None
    strength: float | None = None
    variant: str | None = None
    length: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.module.parameters()).dtype

    def condition(
        self, prompts: Sequence[str] | None = None, labels: Tensor | Sequence[int] | None = None
    ) -> Condition:
        """The condition of texts or of labels, one row each, on the network's device.

        Raises:
            ValueError: for texts of a model of classes or the other way round, or a label that it lacks.
        """
        if (prompts is None) == (labels is None):
            raise ValueError("condition: expected texts or labels, got both or neither; give one of them")
        if labels is not None:
            return self._labels(torch.as_tensor(labels))
        assert prompts is not None
        return self._texts(list(prompts), negative=False)

    @cached_property
    def nothing(self) -> Condition | None:
        """What stands for no condition, of one row: ``null`` or the empty text; None if there is none."""
        if self.null is not None or not self.pipeline or "tokens" not in self.family.takes:
            return self.null
        return self._texts([""], negative=True)

    def filled(self, cond: Condition | None, rows: int) -> Condition | None:
        """The condition with nothing in its dropped rows, in the network's dtype, and with a strength of
        guidance if the network takes one: as :meth:`Family.call` wants it."""
        needs = cond is None or cond.given is None or cond.null is not None
        full = filled(cond, self.nothing if needs else None, rows)
        if full is not None:
            full = full.each(lambda v: v.to(self.dtype) if v.is_floating_point() else v)
        if self.strength is not None and (full is None or full.w is None):
            w = torch.full((rows,), self.strength, device=self.device)
            full = Condition(w=w) if full is None else replace(full, w=w)
        return full

    def ask(self, x: Tensor, timestep: Tensor, cond: Condition | None = None) -> Tensor:
        """The network's answer at its own times, in x's dtype: x [B, C, H, W], timestep [B]."""
        full = self.filled(cond, len(x))
        return self.family.call(self.module, x.to(self.dtype), timestep, full).to(x.dtype)

    def velocity(self, onto: Interpolant = Linear()) -> Velocity:
        """b_t(x) of the path ``onto``; guided by :class:`saltus.guidance.CFG`, as any teacher."""
        return self.path.velocity(self.ask, onto)

    def grid(self, steps: int) -> Tensor:
        """The times of diffusers' own sampler in so many steps (:meth:`Path.grid`)."""
        patch = self.family.patch
        return self.path.grid(steps, self.shape[1] * self.shape[2] // patch**2, self.family.from_one)

    @cached_property
    def autoencoder(self) -> DiffusersAutoencoder:
        """The pipeline's autoencoder, opened when first needed."""
        from saltus.teachers.diffusers.autoencoder import open_autoencoder

        if self.folder is None:
            raise ValueError("autoencoder: expected a model from a folder, got one without; open its own")
        return open_autoencoder(self.folder, dtype=self.dtype, device=self.device)

    def decode(self, x: Tensor) -> Tensor:
        """Latents [B, C, H, W] as images in [-1, 1]."""
        return self.autoencoder.decode(x)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the weights and what the model's answers mean: name, shape and number of each tensor,
        and the scheduler's configuration."""
        seen = hashlib.sha256(json.dumps(_plain(self.path.config), sort_keys=True).encode())
        for name, value in self.module.state_dict().items():
            seen.update(f"{name} {list(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            for start in range(0, len(flat), _CHUNK):
                seen.update(flat[start : start + _CHUNK].numpy().tobytes())
        return seen.hexdigest()

    def _labels(self, labels: Tensor) -> Condition:
        if self.classes is None or labels.ndim != 1 or labels.is_floating_point():
            what = "texts" if "tokens" in self.family.takes else "no condition"
            raise ValueError(
                f"condition: expected {what if self.classes is None else 'labels [B] of whole numbers'}, got "
                f"labels {list(labels.shape)} of {labels.dtype}; the model is a {self.family.name}"
            )
        if bool(((labels < 0) | (labels >= self.classes)).any()):
            raise ValueError(
                f"condition: expected labels from 0 to {self.classes - 1}, got {int(labels.min())} to "
                f"{int(labels.max())}; the model knows {self.classes} classes"
            )
        return Condition(label=labels.to(device=self.device, dtype=torch.int64))

    def _texts(self, prompts: list[str], negative: bool) -> Condition:
        if "tokens" not in self.family.takes or self.pipeline not in PIPELINES or self.folder is None:
            raise ValueError(
                "condition: expected a pipeline with text encoders, got "
                f"{self.pipeline or 'a network alone'} of the family {self.family.name}; give labels, or "
                "Condition(tokens=...) made by the encoders"
            )
        if any(not isinstance(p, str) for p in prompts) or not prompts:
            raise ValueError(f"condition: expected a list of texts, got {prompts!r:.80}; give some")
        return encode(
            self.folder,
            self.pipeline,
            prompts,
            negative=negative,
            device=self.device,
            dtype=self.dtype,
            variant=self.variant,
            length=self.length,
        )


def open_diffusers(
    folder: str | Folder,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    scheduler: str | Folder | Mapping[str, Any] | Path | None = None,
    family: Family | None = None,
    shape: tuple[int, ...] | None = None,
    null_label: int | None = None,
    strength: float = STRENGTH,
    length: int | None = None,
) -> DiffusersModel:
    """The model of a pipeline's folder, or of a network's folder and a scheduler.

    Args:
        folder: as ``save_pretrained`` leaves it: with ``model_index.json``, or a network's ``config.json``.
        device: where the network is put.
        dtype: of its weights.
        variant: of the weights' file names, such as "fp16".
        scheduler: a configuration, a folder with one, or a path of one's own, instead of the pipeline's.
        family: how it is called, for a network of diffusers that is not known here.
        shape: of one sample; None is the network's own size.
        null_label: the label that stands for no class, where the network has one.
        strength: of guidance, for networks that take it as an input.
        length: of the sequence that texts are encoded to.

    Raises:
        ValueError: for anything that is missing, damaged, unknown or not safetensors.
    """
    place = Folder(folder)
    index = _json(place / INDEX) if (place / INDEX).is_file() else {}
    network, name = _network(place, index)
    path = _path(place, index, scheduler)
    module = _loaded(network, name, dtype, variant).to(device).eval().requires_grad_(False)
    row = family_of(module) if family is None else family
    row = replace(row, pixels=_pixels(place))
    classes, null = _classes(module, row, null_label)
    return DiffusersModel(
        module=module,
        family=row,
        path=path.per_step(row.per_step),
        shape=_shape(module, row) if shape is None else shape,
        classes=classes,
        folder=place.resolve(),
        pipeline=str(index.get("_class_name", "")),
        null=null,
        strength=strength if _takes_strength(module) else None,
        variant=variant,
        length=length,
    )


def _json(path: Folder) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as wrong:
        raise ValueError(f"{path}: expected a JSON file, got {type(wrong).__name__}: {wrong}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected settings by name, got {type(found).__name__}; restore the file")
    return found


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the notes of who wrote it and where."""
    return {k: v for k, v in config.items() if k == "_class_name" or not k.startswith("_")}


def _network(place: Folder, index: Mapping[str, Any]) -> tuple[Folder, str]:
    """The folder of the network, and the name of its class."""
    if not place.is_dir():
        raise ValueError(
            f"{place}: expected a folder, found {'a file' if place.exists() else 'nothing'}; nothing is "
            "downloaded: save the pipeline there with save_pretrained(FOLDER)"
        )
    found = [place / name for name in PARTS if (place / name / CONFIG).is_file()]
    network = found[0] if index and found else place
    if not (network / CONFIG).is_file():
        raise ValueError(
            f"{place}: expected {INDEX} with a folder {' or '.join(PARTS)}, or a network's {CONFIG}, found "
            "neither; save it with save_pretrained(FOLDER)"
        )
    name = str(_json(network / CONFIG).get("_class_name", ""))
    return network, name


def _loaded(network: Folder, name: str, dtype: torch.dtype, variant: str | None) -> nn.Module:
    known = sorted({c for f in known_families() for c in f.classes})
    if name not in known:
        raise ValueError(f"{network}: expected a network of {', '.join(known)}, got {name!r}")
    with quietly():
        try:
            module, told = part(name).from_pretrained(
                str(network),
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                dtype=dtype,
                output_loading_info=True,
            )
        except Exception as wrong:  # whatever diffusers makes of a damaged or missing file
            why = f"{type(wrong).__name__}: {' '.join(str(wrong).split())[:300]}"
            raise ValueError(
                f"{network}: expected a whole {name} in safetensors, got {why}; save it again with "
                "save_pretrained(FOLDER)"
            ) from None
    faults = [*told["missing_keys"], *told["unexpected_keys"], *(m[0] for m in told["mismatched_keys"])]
    if faults:
        raise ValueError(
            f"{network}: expected the weights that its configuration describes, got {len(faults)} missing or "
            f"unknown, the first {faults[0]}; the folder was put together of two"
        )
    found: nn.Module = module
    return found


def _path(
    place: Folder, index: Mapping[str, Any], given: str | Folder | Mapping[str, Any] | Path | None
) -> Path:
    if isinstance(given, Path):
        return given
    if isinstance(given, Mapping):
        return path_of(given)
    where = place / "scheduler" if given is None else Folder(given)
    file = where if where.is_file() else where / SCHEDULER
    if not file.is_file():
        raise ValueError(
            f"{place}: expected {file} to say what the network predicts, found none; give "
            "open_diffusers(..., scheduler=FOLDER or a configuration)"
        )
    return path_of(_json(file))


def _pixels(place: Folder) -> int:
    """The width of a latent pixel in the image: 8 for all that is published without an autoencoder."""
    file = place / "vae" / CONFIG
    if not file.is_file():
        return 8
    config = _json(file)
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels") or [0] * 4
    return int(2 ** (len(blocks) - 1))


def _shape(module: nn.Module, family: Family) -> tuple[int, ...]:
    config: Any = module.config
    size, channels = config.get("sample_size"), int(config["in_channels"])
    if family.patch_channels > 1:
        channels //= family.patch_channels
    if size is None:
        size = 128 if family.patch_channels > 1 else 64
    height, width = (size, size) if isinstance(size, int) else size
    return channels, int(height), int(width)


def _takes_strength(module: nn.Module) -> bool:
    config: Any = module.config
    return bool(config.get("guidance_embeds")) or config.get("time_cond_proj_dim") is not None


def _classes(
    module: nn.Module, family: Family, null_label: int | None
) -> tuple[int | None, Condition | None]:
    """How many labels there are, and the one that stands for none: DiT keeps the last of its table for it."""
    config: Any = module.config
    if "label" not in family.takes:
        return None, None
    known = config.get("num_embeds_ada_norm")
    if null_label is None and known is not None:
        null_label = int(known)
    classes = int(known if known is not None else config.get("num_class_embeds") or 0)
    if known is None and null_label is not None and null_label == classes - 1:
        classes -= 1  # the last one is no class
    null = None if null_label is None else Condition(label=torch.tensor([null_label]))
    return classes or None, null
