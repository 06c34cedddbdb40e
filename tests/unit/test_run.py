"""A run saves what it is, says so truly when it is told to end, and takes all of it up again."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from saltus.cli import main
from saltus.games import Game, Move
from saltus.recipes import train
from saltus.recipes.folder import read_json
from saltus.streams import Streams
from saltus.training import EMA, AdamW, Fit, NonFiniteLoss, Run, Stopped, checkpoint, fit, initialised, locked
from saltus.typing import Batch, Draws, Term


@dataclass(frozen=True, eq=False)
class Breaks:
    """A square that is NaN in one step."""

    student: nn.Linear
    step: int = -1

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {"bad": torch.tensor(float("nan") if rng.step == self.step else 0.0)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        bad = draws["bad"]
        assert isinstance(bad, Tensor)
        return {"square": Term(self.student(batch.x0).squeeze(1) ** 2 + bad)}


@dataclass(eq=False)
class Turns:
    """How often something was done after a move."""

    count: Tensor

    def __call__(self) -> None:
        self.count += 1


def source(rng: Streams) -> Batch:
    return Batch(rng.normal("x0", 1))


def played(breaks: int = -1, skip: int = 0) -> tuple[Fit, Turns, nn.Linear]:
    student = initialised(0, lambda: nn.Linear(1, 1))
    turns = Turns(torch.zeros(()))
    game = Game((Move("student", student, Breaks(student, breaks), after=(turns,)),))
    return fit(game, source, steps=9, seed=0, batch=8, optimizer=AdamW(0.01), skip=skip), turns, student


def silent(line: str) -> None:
    pass


def test_moves_that_were_left_out_are_counted_on_after_a_resume(tmp_path: Path) -> None:
    """And what is done after a move is not done after one that was left out, nor is it averaged."""
    made, turns, student = played(breaks=2, skip=1)
    ema = EMA(student, 0.9)
    with Run(tmp_path, save_every=4, say=silent) as run:
        run.resume(made, {"ema": ema})
        for step in made:
            train._average({"ema": ema}, step)
            run.after(step)
    assert made.skipped == 1 and turns.count == 8 and ema.count == 8
    again, turns, _ = played(breaks=8, skip=1)
    assert Run(tmp_path, say=silent).resume(again, {"ema": EMA(student, 0.9)}) == 8
    assert again.skipped == 1 and turns.count == 7
    with pytest.raises(NonFiniteLoss):  # the one that may be left out has been
        list(again)


def test_what_is_not_finite_is_told_as_that_before_it_is_saved(tmp_path: Path) -> None:
    made, _, _ = played(breaks=2)
    with pytest.raises(NonFiniteLoss, match="step 2"), Run(tmp_path, save_every=2, say=silent) as run:
        run.resume(made, {})
        for step in made:
            run.after(step)
    assert Run(tmp_path).checkpoints.steps() == [2]


def test_a_run_that_could_not_save_does_not_say_that_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to end on a full disk: the fault, not the status of an orderly end."""

    def full(path: Path, tensors: dict[str, Tensor]) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for broken in (False, True):
        if broken:
            monkeypatch.setattr(checkpoint, "write_shard", full)
        made, _, _ = played()
        kind, words = (ValueError, "No space left") if broken else (Stopped, "143")
        with pytest.raises(kind, match=words), Run(tmp_path / str(broken), save_every=0, say=silent) as run:
            run.resume(made, {})
            for step in made:
                os.kill(os.getpid(), signal.SIGTERM)
                run.after(step)
        assert Run(tmp_path / str(broken)).checkpoints.steps() == ([] if broken else [1])


def test_a_start_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    draft = tmp_path / ".draft-00000000-step-00000004"
    draft.mkdir()
    (draft / "shard-00000-of-00001.safetensors").write_bytes(b"half")
    Run(tmp_path, say=silent).resume(played()[0], {})
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_removed_while_it_was_opened_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ended a moment ago took its file away between our opening and our locking it."""
    real, calls = fcntl.flock, 0

    def late(handle: int, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / ".lock").unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path), pytest.raises(ValueError, match="is training in it"), locked(tmp_path):
        pass
    assert calls == 3


def test_the_last_step_is_measured_and_drawn_whatever_the_schedule(tmp_path: Path) -> None:
    words = ["--steps", "5", "--batch", "8", "--size", "tiny", "--skip-evaluation", "--quiet"]
    every = ["--evaluate-every", "2", "--grid-every", "2"]
    assert main(["run", "gaussian-lsd", *words, *every, "--out", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run/evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 5]
    grids = sorted(path.name for path in (tmp_path / "run/grids").glob("*.png"))
    assert grids == ["000002.png", "000004.png", "000005.png"]


@pytest.mark.parametrize("text", ["[" * 200_000, '{"steps": ' + "1" * 5000 + "}", '{"a": ', "\udcff"])
def test_options_that_are_no_json_are_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(ValueError, match="run options: expected JSON in"):
        read_json(path, "run options")
