"""Autoencoders of diffusers as :class:`saltus.teachers.autoencoder.Autoencoder`, from a local folder.

What a pipeline of diffusers does around its autoencoder is done here: ``AutoencoderKL`` has either a
``scaling_factor`` and perhaps a ``shift_factor`` (SD, SD3, Flux), z = (y - shift) * scaling, or means and
deviations of its channels besides (``latents_mean``, ``latents_std``), z = (y - mean) * scaling / std.
``AutoencoderTiny`` writes latents of the same scale as the autoencoder that it imitates and has no noise; nor
has ``AutoencoderDC`` (Sana), z = y * scaling.

Nothing is downloaded, unpickled or run: the class is one of three, the weights are safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saltus.streams import Streams
from saltus.teachers.autoencoder import Posterior
from saltus.teachers.diffusers.packages import part, quietly

__all__ = ["DiffusersAutoencoder", "open_autoencoder"]

CONFIG, CLASS = "config.json", "_class_name"
KINDS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
WEIGHTS = {
    "diffusion_pytorch_model.safetensors": None,
    "diffusion_pytorch_model.fp16.safetensors": "fp16",
}
"""Files of weights that are taken, the first one that is there, and the variant that diffusers calls it."""
AT_ONCE = 16
_LENGTH = 16


@dataclass(frozen=True, eq=False)
class DiffusersAutoencoder:
    """An autoencoder of diffusers with its normalisation. Results are where its weights are.

    Attributes:
        model: the module, frozen, in evaluation mode.
        offset: of raw codes, [C, 1, 1].
        scale: of raw codes, [C, 1, 1].
        factor: sides of an image over sides of its latents.
        noisy: whether the encoder gives a law rather than a point.
        digest: of the configuration and the weights.
        folder: where it came from.
        at_once: most images that pass through it together.
    """

    model: nn.Module
    offset: Tensor
    scale: Tensor
    factor: int
    noisy: bool
    digest: str
    folder: Path
    at_once: int = AT_ONCE

    @property
    def channels(self) -> int:
        """Of the latents."""
        return len(self.scale)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of an image of this size; a ValueError for sides that the factor does not divide."""
        if min(height, width) < self.factor or height % self.factor or width % self.factor:
            raise ValueError(
                f"image size {height} x {width}: expected multiples of {self.factor}, by which "
                f"{type(self.model).__name__} shrinks; choose another with --image-size"
            )
        return self.channels, height // self.factor, width // self.factor

    def posterior(self, x: Tensor) -> Posterior:
        """The law of the normalised latents of x [B, 3, H, W], in float32 or x's wider type.

        Raises:
            ValueError: for what is no batch of colour images, or of another size than it takes.
        """
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(
                f"autoencoder: expected images [B, 3, H, W] in [-1, 1], got {x.dtype} {list(x.shape)}; "
                "scale uint8 by x / 127.5 - 1, repeat a grey channel three times"
            )
        self.latent_shape(*x.shape[2:])
        parts = [self._posterior(some) for some in torch.split(x, self.at_once)]
        std = [part.std for part in parts if part.std is not None]
        return Posterior(torch.cat([part.mean for part in parts]), torch.cat(std) if std else None)

    def encode(self, x: Tensor, rng: Streams | None = None) -> Tensor:
        """Latents [B, C, h, w] of x: the mean, or with the rows' streams a sample of the posterior."""
        law = self.posterior(x)
        return law.mean if rng is None else law.sample(rng)

    def decode(self, z: Tensor) -> Tensor:
        """Images [B, 3, H, W] of normalised latents [B, C, h, w]; differentiable in z."""
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(
                f"autoencoder: expected latents [B, {self.channels}, h, w], got {list(z.shape)}; they are of "
                "another autoencoder"
            )
        wide = _wide(z)
        scale, offset = self.scale.to(self._device, wide), self.offset.to(self._device, wide)
        raw = z.to(self._device, wide) / scale + offset
        model: Any = self.model
        some = torch.split(raw.to(self._dtype), self.at_once)
        parts = [model.decode(z, return_dict=False)[0] for z in some]
        return torch.cat(parts).to(wide)

    def described(self) -> dict[str, object]:
        """Its class, digest, precision and way through large images: whatever latents depend on."""
        model: Any = self.model
        return {
            "class": type(self.model).__name__,
            "digest": self.digest,
            "precision": str(self._dtype).removeprefix("torch."),
            "tiling": bool(model.use_tiling),
            "offset": self.offset.flatten().tolist(),
            "scale": self.scale.flatten().tolist(),
        }

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _posterior(self, x: Tensor) -> Posterior:
        model: Any = self.model
        wide = _wide(x)
        offset, scale = self.offset.to(self._device, wide), self.scale.to(self._device, wide)
        (found,) = model.encode(x.to(self._device, self._dtype), return_dict=False)
        if not self.noisy:
            return Posterior((found.to(wide) - offset) * scale)
        return Posterior((found.mean.to(wide) - offset) * scale, found.std.to(wide) * scale.abs())


def _wide(x: Tensor) -> torch.dtype:
    """The type of results: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def open_autoencoder(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    tiling: bool = False,
    at_once: int = AT_ONCE,
) -> DiffusersAutoencoder:
    """The autoencoder in a local folder, or in ``vae/`` of a pipeline's folder.

    Args:
        folder: with ``config.json`` and ``diffusion_pytorch_model.safetensors``, as ``save_pretrained``
            leaves it.
        dtype: of its weights and what passes through: float32, bfloat16, or float64. Results are float32.
        device: where it computes.
        tiling: take large images in overlapping tiles, as diffusers does: less memory, and a little another
            result.
        at_once: most images that pass through it together; the more, the more memory.

    Raises:
        ValueError: if the folder holds no autoencoder of these classes, or a damaged one, or diffusers is
            not installed.
    """
    place = Path(folder)
    if not (place / CONFIG).is_file() and (place / "vae" / CONFIG).is_file():
        place = place / "vae"
    config = _config(place)
    weights = next((place / name for name in WEIGHTS if (place / name).is_file()), None)
    if weights is None:
        raise ValueError(
            f"autoencoder {place}: expected {next(iter(WEIGHTS))} in it, found none; save it with "
            "save_pretrained(FOLDER), whose weights are safetensors"
        )
    if at_once < 1:
        raise ValueError(f"autoencoder: expected at least one image at once, got {at_once}")
    model = _loaded(place, config[CLASS], WEIGHTS[weights.name], dtype)
    settings: Mapping[str, Any] = model.config
    offset, scale = _normalisation(settings, place)
    if tiling:
        model.enable_tiling()
    blocks = settings.get("block_out_channels") or settings["encoder_block_out_channels"]
    return DiffusersAutoencoder(
        model=model.to(device).eval().requires_grad_(False),
        offset=offset,
        scale=scale,
        factor=2 ** (len(blocks) - 1),
        noisy=config[CLASS] == KINDS[0],
        digest=_digest(config, weights),
        folder=place.resolve(),
        at_once=at_once,
    )


def _config(place: Path) -> dict[str, Any]:
    """The configuration of an autoencoder that is known here."""
    if not place.exists():
        raise ValueError(
            f"autoencoder {place}: expected a folder, found nothing there; nothing is downloaded"
        )
    path = place / CONFIG
    if not path.is_file():
        raise ValueError(
            f"autoencoder {place}: expected a folder with {CONFIG}, or a pipeline's with vae/{CONFIG}, found "
            "none; save it with save_pretrained(FOLDER)"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config[CLASS]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as wrong:
        why = f"{type(wrong).__name__} {' '.join(str(wrong).split())[:100]}"
        raise ValueError(f"{path}: expected an autoencoder's configuration, got {why}") from None
    if kind not in KINDS:
        raise ValueError(
            f"{path}: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {str(kind)[:60]}; another one "
            "serves in Python: saltus.recipes.encoding.encode_images"
        )
    return dict(config)


def _loaded(place: Path, kind: str, variant: str | None, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The module of diffusers, every weight of which came from the file."""
    found = part(kind)
    try:
        with quietly():
            model, told = found.from_pretrained(
                str(place),
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                torch_dtype=dtype,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except Exception as wrong:  # whatever diffusers makes of a damaged file
        why = f"{type(wrong).__name__} {' '.join(str(wrong).split())[:200]}"
        raise ValueError(f"autoencoder {place}: expected a whole one of {kind}, got {why}") from None
    faults = [*told["missing_keys"], *told["unexpected_keys"], *(m[0] for m in told["mismatched_keys"])]
    if faults:
        raise ValueError(
            f"autoencoder {place}: expected the weights that its configuration describes, got "
            f"{len(faults)} missing or unknown, the first {faults[0]}; the folder was put together of two"
        )
    return model


def _normalisation(config: Mapping[str, Any], place: Path) -> tuple[Tensor, Tensor]:
    """Offset and scale of the raw codes, float64 [C, 1, 1] each."""
    channels = int(config["latent_channels"])
    scaling, shift = config.get("scaling_factor", 1.0), config.get("shift_factor") or 0.0
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if (mean is None) != (std is None) or (mean is not None and shift):
        raise ValueError(
            f"{place / CONFIG}: expected latents_mean with latents_std, or shift_factor, got a mixture; "
            "take the configuration that came with the weights"
        )
    scale = [float(scaling)] * channels if std is None else [float(scaling) / float(v) for v in std]
    offset = [float(shift)] * channels if mean is None else [float(v) for v in mean]
    _check_numbers(offset, scale, channels, place)
    shaped = (channels, 1, 1)
    wide = torch.float64
    return torch.tensor(offset, dtype=wide).reshape(shaped), torch.tensor(scale, dtype=wide).reshape(shaped)


def _check_numbers(offset: Sequence[float], scale: Sequence[float], channels: int, place: Path) -> None:
    fine = all(map(math.isfinite, (*offset, *scale))) and all(s > 0.0 for s in scale)
    if not (len(offset) == len(scale) == channels and fine):
        raise ValueError(
            f"{place / CONFIG}: expected scaling_factor, shift_factor, latents_mean and latents_std to be "
            f"finite, scales above 0, one for each of {channels} channels; correct them"
        )


def _digest(config: Mapping[str, Any], weights: Path) -> str:
    """Of what the latents depend on: the configuration without notes of where it was saved, the weights."""
    kept = {k: v for k, v in config.items() if k == CLASS or not k.startswith("_")}
    with weights.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(f"{json.dumps(kept, sort_keys=True)} {content}".encode()).hexdigest()[:_LENGTH]
