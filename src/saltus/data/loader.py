"""Batches of pictures from a disk, made ahead of the steps that take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from saltus.data.ahead import Ahead
from saltus.data.decoded import InFile, InMemory
from saltus.data.decoders import Decoders
from saltus.data.images import Images
from saltus.data.order import rows_of
from saltus.streams import Streams
from saltus.tensors import placed
from saltus.typing import Batch, Condition

__all__ = ["ImageData", "Loading"]

GIB = 2**30


@dataclass(frozen=True)
class Loading:
    """How pictures come from the disk. It changes when they are ready, never what they are.

    Attributes:
        workers: processes that decode; 0 decodes in this one.
        ahead: batches are made so many steps ahead, in threads; 0 makes each when it is asked for.
        memory: bytes of decoded pictures that are kept in memory.
        folder: decoded pictures are kept in a file there instead; None keeps them in memory.
    """

    workers: int = 0
    ahead: int = 2
    memory: int = 2 * GIB
    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class _Ready:
    """A batch on the CPU: pixels uint8 [B, C, H, W], noise of that shape, and classes int64 [B] if any."""

    pixels: Tensor
    x0: Tensor
    label: Tensor | None

    def pinned(self) -> _Ready:
        """The same in memory from which a device copies by itself."""
        label = None if self.label is None else self.label.pin_memory()
        return _Ready(self.pixels.pin_memory(), self.x0.pin_memory(), label)


@dataclass(frozen=True, eq=False)
class _Making:
    """What makes batches. It does not know who asks, so the threads and processes end when nobody does."""

    read: Callable[[Tensor], Tensor]
    count: int
    batch: int
    labels: Tensor | None
    flip: bool
    prior: float
    pin: bool

    def __call__(self, rng: Streams) -> _Ready:
        rows = rows_of(rng, self.batch, self.count)
        pixels = self.read(rows)
        if self.flip:
            turned = rng.uniform("flip") < 0.5
            pixels[turned] = pixels[turned].flip(-1)
        label = None if self.labels is None else self.labels[rows]
        made = _Ready(pixels, self.prior * rng.normal("x0", *pixels.shape[1:]), label)
        return made.pinned() if self.pin else made


class ImageData:
    """Batches of pictures in [-1, 1], in the order of :class:`saltus.data.ArrayData`.

    A batch is a function of the streams alone: workers, caches, guesses of what comes next, processes and
    resumptions change nothing, to the last bit. Without ``flip`` it equals that of ``ArrayData`` on the same
    pixels. On a CUDA device pixels travel as bytes from pinned memory, and the step does not wait for them.

    Args:
        images: the pictures.
        batch: rows of the *global* batch.
        labels: whether the batches carry the classes of the pictures.
        flip: mirror half of the pictures left to right, drawn anew each time from the stream "flip".
        prior: the standard deviation of x0.
        loading: how they are brought.

    Raises:
        ValueError: for a batch larger than the data, labels that are not there, or impossible numbers.
    """

    def __init__(
        self,
        images: Images,
        batch: int,
        labels: bool = False,
        flip: bool = False,
        prior: float = 1.0,
        loading: Loading = Loading(),
    ) -> None:
        if not 1 <= batch <= len(images):
            raise ValueError(
                f"data: expected a batch between 1 and the {len(images):,} pictures of {images.name}, got "
                f"{batch}; use a smaller batch or more pictures"
            )
        if labels and images.labels is None:
            raise ValueError(f"labels: expected {images.name} to have classes, got none; open it with labels")
        if not prior > 0.0:
            raise ValueError(f"prior: expected a positive standard deviation, got {prior}")
        self.images, self.batch, self.loading = images, batch, loading
        self._labels, self._flip, self._prior = images.labels if labels else None, flip, prior
        self._decoders = Decoders(loading.workers)
        if loading.folder is None:
            self._read: Callable[[Tensor], Tensor] = InMemory(images, loading.memory, self._decoders)
        else:
            self._read = InFile(images, loading.folder, self._decoders)
        self._ahead = {pin: Ahead(self._making(pin), loading.ahead) for pin in (False, True)}

    def _making(self, pin: bool) -> _Making:
        return _Making(self._read, len(self.images), self.batch, self._labels, self._flip, self._prior, pin)

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, rng: Streams) -> Batch:
        """The batch of a step: x0 from the stream "x0", x1 and its labels from the pictures."""
        here = replace(rng, device=torch.device("cpu"))
        made = self._ahead[rng.device.type == torch.device("cuda").type](here)
        x1 = made.pixels.to(rng.device, non_blocking=True).to(rng.dtype) / 127.5 - 1.0
        label = None if made.label is None else placed(made.label, rng.device)
        x0 = made.x0.to(rng.device, non_blocking=True)
        return Batch(x0, x1, None if label is None else Condition(label=label))

    def read(self, rows: Tensor) -> Tensor:
        """The pictures of rows (int64 [n]), uint8 [n, C, H, W] on the CPU: those that were kept, too."""
        return self._read(rows)

    def close(self) -> None:
        """End what works ahead and the decoding processes. Batches may still be asked for."""
        for ahead in self._ahead.values():
            ahead.close()
        self._decoders.close()
