"""A run that goes on with another number of processes, and one that is told to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from saltus.cli import main
from saltus.training import Checkpoints

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TINY = ["run", "gaussian-lsd", "--size", "tiny", "--batch", "16", "--grid-every", "0", "--skip-evaluation"]
SHORT = [*TINY, "--steps", "20", "--save-every", "5", "--keep-last", "9", "--power-ema", "0.1"]
LONG = [*TINY, "--steps", "1200", "--save-every", "1000"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def several(processes: int, options: list[str], out: Path) -> subprocess.Popen[str]:
    command = [*TORCHRUN, f"--nproc-per-node={processes}", "-m", "saltus", *options, "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


def play(processes: int, options: list[str], out: Path) -> None:
    """The command to its end, with so many processes."""
    if processes == 1:
        assert main([*options, "--out", str(out)]) == 0
        return
    run = several(processes, options, out)
    _, said = run.communicate(timeout=200)
    assert run.returncode == 0, said[-3000:]


def cut_off(run: Path, step: int, to: Path) -> Path:
    """The run as it was when it had just been saved after ``step`` steps."""
    shutil.copytree(run, to)
    for name in ("model.safetensors", "samples.png", "report.html"):
        (to / name).unlink()
    for path in (to / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return to


def last_line(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return found


def close(run: Path, truth: Path) -> None:
    """All that the last checkpoints hold, and the figures of the last step."""
    ours, theirs = (Checkpoints(path / "checkpoints").open(20) for path in (run, truth))
    assert sorted(ours.names()) == sorted(theirs.names())
    for name in theirs.names():
        a, b = ours.tensor(name), theirs.tensor(name)
        assert a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-3, atol=1e-5), name
    a, b = last_line(run), last_line(truth)
    assert a["step"] == b["step"] == 20
    for key in ("loss", "grad_norm", "lr"):
        assert a[key] == pytest.approx(b[key], rel=1e-4), key


def test_the_number_of_processes_may_change(tmp_path: Path) -> None:
    """From two to one to four: weights, averages and optimisers are those of one process throughout."""
    alone, two = tmp_path / "alone", tmp_path / "two"
    play(1, SHORT, alone)
    play(2, SHORT, two)
    close(two, alone)
    files = Checkpoints(two / "checkpoints").open(5).manifest.files
    assert len(files) == 2 and all(file.bytes > 1000 for file in files.values()), "each wrote a part"
    one = cut_off(two, 5, tmp_path / "one")
    play(1, SHORT, one)
    close(one, alone)
    four = cut_off(one, 10, tmp_path / "four")
    play(4, SHORT, four)
    close(four, alone)
    resumed = json.loads((four / "environment.json").read_text())["resumed"]
    assert [r["processes"] for r in resumed] == [1, 4]
    counts = [len(Checkpoints(four / "checkpoints").open(step).manifest.files) for step in (5, 10, 15, 20)]
    assert counts == [2, 1, 4, 4]


def test_processes_that_are_told_to_end_save_once_and_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = several(2, LONG, out)
    metrics = out / "metrics.jsonl"
    for _ in range(2400):
        if run.poll() is not None or (metrics.exists() and metrics.stat().st_size):
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    printed, said = run.communicate(timeout=100)
    assert run.returncode not in (0, None), printed
    checkpoints = Checkpoints(out / "checkpoints")
    (step,) = checkpoints.steps()
    assert checkpoints.newest() is not None and 50 <= step < 1000
    assert said.count(f"stopped after step {step:,}, which is saved") == 1, said[-3000:]
    assert not list(out.rglob(".draft*")) and not (out / "model.safetensors").exists()
    play(1, LONG, out)
    assert (out / "model.safetensors").exists() and checkpoints.steps()[0] == step
    rows = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert rows == list(range(50, 1201, 50)), "no line is lost or doubled"
