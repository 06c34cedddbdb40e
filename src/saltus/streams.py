"""Randomness as a function of (seed, step, stream name, global sample index).

No generator state exists, so a run resumes without storing any, a step replays, and the numbers of
a sample do not depend on how many processes, micro-batches or rows surround it. The generator is
Philox4x64-10 (Salmon, Moraes, Dror and Shaw, 2011), keyed by (seed, step, name) and advanced to
the sample's place; normals are Box-Muller, which consumes a fixed count of numbers a sample.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

__all__ = ["Streams"]

_BLOCK = 4  # one Philox counter yields four 64-bit words
_SKIP = 256  # so many blocks are passed over rather than start another generator
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def _key(seed: int, step: int, name: str) -> int:
    text = f"{seed}/{step}/{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


@dataclass(frozen=True)
class Streams:
    """Named random streams for the samples ``index`` of step ``step``.

    Attributes:
        seed: the run's seed.
        step: the training step; a step repeated draws the same numbers.
        index: global sample indices of the rows, int64 [B], on the CPU.
        prefix: put before every stream name, so that the parts of a sum draw apart.
        device: where results are placed.
        dtype: of the results, float32 or float64.

    >>> rng = Streams(seed=0, index=torch.arange(4))
    >>> bool((rng.normal("z", 3)[2:] == rng.rows(torch.tensor([2, 3])).normal("z", 3)).all())
    True
    """

    seed: int
    step: int = 0
    index: Tensor = field(default_factory=lambda: torch.arange(1))
    prefix: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def at(self, step: int) -> Streams:
        """The same streams at another step."""
        return replace(self, step=step)

    def rows(self, index: Tensor) -> Streams:
        """The streams of some rows; each keeps its own numbers."""
        return replace(self, index=self.index[index.cpu()])

    def places(self, group: int) -> Tensor:
        """Where each row is in its group of ``group`` neighbours by number: int64 [B], on the CPU.

        Raises:
            ValueError: unless the rows are whole groups, in order.

        >>> Streams(seed=0, index=torch.arange(4)).places(2)
        tensor([0, 1, 0, 1])
        """
        place = self.index % group
        if len(place) % group or not torch.equal(place, torch.arange(len(place)) % group):
            raise ValueError(
                f"groups: expected rows in whole groups of {group}, got {len(place)} rows, the first of them "
                f"sample {int(self.index[0])}; use a batch that is a multiple of {group}"
            )
        return place

    def together(self, group: int) -> Streams:
        """Streams that draw the same for all rows of a group of ``group``: its first row's numbers."""
        return replace(self, index=self.index - self.index % group)

    def named(self, prefix: str) -> Streams:
        """The same rows under names of their own."""
        return replace(self, prefix=f"{self.prefix}{prefix}/")

    def _words(self, name: str, count: int) -> np.ndarray:
        """``count`` 64-bit words for each row: [B, count]. Rows own whole Philox blocks."""
        blocks = -(-count // _BLOCK)
        places, inverse = np.unique(self.index.numpy(), return_inverse=True)
        words = np.empty((len(places), blocks * _BLOCK), dtype=np.uint64)
        if words.size == 0:
            return words[inverse, :count]
        # one generator for each run of near indices: indices far apart must not fill what lies between
        cuts = np.flatnonzero(np.diff(places) > max(1, _SKIP // blocks)) + 1
        for start, stop in pairwise([0, *cuts.tolist(), len(places)]):
            low, high = int(places[start]), int(places[stop - 1])
            bits = np.random.Philox(key=_key(self.seed, self.step, self.prefix + name))
            bits.advance(low * blocks)
            run = bits.random_raw((high - low + 1) * blocks * _BLOCK).reshape(high - low + 1, -1)
            words[start:stop] = run[places[start:stop] - low]
        return words[inverse, :count]

    def _unit(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers in the open interval (0, 1), float64, [B, *shape]."""
        words = self._words(name, math.prod(shape))
        unit = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        return torch.from_numpy(unit.reshape(len(unit), *shape))

    def _place(self, x: Tensor) -> Tensor:
        return x.to(device=self.device, dtype=self.dtype, non_blocking=True)

    def _below_one(self, x: Tensor) -> Tensor:
        """Numbers in [0, 1) placed, which rounding to float32 must not make 1: some schedules are singular
        there."""
        return self._place(x.clamp(max=1.0 - 0.5 * torch.finfo(self.dtype).eps))

    def uniform(self, name: str, *shape: int) -> Tensor:
        """U(0, 1), [B, *shape]; never exactly 0 or 1."""
        return self._below_one(self._unit(name, shape))

    def normal(self, name: str, *shape: int) -> Tensor:
        """N(0, 1), [B, *shape], by the Box-Muller transform."""
        size = math.prod(shape)
        half = -(-size // 2)
        unit = self._unit(name, (2 * half,))
        radius = torch.sqrt(-2.0 * torch.log(unit[:, :half])).to(self.dtype)
        angle = (2.0 * math.pi * unit[:, half:]).to(self.dtype)
        pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return self._place(pairs[:, :size].reshape(len(pairs), *shape))

    def normal_like(self, name: str, x: Tensor) -> Tensor:
        """N(0, 1) in the shape of x [B, ...]."""
        return self.normal(name, *x.shape[1:])

    def integers(self, name: str, high: int, *shape: int) -> Tensor:
        """Uniform int64 in [0, high), [B, *shape]."""
        return (self._unit(name, shape) * high).long().clamp_(max=high - 1).to(self.device, non_blocking=True)

    def stratified(self, name: str) -> Tensor:
        """U(0, 1), [B], spread evenly over the global batch: a golden-ratio sequence in the global
        index with one random shift a step. Each number alone is uniform."""
        shift = replace(self, index=torch.zeros(1, dtype=torch.int64))._unit(name, ())
        return self._below_one((self.index.double() * _GOLDEN + shift).remainder(1.0))

    def permutation(self, name: str) -> Tensor:
        """A random order of the rows, int64 [B] (for couplings within a micro-batch)."""
        return torch.argsort(self._unit(name, ())).to(self.device, non_blocking=True)
