"""Exported students of diffusers models draw, where there is no saltus, what they draw in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import saltus
from saltus.cli import main
from saltus.recipes.averages import EVALUATED
from saltus.recipes.decoded import META
from saltus.recipes.model import FOREIGN, ModelSpec
from saltus.recipes.sampling import draw
from saltus.samplers import prior
from saltus.teachers.diffusers.autoencoder import open_autoencoder
from saltus.teachers.diffusers.lora import LoRA
from saltus.teachers.diffusers.plain import described, opened, prompts_of
from saltus.training import initialised, save_weights
from saltus.typing import Condition

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "unit"))
from test_export import made  # noqa: E402
from tiny_models import save_pipeline  # noqa: E402

TEXTS = ["a cat", "a dog"]
STUDENTS = {"DiT": "DiT", "SD1.5": "SD1.5", "LoRA": "SD1.5", "SD3": "SD3", "Flux": "Flux", "Sana": "Sana"}
STUDENTS |= {"SDXL": "SDXL", "PixArt": "PixArt"}
"""Name of a folder -> the family of its teacher."""
STEPS = (1, 2, 4)


def student(place: Path, name: str, family: str) -> Path:
    """The weights file of a student whose every weight was moved."""
    base = place / f"{family}-base"
    if not base.exists():
        save_pipeline(family, base)
    foreign = described(opened(base).model, lora=LoRA(rank=2) if name == "LoRA" else None)
    foreign["shape"] = [4, 8, 8]  # Flux says 128 where nobody says otherwise
    spec = ModelSpec(
        shape=(4, 8, 8),
        backbone=FOREIGN,
        size=foreign["network"]["_class_name"],
        classes=foreign["classes"] if family == "DiT" else len(TEXTS),
        guidance=name == "SD3",
        foreign=foreign,
    )
    model = initialised(0, spec.build)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=random)
    meta = {"model": spec.plain(), "method": "lsd", "recipe": "images", "plain": False, "dropout": 0.0}
    meta |= {"guidance": 3.0 if spec.guidance else None, "weights": {EVALUATED: {}}}
    path = place / f"{name}.safetensors"
    save_weights(path, {EVALUATED: model}, meta)
    return path


def truth(place: Path, path: Path, family: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What saltus draws and decodes, and how the pipeline is asked for it."""
    done = saltus.load(path)
    rng = done._rows(2, 5)
    asked: dict[str, Any] = {"class_labels": [7, 3]} if family == "DiT" else {"prompt": TEXTS}
    if family == "DiT":
        cond = Condition(label=torch.tensor([7, 3]))
    else:
        cond = prompts_of(place / f"{family}-base", tuple(TEXTS))
    if done.spec.guidance:
        asked["guidance_scale"] = 2.0
        cond = Condition(**{**vars(cond), "w": torch.tensor([2.0, 2.0])})
    x0 = prior(rng, done.shape, done.interpolant)
    drawn = {str(k): draw(done.model, done.card, x0, k, cond, rng, done.interpolant) for k in STEPS}
    found = {"x0": x0, "noises": torch.zeros(max(STEPS), *x0.shape), **drawn}
    if family != "Sana":  # whose autoencoder saltus does not open
        found["pixels"] = open_autoencoder(place / f"{family}-base").decode(drawn["1"]) / 2.0 + 0.5
    return {k: v.detach().numpy() for k, v in found.items()}, asked


def latents(place: Path) -> dict[str, Any]:
    """A map of latents with a network of saltus, exported with its autoencoder."""
    vae = open_autoencoder(place / "SD1.5-base")
    said = {META: {"folder": str(vae.folder), "digest": vae.digest}}
    spec = ModelSpec(shape=(4, 8, 8), backbone="mlp", size="tiny")
    path = made(place / "latents.safetensors", "lsd", spec, **said)
    done = saltus.load(path)
    drawn = {str(k): done.sample(2, k) for k in STEPS}
    found = {"x0": done.noise(2), "noises": torch.zeros(4, 2, 4, 8, 8), **drawn}
    found["pixels"] = vae.decode(drawn["1"]) / 2.0 + 0.5
    np.savez(place / "latents.npz", **{k: v.numpy() for k, v in found.items()})
    assert main(["export", str(path), str(place / "latents"), "--to", "diffusers"]) == 0
    return {"asked": {}, "steps": STEPS, "truth": "latents"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Exported students, beside what saltus draws."""
    place = tmp_path_factory.mktemp("students")
    cases = {}
    for name, family in STUDENTS.items():
        path = student(place, name, family)
        drawn, asked = truth(place, path, family)
        np.savez(place / f"{name}.npz", **drawn)
        cases[name] = {"asked": asked, "steps": STEPS, "truth": name}
        assert main(["export", str(path), str(place / name), "--to", "diffusers"]) == 0
    cases["latents"] = latents(place)
    cases["linked"] = cases["SD1.5"]
    command = ["export", str(place / "SD1.5.safetensors"), str(place / "linked"), "--to", "diffusers"]
    assert main([*command, "--parts", "link"]) == 0
    (place / "cases.json").write_text(json.dumps(cases))
    yield place


@pytest.fixture(scope="module")
def seen(place: Path) -> dict[str, Any]:
    """What a process without saltus draws; then the examples of the cards, as they are written."""
    env = {**os.environ, "HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "without_saltus.py"), str(place), "--cards", "SD1.5", "DiT"]
    ended = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, Any] = json.loads((place / "seen.json").read_text())
    return found


@pytest.mark.parametrize("name", [*STUDENTS, "linked", "latents"])
def test_a_student_draws_what_it_draws_in_saltus(seen: dict[str, Any], place: Path, name: str) -> None:
    drawn = np.load(place / f"{'SD1.5' if name == 'linked' else name}.npz")
    assert set(seen[name]) - {"pixels"} == {str(k) for k in STEPS}
    for k in STEPS:
        # W + BA is rounded once when it is folded, so a LoRA is as close as its numbers are large
        size = float(np.abs(drawn[str(k)]).max()) if name == "LoRA" else 1.0
        assert seen[name][str(k)] <= 1e-5 * size
        assert np.abs(drawn[str(k)] - drawn["x0"]).max() > 0.2
    assert seen[name].get("pixels", 0.0) <= 1e-5
    assert ("pixels" in seen[name]) == (name != "Sana")


def test_the_second_time_is_what_draws(place: Path) -> None:
    done = saltus.load(place / "SD3.safetensors")
    x, s = done.noise(2), torch.zeros(2)
    cond = prompts_of(place / "SD3-base", tuple(TEXTS))
    far = done.model.average(x, s, s + 1.0, cond) - done.model.velocity(x, s, cond)
    assert float(far.abs().max()) > 1e-3


def test_a_network_is_in_diffusers_own_format(place: Path) -> None:
    for name, part in {"SD1.5": "unet", "LoRA": "unet", "SD3": "transformer"}.items():
        own = json.loads((place / f"{STUDENTS[name]}-base" / part / "config.json").read_text())
        ours = json.loads((place / name / part / "config.json").read_text())
        assert {k: v for k, v in own.items() if k[0] != "_"} == {k: v for k, v in ours.items() if k[0] != "_"}
        weights = place / name / part / "diffusion_pytorch_model.safetensors"
        base = place / f"{STUDENTS[name]}-base" / part / "diffusion_pytorch_model.safetensors"
        with safe_open(weights, "pt") as mine, safe_open(base, "pt") as theirs:
            assert set(mine.keys()) == set(theirs.keys())


def test_parts_are_copied_or_linked(place: Path) -> None:
    assert (place / "linked" / "vae").is_symlink() and not (place / "SD1.5" / "vae").is_symlink()
    assert (place / "SD1.5" / "tokenizer").is_dir() and not (place / "DiT" / "tokenizer").exists()


def test_a_card_of_a_student_names_its_base(seen: dict[str, Any], place: Path) -> None:
    card = (place / "SD1.5" / "README.md").read_text()
    assert "- made of: SD1.5-base" in card and "pipeline_tag: text-to-image" in card
    assert 'prompt="a cat"' in card and "The licence of SD1.5-base binds" in card
    assert (place / "sample.png").stat().st_size > 0 and seen


def test_a_base_that_is_gone_is_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, away = place / "Flux-base", place / "elsewhere"
    base.rename(away)
    try:
        command = ["export", str(place / "Flux.safetensors"), str(tmp_path / "out"), "--to", "diffusers"]
        assert main(command) == 2
    finally:
        away.rename(base)
    assert "put it back" in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["x", "--to", "diffusers"], ["x.pt2"]], ids=["diffusers", "torch"])
def test_a_network_of_saltus_that_takes_texts_is_a_weights_file(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ModelSpec(shape=(4, 8, 8), backbone="dit", size="tiny", tokens=6, pooled=3)
    path = made(tmp_path / "texts.safetensors", "lsd", spec)
    assert main(["export", str(path), str(tmp_path / words[0]), *words[1:]]) == 2
    told = capsys.readouterr().err
    assert "export it as .safetensors" in told and "Traceback" not in told
    assert [p.name for p in tmp_path.iterdir()] == ["texts.safetensors"]
    assert main(["export", str(path), str(tmp_path / "again.safetensors")]) == 0


NO_ADAPTERS = {
    "all weights": ("SD1.5", [], "expected a student with adapters"),
    "a strength": ("LoRA", ["--w", "2"], "learned no guidance: drop --w"),
    "diffusers": ("LoRA", ["--to", "diffusers", "--w", "2"], "expected it with --to lora"),
}


@pytest.mark.parametrize("case", NO_ADAPTERS)
def test_adapters_that_cannot_be_written(
    place: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, words, said = NO_ADAPTERS[case]
    command = ["export", str(place / f"{name}.safetensors"), str(tmp_path / "out"), "--to", "lora", *words]
    assert main(command) == 2
    assert said in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_student_is_no_program(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(place / "DiT.safetensors"), str(tmp_path / "x.pt2")]) == 2
    assert "--to diffusers" in capsys.readouterr().err
