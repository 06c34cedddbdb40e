"""The weights of a run that still trains or was stopped: those of its newest whole checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from saltus.recipes.averages import RAW
from saltus.recipes.folder import CHECKPOINTS, OPTIONS, WEIGHTS
from saltus.training import Checkpoints, Header, Saved

__all__ = ["Unfinished", "is_unfinished", "newest"]

TRIES = 5
"""How often a checkpoint is looked for that a training run does not remove while it is read."""
STATE = "state"
"""In a checkpoint's meta: what only going on needs."""
_STUDENT = "players/student/module/"

T = TypeVar("T")


@dataclass(frozen=True)
class Unfinished:
    """The newest checkpoint of a run, seen as a weights file.

    Attributes:
        saved: the checkpoint.
        header: the weights as a weights file would list them, NAME.KEY, and the meta of one.
    """

    saved: Saved
    header: Header

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The weights of this name, under the keys of the header."""
        prefix = _prefix(self.saved, name)
        return {_key(name, prefix, full): self.saved.tensor(full) for full in self.saved.names(prefix)}


def is_unfinished(run: Path) -> bool:
    """Whether a folder is that of a run that has no weights file yet."""
    return (run / OPTIONS).is_file() and not (run / WEIGHTS).exists()


def newest(run: Path, read: Callable[[Unfinished], T]) -> T:
    """What ``read`` makes of the newest whole checkpoint of a run, which may train meanwhile.

    Args:
        run: the folder.
        read: is called again with a newer one, if the run removes the checkpoint that is being read.

    Raises:
        ValueError: if nothing has been saved yet, if no checkpoint is whole, or by ``read``.
    """
    checkpoints = Checkpoints(run / CHECKPOINTS)
    for _ in range(TRIES):
        before = checkpoints.steps()
        try:
            saved = checkpoints.newest()
            if saved is None:
                break
            return read(_seen(saved))
        except (ValueError, OSError):
            if checkpoints.steps() == before:
                raise
    raise ValueError(
        f"run {run}: it is not finished and has not saved its weights yet; it does so every --save-every "
        "steps and when Ctrl-C stops it"
    )


def _seen(saved: Saved) -> Unfinished:
    """A checkpoint as a weights file."""
    meta = {key: value for key, value in saved.manifest.meta.items() if key != STATE}
    table = meta.get("weights")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in table if isinstance(table, dict) else {}:
        prefix = _prefix(saved, str(name))
        for full in saved.names(prefix):
            shapes[_key(name, prefix, full)] = saved.manifest.tensors[full].shape
    return Unfinished(saved, Header(shapes, meta | {"steps": saved.step}))


def _key(name: str, prefix: str, full: str) -> str:
    return f"{name}.{full.removeprefix(prefix)}"


def _prefix(saved: Saved, name: str) -> str:
    """Under which a checkpoint has the weights of a name."""
    if name != RAW:
        return f"averages/{name}/"
    listed = f"{_STUDENT}0."  # where something in the loss learns too, and is the rest of the list
    return listed if saved.names(listed) else _STUDENT
