"""Runs on latents: pictures are decoded by the autoencoder where it is; figures are of what was asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_autoencoders as made
import torch
from PIL import Image

from saltus import load
from saltus.cli import main
from saltus.data.images import open_images
from saltus.data.latents import open_latents
from saltus.plots import tiles
from saltus.recipes import app, decoded
from saltus.recipes.app import easel_of
from saltus.recipes.averages import Choice
from saltus.recipes.decoded import Decoder
from saltus.recipes.encoding import encode_images
from saltus.recipes.judged_latents import decoded_gallery, latent_judge, pixel_judge
from saltus.recipes.scoring import Scoring
from saltus.recipes.system import Drawn
from saltus.recipes.train import refresh
from saltus.recipes.wishes import Wish
from saltus.streams import Streams
from saltus.teachers.diffusers.autoencoder import open_autoencoder

COUNT = 64
SHORT = ("--steps", "4", "--batch", "8", "--size", "tiny", "--save-every", "2", "--grid-every", "2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures x.npz, the autoencoder vae, the latents of one by the other, and a run on them."""
    place = tmp_path_factory.mktemp("runs")
    images = open_images(made.pictures(place / "x.npz", COUNT))
    vae = made.saved(made.kl(scaling_factor=2.0), place / "vae")
    model = open_autoencoder(vae)
    places = {"data": str(place / "x.npz"), "autoencoder": str(vae)}
    encode_images(images, model, place / "latents", flip=True, places=places)
    train = ["run", "latents-lsd", "--data", str(place / "latents"), *SHORT, "--quiet"]
    assert main([*train, "--out", str(place / "run")]) == 0
    return place


def test_a_run_knows_its_latents_and_measures_them(place: Path) -> None:
    options = json.loads((place / "run" / "options.json").read_text())
    assert options["files"]["data"] == open_latents(place / "latents", 2).digest
    figures = json.loads((place / "run" / "evaluation.json").read_text())
    assert {"Fréchet", "energy", "nearest"} <= set(figures["lines"][0]["figures"])
    assert figures["protocol"].startswith("space: latents")
    done = load(place / "run")
    assert done.shape == (4, 4, 4) and done.spec.classes == 3
    assert done.meta["autoencoder"]["folder"] == str(place / "vae")


def test_latents_are_no_pictures(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "pictures-ect", "--data", str(place / "latents"), "--quiet"]) == 2
    told = capsys.readouterr().err
    assert f"saltus run latents-ect --data {place / 'latents'}" in told and told.count("\n") == 1


def test_a_picture_shows_decoded_samples_and_an_array_holds_latents(place: Path, tmp_path: Path) -> None:
    latents = load(place / "run").sample(30, steps=2)
    command = ["sample", str(place / "run"), "--steps", "2", "--n", "30", "--out"]
    assert main([*command, str(tmp_path / "z.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "z.npy")[0], latents.numpy(), atol=1e-6)
    out = tmp_path / "x.png"
    assert main([*command, str(out)]) == 0
    wanted = open_autoencoder(place / "vae").decode(latents)
    drawn = torch.from_numpy(np.asarray(Image.open(out)).copy()).permute(2, 0, 1)
    scale, gap = 3, 4  # 16 pixels a side are shown as 48
    first = drawn[:, gap : gap + 16 * scale : scale, gap : gap + 16 * scale : scale]
    assert (first - ((wanted[0] + 1.0) * 127.5).clamp(0, 255)).abs().max() <= 1.0

    easel = easel_of(place / "run", "cpu", None, Choice())  # and the same on a page
    [panel] = next(easel.draw(Wish((2,), 30)))
    np.testing.assert_array_equal(panel.picture, tiles(wanted, columns=6))
    assert len(easel.names()) == 3 and "as they are" not in app._heading(easel)


def test_without_its_autoencoder_latents_are_shown_and_a_line_says_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.move(place / "vae", place / "moved")
    decoded._opened.cache_clear()  # as in a new process
    try:
        assert main(["sample", str(tmp_path / "run")]) == 0
        said = capsys.readouterr().err
        assert "pictures show latents as they are" in said and said.count("\n") == 1
        easel = easel_of(tmp_path / "run", "cpu", None, Choice())
        assert "latents are shown as they are" in app._heading(easel)
        assert main(["sample", str(tmp_path / "run"), "--autoencoder", str(place / "moved")]) == 0
        assert capsys.readouterr().err == ""
        assert main(["sample", str(tmp_path / "run"), "--autoencoder", str(place / "vae")]) == 2
        said = capsys.readouterr().err
        assert "nothing is downloaded" in said and said.count("\n") == 1
        assert main(["evaluate", str(tmp_path / "run"), "--features", "components", "--steps", "1"]) == 2
        said = capsys.readouterr().err
        assert "expected that of the latents, to decode them" in said
        assert not (tmp_path / "run" / "scores.json").exists()
    finally:
        shutil.move(place / "moved", place / "vae")
        decoded._opened.cache_clear()


def test_another_autoencoder_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = made.saved(made.kl(scaling_factor=3.0), place / "other")
    z = torch.zeros(2, 4, 4, 4)
    digest = open_autoencoder(place / "vae").digest
    assert Decoder(str(other), digest)(z).shape == (2, 3, 4, 4)  # as they are
    assert "is not the autoencoder" in capsys.readouterr().err
    asked = Decoder(str(other), digest, asked=True)
    assert asked(z).shape == (2, 3, 16, 16)
    data = open_latents(place / "latents", 2)
    one, two = (decoded_gallery(data, by) for by in (Decoder(str(place / "vae"), digest), asked))
    assert one.digest != two.digest, "statistics of pictures by one would be taken for those by the other"
    assert "is not the autoencoder" in capsys.readouterr().err


def test_changed_latents_do_not_go_on_in_silence(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, model = open_images(place / "x.npz"), open_autoencoder(place / "vae")
    encode_images(images, model, tmp_path / "latents")
    train = ["run", "latents-lsd", "--data", str(tmp_path / "latents"), *SHORT, "--quiet"]
    train += ["--out", str(tmp_path / "run"), "--skip-evaluation"]
    assert main(train) == 0
    for name in ("model.safetensors", "samples.png"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "latents")
    encode_images(images, model, tmp_path / "latents", limit=40)
    capsys.readouterr()
    assert main(train) == 2
    assert "data: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--data", "nowhere"], "expected a folder with manifest.json, found none"),
        (["--data", "latents", "--batch", "65"], "a batch between 1 and the 64 images"),
        (["--data", "latents", "--batch", "8", "--autoencoder", "nowhere"], "nothing is downloaded"),
    ],
    ids=["no latents", "large batch", "no autoencoder"],
)
def test_a_mistake_is_told_in_a_line(
    args: list[str],
    told: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    assert main(["run", "latents-lsd", *args]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_judges_of_latents_and_of_decoded_pictures(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALTUS_CACHE", str(place / "cache"))
    data = open_latents(place / "latents", 8)
    judge = latent_judge(data)
    rows = torch.arange(COUNT)
    rng = Streams(5, index=rows)
    fresh, noise = data.samples(rows, rng), rng.normal("x0", 4, 4, 4)
    near, off = judge.figures(Drawn(noise, fresh)), judge.figures(Drawn(noise, fresh + 3.0))
    assert all(near[name] < 0.8 * off[name] for name in ("Fréchet", "energy", "nearest"))
    assert off["Fréchet"] - near["Fréchet"] > 100.0
    real = data.read(rows)
    cheap = Scoring(features="components", metrics=("frechet",), resamples=0)
    pixels = pixel_judge(data, Decoder(str(place / "vae")), cheap)
    same = pixels.figures(Drawn(noise, real[torch.arange(pixels.count) % COUNT], pixels.labels))
    far = pixels.figures(Drawn(noise, 9.0 * noise[torch.arange(pixels.count) % COUNT], pixels.labels))
    assert same["Fréchet"] < 0.5 * far["Fréchet"]
    assert "decoded latents" in pixels.note


def test_a_page_of_the_run_is_drawn(place: Path) -> None:
    refresh(place / "run")
    assert (place / "run" / "report.html").stat().st_size > 10_000
    assert len(list((place / "run" / "grids").glob("*.png"))) == 2


def test_a_student_reads_the_same_latents_and_is_decoded_too(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lesson = ["distill", str(place / "run"), "--steps", "2", "--batch", "8", "--skip-evaluation"]
    lesson += ["--quiet", "--out", str(tmp_path / "student")]
    assert main([*lesson, "--method", "lmd", "--data", str(place / "latents")]) == 0
    done = load(tmp_path / "student")
    assert done.meta["autoencoder"] == load(place / "run").meta["autoencoder"]
    options = json.loads((tmp_path / "student" / "options.json").read_text())
    assert options["files"]["data"] == open_latents(place / "latents", 2).digest
    model = open_autoencoder(made.saved(made.tiny(), tmp_path / "tiny"))
    encode_images(open_images(place / "x.npz"), model, tmp_path / "others", posterior=False)
    capsys.readouterr()
    assert main([*lesson, "--overwrite", "--method", "lmd", "--data", str(tmp_path / "others")]) == 2
    assert "expected latents [4, 4, 4] of 3 classes" in capsys.readouterr().err
