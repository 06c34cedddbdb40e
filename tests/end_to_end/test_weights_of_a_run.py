"""What a run stores of its weights, against sums over its steps; and commands take those asked for."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import saltus
from saltus.cli import main
from saltus.recipes.averages import due
from saltus.recipes.model import ModelSpec
from saltus.recipes.opened import Finished
from saltus.recipes.options import Training
from saltus.recipes.resolve import experiment
from saltus.training import blend, load_snapshots, load_weights, restore, stored_in

STEPS = 40
OPTIONS = [
    *("--steps", str(STEPS), "--batch", "32", "--lr", "0.02", "--precision", "float32"),
    *("--schedule", "constant"),
    *("--ema", "0.9", "0.5", "0.9999", "--power-ema", "0.05", "0.1", "--power-snapshots", "8"),
]
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with three exponential averages and two power-function ones."""
    folder = tmp_path_factory.mktemp("runs") / "gaussian"
    assert main(["run", "gaussian-lsd", *OPTIONS, "--skip-evaluation", "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def path() -> list[Weights]:
    """The weights before the first step and after each, of the same training without a folder."""
    made = experiment("gaussian-lsd", [*OPTIONS, "--quiet"])
    student = made.model()
    found = [{n: t.double() for n, t in student.state_dict().items()}]
    for _ in made.fit(student):
        found.append({n: t.double() for n, t in student.state_dict().items()})
    return found


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def exponential(decay: float, steps: int) -> list[float]:
    """Shares of the weights before the first step and after each: a_i times all later 1 - a_j."""
    shares = [1.0]
    for k in range(steps):
        kept = min(decay, (1 + k) / (10 + k))
        shares = [kept * c for c in shares] + [1.0 - kept]
    return shares


def exponent(sigma_rel: float) -> float:
    """gamma by bisection of the standard deviation of (gamma + 1) tau^gamma on [0, 1]."""
    low, high = 0.0, 1e4
    for _ in range(200):
        g = 0.5 * (low + high)
        variance = (g + 1) / (g + 3) - ((g + 1) / (g + 2)) ** 2
        low, high = (g, high) if variance > sigma_rel**2 else (low, g)
    return low


def power(sigma_rel: float, steps: int) -> list[float]:
    """The integrals of the profile over each step; nothing is left of the weights before the first."""
    g = exponent(sigma_rel) + 1
    return [0.0, *((i / steps) ** g - ((i - 1) / steps) ** g for i in range(1, steps + 1))]


def average(shares: list[float], path: list[Weights]) -> Weights:
    """The weighted sum of all weights of a path, float64."""
    assert math.isclose(sum(shares), 1.0, rel_tol=1e-9)
    return {n: sum(c * w[n] for c, w in zip(shares, path, strict=False)) for n in path[0]}  # type: ignore[misc]


def distance(a: Weights, b: Weights) -> float:
    """The largest difference of two weights."""
    assert a.keys() == b.keys()
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a)


def held(done: Finished) -> Weights:
    return dict(done.model.state_dict())


def test_a_stored_average_is_the_weighted_sum_of_the_weights_of_all_steps(
    run: Path, path: list[Weights]
) -> None:
    tensors, meta = load_weights(run / "model.safetensors")
    assert list(meta["weights"]) == ["ema", "ema_0_5", "ema_0_9999", "raw"]
    expected = {
        "ema": average(exponential(0.9, STEPS), path),
        "ema_0_5": average(exponential(0.5, STEPS), path),
        "ema_0_9999": average(exponential(0.9999, STEPS), path),
        "raw": path[-1],
    }
    for name, sum_ in expected.items():
        stored = {n.removeprefix(f"{name}."): t for n, t in tensors.items() if n.startswith(f"{name}.")}
        assert distance(stored, sum_) < 2e-6, name
    # the averages differ by far more than that
    for name in ("ema", "ema_0_9999", "raw"):
        assert distance(expected[name], expected["ema_0_5"]) > 1e-3, name


def test_snapshots_are_integrals_of_their_profiles_at_even_steps(run: Path, path: list[Weights]) -> None:
    files = sorted((run / "averages").iterdir())
    assert [p.name for p in files] == [f"step-{k:08d}.safetensors" for k in range(5, 41, 5)]
    for file in files:
        for s in load_snapshots(file):
            expected = average(power(s.sigma_rel, s.step), path)
            assert s.step == int(file.stem.removeprefix("step-"))
            assert distance(dict(s.weights), expected) < 2e-6, (file, s.sigma_rel)
    assert {s.sigma_rel for s in load_snapshots(files[0])} == {0.05, 0.1}


@pytest.mark.parametrize("width", [0.07, 0.13, 0.2])
def test_a_profile_formed_afterwards_is_the_one_that_would_have_been_tracked(
    width: float, run: Path, path: list[Weights], tmp_path: Path
) -> None:
    out = tmp_path / "formed.safetensors"
    assert main(["ema", str(run), "--sigma-rel", str(width), "--out", str(out)]) == 0
    formed, tracked = held(saltus.load(out)), average(power(width, STEPS), path)
    # |sum_i (q_i - p_i) w_i| <= |q - p| |w - c| for any c, with q and p the two profiles: Cauchy and Schwarz
    g = exponent(width)
    norm = (g + 1) / math.sqrt((2 * g + 1) * STEPS)
    error = blend(stored_in(sorted((run / "averages").iterdir())), width, STEPS).mismatch
    assert error < 0.1
    other, off, apart = average(power(0.1, STEPS), path), 0.0, 0.0
    for name, w in formed.items():
        steps = torch.stack([p[name] for p in path[1:]])
        bound = error * norm * (steps - steps.mean(0)).square().sum(0).sqrt()
        wrong = (w.double() - tracked[name]).abs()
        assert bool((wrong <= bound + 2e-6).all()), name
        off += float(wrong.square().sum())
        apart += float((other[name] - tracked[name]).square().sum())
    assert off < 0.1**2 * apart  # and the nearest stored profile is no substitute


@pytest.mark.parametrize(
    ("choice", "options", "shares"),
    [
        ([], {}, exponential(0.9, STEPS)),
        (["--ema", "0.9"], {"ema": 0.9}, exponential(0.9, STEPS)),
        (["--ema", "0.5"], {"ema": 0.5}, exponential(0.5, STEPS)),
        (["--raw"], {"raw": True}, [0.0] * STEPS + [1.0]),
        (["--sigma-rel", "0.1"], {"sigma_rel": 0.1}, power(0.1, STEPS)),
    ],
)
def test_samples_are_those_of_the_weights_that_were_chosen(
    choice: list[str], options: dict[str, float], shares: list[float], run: Path, path: list[Weights]
) -> None:
    assert main(["sample", str(run), *choice, "--n", "50", "--seed", "3", "--out", "x.npy"]) == 0
    done = saltus.load(run, **options)  # type: ignore[arg-type]
    assert main(["export", str(run), "one.safetensors", *choice]) == 0
    alone = saltus.load("one.safetensors")
    spec = ModelSpec.from_plain(load_weights(run / "model.safetensors").meta["model"])
    net = spec.build().eval()
    restore({"net": net}, {f"net.{n}": t.float() for n, t in average(shares, path).items()}, "the path")
    x0 = done.noise(50, seed=3)
    with torch.no_grad():
        expected = net(x0, torch.zeros(50), torch.ones(50))
    for x in (torch.from_numpy(np.load("x.npy"))[0], done.sample(50, seed=3), alone.sample(50, seed=3)):
        assert torch.allclose(x, expected, atol=2e-5)
    assert alone.which == done.which and alone.name == "gaussian-lsd"
    file = Path("one.safetensors").stat().st_size
    assert file < 0.3 * (run / "model.safetensors").stat().st_size
    if choice:  # other weights give other samples
        usual = saltus.load(run).sample(50, seed=3)
        assert bool((usual - expected).abs().max() > 1e-3) == (options != {"ema": 0.9})


def test_evaluation_with_other_weights_is_kept_apart(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.read_bytes() for p in run.glob("*.png")}
    assert main(["evaluate", str(run), "--raw"]) == 0
    assert "after 40 steps (raw)" in capsys.readouterr().out
    row = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    assert row["step"] == STEPS and row["weights"] == "raw" and row["lines"]
    assert {p.name: p.read_bytes() for p in run.glob("*.png")} == before
    assert not (run / "evaluation.json").exists()


def test_what_a_run_holds_is_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ema", str(run)]) == 0
    said = capsys.readouterr().out
    assert "ema 0.9, ema 0.5, ema 0.9999, raw" in said and "stored 8 times: power 0.05, 0.1" in said
    assert "--sigma-rel 0.1    0.0%" in said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sample", "RUN", "--ema", "0.99"], "expected ema 0.99 in it, got ema 0.9, ema 0.5, ema"),
        (["sample", "RUN", "--raw", "--ema", "0.9"], "expected one choice, got ema and raw"),
        (["sample", "RUN", "--sigma-rel", "0.9"], "sigma_rel"),
        (["ema", "RUN", "--sigma-rel", "0.012"], "which they miss by"),
        (["ema", "RUN", "--out", "x.safetensors"], "expected a width"),
        (["ema", "RUN", "--sigma-rel", "0.1", "--out", "x.npy"], "ends in .safetensors"),
        (["export", "RUN", "RUN/model.safetensors"], "another file"),
        (["export", "RUN", "absent/x.safetensors"], "existing folder"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    command: list[str], words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert main([word.replace("RUN", str(run)) for word in command]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1, told
    assert (run / "model.safetensors").read_bytes() == before


def test_a_run_without_snapshots_says_how_to_get_them(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "2", "--batch", "8", "--skip-evaluation", "--quiet", "--out", "plain"]
    assert main(["run", "gaussian-lsd", *options]) == 0
    assert not Path("plain/averages").exists()
    assert main(["sample", "plain", "--sigma-rel", "0.1"]) == 2
    assert "train with --power-ema 0.05 0.1" in capsys.readouterr().err
    assert main(["ema", "plain"]) == 0  # it was asked what there is, and says so
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "ema 0.999, raw" in lines[0] and "trained with --power-ema" in lines[1]


def header(path: Path, old: str, new: str) -> None:
    """Replace text in the header of a safetensors file by text of the same length."""
    raw = path.read_bytes()
    assert raw.count(old.encode()) >= 1 and len(old) == len(new)
    path.write_bytes(raw.replace(old.encode(), new.encode()))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(pickle.dumps({"step": 20})),
        lambda path: header(path, "[0.05, 0.1]", "[5.00, 0.1]"),
        lambda path: header(path, '\\"step\\": 20', '\\"step\\": 00'),
        lambda path: header(path, "average1.", "average7."),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["cut", "pickle", "width", "step", "names", "folder"],
)
def test_a_damaged_snapshot_is_told(
    harm: Callable[[Path], object], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    harm(copy / "averages" / "step-00000020.safetensors")
    assert main(["ema", str(copy), "--sigma-rel", "0.13"]) == 2
    told = capsys.readouterr().err
    assert "expected" in told and told.count("\n") == 1, told
    assert not (copy / "power-0.13.safetensors").exists()


@pytest.mark.parametrize(("steps", "count"), [(40, 8), (7, 20), (100, 1), (101, 20), (3, 2)])
def test_snapshots_are_as_many_as_asked_for_and_one_is_at_the_end(steps: int, count: int) -> None:
    training = Training(steps=steps, power_ema=(0.1,), power_snapshots=count)
    found = [k for k in range(1, steps + 1) if due(training, k)]
    gaps = {b - a for a, b in zip([0, *found], found, strict=False)}
    assert len(found) == min(steps, count) and found[-1] == steps and max(gaps) - min(gaps) <= 1
    assert not any(due(Training(steps=steps), k) for k in range(1, steps + 1))
