"""Run folders: what a run leaves, and how it is read again.

    options.json          what was asked for, resolved; ``saltus run FOLDER/options.json`` repeats it
    environment.json      where and with what: versions, commit, device, processes
    metrics.jsonl         one line a logged step
    evaluations.jsonl     figures of the weights while they were trained
    grids/000500.png      samples after so many steps
    checkpoints/          everything needed to go on
    model.safetensors     averaged and raw weights; the construction options are in its metadata
    samples.png           samples of the averaged weights
    evaluation.json       figures, once ``saltus evaluate`` or the run's own end has measured them
    scores.json           figures by features, each with its protocol, of saltus evaluate with such options
    report.html           all of it on one page

A run is finished when its weights file is there; before that, the same command goes on with it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "CHECKPOINTS",
    "ENVIRONMENT",
    "EVALUATION",
    "EVALUATIONS",
    "GRIDS",
    "METRICS",
    "OPTIONS",
    "SAMPLES",
    "SCORES",
    "WEIGHTS",
    "check_above",
    "check_file",
    "read_json",
    "weights_of",
    "whole",
    "write_json",
]

OPTIONS, METRICS, WEIGHTS = "options.json", "metrics.jsonl", "model.safetensors"
SAMPLES, EVALUATION, SCORES = "samples.png", "evaluation.json", "scores.json"
ENVIRONMENT, CHECKPOINTS = "environment.json", "checkpoints"
EVALUATIONS, GRIDS = "evaluations.jsonl", "grids"


def check_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise a ValueError unless a file with one of the suffixes may be written to ``path``."""
    if path.suffix not in suffixes:
        raise ValueError(f"out {path}: expected a name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"out {path}: expected a file, got a folder; choose another name with --out")
    check_above(path, f"out {path}")


def check_above(path: Path, what: str) -> None:
    """Raise a ValueError unless the folders above ``path`` are there or can be made."""
    above = next(p for p in path.resolve().parents if p.exists())
    if not above.is_dir():
        raise ValueError(f"{what}: expected folders above it, got file {above}; choose another with --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{what}: no permission to write in {above}; choose another with --out")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; it takes the place of ``path`` if the context ends without an
    error, and is removed otherwise."""
    draft = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield draft
        draft.replace(path)
    except OSError as wrong:
        why = wrong.strerror or wrong
        raise ValueError(f"{path}: expected to write here, got {why}; choose another with --out") from wrong
    finally:
        draft.unlink(missing_ok=True)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file, or a ValueError that names ``what`` was expected."""
    if not path.is_file():
        raise ValueError(f"{what}: expected a file {path}, found none; is this a run folder?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as wrong:  # too many digits, too deep
        raise ValueError(f"{what}: expected JSON in {path}, got {wrong}; the file is damaged") from wrong
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected a JSON object in {path}, got {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON beside the file and rename it, so that the file is whole at every moment."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def weights_of(run: Path) -> Path:
    """The weights of a finished run, or a ValueError that says what is missing."""
    path = run if run.suffix == Path(WEIGHTS).suffix else run / WEIGHTS
    if not run.exists():
        raise ValueError(f"run {run}: expected a run folder, found nothing there; saltus run makes one")
    if not path.is_file() and (run / OPTIONS).is_file():
        raise ValueError(
            f"run {run}: expected a finished run, got one that still trains or was stopped; give its command "
            "again and let it end, or take what it has saved with saltus sample or saltus export"
        )
    if not path.is_file():
        raise ValueError(f"run {run}: expected {WEIGHTS} in it, found none; is this a run folder?")
    return path
