"""``saltus distill`` of a diffusers folder, as a user meets it, on tiny models with random weights."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saltus.cli import main
from saltus.interpolants import Trigonometric
from saltus.plots import tiles
from saltus.recipes.app import answering, easel_of
from saltus.recipes.averages import Choice
from saltus.recipes.opened import open_run
from saltus.recipes.resolve import distilled
from saltus.recipes.wishes import Wish
from saltus.teachers.diffusers import open_diffusers
from saltus.training import load_weights
from saltus.training.run import Run
from saltus.typing import Condition

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from tiny_models import save_pipeline  # noqa: E402

TINY = ["--batch", "4", "--grid-every", "0", "--quiet"]
PROMPTS = ["a cat", "a dog", "photo of a dog"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two teachers, one of classes and one of texts, and a file of texts."""
    folder = tmp_path_factory.mktemp("models")
    save_pipeline("DiT", folder / "dit")
    save_pipeline("SD1.5", folder / "sd")
    lcm = shutil.copytree(folder / "sd", folder / "lcm") / "scheduler" / "scheduler_config.json"
    lcm.write_text(lcm.read_text().replace("DDIMScheduler", "LCMScheduler"))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    yield folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder of its own, without the debug switch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SALTUS_DEBUG", raising=False)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_weights(run / "model.safetensors").tensors


def test_from_classes_to_pictures_without_the_teacher(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, measured against its teacher's ODE, interrupted and gone on with bit for bit; its weights file
    alone gives the same samples where there is no teacher."""
    teacher = shutil.copytree(models / "dit", tmp_path / "dit")
    words = ["distill", str(teacher), "--method", "freeflow", "--steps", "6", *TINY]
    assert main([*words, "--out", "run"]) == 0
    lines = json.loads(Path("run/evaluation.json").read_text())["lines"]
    figures = {line["label"]: line["figures"]["off teacher"] for line in lines}
    assert figures["teacher, ODE, 64 steps"] < 1e-6 < figures["1 jump"]
    assert figures["1 jump"] == pytest.approx(figures["teacher, 1 Euler step"], rel=0.05)  # six small steps
    with Image.open("run/samples.png") as shown:
        assert shown.width > 20 * 16  # decoded: 16 pixels a side, not 8

    after = Run.after

    def interrupted(self: Run, step: object, *more: object) -> None:
        after(self, step, *more)  # type: ignore[arg-type]
        if step.index == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    again = [*words, "--out", "again", "--save-every", "2", "--skip-evaluation"]
    with monkeypatch.context() as patched:
        patched.setattr(Run, "after", interrupted)
        assert main(again) == 130
    assert not Path("again/model.safetensors").exists() and list(Path("again/checkpoints").iterdir())
    assert main(again) == 0
    one, two = weights(Path("run")), weights(Path("again"))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)

    done = open_run(Path("run"))
    before = done.sample(2, seed=3, label=5)
    shutil.rmtree(teacher)
    moved = shutil.move("run/model.safetensors", tmp_path / "alone.safetensors")
    assert torch.equal(open_run(Path(moved)).sample(2, seed=3, label=5), before)
    base = open_diffusers(models / "dit")
    x0, label = done.noise(2, seed=3), Condition(label=torch.tensor([5, 5]))
    euler = x0 + base.velocity()(x0, torch.zeros(2), label)
    assert not torch.equal(before, euler)
    assert float((before - euler).norm() / euler.norm()) < 0.05


def test_from_texts_to_a_prompt(models: Path, tmp_path: Path) -> None:
    """Adapters with guidance, from a file of prompts, which the run keeps; samples of a prompt are those of
    its number, whichever text is asked for by whom."""
    teacher, file = models / "sd", shutil.copy(models / "prompts.txt", tmp_path / "prompts.txt")
    words = ["distill", str(teacher), "--prompts", str(file), "--lora", "2", "--guidance", "3"]
    words += ["--steps", "3", "--lr", "0.01", "--skip-evaluation", *TINY]
    assert main([*words, "--out", "run"]) == 0
    run = Path("run")
    found = weights(run)
    assert all(".lora_" in n or ".gap." in n or ".null_" in n for n in found)
    assert (run / "model.safetensors").stat().st_size < 4 * 2 * sum(v.numel() for v in found.values())
    saved = json.loads((run / "options.json").read_text())
    assert saved["options"]["recipe"]["lora"] == 2 and "prompts" in saved["files"]
    file.unlink()
    made = distilled(teacher, words[2:], kept=run)  # the run has them
    assert made.teacher is not None and made.teacher.marks == {"prompts": saved["files"]["prompts"]}

    shown = ["sample", "run", "--n", "2", "--seed", "4", "--w", "2"]
    assert main([*shown, "--label", "1", "--out", "number.npy"]) == 0
    assert main([*shown, "--prompt", PROMPTS[1], "--out", "text.npy"]) == 0
    assert main([*shown, "--prompt", "of", "--out", "other.npy"]) == 0
    number, text, other = (np.load(f"{name}.npy") for name in ("number", "text", "other"))
    assert np.allclose(number, text, rtol=1e-5, atol=1e-5) and not np.allclose(number, other, atol=1e-3)
    assert main(["sample", "run", "--prompt", "a cat", "--out", "cats.png"]) == 0

    easel = easel_of(run, "cpu", None, Choice())  # and the same on a page
    assert easel.names() == tuple(PROMPTS)
    [panel] = next(easel.draw(Wish((1,), 2, 4, prompt="of", w=2.0)))
    np.testing.assert_array_equal(panel.answer.x, other[0])
    assert easel.decode is not None
    np.testing.assert_array_equal(panel.picture, tiles(easel.decode(torch.from_numpy(other[0])), columns=2))
    asked = {"steps": [1], "label": 1, "prompt": " of ", "w": 2.0, "n": 2, "seed": 4}
    data = io.BytesIO()
    panel.picture.save(data, "PNG")
    [seen] = answering(easel, list(asked))(*asked.values())
    assert base64.b64encode(data.getvalue()).decode() in seen  # a text goes before a number


def test_a_method_with_data_on_another_path(models: Path) -> None:
    """The quarter circle: latents on disk beside the teacher, and a student that starts as it there too."""
    rng = np.random.default_rng(0)
    np.save("x.npy", rng.standard_normal((8, 4, 8, 8), dtype=np.float32))
    np.save("y.npy", np.arange(8))
    words = ["--method", "scd", "--data", "x.npy", "--labels", "y.npy", "--steps", "2", *TINY]
    made = distilled(models / "dit", words)
    assert isinstance(made.interpolant, Trigonometric)
    student, b = made.model(), open_diffusers(models / "dit").velocity(Trigonometric())
    x, cond = torch.from_numpy(np.load("x.npy"))[:2], Condition(label=torch.tensor([1, 2]))
    s, t = torch.tensor([0.2, 0.6]), torch.tensor([0.9, 0.7])
    with torch.no_grad():
        assert torch.equal(student.average(x, s, t, cond), b(x, s, cond))
    assert main(["distill", str(models / "dit"), *words, "--skip-evaluation", "--out", "run"]) == 0


MISTAKES = {
    "no prompts": (["sd"], "expected texts, one a line, for a model of texts, got none"),
    "prompts for classes": (["dit", "--prompts", "prompts.txt"], "expected no texts for a model of classes"),
    "a file that is not there": (["sd", "--prompts", "none.txt"], "expected a text file, one prompt a line"),
    "no rank": (["dit", "--lora", "0"], "expected a rank of at least 1, got 0"),
    "another network": (["dit", "--backbone", "mlp"], "drop --backbone"),
    "a second head": (["dit", "--method", "improved_mean_flow"], "improved_mean_flow"),
    "a consistency model": (["lcm", "--prompts", "prompts.txt"], "got a consistency model by its scheduler"),
    "no data": (["dit", "--method", "lmd"], "it needs data beside the teacher"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_trace(
    models: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (name, *words), said = MISTAKES[mistake]
    words = [str(models / w) if w == "prompts.txt" else w for w in words]
    capsys.readouterr()
    assert main(["distill", str(models / name), *words, *TINY, "--out", "run"]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told
    assert not Path("run").exists()


def test_adapters_ask_for_the_base_that_they_belong_to(models: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(models / "dit", tmp_path / "dit")
    words = ["distill", str(teacher), "--lora", "2", "--steps", "2", "--skip-evaluation", *TINY]
    assert main([*words, "--out", "run"]) == 0
    save_pipeline("DiT", teacher, num_layers=1)
    with pytest.raises(ValueError, match="found other weights there"):
        open_run(Path("run"))
    shutil.rmtree(teacher)
    with pytest.raises(ValueError, match="expected the model that they belong to in .*put it back there"):
        open_run(Path("run"))


def test_dry_run_writes_nothing(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "freeflow", "--lora", "2", "--batch", "4", "--dry-run", "--out", "run"]
    assert main(["distill", str(models / "dit"), *words]) == 0
    told = capsys.readouterr().out
    assert "DiTTransformer2DModel" in told and "starts with its weights" in told
    assert not Path("run").exists()
