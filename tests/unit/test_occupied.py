"""A run's folder: no crash, fault or second command loses a run that was there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from saltus.cli import main
from saltus.maps import NetworkMap
from saltus.recipes import execute
from saltus.recipes.experiment import Experiment
from saltus.recipes.folder import EVALUATION, SAMPLES, WEIGHTS
from saltus.recipes.occupied import occupied
from saltus.training import locked

P = ParamSpec("P")
T = TypeVar("T")
FILES = (WEIGHTS, SAMPLES, EVALUATION, "metrics.jsonl")


def options(lr: float) -> dict[str, Any]:
    return {"recipe": "gaussian", "options": {"training": {"lr": lr}}}


def finish(folder: Path, word: str) -> None:
    for name in FILES:
        (folder / name).write_text(word)
    (folder / "checkpoints/step-00000005").mkdir(parents=True)
    (folder / "checkpoints/step-00000005/shard.safetensors").write_text(word)


def made(folder: Path, lr: float, word: str, overwrite: bool = False) -> None:
    with occupied(folder, options(lr), overwrite, {}):
        finish(folder, word)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


class Killed(BaseException):
    """The process ends at once: nothing after it is done."""


def killed_at(n: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], None]) -> bool:
    """Do ``run`` as if the process were killed before its n-th rename, or removal of a folder; whether it
    came so far."""
    seen = 0
    dead = False

    def before(real: Callable[P, T]) -> Callable[P, T]:
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            nonlocal seen, dead
            seen += 1
            dead = dead or seen == n
            if dead:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", before(os.rename))
        patch.setattr(Path, "rename", before(Path.rename))
        patch.setattr(Path, "unlink", before(Path.unlink))
        patch.setattr(shutil, "rmtree", before(shutil.rmtree))
        try:
            run()
        except Killed:
            return True
    return False


def test_a_run_that_replaces_another_may_be_killed_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each change on the disk: either command then finds the old run whole, or the new one begun."""
    for n in range(1, 26):
        folder = tmp_path / str(n) / "run"
        made(folder, 1.0, "old")
        old = contents(folder)

        def replace(folder: Path = folder) -> None:
            with occupied(folder, options(2.0), True, {}):
                raise Killed  # in the first step

        died = killed_at(n, monkeypatch, replace)
        assert died
        (folder / ".lock").unlink(missing_ok=True)
        with pytest.raises(ValueError, match="finished run|other options"):
            made(folder, 1.0, "silently anew")
        with pytest.raises(ZeroDivisionError), occupied(folder, options(3.0), True, {}):
            raise ZeroDivisionError
        assert contents(folder) == old, f"killed before change {n}"
        assert os.listdir(folder.parent) == ["run"]


def test_a_trained_run_is_not_thrown_away_for_what_it_replaced(tmp_path: Path) -> None:
    """Killed after its weights and before the old run was removed, it is what a later --overwrite keeps."""
    folder = tmp_path / "run"
    made(folder, 1.0, "new")
    made(tmp_path / ".run.replaced", 2.0, "old")
    new = contents(folder)
    with pytest.raises(ZeroDivisionError), occupied(folder, options(3.0), True, {}):
        raise ZeroDivisionError
    assert contents(folder) == new


def test_an_error_removes_no_checkpoint_that_somebody_put_by(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), occupied(folder, options(1.0), False, {}):
        kept = folder / "aside/step-00000005"
        kept.mkdir(parents=True)
        (kept / "shard-00000-of-00001.safetensors").write_text("saved")
        raise ZeroDivisionError
    assert (kept / "shard-00000-of-00001.safetensors").read_text() == "saved"


def test_an_error_before_anything_was_saved_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "above/run"
    with pytest.raises(ZeroDivisionError), occupied(folder, options(1.0), False, {}):
        draft = folder / "checkpoints/.draft-12345678-step-00000005"
        draft.mkdir(parents=True)
        (draft / "shard-00000-of-00001.safetensors").write_text("half")
        raise ZeroDivisionError
    assert not (tmp_path / "above").exists()


def test_nobody_begins_in_a_folder_whose_run_is_being_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    told: list[str] = []
    real = execute.show_samples

    def drawn(made: Experiment, model: NetworkMap, path: Path) -> None:
        with pytest.raises(ValueError, match="is training in it") as error, locked(folder):
            pass
        told.append(str(error.value))
        real(made, model, path)

    monkeypatch.setattr(execute, "show_samples", drawn)
    tiny = ["--steps", "2", "--batch", "8", "--skip-evaluation", "--quiet", "--out", str(folder)]
    assert main(["run", "gaussian-lsd", *tiny]) == 0
    assert told and (folder / SAMPLES).is_file()
    with locked(folder):
        pass
