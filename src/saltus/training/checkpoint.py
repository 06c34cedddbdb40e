"""Checkpoints of a run: everything that is needed to go on, whole or not there at all.

    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(step, tensors, meta)         # waits for a copy; the rest happens in a thread
    saved = checkpoints.newest()                  # the newest whole one
    saved.restore(tensors)                        # into the live tensors, strictly

A checkpoint is written to a folder beside its place: every process streams the parts of tensors that it
holds to a file of its own, flushed to the disk and hashed on the way; when all files are there, the
manifest with their hashes is written and the folder is renamed. Processes need no word with each other for
that, since they share the folder: so it runs in a thread while training goes on. A process killed at any
moment leaves a draft, which nobody reads and the next run removes.

Nothing is ever unpickled: files are safetensors and JSON, and no other file of the folder is opened.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saltus.training.manifest import MANIFEST, File, Manifest, read_manifest, shard_name, verify
from saltus.training.parallel import Piece, piece
from saltus.training.shards import Part, Whole, dtype_name, read_box, write_shard

__all__ = ["Checkpoints", "Saved", "folder_of"]

_STEP, _DRAFT = "step-", ".draft-"
_NAME = re.compile(r"step-[0-9]{8,15}")
_PATIENCE = 1800.0  # seconds that the first process waits for the files of the others
_POLL = 0.02


def folder_of(step: int) -> str:
    """The name of a checkpoint's folder.

    >>> folder_of(500)
    'step-00000500'
    """
    return f"{_STEP}{step:08}"


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint on disk.

    Attributes:
        folder: where it is.
        manifest: what it holds.
    """

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.manifest.step

    def names(self, prefix: str = "") -> list[str]:
        """The names of its tensors that begin with a prefix."""
        return [name for name in self.manifest.tensors if name.startswith(prefix)]

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, on the CPU."""
        whole = self.manifest.tensors[name]
        return read_box(self.folder, name, whole, (0,) * len(whole.shape), whole.shape)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy what was saved into these tensors: all that were saved under these names, or none.

        Raises:
            ValueError: for a missing or superfluous tensor, or one of another shape or number format.
        """
        theirs = self.manifest.tensors
        missing, extra = sorted(tensors.keys() - theirs.keys()), sorted(theirs.keys() - tensors.keys())
        fix = "go on with the options that the run was begun with"
        if missing or extra:
            raise ValueError(
                f"{self.folder}: expected the {len(tensors)} tensors of this run, got {len(theirs)}: "
                f"{_some(missing)} missing, {_some(extra)} unknown; {fix}"
            )
        pieces = {name: piece(tensor) for name, tensor in tensors.items()}
        for name, mine in pieces.items():
            whole, kind = theirs[name], dtype_name(mine.local, name)
            if mine.shape != whole.shape or kind != whole.dtype:
                raise ValueError(
                    f"{self.folder}: tensor {name}: expected {list(mine.shape)} of {kind}, "
                    f"got {list(whole.shape)} of {whole.dtype}; {fix}"
                )
        with torch.no_grad():
            for name, mine in pieces.items():
                shape = tuple(mine.local.shape)
                if mine.local.numel():
                    mine.local.copy_(read_box(self.folder, name, theirs[name], mine.offsets, shape))


class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: that holds them.
        waited: seconds that the caller has waited in :meth:`save` and :meth:`wait` so far.
        count: how many have been saved.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        size: int = 1,
        attempt: str = "0",
        keep_last: int = 2,
        keep_best: int = 1,
    ) -> None:
        """Of a run of ``size`` processes, of which this is ``rank``.

        Args:
            folder: made when the first one is saved.
            rank: of this process.
            size: how many processes write; they share the folder.
            attempt: a word that the processes of one start share and no earlier start had.
            keep_last: so many of the newest stay.
            keep_best: and so many of those with the smallest score.

        Raises:
            ValueError: unless at least one of the newest stays.
        """
        if keep_last < 1 or keep_best < 0:
            raise ValueError(
                f"checkpoints: expected to keep at least the last one, got keep_last={keep_last}, "
                f"keep_best={keep_best}; a run that keeps none cannot be resumed"
            )
        self.folder, self.waited, self.count = folder, 0.0, 0
        self._rank, self._size, self._attempt = rank, size, attempt
        self._keep_last, self._keep_best = keep_last, keep_best
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None
        self._made = folder.is_dir()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, whole or not, in order."""
        if not self.folder.is_dir():
            return []
        names = [p.name for p in self.folder.iterdir() if p.is_dir() and not p.is_symlink()]
        found = [int(name.removeprefix(_STEP)) for name in names if _NAME.fullmatch(name)]
        return sorted({step for step in found if folder_of(step) in names})

    def open(self, step: int, verified: bool = False) -> Saved:
        """The checkpoint of a step.

        Args:
            step: whose.
            verified: whether its files are known to be whole.

        Raises:
            ValueError: if it is not whole.
        """
        folder = self.folder / folder_of(step)
        manifest = read_manifest(folder)
        if manifest.step != step:
            raise ValueError(f"{folder}: expected step {step}, got {manifest.step}; give it its name back")
        if not verified:
            verify(folder, manifest)
        return Saved(folder, manifest)

    def clear_drafts(self) -> None:
        """Remove what a killed start has left half-written. For the first process, before training."""
        for path in self.folder.glob(f"{_DRAFT}*"):
            shutil.rmtree(path, ignore_errors=True)

    def newest(self, say: Callable[[str], None] = lambda line: None) -> Saved | None:
        """The newest whole checkpoint; None if there is no checkpoint at all.

        Args:
            say: is told of each damaged one that is passed over.

        Raises:
            ValueError: if there are checkpoints and none of them is whole: a run does not begin anew in
                silence.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.open(step)
            except ValueError as wrong:
                say(f"passed over a checkpoint: {wrong}")
        there = [path for path in self.folder.glob(f"{_STEP}*") if _NAME.fullmatch(path.name)]
        if there:
            what = f"{len(there)} damaged" if steps else f"{len(there)} links or files of such names"
            raise ValueError(
                f"{self.folder}: expected a whole checkpoint, got {what}; put one back from a copy, or "
                "delete this folder to begin anew"
            )
        return None

    def save(
        self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], score: float | None = None
    ) -> None:
        """Save what the tensors hold now. Returns when they have been copied and may change again.

        One save is under way at a time: this waits for the one before.

        Args:
            step: how many steps are done.
            tensors: the same names in all processes; sharded ones are saved by those that hold them.
            meta: plain data, the same in all processes.
            score: of the weights, smaller is better.

        Raises:
            ValueError: if the save before this one failed, or ``meta`` is no JSON.
        """
        began = time.perf_counter()
        self._join()
        pieces = {name: piece(tensor) for name, tensor in tensors.items()}
        copies = self._copied({name: p for name, p in pieces.items() if p.writes})
        self._thread = threading.Thread(
            target=self._written, args=(step, pieces, copies, dict(meta), score), name="saltus-save"
        )
        self._thread.start()
        self.count += 1
        self.waited += time.perf_counter() - began

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            ValueError: if the last save failed; the checkpoints before it are still there.
        """
        began = time.perf_counter()
        self._join()
        self.waited += time.perf_counter() - began

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed is not None:
            wrong, self._failed = self._failed, None
            why = wrong.strerror if isinstance(wrong, OSError) and wrong.strerror else wrong
            mend = "free some room or mend the permissions, and " if isinstance(wrong, OSError) else ""
            raise ValueError(
                f"{self.folder}: expected to save a checkpoint here, got {why}; those before it are whole: "
                f"{mend}the same command goes on from the newest"
            ) from wrong

    def _copied(self, pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
        """Copies on the CPU, into memory that is used again by the next save."""
        copies = {}
        for name, p in pieces.items():
            local, old = p.local.detach(), self._copies.get(name)
            if old is None or old.shape != local.shape or old.dtype != local.dtype:
                old = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
            copies[name] = old.copy_(local, non_blocking=True)
        devices = {p.local.device for p in pieces.values() if p.local.is_cuda}
        for device in devices:
            torch.cuda.synchronize(device)
        self._copies = copies
        return copies

    def _written(
        self,
        step: int,
        pieces: Mapping[str, Piece],
        copies: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        score: float | None,
    ) -> None:
        """The thread's work: this process's file, and for the first process the manifest and the rename."""
        draft = self.folder / f"{_DRAFT}{self._attempt}-{folder_of(step)}"
        name = shard_name(self._rank, self._size)
        try:
            if not self._made:  # later it is there, or somebody has moved the run, which is told
                self.folder.mkdir(parents=True, exist_ok=True)
            self._made = True
            draft.mkdir(exist_ok=True)
            _check_finite(copies)
            digest = write_shard(draft / name, copies)
            parts = {
                n: [str(dtype_name(p.local, n)), p.shape, name, p.offsets, tuple(p.local.shape)]
                for n, p in pieces.items()
                if p.writes
            }
            part = {"name": name, "bytes": (draft / name).stat().st_size, "sha256": digest, "parts": parts}
            _put(draft / f"{name}.json", json.dumps(part))
            if self._rank == 0:
                self._finished(draft, step, meta, score)
        except Exception as wrong:  # told by the next call, whatever it is
            self._failed = wrong
            with suppress(OSError):
                if self._rank == 0:
                    shutil.rmtree(draft, ignore_errors=True)
                else:
                    _put(draft / f"{name}.json", json.dumps({"failed": str(wrong)}))

    def _finished(self, draft: Path, step: int, meta: Mapping[str, Any], score: float | None) -> None:
        """Gather what the processes say of their files, write the manifest, give the folder its name."""
        told = [_told(draft / f"{shard_name(rank, self._size)}.json") for rank in range(self._size)]
        files = {part["name"]: File(part["bytes"], part["sha256"]) for part in told}
        tensors: dict[str, Whole] = {}
        for part in told:
            for name, (dtype, shape, file, offset, length) in part["parts"].items():
                known = tensors[name].parts if name in tensors else ()
                mine = Part(file, tuple(offset), tuple(length))
                tensors[name] = Whole(dtype, tuple(shape), (*known, mine))
        manifest = Manifest(step, score, meta, files, tensors)
        for notes in draft.glob("*.json"):
            notes.unlink()
        _put(draft / MANIFEST, manifest.text())
        _flush(draft)
        self._remove(step)  # of an earlier attempt at these steps: the same numbers, or damaged ones
        draft.rename(self.folder / folder_of(step))
        _flush(self.folder)
        self._prune(step)

    def _prune(self, last: int) -> None:
        """Remove what need not stay, after step ``last`` was saved: what there is of later steps is damaged
        and was passed over, so it keeps nobody out."""
        steps = [step for step in self.steps() if step <= last]
        scores: dict[int, float] = {}
        for step in steps:
            with suppress(ValueError):
                score = read_manifest(self.folder / folder_of(step)).score
                if score is not None:
                    scores[step] = score
        best = sorted(scores, key=lambda step: (scores[step], step))[: self._keep_best]
        for step in {*steps} - {*steps[-self._keep_last :], *best}:
            self._remove(step)

    def _remove(self, step: int) -> None:
        """Remove a checkpoint. It loses its name first, so that none is ever there in part."""
        place, gone = self.folder / folder_of(step), self.folder / f"{_DRAFT}{self._attempt}-gone-{step}"
        if place.exists():
            place.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _check_finite(copies: Mapping[str, Tensor]) -> None:
    for name, copy in copies.items():
        dtype_name(copy, name)
        if copy.is_floating_point() and not bool(torch.isfinite(copy).all()):
            raise ValueError(f"NaN or infinity in {name} (lower the learning rate, or clip the gradient)")


def _put(path: Path, text: str) -> None:
    """Write a file beside its place, flush it, rename it."""
    beside = path.with_name(f"{path.name}.part")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _flush(folder: Path) -> None:
    with suppress(OSError):  # not every system can flush a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _told(path: Path) -> Any:  # noqa: ANN401 - what another process of this run has just written
    """What a process says of its file, as soon as it is there."""
    last = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > last:
            raise ValueError(f"{path.name} of another process did not appear in {_PATIENCE:.0f} s")
        time.sleep(_POLL)
    told = json.loads(path.read_text(encoding="utf-8"))
    if "failed" in told:
        raise ValueError(f"another process could not write: {told['failed']}")
    return told


def _some(names: list[str]) -> str:
    return (", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")) or "none"
