"""A run on pictures from a disk: the same weights however they are brought, and a teacher for others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saltus.cli import main
from saltus.recipes.app import easel_of
from saltus.recipes.averages import Choice

RNG = np.random.default_rng(0)
TINY = ["--steps", "6", "--batch", "8", "--size", "tiny", "--skip-evaluation", "--quiet", "--grid-every", "0"]
PLAIN = ["--workers", "0", "--ahead", "0", "--cache-memory", "0"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve pictures of 12 x 10 pixels in two classes, and a folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SALTUS_DEBUG", raising=False)
    for k in range(12):
        place = Path("photos", ("cats", "dogs")[k % 2], f"{k}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(place)


def test_the_weights_do_not_depend_on_how_pictures_are_brought(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "pictures-lsd", "--data", "photos", "--image-size", "8", "--flip", *TINY]
    assert main([*run, *PLAIN, "--out", "a"]) == 0
    assert main([*run, "--workers", "1", "--cache-folder", "kept", "--out", "b"]) == 0
    weights = [Path(name, "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1] and list(Path("kept").glob("*.pixels"))
    said = json.loads(Path("a/options.json").read_text())
    assert len(said["files"]["data"]) == 16 and said["options"]["recipe"]["pictures"]["image_size"] == 8
    assert main(["run", "a/options.json", *TINY[-3:], "--out", "c"]) == 0
    assert Path("c/model.safetensors").read_bytes() == weights[0]
    for name in ("model.safetensors", "samples.png"):
        Path("a", name).unlink()
    capsys.readouterr()
    os.utime("photos/cats/0.png", ns=(0, 0))
    assert main([*run, *PLAIN, "--out", "a"]) == 2  # other workers would do, other pictures would not
    told = capsys.readouterr().err
    assert "other options (data: " in told and "workers" not in told


def test_a_student_learns_of_a_teacher_and_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["run", "pictures-flow_matching", "--data", "photos", "--image-size", "8", *PLAIN, *TINY]
    assert main([*teacher, "--out", "teacher"]) == 0
    student = ["distill", "teacher", "--method", "lmd", *TINY[:4], *TINY[6:], "--out", "student"]
    assert main([*student, "--data", "photos"]) == 0
    for run in ("teacher", "student"):  # which know what a page calls the classes
        assert easel_of(Path(run), "cpu", None, Choice()).names() == ("cats", "dogs")
    assert "data" in json.loads(Path("student/options.json").read_text())["files"]
    own = [
        "run",
        "pictures-lmd",
        "--data",
        "photos",
        "--image-size",
        "8",
        *PLAIN,
        *TINY,
        "--teacher-steps",
        "2",
    ]
    assert main([*own, "--out", "own"]) == 0
    said = json.loads(Path("own/teacher/options.json").read_text())["options"]["recipe"]
    assert said["pictures"]["image_size"] == 8 and said["data"] == str(Path("photos").resolve())
    capsys.readouterr()
    faults = {
        "expected pictures of 2 classes, as pictures-flow_matching was trained with, got none": "photos/cats",
        "expected a folder or a file": "nowhere/at/all",
    }
    for told, place in faults.items():
        assert main([*student[:-1], "other", "--data", place]) == 2
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1, err
    assert main([*student[:-1], "other", "--data", "phots"]) == 2
    assert "expected a recipe's name" in capsys.readouterr().err
    assert main([*student[:-1], "other", "--data", "pictures"]) == 2
    assert "expected a recipe with data of its own" in capsys.readouterr().err


def test_corrupt_pictures_are_named_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/dogs/3.png").write_bytes(b"hello")
    run = ["run", "pictures-lsd", "--data", "photos", "--image-size", "8", *PLAIN, *TINY, "--out", "x"]
    assert main(run) == 2
    told = capsys.readouterr().err
    assert "1 cannot be decoded: dogs/3.png (no picture" in told and told.count("\n") == 1
    run.remove("--quiet")
    assert main([*run, "--corrupt", "skip"]) == 0
    assert "photos: left out 1 of 12 pictures that cannot be decoded: dogs/3.png" in capsys.readouterr().err
