"""Autoencoders of diffusers: the same numbers as diffusers' own, scaled as its pipelines scale them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_autoencoders as made
import torch

from saltus.streams import Streams
from saltus.teachers.autoencoder import Autoencoder, Posterior
from saltus.teachers.diffusers.autoencoder import open_autoencoder

MEAN, STD = (0.3, -0.2, 0.1, 0.0), (0.5, 2.0, 1.5, 0.25)
KINDS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "KL scaled": (made.kl, {"scaling_factor": 0.18215}),
    "KL scaled and shifted": (made.kl, {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "KL by channel": (made.kl, {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD}),
    "tiny": (made.tiny, {}),
    "tiny scaled": (made.tiny, {"scaling_factor": 0.7}),
    "DC": (made.dc, {"scaling_factor": 0.41407}),
}


def expected(kind: str, raw: torch.Tensor) -> torch.Tensor:
    """What a pipeline of diffusers makes of a raw code, written down here once more."""
    return {
        "KL scaled": lambda y: y * 0.18215,
        "KL scaled and shifted": lambda y: (y - 0.0609) * 1.5305,
        "KL by channel": lambda y: (
            (y - y.new_tensor(MEAN).view(1, 4, 1, 1)) * 0.5 / y.new_tensor(STD).view(1, 4, 1, 1)
        ),
        "tiny": lambda y: y,
        "tiny scaled": lambda y: y * 0.7,
        "DC": lambda y: y * 0.41407,
    }[kind](raw)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return Streams(0, index=torch.arange(5)).uniform("x", 3, 16, 16) * 2.0 - 1.0


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    build, options = KINDS[request.param]
    model = build(**options)
    place = made.saved(model, tmp_path_factory.mktemp("autoencoder"))
    return request.param, model.double(), place


def test_latents_are_those_of_diffusers_as_its_pipelines_scale_them(
    case: tuple[str, Any, Path], images: torch.Tensor
) -> None:
    kind, theirs, place = case
    ours: Autoencoder = open_autoencoder(place, at_once=2, dtype=torch.float64)
    images = images.double()
    found = theirs.encode(images)
    where = {"tiny": "latents", "DC": "latent"}.get(kind.split()[0])
    raw = found.latent_dist.mode() if where is None else found[where]
    z = ours.encode(images)
    assert z.shape[1:] == ours.latent_shape(16, 16)
    torch.testing.assert_close(z, expected(kind, raw), atol=1e-12, rtol=1e-12)
    near = open_autoencoder(place).encode(images.float())
    torch.testing.assert_close(near, z.float(), atol=1e-6, rtol=1e-5)


def test_decoding_inverts_the_scale(case: tuple[str, Any, Path], images: torch.Tensor) -> None:
    kind, theirs, place = case
    ours = open_autoencoder(place, at_once=2, dtype=torch.float64)
    raw = Streams(1, index=torch.arange(5)).normal("y", *ours.latent_shape(16, 16)).double()
    wanted = theirs.decode(raw).sample
    torch.testing.assert_close(ours.decode(expected(kind, raw)), wanted, atol=1e-12, rtol=1e-12)


def test_the_posterior_has_the_encoders_deviation_in_our_units(images: torch.Tensor, tmp_path: Path) -> None:
    theirs = made.kl(scaling_factor=0.5, latents_mean=MEAN, latents_std=STD)
    law = open_autoencoder(made.saved(theirs, tmp_path)).posterior(images)
    scale = 0.5 / torch.tensor(STD).view(1, 4, 1, 1)
    assert law.std is not None
    torch.testing.assert_close(law.std, theirs.encode(images).latent_dist.std * scale)
    assert open_autoencoder(made.saved(made.tiny(), tmp_path / "t")).posterior(images).std is None


def test_samples_of_the_posterior_have_its_mean_and_deviation() -> None:
    n = 4000
    mean, std = torch.tensor([[1.0, -2.0]]).expand(n, 2), torch.tensor([[0.5, 3.0]]).expand(n, 2)
    z = Posterior(mean, std).sample(Streams(3, index=torch.arange(n)))
    assert ((z.mean(0) - mean[0]).abs() < 5 * std[0] / n**0.5).all()
    assert ((z.std(0) / std[0] - 1.0).abs() < 5 / (2 * n) ** 0.5).all()


def test_an_encoder_that_is_asked_with_streams_samples(images: torch.Tensor, tmp_path: Path) -> None:
    ours = open_autoencoder(made.saved(made.kl(), tmp_path))
    law, rng = ours.posterior(images), Streams(0, index=torch.arange(5))
    assert law.std is not None
    z = ours.encode(images, rng)
    torch.testing.assert_close(z, law.mean + law.std * rng.normal("posterior", 4, 4, 4))
    few = torch.tensor([4, 1])
    torch.testing.assert_close(ours.encode(images[few], rng.rows(few)), z[few], atol=1e-5, rtol=1e-5)


def test_half_precision_and_tiles_are_near_and_are_told_apart(images: torch.Tensor, tmp_path: Path) -> None:
    place = made.saved(made.kl(), tmp_path)
    whole = open_autoencoder(place)
    half, tiled = open_autoencoder(place, dtype=torch.bfloat16), open_autoencoder(place, tiling=True)
    z, near = whole.encode(images), half.encode(images)
    assert near.dtype == torch.float32
    assert 0.0 < float((near - z).abs().max() / z.std()) < 0.1
    large = images.repeat(1, 1, 2, 2)
    assert float((tiled.encode(large) - whole.encode(large)).abs().max()) > 0.0
    told = [str(a.described()) for a in (whole, half, tiled)]
    assert len(set(told)) == 3


def test_the_digest_is_of_weights_and_settings_and_not_of_the_place(tmp_path: Path) -> None:
    first = open_autoencoder(made.saved(made.tiny(), tmp_path / "a"))
    moved = made.saved(made.tiny(), tmp_path / "pipeline" / "vae")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "_name_or_path": "elsewhere"}))
    assert open_autoencoder(moved.parent).digest == first.digest
    assert open_autoencoder(made.saved(made.tiny(scaling_factor=0.9), tmp_path / "b")).digest != first.digest
    other = made.tiny()
    next(iter(other.parameters())).add_(1e-3)
    assert open_autoencoder(made.saved(other, tmp_path / "c")).digest != first.digest


def _absent(place: Path) -> None:
    (place / "diffusion_pytorch_model.safetensors").unlink()


def _cut(place: Path) -> None:
    path = place / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _torn(place: Path) -> None:
    (place / "config.json").write_text("{")


def _config(**change: object) -> Callable[[Path], None]:
    def changed(place: Path) -> None:
        path = place / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return changed


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (_absent, r"expected diffusion_pytorch_model\.safetensors in it, found none"),
    "cut weights": (_cut, "expected a whole one of AutoencoderKL"),
    "other weights": (_config(block_out_channels=[16, 16, 16]), "expected (a whole one|the weights)"),
    "missing weights": (_config(layers_per_block=2), "missing or unknown, the first"),
    "another class": (_config(_class_name="UNet2DModel"), "AutoencoderTiny or AutoencoderDC, got UNet"),
    "no number": (_config(scaling_factor=float("nan")), "finite"),
    "no scale": (_config(scaling_factor=0.0), "above 0"),
    "short means": (_config(latents_mean=[0.0], latents_std=[1.0]), "one for each of 4 channels"),
    "half a normalisation": (_config(latents_mean=[0.0] * 4), "latents_mean with latents_std"),
    "two normalisations": (
        _config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4, shift_factor=0.5),
        "latents_mean with latents_std, or shift_factor",
    ),
    "no JSON": (_torn, "configuration, got"),
    "no folder": (shutil.rmtree, "nothing is downloaded"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_folder_is_told_in_a_line(fault: str, tmp_path: Path) -> None:
    harm, told = FAULTS[fault]
    place = made.saved(made.kl(), tmp_path / "autoencoder")
    harm(place)
    with pytest.raises(ValueError) as error:
        open_autoencoder(place)
    assert re.search(told, str(error.value)), error.value
    assert "\n" not in str(error.value) and str(place) in str(error.value)


def test_images_that_it_cannot_take_are_told(images: torch.Tensor, tmp_path: Path) -> None:
    ours = open_autoencoder(made.saved(made.kl(), tmp_path))
    with pytest.raises(ValueError, match="multiples of 4"):
        ours.encode(images[..., :14])
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        ours.encode(images[:, :1])
    with pytest.raises(ValueError, match=r"\[B, 4, h, w\]"):
        ours.decode(images)
