"""A run goes on with what it began with, or says so; and no file of options says what is written over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saltus.cli import main

TINY = ["--steps", "4", "--batch", "8", "--size", "tiny", "--skip-evaluation", "--quiet", "--grid-every", "0"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SALTUS_DEBUG", raising=False)


def test_a_teacher_or_data_that_changed_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.save("x.npy", rng.normal(size=(32, 2)))
    teacher = ["run", "gaussian-flow_matching", *TINY, "--out", "teacher"]
    assert main(teacher) == 0
    student = ["distill", "teacher", "--method", "lmd", "--data", "x.npy", *TINY[:4], *TINY[6:]]
    student += ["--save-every", "2", "--out", "student"]
    assert main(student) == 0
    for name in ("model.safetensors", "samples.png"):
        Path("student", name).unlink()
    first = {name: Path(name).read_bytes() for name in ("teacher/model.safetensors", "x.npy")}
    np.save("x.npy", rng.normal(size=(32, 2)))
    capsys.readouterr()
    assert main(student) == 2
    assert "other options (data: " in capsys.readouterr().err
    Path("x.npy").write_bytes(first["x.npy"])
    assert main([*teacher, "--overwrite", "--seed", "1"]) == 0
    assert main(student) == 2
    assert "other options (teacher's weights: " in capsys.readouterr().err
    assert not Path("student/model.safetensors").exists()
    Path("teacher/model.safetensors").write_bytes(first["teacher/model.safetensors"])
    assert main(student) == 0 and Path("student/model.safetensors").is_file()


BAD: dict[str, dict[str, Any]] = {
    "a group": {"output": {"out": "mine", "overwrite": True}},
    "a field": {"training": {"steps": 2, "overwrite": True, "out": "mine"}},
    "within a list": {"training": {"betas": ["0.9", "0.99", "--overwrite", "--out", "mine"]}},
    "a short one within a list": {"training": {"betas": ["0.9", "-x"]}},
    "within a name": {"training": {"steps=3": 2, "out=mine": ""}},
    "a value": {"training": {"precision": "--overwrite"}},
    "within the machine": {"training": {"machine": {"overwrite": True}}},
}


@pytest.mark.parametrize("evil", BAD.values(), ids=BAD)
def test_a_file_of_options_says_nothing_of_where_results_go(
    evil: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody else's options.json must not replace a run of mine."""
    saved = {"recipe": "gaussian", "method": "lsd", "options": evil}
    Path("evil.json").write_text(json.dumps(saved))
    assert main(["run", "evil.json", "--dry-run", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("saltus: error: saved options: expected ") and said.count("\n") == 1
