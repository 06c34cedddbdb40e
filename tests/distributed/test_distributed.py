"""Two and four processes against one, on the CPU, in float64: losses, gradients, weights and averages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import CASES, CPU, ROWS, SHARES
from safetensors.torch import load_file
from torch import Tensor

from saltus.objectives.sum import assign
from saltus.training import World

TOLERANCE = 1e-12
CASES_OF = {
    2: (
        *("lsd:1:1", "lsd:2:1", "mean_flow:1:1", "mean_flow:4:1", "freeflow:1:1", "freeflow_fixed:1:1"),
        *("freeflow_fixed:2:1", "uneven:1:1", "uneven:2:1", "groups:1:1", "learned:1:1", "learned:2:1"),
        *(
            "whole_network:2:1",
            "attention:2:1",
            "magnitude:1:1",
            "recomputing:2:1",
            "compiling:1:1",
            "initial:1:1",
            "targets:1:1",
            "agreements:1:1",
        ),
        *("agreements:4:1",),
    ),
    4: (
        *("lsd:1:1", "lsd:2:1", "mean_flow:2:1", "freeflow:1:1", "freeflow_fixed:2:1", "uneven:1:1"),
        *("learned:2:1", "initial:1:1", "targets:1:1", "agreements:2:1", "pieces:1:1"),
        *("lsd:1:2", "lsd:2:2", "freeflow_fixed:1:2", "learned:2:2", "initial:1:2", "targets:1:2"),
        *("pieces:1:2",),
    ),
}
"""Of a number of processes, each with its micro-batches and the replicas of its weights."""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Plays the cases of a number of processes, once; the folder of what they found."""

    @cache
    def play(processes: int) -> Path:
        folder = tmp_path_factory.mktemp("found")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        script = [str(Path(__file__).with_name("cases.py")), str(folder), *CASES_OF[processes]]
        done = subprocess.run(
            [*torchrun, f"--nproc-per-node={processes}", *script],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return folder

    return play


@cache
def alone(name: str) -> dict[str, Tensor]:
    """What one process finds, without micro-batches."""
    return CASES[name](World.alone(CPU), 1)


@pytest.mark.parametrize(
    ("processes", "case"), [(n, case) for n, several in CASES_OF.items() for case in several]
)
def test_several_processes_equal_one(together: Callable[[int], Path], processes: int, case: str) -> None:
    found, truth = load_file(together(processes) / case), alone(case.partition(":")[0])
    assert found.keys() == truth.keys()
    for key, value in truth.items():
        worst = float((found[key] - value.detach()).abs().max())
        assert worst < TOLERANCE, f"{key} differs by {worst:.1e}"


def test_initial_weights_are_those_of_one_process_bit_for_bit(together: Callable[[int], Path]) -> None:
    for key, value in load_file(together(2) / "initial:1:1").items():
        assert torch.equal(value, alone("initial")[key]), key


def test_the_cases_are_not_trivial() -> None:
    """The uneven parts are uneven, the clipping clips, losses and gradients are not zero."""
    owner = assign(torch.arange(ROWS), SHARES).reshape(4, -1).sum(1)
    assert len(set(owner.tolist())) > 1
    for name in ("lsd", "mean_flow", "freeflow", "uneven", "learned"):
        found = alone(name)
        values = found["student/values/0"]
        assert values[1] > 0.2 and values[0].abs() > 1e-3, name
        assert all(g.abs().max() > 1e-9 for key, g in found.items() if "/gradient/" in key), name


def test_what_cannot_be_is_told() -> None:
    two = World(rank=1, size=2, device=CPU)
    with pytest.raises(ValueError, match="batch 10: expected a multiple of 4"):
        two.rows(10, accumulate=2)
    assert [rows.tolist() for rows in two.rows(8, accumulate=2)] == [[4, 5], [6, 7]]


def test_a_torchrun_environment_that_is_not_whole_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK"):
        World.join(CPU)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="replicas: expected a divisor of the 2 processes, got 3"):
        World.join(CPU, replicas=3)
