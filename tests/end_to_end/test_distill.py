"""``saltus distill`` as a user meets it, on tiny budgets; every mistake in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saltus.cli import main
from saltus.data import digits
from saltus.exact import Gaussian
from saltus.games import Game
from saltus.guidance import CFG
from saltus.maps import AverageVelocity
from saltus.objectives import Distribution, Sum
from saltus.recipes.evaluate import OWN, TEACHER
from saltus.recipes.experiment import Experiment
from saltus.recipes.judged_by_teacher import NEAR, OFF, TeacherTruth
from saltus.recipes.opened import Finished, open_run
from saltus.recipes.resolve import distilled, experiment
from saltus.recipes.system import Drawn, Judge
from saltus.recipes.teacher import TeacherRun, open_teacher
from saltus.streams import Streams
from saltus.training import load_weights, save_weights
from saltus.typing import Condition, Output

TINY = ["--steps", "4", "--batch", "16", "--skip-evaluation", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Teachers: points, digits with label dropout and without, one without a velocity, and a student."""
    folder = tmp_path_factory.mktemp("runs")
    small = [*TINY, "--size", "tiny"]
    commands = {
        "points": ["gaussian-flow_matching"],
        "digits": ["digits-flow_matching", "--dropout", "0.1"],
        "undropped": ["digits-flow_matching"],
        "consistency": ["gaussian-ect"],
    }
    for name, words in commands.items():
        assert main(["run", *words, *small, "--out", str(folder / name)]) == 0
    assert main(["distill", str(folder / "points"), *TINY, "--out", str(folder / "student")]) == 0
    yield folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder of its own, without the debug switch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SALTUS_DEBUG", raising=False)


def experiment_of(teacher: Path, *words: str) -> Experiment:
    """A distillation of the teacher on a tiny budget."""
    return distilled(teacher, [*TINY, *words])


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its contents."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run."""
    return load_weights(run / "model.safetensors").tensors


def same(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# -- what works


def test_a_student_starts_as_its_teacher(runs: Path) -> None:
    for path in ("points", "digits"):
        made = experiment_of(runs / path)
        student = made.model()
        teacher = open_run(runs / path)
        shape, classes = teacher.spec.shape, teacher.spec.classes
        rng = Streams(0, index=torch.arange(8))
        x, s, t = rng.normal("x", *shape), 0.5 * rng.uniform("s"), rng.uniform("t")
        batch = made.source(rng)
        assert (classes is None) == (batch.cond is None) and batch.x1 is None
        b = teacher.model.velocity(x, s, batch.cond)
        assert b.norm() > 0.0
        assert (student.average(x, s, torch.maximum(s, t), batch.cond) - b).abs().max() < 1e-6
        assert (made.critic().average(x, s, s, batch.cond) - b).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("between", "wanted"), [((0.2, 0.8), (0.3, 0.8)), ((0.4, 1.0), (0.4, 1.0)), ((0.0, 0.1), (0.3, 0.3))]
)
def test_the_correction_is_guided_where_both_intervals_are(
    runs: Path, between: tuple[float, float], wanted: tuple[float, float]
) -> None:
    """The run's own interval, but never nearer to the noise than the method guides: from 0.3."""
    words = ("--guidance", "3", "--guidance-interval", *(str(t) for t in between))
    made = experiment_of(runs / "digits", *words)
    game = made.game(made.model())
    assert isinstance(game, Game)
    objective = game.moves[0].objective
    assert isinstance(objective, Sum)
    correction = objective.parts[1].objective
    assert isinstance(correction, Distribution) and isinstance(correction.teacher, CFG)
    assert correction.teacher.interval == pytest.approx(wanted)


def test_another_network_starts_at_random(runs: Path) -> None:
    assert experiment_of(runs / "points").starts_as_teacher
    for words in (["--size", "small"], ["--backbone", "residual-mlp"], ["--scratch"]):
        assert not experiment_of(runs / "points", *words).starts_as_teacher
    assert main(["distill", str(runs / "points"), *TINY, "--backbone", "residual-mlp", "--out", "other"]) == 0
    assert open_run(Path("other")).spec.backbone == "residual-mlp"


def test_no_data_means_no_data(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A data-free run is bit-identical with data, without, and with data that are not there."""

    def read(*_: object, **__: object) -> None:
        raise AssertionError("data were read")

    for place in ("saltus.recipes.digits.real_digits", "numpy.load", "sklearn.datasets.load_digits"):
        monkeypatch.setattr(place, read)
    talking = [word for word in TINY if word != "--quiet"]
    assert main(["distill", str(runs / "digits"), *TINY, "--out", "without"]) == 0
    assert main(["distill", str(runs / "digits"), *talking, "--data", "digits", "--out", "with"]) == 0
    assert "freeflow learns without data: digits is not used and not read" in capsys.readouterr().err
    assert main(["distill", str(runs / "digits"), *talking, "--data", "nowhere.npy", "--out", "absent"]) == 0
    assert same(Path("without"), Path("with")) and same(Path("without"), Path("absent"))


def test_the_data_are_those_that_are_named(runs: Path) -> None:
    """A method with data sees the same ones in a recipe and in arrays, and others make another student."""
    x, label = digits()
    np.save("x.npy", x.numpy())
    np.save("y.npy", label.numpy())
    np.save("other.npy", x.flip(-1).numpy())
    command = ["distill", str(runs / "digits"), "--method", "lmd", *TINY]
    assert main([*command, "--data", "digits", "--out", "recipe"]) == 0
    assert main([*command, "--data", "x.npy", "--labels", "y.npy", "--out", "array"]) == 0
    assert main([*command, "--data", "other.npy", "--labels", "y.npy", "--out", "flipped"]) == 0
    assert same(Path("recipe"), Path("array")) and not same(Path("recipe"), Path("flipped"))


def test_a_distilled_run_is_a_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sampled, evaluated, compared with its teacher, and repeated from its options."""
    run, teacher = runs / "student", runs / "points"
    assert main(["sample", str(run), "--n", "7", "--out", "x.npy"]) == 0
    assert np.load("x.npy").shape == (1, 7, 2)
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    assert OFF in said and "teacher, ODE, 64 steps" in said and "training read no data" in said
    found = json.loads((run / "evaluation.json").read_text())["lines"]
    assert [(m["group"], m["steps"]) for m in found[:4]] == [(OWN, 1), *((TEACHER, k) for k in (1, 4, 64))]
    assert found[3]["figures"][OFF] < 1e-5 < found[1]["figures"][OFF]
    assert main(["compare", str(teacher), str(run), "--out", "both.png"]) == 0
    said = capsys.readouterr().out
    assert "points" in said and "student" in said and str(runs) not in said.partition("plot")[0]
    assert Path("both.png").is_file() and Path("both-samples.png").is_file()
    quiet = ["--quiet", "--skip-evaluation"]
    for k, verb in enumerate(("distill", "run")):
        assert main([verb, str(run / "options.json"), "--out", f"again{k}", *quiet]) == 0
        assert same(run, Path(f"again{k}"))
        again = json.loads(Path(f"again{k}/options.json").read_text())
        assert again == json.loads((run / "options.json").read_text())


def test_the_weights_file_alone_teaches(runs: Path) -> None:
    Path("alone.safetensors").write_bytes((runs / "points" / "model.safetensors").read_bytes())
    words = [word for word in TINY if word != "--skip-evaluation"]
    assert main(["distill", "alone.safetensors", *words, "--out", "student"]) == 0
    assert same(Path("student"), runs / "student")
    found = json.loads(Path("student/evaluation.json").read_text())["lines"]
    assert set(found[0]["figures"]) == {OFF, NEAR}


def test_guidance_is_an_input_of_the_student(runs: Path) -> None:
    command = ["distill", str(runs / "digits"), *TINY, "--guidance", "3", "--guidance-interval", "0.2", "0.8"]
    assert main([*command, "--out", "guided"]) == 0
    assert open_run(Path("guided")).spec.guidance
    assert main(["sample", "guided", "--w", "2", "--n", "20", "--out", "x.png"]) == 0
    assert main(["evaluate", "guided"]) == 0
    labels = [m["label"] for m in json.loads(Path("guided/evaluation.json").read_text())["lines"]]
    assert "1 jump, w = 3" in labels and "teacher, ODE, w = 3" in labels
    made = experiment(str(Path("guided/options.json")), [])
    cond = made.source(Streams(0, index=torch.arange(2))).cond
    assert cond is not None and cond.interval is not None
    assert cond.interval[0].tolist() == pytest.approx([0.2, 0.8])


def test_a_run_trains_the_teacher_that_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "digits-freeflow", "--teacher-steps", "3", "--size", "tiny", *TINY, "--out", "run"]
    assert main(command) == 0
    assert open_run(Path("run/teacher")).dropout == 0.1
    assert {p.name for p in Path("run").iterdir()} >= {"teacher", "options.json", "model.safetensors"}
    assert main(["evaluate", "run"]) == 0
    assert "teacher, ODE" in capsys.readouterr().out
    assert main(["run", "run/options.json", "--out", "again", "--quiet", "--skip-evaluation"]) == 0
    assert same(Path("run"), Path("again")) and same(Path("run/teacher"), Path("again/teacher"))
    assert main(["distill", "run/teacher", *TINY, "--out", "apart"]) == 0
    assert same(Path("run"), Path("apart"))


@pytest.mark.parametrize("words", [["distill", "TEACHER"], ["run", "digits-freeflow"]])
def test_dry_run_writes_nothing(
    words: list[str], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [word.replace("TEACHER", str(runs / "points")) for word in words]
    assert main(["run", "mixture-freeflow", "--batch", "16", "--dry-run"]) == 0
    assert "the exact velocity of mixture; the student starts at random" in capsys.readouterr().out
    assert main([*command, "--batch", "16", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "none is read" in said and "ms a step" in said and "starts with its weights" in said
    assert all(len(line) <= 80 for line in said.splitlines())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_no_student_replaces_its_teacher(
    runs: Path, dry: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor the run whose folder the teacher is in: by default that of a recipe that trained it."""
    shutil.copytree(runs / "points", "runs/gaussian-freeflow/teacher")
    shutil.copytree(runs / "student", "runs/gaussian-freeflow", dirs_exist_ok=True)
    before = snapshot(Path("runs"))
    for teacher in ("runs/gaussian-freeflow/teacher", "runs/gaussian-freeflow/teacher/model.safetensors"):
        assert main(["distill", teacher, *TINY, "--overwrite", *dry]) == 2
        assert "choose another with --out" in capsys.readouterr().err
    assert snapshot(Path("runs")) == before
    apart = ["distill", "runs/gaussian-freeflow/teacher", *TINY, "--out", "runs/gaussian-freeflo"]
    assert main([*apart, *dry]) == 0


def test_a_strength_of_guidance_is_checked_and_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", str(runs / "digits"), *TINY, "--guidance", "3", "--out", "guided"]) == 0
    for w in ("1", "3"):
        assert main(["sample", "guided", "--w", w]) == 0
    assert capsys.readouterr().err == ""
    for w in ("0.5", "4"):
        assert main(["sample", "guided", "--w", w]) == 0
        assert "learned strengths from 1 to 3" in capsys.readouterr().err
    pictures = {w: Path(f"guided/samples-seed0-w{w}.png").read_bytes() for w in ("1", "3", "0.5", "4")}
    assert len(set(pictures.values())) == 4
    assert main(["sample", "guided", "--w", "nan"]) == 2
    assert "expected a finite strength" in capsys.readouterr().err
    assert main(["sample", str(runs / "student"), "--w", "2"]) == 2
    assert "was not trained with --guidance" in capsys.readouterr().err


def test_an_interruption_before_anything_is_saved_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saltus.training.run.Run.after", interrupted)
    assert main(["distill", str(runs / "points"), *TINY, "--out", "deep/run"]) == 130
    assert main(["run", "digits-freeflow", "--teacher-steps", "2", *TINY, "--out", "run"]) == 130
    assert not list(tmp_path.iterdir())


# -- the judge


def test_the_teacher_judges_in_units_of_its_spread(runs: Path) -> None:
    """A sample that is off by a known vector scores its length over the spread of the teacher's samples."""
    teacher = open_teacher(runs / "points")
    law = Gaussian(torch.tensor([1.0, -0.5], dtype=torch.float64), 0.25)
    sharp = TeacherRun(exact(teacher.run, law), teacher.place)
    truth = TeacherTruth(sharp, teacher.run.interpolant, Judge(500, None, lambda drawn: {}, dict))
    x0 = Streams(0, index=torch.arange(500)).normal("x0", 2)
    arrived = torch.tensor([1.0, -0.5]) + 0.5 * x0
    assert truth.figures(Drawn(x0, arrived))[OFF] < 1e-3
    spread = float((arrived - arrived.mean(dim=0)).square().sum(dim=1).mean().sqrt())
    wrong = truth.figures(Drawn(x0, arrived + torch.tensor([0.3, 0.4])))
    assert wrong[OFF] == pytest.approx(0.5 / spread, rel=1e-3)
    assert wrong[NEAR] > 20 * abs(truth.figures(Drawn(x0, arrived))[NEAR])


def exact(run: Finished, law: Gaussian) -> Finished:
    """The run with the velocity of a Gaussian in place of its network."""

    class Backbone(torch.nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
            return Output(law(x, s).to(x.dtype), {})

    return dataclasses.replace(run, model=AverageVelocity(Backbone()))


# -- mistakes


def mistakes(runs: Path) -> dict[str, list[str]]:
    """Command lines that cannot work, each with words that its one line must hold."""
    points, digits, undropped = (str(runs / name) for name in ("points", "digits", "undropped"))
    lmd = ["--method", "lmd"]
    return {
        "found nothing there": ["distill", "nowhere"],
        "saltus run gaussian-flow_matching": ["distill", str(runs / "consistency")],
        "learned jumps alone": ["distill", str(runs / "student")],
        "got 64 NaN": ["distill", "nan"],
        "did you mean freeflow": ["distill", points, "--method", "freflow"],
        "saltus run RECIPE-lsd": ["distill", points, "--method", "lsd"],
        f"saltus distill {points} --method lmd --data gaussian": ["distill", points, *lmd],
        "expected a recipe's name (mixture": ["distill", points, *lmd, "--data", "mixtur"],
        "shape [2] like": ["distill", points, *lmd, "--data", "digits"],
        "expected a .npy file, found none": ["distill", points, *lmd, "--data", "nowhere.npy"],
        "numpy.save": ["distill", points, *lmd, "--data", "broken.npy"],
        "expected an array [N, 2]": ["distill", points, *lmd, "--data", "three.npy"],
        "expected floating point or uint8": ["distill", points, *lmd, "--data", "words.npy"],
        "use a smaller batch": ["distill", points, *lmd, "--data", "two.npy"],
        "has no classes": ["distill", points, *lmd, "--data", "two.npy", "--labels", "y.npy"],
        "expected labels with it": ["distill", digits, *lmd, "--data", "images.npy"],
        "expected 40 integers": ["distill", digits, *lmd, "--data", "images.npy", "--labels", "y.npy"],
        "got -1 to 10": ["distill", digits, *lmd, "--data", "images.npy", "--labels", "wild.npy"],
        "an array of data with them": ["distill", digits, *lmd, "--data", "digits", "--labels", "y.npy"],
        "a teacher with labels": ["distill", points, "--guidance", "3"],
        "without label dropout": ["distill", undropped, "--guidance", "3"],
        "above 1 (1 is no guidance)": ["distill", digits, "--guidance", "0.5"],
        "expected --guidance with it": ["distill", digits, "--guidance-interval", "0.1", "0.9"],
        "apart from the teacher": ["distill", points, "--out", points, "--overwrite"],
        "names no teacher": ["distill", str(runs / "points" / "options.json")],
        "the smaller first": ["distill", digits, "--guidance", "3", "--guidance-interval", "0.9", "0.1"],
        "add --overwrite": ["distill", points, "--out", str(runs / "student")],
        "at least 1": ["distill", points, "--steps", "0"],
        "put it back": ["distill", "orphan.json"],
        "does not drop labels": ["run", "digits-lmd", "--dropout", "0.1"],
        "got none; give --guidance": ["distill", points, "--method", "guidance_input", "--data", "gaussian"],
        "guidance_input learns": ["distill", digits, "--method", "guidance_adapters", "--guidance", "4"],
        "after the dash": ["run", "digits-"],
    }


WORDS = sorted(words for words in mistakes(Path()) if not words.startswith("saltus distill"))


@pytest.mark.parametrize("words", [*WORDS, "DATA"])
def test_a_mistake_is_one_line_and_leaves_no_trace(
    words: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if words == "DATA":
        words = f"saltus distill {runs / 'points'} --method lmd --data gaussian"
    Path("broken.npy").write_text("no array")
    np.save("three.npy", np.zeros((40, 3), np.float32))
    np.save("two.npy", np.zeros((40, 2), np.float32))
    np.save("words.npy", np.zeros((40, 2), np.int64))
    np.save("images.npy", np.zeros((40, 1, 8, 8), np.float32))
    np.save("y.npy", np.zeros(39, np.int64))
    np.save("wild.npy", np.arange(40) % 12 - 1)
    options = json.loads((runs / "student" / "options.json").read_text()) | {"teacher": "/nowhere"}
    Path("orphan.json").write_text(json.dumps(options))
    shutil.copytree(runs / "points", "nan")
    _poison(Path("nan/model.safetensors"))
    before = snapshot(tmp_path), snapshot(runs)
    assert main(mistakes(runs)[words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("saltus: error: ") and said.err.count("\n") == 1
    assert words in said.err
    assert (snapshot(tmp_path), snapshot(runs)) == before


def _poison(path: Path) -> None:
    """Make the weights overflow, so that the teacher returns NaN; a file of NaN is never written."""
    tensors, meta = load_weights(path)
    run = open_run(path)
    for parameter in run.model.parameters():
        parameter.data.fill_(1e30)
    assert tensors
    save_weights(path, {"ema": run.model, "raw": run.model}, meta)
