"""A data set of pictures to latents, in shards; what was interrupted goes on.

A shard is written beside its place and renamed, then the manifest that lists it. So whatever ends the
process, the folder holds whole shards, and the next call encodes those that are missing. Rows are encoded in
groups that begin with the shard, so the numbers do not depend on where it was stopped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from saltus.data.images import Images
from saltus.data.latents import (
    FLIPPED,
    FLIPPED_STD,
    LABEL,
    LATENT,
    MANIFEST,
    STD,
    About,
    Manifest,
    Shard,
    check_shard,
    is_latents,
    read_manifest,
    shard_name,
)
from saltus.recipes.folder import check_above, whole
from saltus.recipes.occupied import differences
from saltus.recipes.progress import Progress
from saltus.teachers.autoencoder import Autoencoder
from saltus.tensors import check_finite
from saltus.training import LOCK, locked
from saltus.training.shards import write_shard

__all__ = ["AUTOENCODER", "encode_images"]

AUTOENCODER = "autoencoder"
_DRAFT = re.compile(rf"\.[0-9a-f]{{8}}-({re.escape(MANIFEST)}|latents-[0-9]{{5}}\.safetensors)")
"""What a killed process may leave of a file that it was writing."""


def encode_images(
    images: Images,
    autoencoder: Autoencoder,
    out: Path,
    *,
    batch: int = 16,
    shard_rows: int = 2048,
    posterior: bool = True,
    flip: bool = False,
    limit: int | None = None,
    store: torch.dtype = torch.float32,
    places: Mapping[str, str] | None = None,
    quiet: bool = True,
) -> Manifest:
    """Encode images to shards of latents in a folder, or those that are missing there.

    Args:
        images: in one size and in colour.
        autoencoder: any that knows what its latents depend on.
        out: the folder.
        batch: images at once.
        shard_rows: images of a shard.
        posterior: store standard deviations too.
        flip: store the latents of mirrored images too.
        limit: the first so many images only.
        store: number format on disk, float32 or float16.
        places: where the data and the autoencoder are, for the manifest.
        quiet: show no progress.

    Raises:
        ValueError: if the folder holds something else, latents of other data or another autoencoder, or is
            at work; if what is encoded is not finite.
    """
    if batch < 1 or shard_rows < 1 or (limit is not None and limit < 1):
        raise ValueError(f"encode: expected counts of at least 1, got {batch=}, {shard_rows=}, {limit=}")
    count = len(images) if limit is None else min(limit, len(images))
    height, width = images.shape[1:]
    about = About(
        data=images.digest,
        count=count,
        classes=None if images.labels is None else _names(images),
        autoencoder=autoencoder.described(),
        image_size=(height, width),
        shape=autoencoder.latent_shape(height, width),
        store=str(store).removeprefix("torch."),
        posterior=posterior,
        flip=flip,
        shard_rows=min(shard_rows, count),
    )
    _check_place(out, about)
    with _held(out), torch.inference_mode():
        _check_place(out, about)
        manifest = _begun(out, Manifest(about, dict(places or {}), ()))
        started = len(manifest.shards)
        progress = Progress(count, "pictures", quiet)
        before = sum(shard.rows for shard in manifest.shards)
        progress.skip(before)
        if 0 < before < count and not quiet:
            print(f"going on after {before:,} of {count:,} pictures", file=sys.stderr)
        with progress:
            for k in range(started, about.shards):
                tensors = _shard(images, autoencoder, about, about.rows(k), batch, store, progress)
                manifest = _written(out, manifest, k, tensors)
        if not quiet:
            _tell(out, manifest, started)
    return manifest


def _names(images: Images) -> tuple[str, ...]:
    """The names of the classes; their numbers where they have none."""
    assert images.labels is not None
    return images.classes or tuple(str(k) for k in range(int(images.labels.max()) + 1))


def _check_place(out: Path, about: About) -> None:
    """Raise a ValueError unless latents with these facts may be encoded, or gone on with, in a folder."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out {out}: expected a folder, got a file; choose another")
    check_above(out, f"out {out}")
    others = [] if not out.is_dir() else [p for p in out.iterdir() if p.name != LOCK and not _ours(p)]
    if not is_latents(out):
        if others or (out / MANIFEST).exists():
            raise ValueError(
                f"out {out}: expected a new or empty folder or latents to go on with, got a folder with "
                "other files; choose another"
            )
        return
    there = read_manifest(out).about
    changed = differences(_facts(there), _facts(about))
    if changed:
        shown = "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise ValueError(
            f"out {out}: it holds latents of something else ({shown}); give the same data, autoencoder and "
            "options to go on, or choose another folder"
        )


def _facts(about: About) -> dict[str, object]:
    """By names that say enough in a message."""
    facts = asdict(about)
    inner = facts.pop(AUTOENCODER)
    return {**facts, **{f"{AUTOENCODER} {name}": value for name, value in inner.items()}}


def _ours(path: Path) -> bool:
    """Whether a killed process left this of a file, before the manifest was written."""
    return bool(_DRAFT.fullmatch(path.name))


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The folder for this process alone; one that was made for nothing is removed."""
    made = [p for p in reversed((out.resolve(), *out.resolve().parents)) if not p.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as wrong:
            raise ValueError(f"out {out}: cannot be made, {wrong.strerror}; choose another") from wrong
        with locked(out, "encoding"):
            yield
    finally:
        for path in reversed(made):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _begun(out: Path, anew: Manifest) -> Manifest:
    """The manifest to go on with: of what is there, every shard of which is whole, or a new one."""
    for path in out.iterdir():
        if _ours(path):
            path.unlink(missing_ok=True)
    if is_latents(out):
        there = read_manifest(out)
        good = []
        for shard in there.shards:
            if not (out / shard.file).is_file():
                break  # it was removed to be encoded again, and so are those after it
            check_shard(out, shard)
            good.append(shard)
        return replace(anew, shards=tuple(good))
    with whole(out / MANIFEST) as draft:
        draft.write_text(anew.text(), encoding="utf-8")
    return anew


def _shard(
    images: Images,
    autoencoder: Autoencoder,
    about: About,
    rows: range,
    batch: int,
    store: torch.dtype,
    progress: Progress,
) -> dict[str, Tensor]:
    """The tensors of a shard, on the CPU; the next group is read while one is encoded."""
    parts: dict[str, list[Tensor]] = {name: [] for name in about.names}
    groups = [torch.arange(k, min(k + batch, rows.stop)) for k in range(rows.start, rows.stop, batch)]
    for group, x in zip(groups, _ahead(images, groups), strict=True):
        for mirrored, (name, spread) in ((False, (LATENT, STD)), (True, (FLIPPED, FLIPPED_STD))):
            if mirrored and not about.flip:
                continue
            mean, std = autoencoder.posterior(x.flip(-1) if mirrored else x)
            if tuple(mean.shape[1:]) != about.shape:
                raise ValueError(f"autoencoder: expected latents {about.shape}, got {tuple(mean.shape[1:])}")
            _check(mean.to(store), f"latents of pictures {int(group[0])} to {int(group[-1])}")
            parts[name].append(mean.to(store).cpu())
            if about.posterior:
                if std is None:
                    raise ValueError("autoencoder: expected deviations, it has none; give posterior=False")
                parts[spread].append(std.to(store).cpu())
        if about.classes is not None:
            assert images.labels is not None
            parts[LABEL].append(images.labels[group])
        progress.more(len(group))
    return {name: torch.cat(some) for name, some in parts.items()}


def _check(x: Tensor, what: str) -> None:
    try:
        check_finite(x, what)
    except ValueError as wrong:
        raise ValueError(f"{wrong}; with --store float32 and --precision float32 too?") from None


def _ahead(images: Images, groups: Iterable[Tensor]) -> Iterator[Tensor]:
    """Pictures in [-1, 1] of the groups of rows; a thread reads one group ahead."""

    def read(rows: Tensor) -> Tensor:
        x = images.read(rows)
        return x.expand(-1, 3, -1, -1) / 127.5 - 1.0

    with ThreadPoolExecutor(1) as thread:
        waiting = None
        for rows in groups:
            coming = thread.submit(read, rows)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def _written(out: Path, manifest: Manifest, k: int, tensors: dict[str, Tensor]) -> Manifest:
    """Write shard k and the manifest that lists it."""
    path = out / shard_name(k)
    with whole(path) as draft:
        digest = write_shard(draft, tensors)
    latent = tensors[LATENT].double()
    square = latent.square() + (tensors[STD].double().square() if STD in tensors else 0.0)
    shard = Shard(
        file=path.name,
        rows=len(latent),
        bytes=path.stat().st_size,
        sha256=digest,
        mean=tuple(latent.mean(dim=(0, 2, 3)).tolist()),
        square=tuple(square.mean(dim=(0, 2, 3)).tolist()),
    )
    manifest = replace(manifest, shards=(*manifest.shards, shard))
    with whole(out / MANIFEST) as draft:
        draft.write_text(manifest.text(), encoding="utf-8")
    return manifest


def _tell(out: Path, manifest: Manifest, started: int) -> None:
    about = manifest.about
    size = sum(s.bytes for s in manifest.shards) / 1e6
    went = "all there already" if started == about.shards else f"{about.count:,} pictures"
    mean, std = manifest.moments()
    shape = " x ".join(map(str, about.shape))
    print(f"latents  {out}: {went}, {shape} each, {size:.3g} MB in {about.shards} files")
    print(f"         channel means {_few(mean)}, deviations {_few(std)} (about 0 and 1 train best)")


def _few(values: Iterable[float]) -> str:
    some = [f"{v:.2f}" for v in values]
    return " ".join(some[:8]) + (" ..." if len(some) > 8 else "")
