"""Latents on disk: what they hold, going on after an interruption, batches of them, and what is damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_autoencoders as made
import torch

from saltus.cli import main
from saltus.data import ArrayData
from saltus.data.images import Images, open_images
from saltus.data.latents import Latents, open_latents, read_manifest
from saltus.recipes.encoding import encode_images
from saltus.streams import Streams
from saltus.teachers.autoencoder import Posterior
from saltus.teachers.diffusers.autoencoder import DiffusersAutoencoder, open_autoencoder
from saltus.training import locked

COUNT, ROWS, GROUP = 23, 6, 4
FAST: dict[str, Any] = {"batch": GROUP, "shard_rows": ROWS, "flip": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latents")


@pytest.fixture(scope="module")
def images(place: Path) -> Images:
    return open_images(made.pictures(place / "x.npz", COUNT))


@pytest.fixture(scope="module")
def autoencoder(place: Path) -> DiffusersAutoencoder:
    model = made.kl(scaling_factor=1.5, shift_factor=0.1)
    return open_autoencoder(made.saved(model, place / "vae"))


@pytest.fixture(scope="module")
def encoded(place: Path, images: Images, autoencoder: DiffusersAutoencoder) -> Path:
    encode_images(images, autoencoder, place / "encoded", **FAST)
    return place / "encoded"


def content(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_shards_hold_what_the_autoencoder_says(
    encoded: Path, images: Images, autoencoder: DiffusersAutoencoder
) -> None:
    data = open_latents(encoded, batch=4)
    x = images.read(torch.arange(COUNT)).float() / 127.5 - 1.0
    rows = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    for name, spread, seen in (("latent", "std", x), ("flipped", "flipped_std", x.flip(-1))):
        law = autoencoder.posterior(seen)
        assert law.std is not None
        torch.testing.assert_close(data.read(rows, name), law.mean[rows], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(data.read(rows, spread), law.std[rows], atol=1e-5, rtol=1e-5)
    assert images.labels is not None and data.label is not None
    assert torch.equal(data.label, images.labels)
    assert len(list(encoded.glob("latents-*.safetensors"))) == -(-COUNT // ROWS)


def test_the_manifest_knows_the_moments_of_each_channel(encoded: Path) -> None:
    data = open_latents(encoded, batch=4)
    mean, std = data.read(torch.arange(COUNT)).double(), data.read(torch.arange(COUNT), "std").double()
    by = (0, 2, 3)
    variance = mean.var(dim=by, correction=0) + std.square().mean(dim=by)
    found = data.manifest.moments()
    torch.testing.assert_close(torch.tensor(found[0]), mean.mean(dim=by).float())
    torch.testing.assert_close(torch.tensor(found[1]), variance.sqrt().float())
    assert data.std == pytest.approx(float(variance.mean().sqrt()))


def test_the_order_is_that_of_all_data(encoded: Path) -> None:
    data, array = open_latents(encoded, batch=5), ArrayData(torch.arange(COUNT).float().view(-1, 1), batch=5)
    for step in (0, 3, 4, 9):
        rng = Streams(7, step=step, index=torch.arange(5))
        assert torch.equal(data.rows(rng).float(), array(rng).data().flatten())
        assert torch.equal(data.rows(rng.rows(torch.tensor([4, 2]))), data.rows(rng)[[4, 2]])


def test_a_batch_is_a_sample_of_the_posterior_of_its_rows(encoded: Path) -> None:
    data = open_latents(encoded, batch=COUNT)
    rng = Streams(1, step=2, index=torch.arange(COUNT))
    rows, flipped = data.rows(rng), rng.uniform("flip") < 0.5
    pick = flipped.view(-1, 1, 1, 1)
    mean = torch.where(pick, data.read(rows, "flipped"), data.read(rows))
    std = torch.where(pick, data.read(rows, "flipped_std"), data.read(rows, "std"))
    batch = data(rng)
    assert 0 < int(flipped.sum()) < COUNT
    torch.testing.assert_close(batch.data(), mean + std * rng.normal("posterior", *data.shape))
    assert batch.cond is not None and data.label is not None
    assert torch.equal(batch.cond.label, data.label[rows])
    assert torch.equal(batch.x0, rng.normal("x0", *data.shape))
    few = torch.tensor([3, 0])
    assert torch.equal(data(rng.rows(few)).data(), batch.data()[few])
    plain = open_latents(encoded, batch=COUNT, sampled=False, flips=False, labels=False)(rng)
    assert torch.equal(plain.data(), data.read(rows)) and plain.cond is None


def test_batches_have_the_mean_and_the_deviation_of_the_posterior(encoded: Path) -> None:
    data = open_latents(encoded, batch=COUNT, flips=False)
    order = Streams(0, index=torch.arange(COUNT))
    seen = []
    for step in range(400):
        rng = order.at(step)
        seen.append(data(rng).data()[torch.argsort(data.rows(rng))])
    x = torch.stack(seen)
    mean, std = data.read(torch.arange(COUNT)), data.read(torch.arange(COUNT), "std")
    off = (x.mean(0) - mean) / std * 400**0.5
    assert float(off.abs().max()) < 5.5
    assert abs(float(off.std()) - 1.0) < 0.1
    assert abs(float((x.std(0) / std).mean()) - 1.0) < 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Interrupted:
    """An autoencoder that is interrupted after so many groups."""

    inner: DiffusersAutoencoder
    left: list[int]

    def posterior(self, x: torch.Tensor) -> Posterior:
        if not self.left:
            raise KeyboardInterrupt
        self.left.pop()
        return self.inner.posterior(x)

    def encode(self, x: torch.Tensor, rng: Streams | None = None) -> torch.Tensor:
        return self.inner.encode(x, rng)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.inner.decode(z)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.inner.latent_shape(height, width)

    def described(self) -> dict[str, object]:
        return self.inner.described()


@pytest.mark.parametrize("groups", [0, 3, 9])
def test_an_interruption_leaves_whole_shards_and_the_rest_comes_out_the_same(
    groups: int, encoded: Path, images: Images, autoencoder: DiffusersAutoencoder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        encode_images(images, Interrupted(autoencoder, [0] * groups), out, **FAST)
    there = content(out)
    assert all(content(encoded)[name] == digest for name, digest in there.items() if name != "manifest.json")
    assert len(there) == 1 + groups // 4  # two groups and two mirrored ones a shard
    with pytest.raises(ValueError, match="expected those of 23 images, got"):
        open_latents(out, batch=2)
    encode_images(images, autoencoder, out, **FAST)
    assert content(out) == content(encoded)


SLOWLY = """
import sys, time
from saltus.recipes import encoding
written = encoding._written
def slowly(out, manifest, k, tensors):
    found = written(out, manifest, k, tensors)
    print("shard", k, flush=True)
    time.sleep(60 if k == 1 else 0)
    return found
encoding._written = slowly
from saltus.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_command_goes_on_and_comes_out_the_same(
    place: Path, encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["encode", str(place / "x.npz"), "out", "--autoencoder", str(place / "vae"), "--image-size"]
    command += ["None", "--batch", str(GROUP), "--shard-rows", str(ROWS), "--flip", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *command], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["shard 0\n", "shard 1\n"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    out = tmp_path / "out"
    assert len(read_manifest(out).shards) == 2
    (out / ".0123abcd-latents-00002.safetensors").write_bytes(b"half")  # of a write that was cut short
    command[2] = str(out)
    assert main(command) == 0
    assert "going on after 12 of 23 pictures" in capsys.readouterr().err
    shards = {name: digest for name, digest in content(encoded).items() if name != "manifest.json"}
    assert {n: d for n, d in content(out).items() if n != "manifest.json"} == shards
    first, second = read_manifest(encoded), read_manifest(out)
    assert dataclasses.replace(second, places=first.places).text() == first.text()
    assert main(command) == 0
    assert "all there already" in capsys.readouterr().out


def test_what_differs_is_named(
    encoded: Path, place: Path, images: Images, autoencoder: DiffusersAutoencoder
) -> None:
    before = content(encoded)
    other = open_autoencoder(made.saved(made.kl(scaling_factor=2.0), place / "other"))
    cases = (
        ((dataclasses.replace(images, digest="0"), autoencoder, FAST), r"\(data: \w+ there, 0 here\)"),
        ((images, other, FAST), "autoencoder digest: .* there, .* here; .*autoencoder scale"),
        ((images, autoencoder, {**FAST, "shard_rows": 5}), r"\(shard-rows: 6 there, 5 here\)"),
        ((images, autoencoder, {**FAST, "flip": False}), "flip: True there, False here"),
        ((images, autoencoder, {**FAST, "limit": 7}), "count: 23 there, 7 here"),
    )
    for (x, model, options), told in cases:
        with pytest.raises(ValueError, match=told):
            encode_images(x, model, encoded, **options)
    assert content(encoded) == before


def test_damage_is_told_by_the_name_of_the_file_and_mended(
    encoded: Path, images: Images, autoencoder: DiffusersAutoencoder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode_images(images, autoencoder, out, **FAST)
    path = out / "latents-00002.safetensors"
    whole = path.read_bytes()
    for harmed, told in ((whole[:-4], "bytes"), (whole[:-1] + bytes([whole[-1] ^ 1]), "another content")):
        path.write_bytes(harmed)
        for act in (lambda: open_latents(out, 2), lambda: encode_images(images, autoencoder, out, **FAST)):
            with pytest.raises(ValueError, match=rf"latents-00002.*got .*{told}"):
                act()
    path.unlink()
    with pytest.raises(ValueError, match=r"latents-00002.*got none"):
        open_latents(out, 2)
    encode_images(images, autoencoder, out, **FAST)
    assert content(out) == content(encoded)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "another"},
        {"version": 2},
        {"about": None},
        {"shards": [{"file": "../x"}]},
        {"places": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_without_sense_is_told(change: dict[str, Any], encoded: Path, tmp_path: Path) -> None:
    value = json.loads((encoded / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(value | change))
    with pytest.raises(ValueError, match="expected the manifest of latents") as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_with_other_things_is_left_alone(
    images: Images, autoencoder: DiffusersAutoencoder, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="a folder with other files"):
        encode_images(images, autoencoder, tmp_path, **FAST)
    with pytest.raises(ValueError, match="got a file"):
        encode_images(images, autoencoder, tmp_path / "notes.txt", **FAST)
    (tmp_path / "held").mkdir()
    with locked(tmp_path / "held"), pytest.raises(ValueError, match="is encoding in it"):
        encode_images(images, autoencoder, tmp_path / "held", **FAST)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["held", "notes.txt"]


def test_numbers_that_are_not_finite_end_the_encoding(
    images: Images, autoencoder: DiffusersAutoencoder, tmp_path: Path
) -> None:
    huge = dataclasses.replace(autoencoder, scale=autoencoder.scale * 1e9)
    with pytest.raises(ValueError, match="pictures 0 to 3: expected finite numbers"):
        encode_images(images, huge, tmp_path / "out", store=torch.float16, **FAST)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_means_alone_and_half_precision(
    images: Images, autoencoder: DiffusersAutoencoder, encoded: Path, tmp_path: Path
) -> None:
    options = {**FAST, "flip": False, "posterior": False, "store": torch.float16}
    encode_images(images, autoencoder, tmp_path / "out", **options)
    data, full = (open_latents(p, batch=3, flips=False, sampled=False) for p in (tmp_path / "out", encoded))
    rng = Streams(0, index=torch.arange(3))
    assert data(rng).data().dtype == torch.float32
    torch.testing.assert_close(data(rng).data(), full(rng).data(), atol=2e-3, rtol=2e-3)
    assert isinstance(data, Latents) and not data.sampled


def test_the_command_says_what_is_wrong_in_a_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, vae, out = str(place / "x.npz"), str(place / "vae"), str(tmp_path / "out")
    cases = (
        ([x, out, "--autoencoder", str(tmp_path / "none")], "nothing is downloaded"),
        ([str(tmp_path / "none"), out, "--autoencoder", vae], "found nothing there"),
        ([x, out, "--autoencoder", vae, "--image-size", "30"], "multiples of 4"),
        ([x, out, "--autoencoder", vae, "--batch", "0"], "at least 1"),
    )
    for args, told in cases:
        assert main(["encode", *args]) == 2
        said = capsys.readouterr().err.strip()
        assert told in said and "\n" not in said
    assert not Path(out).exists()
