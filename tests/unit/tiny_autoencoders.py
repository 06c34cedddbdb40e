"""Autoencoders of diffusers with random weights, 16 pixels a side to 4 or 8, and small sets of pictures."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from saltus.training import initialised

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny

LEVELS = 3
CHANNELS = 4
Model: TypeAlias = "AutoencoderKL | AutoencoderTiny | AutoencoderDC"
Setting = float | tuple[float, ...]


def kl(**more: Setting) -> Model:
    """An AutoencoderKL with weights that make its code vary; 16 pixels a side become 4."""
    from diffusers import AutoencoderKL

    options = {
        "block_out_channels": (8,) * LEVELS,
        "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
        "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
        "latent_channels": CHANNELS,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    model = initialised(0, lambda: AutoencoderKL(**{**options, **more}))
    return model.eval().requires_grad_(False)


def tiny(**more: Setting) -> Model:
    """An AutoencoderTiny; 16 pixels a side become 8."""
    from diffusers import AutoencoderTiny

    ladder = {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "latent_channels": CHANNELS,
    }
    model = initialised(0, lambda: AutoencoderTiny(**{**ladder, **more}))
    return model.eval().requires_grad_(False)


def dc(**more: Setting) -> Model:
    """An AutoencoderDC; 16 pixels a side become 8."""
    from diffusers import AutoencoderDC

    ends = ("encoder", "decoder")
    ladder: dict[str, object] = {"latent_channels": CHANNELS}
    ladder |= {f"{end}_block_types": "ResBlock" for end in ends}
    ladder |= {f"{end}_block_out_channels": (8, 8) for end in ends}
    ladder |= {f"{end}_layers_per_block": (1, 1) for end in ends}
    ladder |= {f"{end}_qkv_multiscales": ((), ()) for end in ends}
    model = initialised(0, lambda: AutoencoderDC(**{**ladder, **more}))
    return model.eval().requires_grad_(False)


def saved(model: Model, place: Path) -> Path:
    """The folder that the model was saved to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(place))
    return place


def pictures(place: Path, count: int = 23, side: int = 16, classes: int = 3) -> Path:
    """Random pictures uint8 [count, side, side, 3] with labels, as an archive of NumPy arrays."""
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    np.savez(place, images=x, labels=np.arange(count) % classes)
    return place
