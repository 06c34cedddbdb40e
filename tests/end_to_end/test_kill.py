"""SIGKILL in every phase of a run, and at random moments: the same command goes on, and what it leaves in the
end is what an undisturbed run leaves, byte for byte.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from killed import PHASES

from saltus.training import Checkpoints

CLOCKS = {"seconds", "steps_per_second", "samples_per_second", "ms"}
TINY = ["--size", "tiny", "--batch", "16", "--keep-last", "2", "--grid-every", "0"]
PLAIN = ["run", "gaussian-lsd", *TINY, "--steps", "210", "--save-every", "6", "--ema", "0.9", "0.99"]
TAUGHT = ["run", "digits-freeflow", *TINY, "--steps", "60", "--teacher-steps", "60", "--save-every", "4"]
TAUGHT += ["--skip-evaluation"]
CRUCIAL = (
    *("shard half written", "manifest in a draft", "renamed, not pruned", "pruning half done"),
    *("weights beside their place", "weights without pictures", "pictures without evaluation"),
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
SCRIPT = Path(__file__).with_name("killed.py")


def finish(options: Sequence[str], out: Path) -> str:
    """The command itself, to its end."""
    command = [sys.executable, "-m", "saltus", *options, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


Kill = Callable[[str, int, Sequence[str], Path], str]


@pytest.fixture(scope="module")
def kill() -> Iterator[Kill]:
    """Plays the command until it is killed; what is then there."""
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as server:
        assert server.stdin is not None and server.stdout is not None

        def play(phase: str, count: int, options: Sequence[str], out: Path) -> str:
            said = out.with_name("said")
            order = [phase, count, [*options, "--out", str(out)], str(said)]
            server.stdin.write(json.dumps(order) + "\n")  # type: ignore[union-attr]
            server.stdin.flush()  # type: ignore[union-attr]
            status = int(server.stdout.readline())  # type: ignore[union-attr]
            assert status == -signal.SIGKILL, f"{phase}: status {status}, {said.read_text()[-900:]}"
            return found(out)

        yield play
        server.stdin.close()


def found(out: Path) -> str:
    """In which phase a run was killed, by what it has left."""
    drafts = [p for p in out.rglob(".draft-*") if p.is_dir()]
    inside = {p.name for draft in drafts for p in draft.iterdir()}
    if any("-gone-" in draft.name for draft in drafts):
        return "while pruning"
    if drafts:
        kinds = [kind for kind in ("manifest", ".json", "shard") if any(kind in name for name in inside)]
        return {"manifest": "manifest in a draft", ".json": "notes", "shard": "shard", "": "draft"}[
            kinds[0] if kinds else ""
        ]
    if (out / "model.safetensors").exists():
        return "after training"
    return "between saves"


def contents(out: Path) -> dict[str, object]:
    """What a run has left, without what clocks say."""
    kept: dict[str, object] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if name.endswith(".jsonl") or path.name == "evaluation.json":
            kept[name] = [timeless(json.loads(line)) for line in lines(path)]
        elif path.name in ("environment.json", "report.html", "manifest.json"):
            kept[name] = "there"
        else:
            kept[name] = path.read_bytes()
    return kept


def lines(path: Path) -> list[str]:
    text = path.read_text()
    return [text] if path.suffix == ".json" else text.splitlines()


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if key not in CLOCKS}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def same(out: Path, truth: Path) -> None:
    ours, theirs = contents(out), contents(truth)
    assert ours.keys() == theirs.keys()
    different = [name for name, value in theirs.items() if ours[name] != value]
    assert not different
    assert "model.safetensors" in ours and not list(out.rglob(".draft*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def ran(name: str) -> Path:
        out = tmp_path_factory.mktemp("truth") / "run"
        finish({"plain": PLAIN, "taught": TAUGHT}[name], out)
        return out

    return ran


def goes_on(phases: Sequence[str], kill: Kill, truth: Path, out: Path) -> None:
    """One run killed in all these phases, one after another."""
    before = -1
    for phase in phases:
        here = kill(phase, 2 if phase in SAVING else 1, PLAIN, out)
        steps = Checkpoints(out / "checkpoints").steps()
        newest = Checkpoints(out / "checkpoints").newest()
        assert (newest.step if newest else -1) >= before, "a checkpoint was lost"
        before = newest.step if newest else -1
        print(f"killed: {phase}; found: {here}, checkpoints {steps}")
    finish(PLAIN, out)
    same(out, truth)


SAVING = tuple(PHASES)[: tuple(PHASES).index("last step")]


def test_killed_in_the_crucial_phases(undisturbed: Callable[[str], Path], kill: Kill, tmp_path: Path) -> None:
    goes_on(CRUCIAL, kill, undisturbed("plain"), tmp_path / "run")


@pytest.mark.all
def test_killed_in_every_phase(undisturbed: Callable[[str], Path], kill: Kill, tmp_path: Path) -> None:
    goes_on(tuple(PHASES), kill, undisturbed("plain"), tmp_path / "run")


@pytest.mark.all
def test_killed_at_random_moments(undisturbed: Callable[[str], Path], kill: Kill, tmp_path: Path) -> None:
    """Twenty and more times over one training, until training is over."""
    draw, out, hit = random.Random(0), tmp_path / "run", dict[str, int]()
    options = [*PLAIN, "--steps", "4000", "--save-every", "10"]
    truth = tmp_path / "truth"
    finish(options, truth)
    for k in range(24):
        here = kill(f"{draw.uniform(0.0, 90.0):.3f}", 1, options, out)
        hit[here] = hit.get(here, 0) + 1
        print(f"kill {k}: {here}, checkpoints {Checkpoints(out / 'checkpoints').steps()}")
    print(f"phases that random kills have hit: {hit}")
    said = finish(options, out)
    assert re.search(r"going on with gaussian-lsd after step [\d,]+ of 4,000", said)
    same(out, truth)


@pytest.mark.all
def test_killed_while_a_teacher_and_its_student_learn(
    undisturbed: Callable[[str], Path], kill: Kill, tmp_path: Path
) -> None:
    """The first three are the teacher's, and so is the fourth, which ends its training."""
    phases = ("shard half written", "renamed, not pruned", "weights beside their place")
    phases += (
        "weights without pictures",
        "manifest in a draft",
        "pruning half done",
        "weights beside their place",
    )
    out = tmp_path / "run"
    for k, phase in enumerate(phases):
        kill(phase, 2 if phase in SAVING else 1, TAUGHT, out)
        ours, theirs = ((p / "model.safetensors").exists() for p in (out, out / "teacher"))
        print(f"killed: {phase}; teacher {'finished' if theirs else 'in training'}")
        assert not ours and theirs == (k > 2)
    said = finish(TAUGHT, out)
    assert "going on with digits-freeflow" in said
    same(out, undisturbed("taught"))
