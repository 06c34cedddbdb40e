"""A run's folder as values: every file is read if it can be, and none is trusted."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saltus.page.curves import History, finite, lines_of, objects, read_history
from saltus.page.fields import Heat, Plane, read_heats, read_planes

__all__ = ["Evaluation", "Figures", "Picture", "RunFiles", "State", "is_run", "picture_of", "read_run"]

OPTIONS, METRICS, WEIGHTS, PAGE = "options.json", "metrics.jsonl", "model.safetensors", "report.html"
PNG = b"\x89PNG\r\n\x1a\n"
LARGEST = 6_000_000
"""Bytes of a picture that a page takes."""
ROOM = 16_000_000
"""Bytes of all pictures of a page."""
MOST_GRIDS = 24
MOST_LINES = 64
LOCK, TEACHER = ".lock", "teacher"
"""What names the process that trains in a folder, and the folder of a run's own teacher."""
QUIET = 120.0
"""Seconds without a new line after which a run on another machine counts as stopped."""


@dataclass(frozen=True)
class Figures:
    """A line of an evaluation: how it was sampled, and its figures by name."""

    label: str
    group: str
    steps: int
    figures: dict[str, float]
    ms: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Figures of the weights of this name after so many steps; the step is None where it is not told."""

    step: int | None
    weights: str
    lines: Sequence[Figures]


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI, with its size in pixels, and the step that it belongs to if any."""

    name: str
    uri: str
    width: int
    height: int
    step: int | None = None


@dataclass(frozen=True)
class State:
    """Whether a run is finished, and if not, whether it goes on."""

    finished: bool
    training: bool


@dataclass(frozen=True, eq=False)
class RunFiles:
    """Everything that a page shows of a run.

    Attributes:
        folder: the run's.
        options: as ``options.json`` has them.
        environment: as ``environment.json`` has it.
        history: of the log.
        evaluations: over training, in order of their steps.
        final: the last one.
        grids: pictures over training.
        pictures: others, by the name of their file.
        heats: residuals.
        planes: samples in the plane.
        field_step: the step that ``heats`` belong to, if told.
        plane_step: the step that ``planes`` belong to, if told.
        state: of the run.
        notes: what could not be read.
        teacher: the run of its own teacher.
    """

    folder: Path
    options: dict[str, Any]
    environment: dict[str, Any]
    history: History
    evaluations: Sequence[Evaluation]
    final: Evaluation | None
    grids: Sequence[Picture]
    pictures: dict[str, Picture]
    heats: Sequence[Heat]
    planes: Sequence[Plane]
    field_step: int | None
    plane_step: int | None
    state: State
    notes: Sequence[str] = ()
    teacher: RunFiles | None = None
    group: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """RECIPE-METHOD, or the folder's name."""
        named = [self.options.get(k) for k in ("recipe", "method")]
        return "-".join(str(n) for n in named) if all(named) else self.folder.resolve().name

    @property
    def main(self) -> Sequence[Evaluation]:
        """The evaluations of the weights that come first among those evaluated last."""
        last = next((e for e in self.evaluations if e.step == self.evaluations[-1].step), None)
        return [e for e in self.evaluations if last is not None and e.weights == last.weights]

    @property
    def steps(self) -> int | None:
        """How many steps the whole run has."""
        value = finite(self.group.get("training", {}).get("steps"))
        return None if value is None or value < 1 else int(value)

    @property
    def batch(self) -> int | None:
        """Rows of a step."""
        value = finite(self.group.get("training", {}).get("batch"))
        return None if value is None else int(value)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return folder.is_dir() and any((folder / name).is_file() for name in (OPTIONS, METRICS, WEIGHTS))


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    """The JSON object in a file; an empty one, with a note, where it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} cannot be read.")
    return {}


def _text(value: object) -> str:
    return value[:200] if isinstance(value, str) else ""


def _figures(value: object) -> Figures | None:
    """One line of an evaluation, with the figures that are numbers; None if there are none."""
    if not isinstance(value, dict) or not isinstance(value.get("figures"), dict):
        return None
    found = {str(k)[:80]: n for k, v in value["figures"].items() if (n := finite(v)) is not None}
    steps = finite(value.get("steps"))
    if not found:
        return None
    label, group = _text(value.get("label")), _text(value.get("group"))
    return Figures(label, group, int(steps or 0), found, finite(value.get("ms")))


def _evaluation(row: dict[str, Any]) -> Evaluation | None:
    lines = row.get("lines")
    if not isinstance(lines, list):
        return None
    found = [f for line in lines[:MOST_LINES] if (f := _figures(line)) is not None]
    step = finite(row.get("step"))
    return (
        Evaluation(None if step is None else int(step), _text(row.get("weights")), found) if found else None
    )


def _evaluations(path: Path, notes: list[str]) -> list[Evaluation]:
    """Those over training; where a step was evaluated twice, the later one."""
    rows, wrong = objects(lines_of(path))
    by: dict[tuple[int, str], Evaluation] = {}
    for row in rows:
        one = _evaluation(row)
        if one is None or one.step is None:
            wrong += 1
        else:
            by[one.step, one.weights] = one
    if wrong:
        notes.append(_skipped(wrong, path.name))
    return [by[key] for key in sorted(by, key=lambda key: key[0])]


def _skipped(count: int, name: str) -> str:
    what = "line was" if count == 1 else "lines were"
    return f"{name}: {count:,} damaged {what} skipped."


def picture_of(path: Path, notes: list[str], step: int | None = None) -> Picture | None:
    """A PNG of reasonable size, else None with a note."""
    try:
        if path.stat().st_size > LARGEST:
            notes.append(f"{path.name} is larger than a page takes.")
            return None
        content = path.read_bytes()
    except OSError:
        notes.append(f"{path.name} cannot be read.")
        return None
    whole = content.startswith(PNG) and content[12:16] == b"IHDR" and b"IEND" in content[-16:]
    if not whole:
        notes.append(f"{path.name} is not a whole PNG picture.")
        return None
    width, height = struct.unpack(">II", content[16:24])
    uri = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return Picture(path.name, uri, width, height, step)


def _grids(folder: Path, notes: list[str]) -> list[Picture]:
    """Pictures over training: all of them, or some evenly spaced ones with the first and the last."""
    found = []
    for path in folder.glob("*.png") if folder.is_dir() else ():
        named = re.fullmatch(r"(\d{1,15})\.png", path.name)
        if named:
            found.append((int(named[1]), path))
    found.sort()
    if len(found) > MOST_GRIDS:
        found = [found[round(k * (len(found) - 1) / (MOST_GRIDS - 1))] for k in range(MOST_GRIDS)]
    pictures: list[Picture] = []
    room = ROOM
    for step, path in reversed(found):  # the last ones first, in case there is no room for all
        picture = picture_of(path, notes, step)
        if picture is not None and len(picture.uri) <= room:
            room -= len(picture.uri)
            pictures.append(picture)
    return pictures[::-1]


def _held(folder: Path) -> bool | None:
    """Whether a process on this machine holds a folder, by what its lock says; None if it says nothing.

    The lock is not tried: who did would for a moment keep a run from beginning.
    """
    try:
        said = (folder / LOCK).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    except OSError:
        return None
    named = re.fullmatch(r"process (\d{1,9}) on (.+)\n", said)
    if named is None or named[2] != socket.gethostname():
        return None
    try:
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _state(folder: Path, training: bool | None) -> State:
    """Whether it trains: as told, else if a process holds its folder, else if its log grew lately."""
    if (folder / WEIGHTS).is_file():
        return State(finished=True, training=False)
    if training is not None:
        return State(finished=False, training=training)
    place = folder.resolve()
    held = _held(place.parent if place.name == TEACHER else place)  # it trains under the lock of its student
    if held is not None:
        return State(finished=False, training=held)
    try:
        age = time.time() - (folder / METRICS).stat().st_mtime
    except OSError:
        age = math.inf
    return State(finished=False, training=age < QUIET)


def _groups(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The groups of options by name; a group within a group becomes one of its own."""
    value = options.get("options")
    found: dict[str, dict[str, Any]] = {}
    for name, fields in value.items() if isinstance(value, dict) else ():
        if isinstance(fields, dict):
            found[str(name)] = {str(k): v for k, v in fields.items() if not isinstance(v, dict)}
            inner = {str(k): v for k, v in fields.items() if isinstance(v, dict) and v}
            found |= {f"{name}, {k}": v for k, v in inner.items()}
    return found


def read_run(folder: Path, training: bool | None = None, whole: bool = True) -> RunFiles:
    """Read a run's folder.

    Args:
        folder: of the run.
        training: whether it trains now, if that is known.
        whole: whether pictures and the teacher's run are read too.
    """
    notes: list[str] = []
    history = read_history(folder / METRICS)
    if history.skipped:
        notes.append(_skipped(history.skipped, METRICS))
    options = _object(folder / OPTIONS, notes)
    over = _evaluations(folder / "evaluations.jsonl", notes)
    last = _evaluation(saved) if (saved := _object(folder / "evaluation.json", notes)) else None
    state = _state(folder, training)
    residuals = _object(folder / "residuals.json", notes)
    ways = _object(folder / "trajectories.json", notes)
    heats, planes = read_heats(residuals), read_planes(ways)
    names = ["samples.png"] + ["points.png"] * (not planes) + ["residuals.png"] * (not heats)
    kept = [
        p for name in names if whole and (folder / name).is_file() if (p := picture_of(folder / name, notes))
    ]
    inner = folder / TEACHER
    steps = [finite(value.get("step")) for value in (residuals, ways)]
    return RunFiles(
        folder=folder,
        options=options,
        environment=_object(folder / "environment.json", notes),
        history=history,
        evaluations=over,
        final=last or next((e for e in over if e.step == over[-1].step), None),
        grids=_grids(folder / "grids", notes) if whole else (),
        pictures={p.name: p for p in kept},
        heats=heats,
        planes=planes,
        field_step=None if steps[0] is None else int(steps[0]),
        plane_step=None if steps[1] is None else int(steps[1]),
        state=state,
        notes=tuple(notes),
        teacher=read_run(inner, whole=False) if whole and is_run(inner) else None,
        group=_groups(options),
    )
