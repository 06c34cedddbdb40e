"""Latents as pictures: by their autoencoder where it can be opened, else as they are, and a line says so."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from saltus.teachers.diffusers.autoencoder import DiffusersAutoencoder, open_autoencoder

__all__ = ["META", "Decoder", "decoder_of"]

META = "autoencoder"
"""In the weights file of a run on latents: the folder of the autoencoder, and its digest."""
FOLDER, DIGEST = "folder", "digest"
AT_ONCE = 4
SPREAD = 2.0
"""Latents that are shown as they are: from minus to plus so many, that is deviations."""


@dataclass(frozen=True)
class Decoder:
    """Latents [n, C, h, w] to pictures [n, 3, H, W] in [-1, 1], without gradients.

    Attributes:
        folder: of the autoencoder; empty if it is not known.
        digest: of the autoencoder that the latents were made with; None does not ask.
        asked: whether somebody asked for this folder: then it has to be one that can be opened.
    """

    folder: str
    digest: str | None = None
    asked: bool = False

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """On the device of z; the first three channels as they are if there is no autoencoder."""
        model = _opened(self, str(z.device))
        if model is None:
            return z[:, : 3 if z.shape[1] >= 3 else 1] / SPREAD
        return model.decode(z.float())

    @property
    def found(self) -> bool:
        """Whether there is an autoencoder that can be opened."""
        return _opened(self, "cpu") is not None

    @property
    def used(self) -> str | None:
        """The digest of the autoencoder that decodes, which may be another one; None if there is none."""
        model = _opened(self, "cpu")
        return None if model is None else model.digest

    def check(self) -> None:
        """Raise a ValueError if pictures are to be decoded and cannot be."""
        if not self.found:
            raise ValueError(
                f"autoencoder {self.folder or '(unknown)'}: expected that of the latents, to decode them, "
                "found none that can be opened; put it back, or give its folder with --autoencoder"
            )

    @property
    def meta(self) -> Mapping[str, object]:
        """What a weights file says."""
        return {META: {FOLDER: self.folder, DIGEST: self.digest}}


def decoder_of(meta: Mapping[str, object], asked: Path | None = None) -> Decoder | None:
    """What decodes the samples of a weights file; None where they are no latents.

    Args:
        meta: what the file says of itself.
        asked: the folder of an autoencoder to take instead.

    Raises:
        ValueError: for a folder that was asked for and holds none.
    """
    said = meta.get(META)
    known = said if isinstance(said, dict) else {}
    if asked is None and not known:
        return None
    digest = known.get(DIGEST)
    folder = str(known.get(FOLDER, "")) if asked is None else str(asked)
    decoder = Decoder(folder, digest if isinstance(digest, str) else None, asked is not None)
    if asked is not None:
        decoder.check()
    return decoder


@lru_cache(maxsize=2)
def _opened(wanted: Decoder, device: str) -> DiffusersAutoencoder | None:
    """The autoencoder on a device; what is to be said of it is said once."""
    try:
        if not wanted.folder:
            raise ValueError("no folder of the autoencoder is known")
        model = open_autoencoder(wanted.folder, device=device, at_once=AT_ONCE)
        other = wanted.digest is not None and model.digest != wanted.digest
        if other and not wanted.asked:
            raise ValueError(f"{wanted.folder} is not the autoencoder that the latents were made with")
    except ValueError as wrong:
        if wanted.asked:
            raise
        print(f"pictures show latents as they are: {wrong}; --autoencoder DIR names it", file=sys.stderr)
        return None
    if other:
        print(f"{wanted.folder} is not the autoencoder that the latents were made with", file=sys.stderr)
    return model
