"""``saltus.load`` on files that somebody has damaged or crafted: one line each, at once, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import saltus
from saltus.cli import main
from saltus.training import Weights, load_weights

MOST_SECONDS = 2.0


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "mixture"
    options = ["--steps", "2", "--batch", "8", "--size", "tiny", "--skip-evaluation", "--quiet"]
    assert main(["run", "mixture-lsd", *options, "--out", str(folder)]) == 0
    return folder / "model.safetensors"


def refusal(path: Path, words: str = "", **choice: Any) -> str:  # noqa: ANN401
    """The one line with which ``path`` is refused, at once and without much memory."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as caught:
        saltus.load(path, **choice)
    text = str(caught.value)
    assert "\n" not in text and "expected" in text and words in text and len(text) < 1000, text
    assert time.perf_counter() - begin < MOST_SECONDS, text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, text  # kilobytes
    return text


class File:
    """A safetensors file in parts: its header as JSON, and the numbers."""

    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        self.header: dict[str, Any] = json.loads(raw[8 : 8 + size])
        self.data = raw[8 + size :]
        self.options: dict[str, Any] = json.loads(self.header["__metadata__"]["saltus"])
        self.meta: dict[str, Any] = self.options["meta"]

    def tensor(self, name: str, shape: list[int]) -> None:
        """Add a tensor of float32 zeros."""
        size = 4 * int(torch.tensor(shape).prod())
        place = [len(self.data), len(self.data) + size]
        self.header[name] = {"dtype": "F32", "shape": shape, "data_offsets": place}
        self.data += bytes(size)

    def drop(self, name: str) -> None:
        """Leave a tensor out, numbers too."""
        low, high = self.header.pop(name)["data_offsets"]
        self.data = self.data[:low] + self.data[high:]
        for key, entry in self.header.items():
            if key != "__metadata__" and entry["data_offsets"][0] >= high:
                entry["data_offsets"] = [k - high + low for k in entry["data_offsets"]]

    def write(self, path: Path) -> Path:
        self.header["__metadata__"]["saltus"] = json.dumps(self.options)
        header = json.dumps(self.header).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + self.data)
        return path


@pytest.fixture
def file(good: Path) -> File:
    return File(good)


@pytest.fixture
def crafted(tmp_path: Path) -> Path:
    return tmp_path / "crafted.safetensors"


def test_the_parts_put_together_are_the_file(good: Path, file: File, crafted: Path) -> None:
    found = saltus.load(file.write(crafted))
    assert bool((found.sample(4) == saltus.load(good).sample(4)).all())


BIAS = "ema.backbone.blocks.0.linear.bias"


def edits() -> dict[str, tuple[Callable[[File], None], str]]:
    """What somebody may do to a file, and a word of what it is told."""

    def model(**options: Any) -> Callable[[File], None]:  # noqa: ANN401
        return lambda f: f.meta["model"].update(options)

    def meta(**options: Any) -> Callable[[File], None]:  # noqa: ANN401
        return lambda f: f.meta.update(options)

    def reshaped(f: File) -> None:
        (n,) = f.header[BIAS]["shape"]
        f.header[BIAS]["shape"] = [n // 2, 2]

    def halved(f: File) -> None:  # the same bytes as twice as many numbers of half the size
        f.header[BIAS].update(dtype="F16", shape=[2 * f.header[BIAS]["shape"][0]])

    def renamed(f: File) -> None:
        f.header["../../etc/passwd"] = f.header.pop(BIAS)

    def swapped_kind(f: File) -> None:
        f.header[BIAS]["dtype"] = "I32"

    deep: Any = []
    for _ in range(900):
        deep = [deep]
    return {
        "a missing tensor": (lambda f: f.drop(BIAS), "1 are missing"),
        "a tensor more": (lambda f: f.tensor("ema.extra", [2]), "1 are unknown"),
        "a third network": (lambda f: f.tensor("other.weight", [2]), "1 are unknown"),
        "another shape": (reshaped, BIAS),
        "numbers of another kind": (swapped_kind, "torch.int32"),
        "half as wide numbers": (halved, BIAS),
        "a path as a name": (renamed, "../../etc/passwd"),
        "a wide sample": (model(shape=[10**9]), "shape"),
        "a vast picture": (model(shape=[3, 10**9, 10**9]), "shape"),
        "a shape beyond all integers": (model(shape=[10**30]), "shape"),
        "many dimensions": (model(shape=[1] * 10_000), "shape"),
        "a vast picture of a small network": (model(backbone="unet", shape=[1, 2**20, 2**20]), "shape"),
        "as many classes as may be": (model(classes=2**28), "missing"),
        "as wide a sample as may be": (model(shape=[2**28]), "instead of"),
        "countless classes": (model(classes=10**9), "classes"),
        "classes beyond all integers": (model(classes=10**40), "classes"),
        "countless heads": (model(heads=["v"] * 100_000), "heads"),
        "a larger network": (model(size="large"), "instead of"),
        "an unknown network": (model(backbone="mlp; import os"), "mlp; import os"),
        "an unknown size": (model(size=10**9), "size"),
        "options of another kind": (model(classes="ten"), "classes"),
        "no number": (model(sigma_data=float("nan")), "sigma_data"),
        "an endless number": (model(sigma_data=float("inf")), "sigma_data"),
        "an unknown option": (model(command="rm"), "command"),
        "deep options": (model(shape=deep), "shape"),
        "no options": (meta(model=None), "None"),
        "a list of options": (meta(model=[1, 2]), "[1, 2]"),
        "an unknown method": (meta(method="../../lsd"), "../../lsd"),
        "a method that is none": (meta(method={"a": 1}), "method"),
        "a long name": (meta(method="x" * 10**6), "method"),
        "dropout in words": (meta(dropout="much"), "dropout"),
        "endless guidance": (meta(guidance=float("inf")), "guidance"),
        "a form in words": (meta(plain="no"), "plain"),
        "weights that are none": (meta(weights=[]), "average"),
        "weights without a name": (meta(weights={}), "average"),
        "weights with a dot": (meta(weights={"ema.backbone": {}}), "average"),
        "weights that are not there": (meta(weights={"ema": {}, "raw": {}, "third": {}}), "missing"),
        "a decay in words": (meta(weights={"ema": {"decay": "0.9"}, "raw": {}}), "average"),
        "a decay of two": (meta(weights={"ema": {"decay": 2.0}, "raw": {}}), "average"),
        "another version": (lambda f: f.options.update(version=10**9), "version"),
        "nothing but a version": (lambda f: f.options.pop("meta") and None, "Saltus"),
    }


@pytest.mark.parametrize("what", edits())
def test_what_does_not_fit_is_refused(what: str, file: File, crafted: Path) -> None:
    edit, words = edits()[what]
    edit(file)
    told = refusal(file.write(crafted), words)
    assert told.startswith((str(crafted), "method"))


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_what_is_no_weights_file_is_refused(good: Path, tmp_path: Path, crafted: Path) -> None:
    raw, mark = good.read_bytes(), tmp_path / "executed"
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 58], "data_offsets": [0, 1 << 60]}}).encode()
    nested = b'{"__metadata__": ' + b"[" * 10**6 + b"]" * 10**6 + b"}"
    text = json.dumps({"__metadata__": {"saltus": "[" * 10**6}}).encode()
    contents = {
        "nothing": b"",
        "a pickle": pickle.dumps(Bomb(mark)),
        "half of it": raw[: len(raw) // 2],
        "all but a byte": raw[:-1],
        "a byte more": raw + b"\0",
        "an absurd length": struct.pack("<Q", 2**63) + raw[8:],
        "a length of 2 GB": struct.pack("<Q", 2**31) + raw[8:],
        "numbers beyond the end": struct.pack("<Q", len(header)) + header + bytes(8),
        "a deep header": struct.pack("<Q", len(nested)) + nested,
        "deep options": struct.pack("<Q", len(text)) + text,
        "a picture": (good.parent / "samples.png").read_bytes(),
    }
    for content in contents.values():
        crafted.write_bytes(content)
        refusal(crafted, str(crafted))
    torch.save({"model": Bomb(mark)}, crafted)
    refusal(crafted, str(crafted))
    assert not mark.exists()


def test_places_that_hold_no_weights_are_refused(good: Path, tmp_path: Path) -> None:
    loop = tmp_path / "loop.safetensors"
    loop.symlink_to(loop)
    around = tmp_path / "around"
    around.symlink_to(around)
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)  # opening it would wait for ever
    (tmp_path / "empty").mkdir()
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "model.safetensors").mkdir()
    absent = ("absent", "absent.safetensors", "\0", "x" * 5000)
    for place in (loop, around, folder, pipe, "empty", "trap", *absent):
        refusal(tmp_path / place)
    link = tmp_path / "link.safetensors"
    link.symlink_to(good)
    assert saltus.load(str(link)).name == "mixture-lsd"


def test_a_file_of_an_earlier_version_opens(good: Path, file: File, crafted: Path) -> None:
    del file.meta["weights"]
    first, second = (saltus.load(path, raw=True).sample(3) for path in (file.write(crafted), good))
    assert torch.equal(first, second)
    assert saltus.load(crafted).which == "ema"
    refusal(crafted, "expected ema 0.999 in it, got ema, raw", ema=0.999)


def test_only_the_chosen_weights_are_read(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def watched(path: Path, prefix: str = "") -> Weights:
        found = load_weights(path, prefix)
        read.extend(found.tensors)
        return found

    monkeypatch.setattr("saltus.recipes.opened.load_weights", watched)
    saltus.load(good, raw=True)
    assert read and all(name.startswith("raw.") for name in read)


def test_loading_leaves_the_generators_and_the_file_alone(good: Path) -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    before = good.read_bytes()
    done = saltus.load(good)
    with torch.no_grad():
        for p in done.model.parameters():
            p.fill_(7.0)
    assert torch.equal(torch.randn(3), expected) and good.read_bytes() == before
    assert not done.model.training and not any(p.requires_grad for p in done.model.parameters())


def test_loading_needs_neither_the_recipe_nor_its_data(good: Path) -> None:
    code = (
        "import sys, saltus\n"
        "assert 'torch' not in sys.modules\n"
        f"x = saltus.load({str(good)!r}).sample(2)\n"
        "parts = ('saltus.data', 'saltus.recipes.mixture', 'saltus.recipes.train', 'sklearn', 'matplotlib')\n"
        "sys.exit(', '.join(m for m in sys.modules if m.startswith(parts)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_asked_of_a_map_is_checked(good: Path) -> None:
    done = saltus.load(good)
    for ask, words in (
        (lambda: done.sample(0), "at least one sample"),
        (lambda: done.sample(2, steps=0), "steps"),
        (lambda: done.sample(2, label=3), "without labels"),
        (lambda: done.sample(2, w=2.0), "guidance"),
    ):
        with pytest.raises(ValueError, match=words):
            ask()
    whole = done.sample(5000, seed=1)  # more than are drawn at a time
    assert torch.equal(whole[:7], done.sample(7, seed=1))
    assert not torch.equal(whole[:7], done.sample(7, seed=2))
    assert done.shape == (2,) and done.card is done.method.card and done.noise(3).shape == (3, 2)
