"""A run's folder while the run writes to it: who may begin in it, who goes on, and what is left behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from saltus.recipes.folder import (
    ENVIRONMENT,
    EVALUATION,
    OPTIONS,
    SAMPLES,
    WEIGHTS,
    check_above,
    read_json,
    write_json,
)
from saltus.training import LOCK, locked

__all__ = ["check_free", "differences", "finished", "goes_on", "occupied"]

_MACHINE = frozenset({"machine", "loading"})
"""The groups of options that say how a run is computed, not what: a run may go on with others."""
_LEFT = re.compile(r"\.(.+\.(draft|part)|[0-9a-f]{8}-.+|.+\.json\.[0-9a-f]{8})")
"""What a killed process may leave of a file that it was writing beside its place."""


def check_free(
    folder: Path,
    options: Mapping[str, object],
    overwrite: bool,
    teacher: Path | None = None,
    evaluated: bool = True,
) -> None:
    """Raise a ValueError unless a run with these options may begin or go on in ``folder``.

    Args:
        folder: of the run.
        options: what its ``options.json`` says or will say.
        overwrite: whether a finished run, or one with other options, may be replaced.
        teacher: what it learns from; it stays where it is.
        evaluated: whether the run ends with an evaluation.
    """
    if teacher is not None and folder.resolve() in (teacher.resolve(), *teacher.resolve().parents):
        raise ValueError(
            f"run folder {folder}: expected one apart from the teacher, got the one that {teacher} is in; "
            "choose another with --out"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run folder {folder}: expected a folder, got a file; choose another with --out")
    if not (folder / OPTIONS).exists() and _others(folder):
        raise ValueError(
            f"run folder {folder}: expected a new or empty folder or a run, got a folder with other files; "
            "choose another with --out"
        )
    check_above(folder, f"run folder {folder}")
    if overwrite or not (folder / OPTIONS).exists():
        return
    changed = differences(read_json(folder / OPTIONS, "run options"), options)
    if (folder / WEIGHTS).exists() and (changed or finished(folder, evaluated)):
        raise ValueError(
            f"run folder {folder}: it holds a finished run already; add --overwrite to replace it, "
            "or choose another with --out"
        )
    if changed:
        shown = "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise ValueError(
            f"run folder {folder}: it holds an unfinished run with other options ({shown}); give the same to "
            "go on, add --overwrite to begin anew, or choose another folder with --out"
        )


def finished(folder: Path, evaluated: bool) -> bool:
    """Whether a run has come to its end: weights, samples and, if it ends with one, an evaluation."""
    return all((folder / name).exists() for name in (WEIGHTS, SAMPLES, *[EVALUATION] * evaluated))


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """What differs between the saved options and the present ones, one line each.

    >>> differences({"training": {"lr": 0.1, "steps": 5}}, {"training": {"lr": 0.2, "steps": 5}})
    ['lr: 0.1 there, 0.2 here']
    """
    found = []
    for key in sorted({*there, *here} - _MACHINE - {"saltus"}):
        a, b = there.get(key), here.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b)
        elif _plain(a) != _plain(b):
            found.append(f"{key.replace('_', '-')}: {a} there, {b} here")
    return found


def _plain(value: object) -> object:
    """As JSON gives it back."""
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def goes_on(folder: Path, options: Mapping[str, object], evaluated: bool = True) -> bool:
    """Whether an unfinished run with these options is in the folder: it is always gone on with."""
    unfinished = (folder / OPTIONS).exists() and not finished(folder, evaluated)
    return unfinished and not differences(read_json(folder / OPTIONS, "run options"), options)


@contextmanager
def occupied(
    folder: Path,
    options: Mapping[str, object],
    overwrite: bool,
    environment: Mapping[str, object],
    evaluated: bool = True,
) -> Iterator[None]:
    """The run's folder for this process alone, with its options and its environment in it.

    A run that is to be replaced waits in a hidden folder beside until the new one is trained. If the context
    ends with an error before anything was saved, the folder is as it was before. If a process was killed
    while it moved a run, the run is put together again first; then it is decided what may be done with it.

    Raises:
        ValueError: as :func:`check_free`, or because another process is at work in the folder.
    """
    check_free(folder, options, overwrite, evaluated=evaluated)
    made = [p for p in reversed((folder.resolve(), *folder.resolve().parents)) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        why = wrong.strerror or wrong
        raise ValueError(f"run folder {folder}: cannot be made, {why}; choose another with --out") from wrong
    aside = folder.parent / f".{folder.name}.replaced"
    try:
        with locked(folder):
            if _half(aside).exists() or not _others(folder):
                _put_back(folder, aside)
            check_free(folder, options, overwrite, evaluated=evaluated)
            try:
                _begin(folder, aside, options, environment, goes_on(folder, options, evaluated))
                yield
            except BaseException:
                if not _half(aside).exists() and not _worth(folder):
                    _empty(folder)
                if _half(aside).exists() or not _others(folder):
                    _put_back(folder, aside)
                elif (folder / WEIGHTS).exists():
                    shutil.rmtree(aside, ignore_errors=True)
                raise
            shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        for path in reversed(made):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def _begin(
    folder: Path,
    aside: Path,
    options: Mapping[str, object],
    environment: Mapping[str, object],
    going_on: bool,
) -> None:
    """Make room if another run is to be replaced, and write down what this one is."""
    for path in folder.rglob(".*"):
        if _LEFT.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
    if _others(folder) and not going_on:
        if aside.exists() and not (folder / WEIGHTS).exists():
            _empty(folder)  # aside is a run that this one was to replace, and did not live to do
        else:
            shutil.rmtree(aside, ignore_errors=True)  # replaced by the trained run that is here now
            _move(_others(folder), _half(aside))
            _half(aside).rename(aside)
    try:
        if going_on and (folder / ENVIRONMENT).exists():
            before = read_json(folder / ENVIRONMENT, "environment")
            again = before.get("resumed", [])
            environment = {**before, "resumed": [*(again if isinstance(again, list) else []), environment]}
        write_json(folder / OPTIONS, options)
        write_json(folder / ENVIRONMENT, environment)
    except OSError as wrong:
        why = wrong.strerror or wrong
        raise ValueError(f"{folder}: expected to write here, got {why}; choose another with --out") from wrong


def _others(folder: Path) -> list[Path]:
    """What is in a folder beside the lock and what was never finished; what says that a run is there comes
    last, so that a folder which is being moved is known for what it is until it is empty."""
    found = [p for p in folder.iterdir() if p.name != LOCK] if folder.is_dir() else []
    found = [p for p in found if not _LEFT.fullmatch(p.name)]
    return sorted(found, key=lambda p: (p.name == OPTIONS, p.name == WEIGHTS, p.name))


def _worth(folder: Path) -> bool:
    """Whether something was saved from which one could go on, here, in a teacher's folder below, or where
    somebody has put it by."""
    found = (path.relative_to(folder).parts for path in folder.rglob(f"*{Path(WEIGHTS).suffix}"))
    return any(not any(part.startswith(".") for part in parts) for parts in found)


def _empty(folder: Path) -> None:
    for path in _others(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _half(aside: Path) -> Path:
    """Where a run is while it is moved aside or back."""
    return aside.with_name(f"{aside.name}.part")


def _put_back(folder: Path, aside: Path) -> None:
    """Move a run that was moved aside, whole or in part, back into its folder; what says that a run is there
    goes first."""
    half = _half(aside)
    if aside.is_dir() and not half.exists():
        aside.rename(half)
    if half.is_dir():
        _move(reversed(_others(half)), folder)
        shutil.rmtree(half, ignore_errors=True)


def _move(paths: Iterable[Path], target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in paths:
        path.rename(target / path.name)
