"""What is taken from a run that still trains or was stopped, against a training that was never stored."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import saltus
from saltus.cli import main
from saltus.recipes.resolve import experiment
from saltus.training import Checkpoints

SAVED, STEPS = 12, 18
DECAYS = (0.9, 0.5)
OPTIONS = [
    *("--steps", str(STEPS), "--batch", "16", "--lr", "0.02", "--precision", "float32", "--schedule"),
    *("constant", "--ema", *map(str, DECAYS), "--power-ema", "0.05", "0.1", "--power-snapshots", "6"),
]
LEARNED = ["gaussian-scm", "--no-plain"]  # something in its loss learns too
Weights = dict[str, Tensor]


@pytest.fixture(scope="module", params=[["gaussian-lsd"], LEARNED], ids=["lsd", "scm"])
def asked(request: pytest.FixtureRequest) -> list[str]:
    return [*request.param, *OPTIONS]


@pytest.fixture(scope="module")
def stopped(asked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as it was after some of the steps, with an earlier checkpoint in it."""
    folder = tmp_path_factory.mktemp("runs") / "gaussian"
    saving = ["--save-every", "6", "--keep-last", "9", "--skip-evaluation", "--quiet"]
    assert main(["run", *asked, *saving, "--out", str(folder)]) == 0
    (folder / "model.safetensors").unlink()
    for step in Checkpoints(folder / "checkpoints").steps():
        if step > SAVED:
            shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")
    return folder


@pytest.fixture(scope="module")
def truth(asked: list[str]) -> dict[float | None, Weights]:
    """Weights after the steps that were saved, and their averages in float64, by the decay."""
    made = experiment(asked[0], [*asked[1:], "--quiet"])
    student = made.model()
    now = {n: t.double() for n, t in student.state_dict().items()}
    averages = {decay: dict(now) for decay in DECAYS}
    for k, _ in zip(range(SAVED), made.fit(student), strict=False):
        now = {n: t.double() for n, t in student.state_dict().items()}
        for decay, kept in averages.items():
            share = min(decay, (1 + k) / (10 + k))
            averages[decay] = {n: share * kept[n] + (1 - share) * now[n] for n in now}
    return {None: now, **averages}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def distance(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a)


def test_the_weights_are_those_after_the_steps_that_were_saved(
    stopped: Path, truth: dict[float | None, Weights]
) -> None:
    taken = {
        0.9: saltus.load(stopped),
        0.5: saltus.load(stopped, ema=0.5),
        None: saltus.load(stopped, raw=True),
    }
    for decay, done in taken.items():
        assert done.after == SAVED
        assert distance(done.model.state_dict(), truth[decay]) < 1e-6
    assert min(distance(truth[0.9], truth[other]) for other in (0.5, None)) > 1e-3


def test_they_are_drawn_from_and_exported_and_said_to_be_early(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(stopped), "--n", "5", "--out", "x.npy"]) == 0
    assert f"after {SAVED} steps of its training" in capsys.readouterr().out
    assert main(["export", str(stopped), "early.safetensors", "--raw"]) == 0
    assert f"raw after {SAVED} steps of an unfinished run" in capsys.readouterr().out
    alone = saltus.load("early.safetensors")
    assert alone.meta["steps"] == SAVED
    assert "state" not in alone.meta
    assert torch.equal(alone.sample(5), saltus.load(stopped, raw=True).sample(5))


@pytest.mark.parametrize(
    "command", [["distill"], ["evaluate"], ["ema"], ["compare", "other"]], ids=lambda c: str(c[0])
)
def test_what_needs_a_finished_run_says_what_else_can_be_done(
    command: list[str], stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p.name for p in stopped.iterdir())
    assert main([command[0], str(stopped), *command[1:]]) == 2
    told = capsys.readouterr().err
    assert "still trains or was stopped" in told
    assert told.count("\n") == 1
    assert sorted(p.name for p in stopped.iterdir()) == before


def test_a_damaged_checkpoint_is_passed_over_and_none_is_told(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stopped, copy)
    shard = next((copy / "checkpoints" / f"step-{SAVED:08d}").glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    assert saltus.load(copy).after == SAVED - 6
    shutil.rmtree(copy / "checkpoints")
    assert main(["sample", str(copy)]) == 2
    told = capsys.readouterr().err
    assert "has not saved its weights yet" in told
    assert told.count("\n") == 1


def test_a_checkpoint_that_training_removes_meanwhile_is_not_missed(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stopped, copy)
    folder = copy / "checkpoints"
    aside = tmp_path / "aside"
    (folder / f"step-{SAVED:08d}").rename(aside)  # the run saves it, and removes the one before, just then
    opened = Checkpoints.open

    def late(self: Checkpoints, step: int, verified: bool = False) -> object:
        if aside.exists():
            aside.rename(folder / f"step-{SAVED:08d}")
            shutil.rmtree(folder / f"step-{SAVED - 6:08d}")
        return opened(self, step, verified)

    monkeypatch.setattr(Checkpoints, "open", late)
    assert saltus.load(copy).after == SAVED
