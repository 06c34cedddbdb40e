"""Weights files: what is saved comes back bit for bit, and every damaged file is one clear line."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from saltus.training import initialised, load_weights, restore, save_weights

META = {"network": "mlp", "width": 4, "shape": [2], "prior": {"std": 0.1}, "note": 'a "quoted" é'}


def network(seed: int = 0, width: int = 4) -> nn.Module:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 2).double())

    return initialised(seed, build)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"student": network()}, META)
    return path


def refusal(call: Callable[[], object]) -> str:
    """The one line that the call fails with."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "expected" in text and ";" in text
    return text


def test_round_trip_is_exact(tmp_path: Path) -> None:
    student, ema = network(1), network(2)
    student[1].running_mean.fill_(3.5)  # type: ignore[index,union-attr]
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"student": student, "ema": ema}, META)
    tensors, meta = load_weights(path)
    assert meta == META
    fresh = {"student": network(8), "ema": network(9)}
    restore(fresh, tensors, path)
    for name, module in (("student", student), ("ema", ema)):
        for key, value in module.state_dict().items():
            assert torch.equal(fresh[name].state_dict()[key], value), key
    assert os.listdir(tmp_path) == ["weights.safetensors"]


def test_file_keeps_the_usual_permissions_and_format(saved: Path) -> None:
    (saved.parent / "plain").write_text("")
    assert saved.stat().st_mode == (saved.parent / "plain").stat().st_mode
    raw = saved.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert json.loads(header["__metadata__"]["saltus"]) == {"version": 1, "meta": META}


def test_tied_and_strided_weights(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, fill: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 2), fill).T)
            self.again = self.weight
            self.register_buffer("row", self.weight.detach()[0])

    path = tmp_path / "weights.safetensors"
    with torch.no_grad():
        first = Tied(0.0)
        first.weight.copy_(torch.arange(6.0).reshape(2, 3))
    save_weights(path, {"net": first}, {})
    second = Tied(7.0)
    restore({"net": second}, load_weights(path).tensors, path)
    assert torch.equal(second.weight, torch.arange(6.0).reshape(2, 3)) and second.again is second.weight


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_truncated(saved: Path, part: float) -> None:
    raw = saved.read_bytes()
    saved.write_bytes(raw[: int(part * len(raw))])
    assert "whole safetensors file" in refusal(lambda: load_weights(saved))


def test_truncated_at_the_seams(saved: Path) -> None:
    raw = saved.read_bytes()
    head = struct.unpack("<Q", raw[:8])[0]
    for size in (1, 7, 8, 9, 8 + head - 1, 8 + head, 8 + head + 1, len(raw) - 1):
        saved.write_bytes(raw[:size])
        refusal(lambda: load_weights(saved))
    saved.write_bytes(raw + b"\0")
    refusal(lambda: load_weights(saved))


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_not_safetensors(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.safetensors", tmp_path / "executed"
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 60]}}).encode()
    overlap = json.dumps(
        {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in ("a", "b")}
    ).encode()
    attacks = {
        "a pickle": pickle.dumps(Bomb(mark)),
        "text": b"hello, this is no checkpoint at all",
        "an absurd header length": struct.pack("<Q", 2**63 - 1) + b"{}",
        "a header of 2 GB": struct.pack("<Q", 2**31) + b"{}",
        "no header": struct.pack("<Q", 0),
        "a header that is no JSON": struct.pack("<Q", 4) + b"\xff\xfe{}",
        "offsets beyond the file": struct.pack("<Q", len(header)) + header + bytes(8),
        "overlapping tensors": struct.pack("<Q", len(overlap)) + overlap + bytes(8),
    }
    for content in attacks.values():
        path.write_bytes(content)
        refusal(lambda: load_weights(path))
    torch.save({"w": torch.zeros(2)}, path)
    refusal(lambda: load_weights(path))
    assert not mark.exists()


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for metadata in (
        None,
        {"format": "pt"},
        {"saltus": "not JSON"},
        {"saltus": "[]"},
        {"saltus": '{"version": 1}'},
        {"saltus": '{"version": 1, "meta": []}'},
        {"saltus": "[" * 100_000},
    ):
        save_file({"w": torch.zeros(2)}, path, metadata=metadata)
        refusal(lambda: load_weights(path))
    save_file({"w": torch.zeros(2)}, path, metadata={"saltus": '{"version": 99, "meta": {}}'})
    assert "expected version 1, got 99" in refusal(lambda: load_weights(path))


def test_absent_or_a_folder(tmp_path: Path) -> None:
    assert "found nothing" in refusal(lambda: load_weights(tmp_path / "absent.safetensors"))
    assert "something else" in refusal(lambda: load_weights(tmp_path))


def test_tensors_that_do_not_fit_touch_nothing(saved: Path) -> None:
    tensors = load_weights(saved).tensors
    student = network(5)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    fewer = {name: t for name, t in tensors.items() if name != "student.2.bias"}
    cases = {
        r"student.2.bias missing, none unknown": fewer,
        r"none missing, student.3.weight unknown": tensors | {"student.3.weight": torch.zeros(1)},
        r"student.2.weight: expected [2, 4] of torch.float64, got [4, 2]": tensors
        | {"student.2.weight": torch.zeros(4, 2, dtype=torch.float64)},
        r"student.2.weight: expected [2, 4] of torch.float64, got [2, 4] of torch.float32": tensors
        | {"student.2.weight": torch.zeros(2, 4)},
        "and 6 more missing": {},
    }
    for words, wrong in cases.items():
        text = refusal(lambda wrong=wrong: restore({"student": student}, wrong, saved))  # type: ignore[misc]
        assert words in text and str(saved) in text, text
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name
    refusal(lambda: restore({"student": network(width=5)}, tensors, saved))
    refusal(lambda: restore({"ema": network()}, tensors, saved))


def test_what_cannot_be_saved_leaves_the_old_file(saved: Path) -> None:
    old = saved.read_bytes()
    sick = network()
    with torch.no_grad():
        sick[0].bias[1] = float("nan")  # type: ignore[index]

    class Stateful(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

    circle: dict[str, Any] = {}
    circle["self"] = circle
    wrong: list[tuple[str, Callable[[], None]]] = [
        ("student.0.bias", lambda: save_weights(saved, {"student": sick}, META)),
        ("dots", lambda: save_weights(saved, {"a.b": network()}, META)),
        ("dots", lambda: save_weights(saved, {"": network()}, META)),
        ("extra_state", lambda: save_weights(saved, {"student": Stateful(1, 1)}, META)),
        ("meta", lambda: save_weights(saved, {"student": network()}, {"f": print})),
        ("meta", lambda: save_weights(saved, {"student": network()}, {"f": float("nan")})),
        ("meta", lambda: save_weights(saved, {"student": network()}, circle)),
    ]
    for words, call in wrong:
        assert words in refusal(call)
    assert saved.read_bytes() == old and os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failing_disk_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, broken: str, code: int
) -> None:
    old = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        assert os.strerror(code) in refusal(lambda: save_weights(saved, {"student": network(3)}, META))
    assert saved.read_bytes() == old and os.listdir(saved.parent) == [saved.name]


def test_an_interrupt_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = saved.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_weights(saved, {"student": network(3)}, META)
    assert saved.read_bytes() == old and os.listdir(saved.parent) == [saved.name]


def test_a_write_cut_short_leaves_nothing(tmp_path: Path) -> None:
    # A limit on the size of files stops the write half-way, as a full disk does.
    path = tmp_path / "weights.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        text = refusal(lambda: save_weights(path, {"student": network()}, META))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in text and os.listdir(tmp_path) == []


def test_a_link_in_the_place_of_the_draft_is_not_followed(tmp_path: Path) -> None:
    path, victim = tmp_path / "weights.safetensors", tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".{path.name}.{os.getpid()}.draft").symlink_to(victim)
    save_weights(path, {"student": network()}, META)
    assert victim.read_text() == "precious" and not path.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["victim", "weights.safetensors"]


def test_nowhere_to_write(saved: Path) -> None:
    for path in (saved / "inside" / "w", saved / "w", saved.parent / "absent" / "w", saved.parent):
        assert str(path) in refusal(lambda path=path: save_weights(path, {"a": network()}, META))  # type: ignore[misc]
    assert os.listdir(saved.parent) == [saved.name]
