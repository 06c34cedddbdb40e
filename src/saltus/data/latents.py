"""Latents on disk: a folder of shards that a data set was encoded to once, as a source of batches.

    OUT/manifest.json                what they are of and were made with; each shard's length and hash
        latents-00000.safetensors    latent [n, C, h, w]: the posterior's mean, normalised
                                     std [n, C, h, w]: its standard deviation, if it was asked for
                                     flipped, flipped_std: the same of the mirrored images, if asked for
                                     label [n], if the data has classes

Shards are memory-mapped: a batch reads its rows and no more, so a set may be larger than memory. The mirror
image of latents is not what the mirror image encodes to, so flips are stored, not made.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saltus.data.order import rows_of
from saltus.streams import Streams
from saltus.tensors import placed
from saltus.typing import Batch, Condition

__all__ = ["About", "Latents", "Manifest", "Shard", "is_latents", "open_latents", "read_manifest"]

MANIFEST, KIND, VERSION = "manifest.json", "saltus latents", 1
LATENT, STD, FLIPPED, FLIPPED_STD, LABEL = "latent", "std", "flipped", "flipped_std", "label"
_MOST_BYTES = 1 << 27
_WRONG = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class About:
    """What a set of latents depends on: with the same, the same numbers.

    Attributes:
        data: digest of the images.
        count: of images.
        classes: their names; None without labels.
        autoencoder: what it says of itself, its digest above all.
        image_size: (H, W) in pixels.
        shape: of the latents of one image, (C, h, w).
        store: the number format, as PyTorch names it.
        posterior: whether standard deviations are stored.
        flip: whether mirrored images are stored too.
        shard_rows: images of a shard; the last one may have fewer.
    """

    data: str
    count: int
    classes: tuple[str, ...] | None
    autoencoder: Mapping[str, object]
    image_size: tuple[int, int]
    shape: tuple[int, int, int]
    store: str
    posterior: bool
    flip: bool
    shard_rows: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors in a shard."""
        wanted = {
            LATENT: True,
            STD: self.posterior,
            FLIPPED: self.flip,
            FLIPPED_STD: self.flip and self.posterior,
            LABEL: self.classes is not None,
        }
        return tuple(name for name, there in wanted.items() if there)

    @property
    def shards(self) -> int:
        """How many shards there are in the end."""
        return -(-self.count // self.shard_rows)

    def rows(self, k: int) -> range:
        """The images of shard k."""
        return range(k * self.shard_rows, min((k + 1) * self.shard_rows, self.count))


@dataclass(frozen=True)
class Shard:
    """One file of latents.

    Attributes:
        file: its name.
        rows: images in it.
        bytes: its size.
        sha256: its hash.
        mean: of its latents, a number a channel.
        square: the mean of their squares, the posterior's variance included, a number a channel.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    mean: tuple[float, ...]
    square: tuple[float, ...]


@dataclass(frozen=True)
class Manifest:
    """What a folder of latents holds.

    Attributes:
        about: what they depend on.
        places: where the data and the autoencoder were, by these names.
        shards: those that are whole, in order.
    """

    about: About
    places: Mapping[str, str]
    shards: tuple[Shard, ...]

    @property
    def complete(self) -> bool:
        """Whether every image is encoded."""
        return len(self.shards) == self.about.shards

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over all latents."""
        total = sum(s.rows for s in self.shards)
        channels = range(self.about.shape[0])
        mean = [sum(s.rows * s.mean[c] for s in self.shards) / total for c in channels]
        square = [sum(s.rows * s.square[c] for s in self.shards) / total for c in channels]
        return tuple(mean), tuple(math.sqrt(max(q - m * m, 0.0)) for m, q in zip(mean, square, strict=True))

    def text(self) -> str:
        """As JSON."""
        value = {"kind": KIND, "version": VERSION, **asdict(self)}
        return json.dumps(value, indent=1, allow_nan=False) + "\n"


def shard_name(k: int) -> str:
    """The file of shard k.

    >>> shard_name(3)
    'latents-00003.safetensors'
    """
    return f"latents-{k:05}.safetensors"


def is_latents(folder: Path) -> bool:
    """Whether a folder holds latents, whole or in part."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"] == KIND)
    except _WRONG:
        return False


def read_manifest(folder: Path) -> Manifest:
    """What a folder of latents says of itself, checked for sense; :func:`check_shard` checks its files.

    Raises:
        ValueError: if there is none, or one that :meth:`Manifest.text` did not write.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"latents {folder}: expected a folder with {MANIFEST}, found none; saltus encode DATA {folder} "
            "--autoencoder DIR makes one"
        )
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except _WRONG as wrong:
        why = f"{type(wrong).__name__} {' '.join(str(wrong).split())[:160]}"
        raise ValueError(
            f"{path}: expected the manifest of latents, got {why}; it is damaged or of something else, "
            "encode again into another folder"
        ) from None


def _parsed(value: Any) -> Manifest:  # noqa: ANN401 - whatever the file holds
    if value["kind"] != KIND or value["version"] != VERSION:
        raise ValueError(f"kind {str(value['kind'])[:40]!r}, version {str(value['version'])[:20]}")
    a = value["about"]
    height, width = (_count(n) for n in a["image_size"])
    c, h, w = (_count(n) for n in a["shape"])
    about = About(
        data=str(a["data"]),
        count=_count(a["count"]),
        classes=None if a["classes"] is None else tuple(str(name) for name in a["classes"]),
        autoencoder=dict(a["autoencoder"]),
        image_size=(height, width),
        shape=(c, h, w),
        store=str(a["store"]),
        posterior=bool(a["posterior"]),
        flip=bool(a["flip"]),
        shard_rows=_count(a["shard_rows"]),
    )
    shards = []
    for k, s in enumerate(value["shards"]):
        mean, square = (tuple(float(v) for v in s[name]) for name in ("mean", "square"))
        shard = Shard(str(s["file"]), _count(s["rows"]), _count(s["bytes"]), str(s["sha256"]), mean, square)
        fits = shard.file == shard_name(k) and shard.rows == len(about.rows(k))
        if not fits or not len(mean) == len(square) == c:
            raise ValueError(f"shard {k} as {shard.file[:60]!r} of {shard.rows} rows")
        shards.append(shard)
    return Manifest(about, {str(k): str(v) for k, v in value["places"].items()}, tuple(shards))


def _count(value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 48:
        raise ValueError(f"{str(value)[:40]} where a count belongs")
    return value


def check_shard(folder: Path, shard: Shard) -> None:
    """Raise a ValueError unless a shard is there, whole and as it was written."""
    path = folder / shard.file
    size = path.stat().st_size if path.is_file() else -1
    found = ""
    if size == shard.bytes:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        what = "none" if size < 0 else f"{size:,} bytes" if size != shard.bytes else "another content"
        raise ValueError(
            f"{path}: expected {shard.bytes:,} bytes as when they were encoded, got {what}; remove the file "
            "and give the saltus encode command again: it encodes what is missing"
        )


@dataclass(frozen=True, eq=False)
class Latents:
    """Batches of latents, in the order of :func:`saltus.data.order.rows_of`.

    The posterior is sampled anew each time an image is seen: x1 = mean + std * eps with eps from the stream
    "posterior"; the stream "flip" tosses whether an image is mirrored. Both are functions of (seed, step,
    sample) alone.

    Attributes:
        manifest: what the folder says.
        shards: their tensors by name, memory-mapped.
        batch: rows of the *global* batch.
        label: the class of each image, int64 [N], or None.
        sampled: whether the posterior is sampled; else its mean is taken.
        flips: whether images are mirrored.
        prior: the standard deviation of x0.
    """

    manifest: Manifest
    shards: Sequence[Mapping[str, Tensor]]
    batch: int
    label: Tensor | None = None
    sampled: bool = False
    flips: bool = False
    prior: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= len(self):
            raise ValueError(
                f"latents: expected a batch between 1 and the {len(self)} images, got {self.batch}; "
                "use a smaller batch or more data"
            )

    def __len__(self) -> int:
        return self.manifest.about.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample, (C, h, w)."""
        return self.manifest.about.shape

    @property
    def digest(self) -> str:
        """Of the latents: of what they were made of and of every shard, 16 hexadecimal digits."""
        facts = [asdict(self.manifest.about), [shard.sha256 for shard in self.manifest.shards]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def std(self) -> float:
        """The standard deviation of all numbers together, about the mean of each channel."""
        return math.sqrt(sum(s * s for s in self.manifest.moments()[1]) / self.shape[0])

    def rows(self, rng: Streams) -> Tensor:
        """Which images the streams' samples are, int64 [B] on the CPU."""
        return rows_of(rng, self.batch, len(self))

    def read(self, rows: Tensor, name: str = LATENT) -> Tensor:
        """One of the stored tensors at some rows: int64 [n] -> [n, C, h, w] on the CPU, as it is stored."""
        per = self.manifest.about.shard_rows
        first = self.shards[0][name]
        found = torch.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        places = rows // per
        for k in torch.unique(places).tolist():
            here = places == k
            found[here] = self.shards[k][name][rows[here] - k * per]
        return found

    def __call__(self, rng: Streams) -> Batch:
        """The batch of a step: x0 from the stream "x0", x1 and its labels from the data."""
        rows = self.rows(rng)
        x1 = self.samples(rows, rng)
        label = None if self.label is None else Condition(label=placed(self.label[rows], rng.device))
        return Batch(self.prior * rng.normal_like("x0", x1), x1, label)

    def samples(self, rows: Tensor, rng: Streams) -> Tensor:
        """Latents of images (int64 [n]) as training sees them: with the flips and the noise of the streams,
        one a row, [n, C, h, w]."""
        flipped = torch.zeros(len(rows), dtype=torch.bool)
        if self.flips:  # drawn where it is needed: no device has to be waited for
            flipped = replace(rng, device=flipped.device).uniform("flip") < 0.5
        x1 = placed(self._chosen(rows, flipped, LATENT, FLIPPED), rng.device, rng.dtype)
        if self.sampled:
            std = placed(self._chosen(rows, flipped, STD, FLIPPED_STD), rng.device, rng.dtype)
            x1 = x1 + std * rng.normal_like("posterior", x1)
        return x1

    def _chosen(self, rows: Tensor, flipped: Tensor, straight: str, mirrored: str) -> Tensor:
        """The rows from one tensor, or where ``flipped`` from the other."""
        if not bool(flipped.any()):
            return self.read(rows, straight)
        found = torch.empty((len(rows), *self.shape), dtype=self.shards[0][straight].dtype)
        found[~flipped] = self.read(rows[~flipped], straight)
        found[flipped] = self.read(rows[flipped], mirrored)
        return found


def open_latents(
    folder: str | Path,
    batch: int,
    *,
    labels: bool = True,
    sampled: bool = True,
    flips: bool = True,
    verify: bool = True,
) -> Latents:
    """The latents in a folder that ``saltus encode`` wrote.

    Args:
        folder: of them.
        batch: rows of the global batch.
        labels: give the classes of the images, if they have any.
        sampled: sample the posterior, if it is stored.
        flips: mirror images at random, if mirrored ones are stored.
        verify: hash every shard now, about a second for a gigabyte.

    Raises:
        ValueError: if there are none, encoding has not come to its end, or a shard is damaged.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    about = manifest.about
    if not manifest.complete:
        done = sum(s.rows for s in manifest.shards)
        raise ValueError(
            f"latents {place}: expected those of {about.count:,} images, got {done:,}; give the saltus "
            "encode command again, it goes on where it stopped"
        )
    for shard in manifest.shards if verify else ():
        check_shard(place, shard)
    parts = [mapped(place / shard.file, about, shard.rows) for shard in manifest.shards]
    label = None
    if labels and about.classes is not None:
        label = torch.cat([part[LABEL] for part in parts])
        if not 0 <= int(label.min()) <= int(label.max()) < len(about.classes):
            raise ValueError(
                f"latents {place}: expected labels below {len(about.classes)}, got up to {int(label.max())}; "
                "encode again into another folder"
            )
    return Latents(manifest, parts, batch, label, sampled and about.posterior, flips and about.flip)


def mapped(path: Path, about: About, rows: int) -> dict[str, Tensor]:
    """The tensors of a shard; their numbers are read when they are used."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in about.names}
    except (SafetensorError, OSError, LookupError, RuntimeError) as wrong:
        why = " ".join(str(wrong).split())[:160]
        raise ValueError(f"{path}: expected a shard of latents, got {why}; encode it again") from None
    for name, tensor in found.items():
        wanted = (rows,) if name == LABEL else (rows, *about.shape)
        kind = "int64" if name == LABEL else about.store
        if tuple(tensor.shape) != wanted or str(tensor.dtype) != f"torch.{kind}":
            raise ValueError(
                f"{path}: expected {name} as {kind} {list(wanted)}, got {tensor.dtype} "
                f"{list(tensor.shape)}; encode again into another folder"
            )
    return found
