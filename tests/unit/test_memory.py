"""The count of memory against the record of PyTorch's own allocator, and a run that has too little of it."""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from copy import deepcopy
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from saltus.autodiff import derivative
from saltus.recipes.averages import averages
from saltus.recipes.exhausted import LOADED, explained
from saltus.recipes.experiment import Experiment
from saltus.recipes.memory import SAVED, footprint, growth
from saltus.recipes.pace import measured
from saltus.recipes.resolve import experiment
from saltus.training.memory import (
    Tracker,
    forget_peak,
    free_memory,
    is_out_of_memory,
    memory_now,
    memory_peak,
    unallocated,
)

CPU = torch.device("cpu")
TRAININGS = (
    "mixture-psd --backbone mlp --batch 512 --accumulate 2",
    "digits-lsd --size tiny --batch 128",
    "digits-freeflow --size tiny --batch 64",
    pytest.param(
        "digits-mean_flow --size tiny --batch 128 --optimizer muon --ema 0.9 0.99", marks=pytest.mark.all
    ),
    pytest.param("digits-lsd --backbone dit --size tiny --batch 8", marks=pytest.mark.all),
    pytest.param("digits-lsd --backbone unet --size tiny --batch 8", marks=pytest.mark.all),
    pytest.param("digits-consistency_training --backbone unet --size tiny --batch 8", marks=pytest.mark.all),
    pytest.param("mixture-progressive --backbone mlp --batch 256 --steps 8", marks=pytest.mark.all),
)


def asked(line: str, *more: str) -> Experiment:
    name, *words = line.split()
    return experiment(name, [*words, "--precision", "float32", "--device", "cpu", "--save-every", "0", *more])


def allocated(made: Experiment, folder: Path) -> int:
    """The most bytes alive at once, by the allocator, while real networks are made and play the steps that
    are counted: the first two, one in the middle and the last but one; of stages all."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        if made.first is not None:
            made = made.under(made.first.model().eval().requires_grad_(False))
        student = made.model()
        kept = averages(made.training, student)
        steps = made.fit(student)
        last = made.training.steps
        for index in range(last) if steps.length < last else (0, 1, last // 2, last - 2):
            steps.index = index
            gc.collect()
            next(steps)
            for average in kept.values():
                average.update()
    path = folder / "trace.json"
    record.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    events.sort(key=lambda e: int(e["args"]["Ev Idx"]))
    return max(accumulate(int(e["args"]["Bytes"]) for e in events))


@pytest.mark.parametrize("line", TRAININGS)
def test_count_is_the_allocators(line: str, tmp_path: Path) -> None:
    made = asked(line)
    counted, truth = footprint(made).total, allocated(made, tmp_path)
    assert counted == pytest.approx(truth, rel=0.03), f"{counted / truth:.3f}"


def test_labels_say_when_a_tensor_was_made() -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 8))
    x, direction = torch.randn(100, 8), torch.ones(100, 8)
    with Tracker() as plain:
        net(x).mean().backward()
    assert set(plain.by_label) == {"backward"}  # the gradients alone are left
    with Tracker() as dual:
        kept = derivative(net, (x,), (direction,))
    assert dual.by_label["derivative"] == dual.live > 2 * 100 * 64 * 4
    assert len(kept) == 2


def test_parts_are_the_tensors_themselves() -> None:
    made = asked("digits-freeflow --size tiny --batch 16", "--ema", "0.9", "0.99")
    parts = footprint(made).parts
    weights = sum(t.nbytes for t in [*made.model().parameters(), *made.model().buffers()])
    assert parts["student"] == parts["teacher"] == parts["critic"] == weights
    assert parts["averages"] == 2 * weights + 2 * 8  # and two counts
    assert parts["optimiser"] == pytest.approx(4 * weights, rel=1e-3)  # two moments of two players


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_copies_without_memory_share_one_mode() -> None:
    """A copied mode frees its weak references to storages a second time: a fault of memory, much later."""
    with unallocated():
        net = nn.Linear(3, 3)
    copy = deepcopy(net)
    assert copy.weight is not net.weight
    assert copy.weight.fake_mode is net.weight.fake_mode


@pytest.mark.all
def test_counting_takes_no_memory() -> None:
    made = asked("digits-lsd --backbone dit --size base --batch 256")
    footprint(asked("digits-lsd --backbone dit --size tiny --batch 4"))  # what is loaded at first use
    gc.collect()
    forget_peak(CPU)
    before = memory_now(CPU)
    counted = footprint(made).total
    if memory_peak(CPU) == 0:
        pytest.skip("this system does not say how much memory a process takes")
    assert counted > 2 * 2**30
    assert memory_peak(CPU) - before < counted / 20


@pytest.mark.parametrize(
    "line",
    ["digits-lsd --size tiny", pytest.param("digits-mean_flow --size tiny", marks=pytest.mark.all)],
)
def test_memory_is_affine_in_the_rows(line: str) -> None:
    """Two counts of rows foretell another, within what the random split of the rows leaves open."""
    made = asked(line, "--batch", "512")
    grown = growth(made, rows=256)
    assert grown.at(512) == pytest.approx(footprint(made).total, rel=0.05)
    room = grown.memory.total + 100.5 * grown.row
    assert grown.fits(room) == 356 and grown.at(356) <= room < grown.at(357)
    assert grown.fits(grown.memory.fixed / 2) == 0


def test_devices_divide_weights_and_rows() -> None:
    made = asked("digits-lsd --backbone dit --size tiny --batch 64")
    one, four = footprint(made), footprint(made, devices=4)
    assert four.rows == 16
    for part in ("student", "averages", "optimiser"):
        assert four.parts[part] == pytest.approx(one.parts[part] / 4, rel=1e-3)
    assert four.parts["forward"] + four.parts["derivative"] == pytest.approx(
        (one.parts["forward"] + one.parts["derivative"]) / 4, rel=0.1
    )
    student = made.model()
    (blocks,) = (m for name, m in student.named_modules() if name.endswith("blocks"))
    inside = [sum(p.nbytes for p in block.parameters()) for block in blocks.children()]
    outside = sum(p.nbytes for p in student.parameters()) - sum(inside)
    assert four.parts["gathered weights"] == outside + 4 * max(inside)  # weights and gradients, each twice


def test_a_checkpoint_is_a_copy_of_the_state() -> None:
    made = asked("digits-lsd --size tiny --batch 32", "--save-every", "100")
    parts = footprint(made).parts
    assert parts[SAVED] == sum(parts[p] for p in ("student", "averages", "optimiser", "other networks"))


def test_unallocated_tensors_have_no_numbers() -> None:
    with unallocated():
        x = torch.ones(3)
    assert x.shape == (3,) and (x + torch.ones(3)).shape == (3,)
    with pytest.raises(RuntimeError):
        float(x.sum())


def test_pace_is_measured_at_two_counts() -> None:
    pace = measured(asked("mixture-flow_matching --backbone mlp --size tiny"), 64)
    assert pace.measured == (16, 64)
    assert 0.0 < pace(64) <= pace(128) and pace(64, 3) == pytest.approx(3 * pace(64))


@pytest.mark.parametrize(
    ("error", "yes"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_what_a_lack_of_memory_looks_like(error: BaseException, yes: bool) -> None:
    assert is_out_of_memory(error) is yes


@pytest.mark.all
def test_explanation_does_the_arithmetic() -> None:
    made = asked("mixture-lsd --backbone mlp --batch 4096")
    grown = growth(made)
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    error.add_note("at step 7")
    said = str(explained(error, made, LOADED + int(0.7 * grown.memory.total)))
    assert "at step 7" in said and "--accumulate 2" in said and "--batch 2048" in said
    assert "smaller --size" in str(explained(error, made, grown.memory.fixed // 2))


LIMITED = """
import resource, sys
import saltus.recipes.run
from saltus.cli import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20,) * 2)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_run_with_too_little_memory_says_what_would_fit(tmp_path: Path) -> None:
    """... and with what it said the same run is made."""
    line = "run mixture-lsd --backbone mlp --batch 131072 --steps 1 --device cpu --precision float32"
    words = [sys.executable, "-c", LIMITED, *line.split(), "--skip-evaluation", "--quiet"]
    words += ["--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    failed = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert failed.returncode == 2, failed.stderr
    assert failed.stderr.startswith("saltus: error: out of memory at step 0: needs about ")
    assert len(failed.stderr.splitlines()) == 1
    advice = failed.stderr.split("--accumulate ")[1].split()[0]
    again = subprocess.run([*words, "--accumulate", advice], capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_free_memory_obeys_the_limit_of_addresses() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, hard))
        room = free_memory(CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert room is not None and 0 <= room <= 2**28
