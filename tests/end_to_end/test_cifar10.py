"""Recipe cifar10: settings, networks and precisions that run, what published ones pass on, --start."""

from __future__ import annotations

import inspect
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import saltus
from saltus.cli import main
from saltus.methods import load
from saltus.objectives import Sum
from saltus.recipes.cifar10 import PUBLISHED
from saltus.recipes.resolve import experiment
from saltus.times import Earliest, LogitNormal
from saltus.weights import AdaptivePower, LearnedLogVariance

RNG = np.random.default_rng(0)
FEW = ["--steps", "2", "--warmup", "0", "--batch", "16", "--skip-evaluation", "--quiet", "--grid-every", "0"]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty pictures as the Hub keeps them, and a folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SALTUS_DEBUG", raising=False)
    pictures = []
    for x in RNG.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(x).save(file, "PNG")
        pictures.append({"bytes": file.getvalue(), "path": None})
    place = Path("cifar")
    place.mkdir()
    table = pa.table({"img": pictures, "label": [k % 10 for k in range(60)]})
    pq.write_table(table, place / "train.parquet")
    return place


PUBLISH = ["--data", "cifar", "--setting", "published", "--size", "tiny"]
RUNS = [
    "digits-lsd --backbone unet",
    "digits-lsd --backbone dit --precision bf16",
    "cifar10-lsd --data cifar --setting cpu",
    "cifar10-mean_flow --data cifar --setting cpu --precision bf16",
    "cifar10-ect --data cifar --backbone dit --patch 8",
    "cifar10-freeflow --data cifar --backbone dit --patch 8 --teacher-steps 2 --precision bf16",
    pytest.param("digits-lsd --backbone unet --precision bf16 --compile", marks=pytest.mark.all),
    pytest.param("digits-lsd --backbone dit --compile", marks=pytest.mark.all),
    pytest.param("cifar10-lsd --data cifar --backbone unet --compile", marks=pytest.mark.all),
    pytest.param(
        "cifar10-lsd --data cifar --backbone dit --patch 8 --precision bf16 --compile", marks=pytest.mark.all
    ),
]


@pytest.mark.parametrize("line", RUNS)
def test_runs(line: str) -> None:
    words = line.split()
    assert main(["run", *words, "--size", "tiny", *FEW, "--out", "run"]) == 0
    assert all(x.isfinite().all() for x in load_file("run/model.safetensors").values())


@pytest.mark.parametrize("method", ["lsd", "psd_midpoint", "mean_flow", "ect"])
def test_a_published_setting_takes_steps(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At its own network's smallest size; what differs from the paper is told."""
    few = [word for word in FEW if word != "--quiet"]
    few += ["--hold", "1"] if PUBLISHED[method].training.hold else []
    assert main(["run", f"cifar10-{method}", *PUBLISH, *few]) == 0
    assert "no dropout" in capsys.readouterr().err
    kept = json.loads(Path(f"runs/cifar10-{method}/options.json").read_text())["options"]
    assert kept["recipe"]["setting"] == "published" and kept["recipe"]["labels"] is False
    assert kept["training"]["lr"] == PUBLISHED[method].training.lr
    assert kept["network"]["backbone"] == PUBLISHED[method].network.backbone
    again = experiment(f"runs/cifar10-{method}/options.json", ["--out", "other", "--quiet"])
    assert set(again.arguments) == set(PUBLISHED[method].arguments)


def test_what_published_settings_change_of_a_method() -> None:
    made = experiment("cifar10-mean_flow", [*PUBLISH, "--batch", "32"])
    objective = made.game(made.model()).moves[0].objective
    assert isinstance(objective, Sum)
    first, jump = objective.parts
    assert (first.share, jump.share) == (0.25, 0.75)
    assert vars(first.objective)["weight"] == AdaptivePower(p=0.75, c=1e-3)
    assert vars(first.objective)["times"] == Earliest(LogitNormal(2.0, 2.0))
    assert (made.training.steps, made.training.ema) == (800_000, (0.99995,))
    made = experiment("cifar10-lsd", [*PUBLISH, "--batch", "32"])
    objective = made.game(made.model()).moves[0].objective
    assert isinstance(objective, Sum)
    weights = {id(vars(part.objective)["weight"]) for part in objective.parts}
    assert len(weights) == 1 and isinstance(vars(objective.parts[0].objective)["weight"], LearnedLogVariance)
    assert made.system.classes is None


@pytest.mark.parametrize("method", sorted(PUBLISHED))
def test_published_settings_name_arguments_of_their_method(method: str) -> None:
    made = experiment(f"cifar10-{method}", [*PUBLISH, "--batch", "32"])
    assert set(made.arguments) <= set(inspect.signature(load(method).build).parameters)
    made.game(made.model())


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "cifar10-freeflow", "--data", "cifar", "--setting", "published"]) == 2
    assert "expected a method with a published setting" in capsys.readouterr().err
    assert main(["run", "cifar10-lsd", "--data", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["run", "cifar10-lsd", "--data", "cifar", "--setting", "large"]) == 2
    assert "--setting" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_starting_with_the_weights_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A velocity's student is that velocity for every second time; a map goes on as it is."""
    tiny = ["--size", "tiny", "--backbone", "residual-mlp", "--quiet"]
    for method in ("flow_matching", "lsd"):
        assert main(["run", f"digits-{method}", *tiny, *FEW[:-3], "--grid-every", "0", "--out", method]) == 0
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    s, t, label = torch.full((4,), 0.3), torch.tensor([0.3, 0.5, 0.9, 1.0]), torch.arange(4)
    cond = saltus.typing.Condition(label=label)
    for place in ("flow_matching", "lsd"):
        begun = experiment("digits-lsd", [*tiny, "--start", place]).model()
        trained = saltus.load(place).model
        wanted = trained.velocity(x, s, cond) if place == "flow_matching" else trained.average(x, s, t, cond)
        assert torch.allclose(begun.average(x, s, t, cond), wanted, atol=1e-6)
    run = ["run", "digits-lsd", *tiny, *FEW, "--start", "flow_matching", "--out", "on"]
    assert main(run) == 0
    kept = json.loads(Path("on/options.json").read_text())
    assert kept["options"]["network"]["start"] == str(Path("flow_matching").resolve())
    assert "weights to start with" in kept["files"]
    assert main(["run", "on/options.json", "--out", "again", "--quiet", "--skip-evaluation"]) == 0
    assert Path("on/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    capsys.readouterr()
    for words, told in (
        (["run", "digits-lsd", "--size", "small", "--start", "lsd"], "expected a run with the same network"),
        (["run", "digits-scm", *tiny, "--start", "lsd"], "start lsd: expected"),
        (["run", "digits-lmd", *tiny, "--start", "lsd"], "starts with its teacher's weights"),
        (["run", "digits-lsd", *tiny, "--start", "nothing"], "nothing"),
    ):
        assert main([*words, "--out", "wrong"]) == 2
        assert told in capsys.readouterr().err
    assert not Path("wrong").exists()


def test_a_student_is_scored_on_its_teachers_pictures() -> None:
    run = ["run", "cifar10-flow_matching", "--data", "cifar", "--size", "tiny", *FEW, "--out", "teacher"]
    assert main(run) == 0
    student = ["distill", "teacher", "--steps", "2", "--batch", "16", *FEW[-4:], "--out", "student"]
    assert main(student) == 0
    figures = []
    for place in ("teacher", "student"):
        words = ["--features", "components", "--count", "20", "--steps", "1", "--resamples", "0"]
        assert main(["evaluate", place, *words, "--metrics", "frechet"]) == 0
        scores = json.loads(Path(place, "scores.json").read_text())["scores"][-1]
        figures.append((scores["protocol"]["real"], scores["protocol"]["features"]))
    assert figures[0] == figures[1] and "60 of CIFAR-10, train" in figures[0][0]
