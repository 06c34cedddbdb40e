"""Checkpoints that were tampered with, truncated or planted are refused in one line and never run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_checkpoints import (
    Held,
    flipped,
    rewrite,
    same,
    saved,
    tensors,
    together,
    told,
    whole,
)

from saltus.training import Checkpoints
from saltus.training import checkpoint as module
from saltus.training.checkpoint import folder_of
from saltus.training.manifest import MANIFEST, hash_of, shard_name
from saltus.training.shards import read_box


@pytest.fixture()
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "piece", lambda held: held.value if isinstance(held, Held) else whole(held))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest, with the hash that it then has."""
    value = json.loads((folder / MANIFEST).read_text())
    change(value)
    value["sha256"] = hash_of(value)
    (folder / MANIFEST).write_text(json.dumps(value))


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files as they are now."""

    def change(value: dict[str, Any]) -> None:
        for name, file in value["files"].items():
            content = (folder / name).read_bytes()
            file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit(folder, change)


def reshape(folder: Path, header: Callable[[dict[str, Any]], Any]) -> None:
    """Replace the header of the shard, and make the manifest agree."""
    path = folder / shard_name(0, 1)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    value = json.loads(content[8 : 8 + size])
    value = header(value) or value
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    rehash(folder)


Change = Callable[[Path], None]


def entry(*path: str, value: Any) -> Change:  # noqa: ANN401 - any JSON
    """Set an entry of the manifest."""

    def change(whole: dict[str, Any]) -> None:
        for key in path[:-1]:
            whole = whole[key]
        whole[path[-1]] = value

    return lambda folder: edit(folder, change)


def file(change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: rewrite(folder / shard_name(0, 1), change)


def text(content: str) -> Change:
    return lambda folder: (folder / MANIFEST).write_text(content) and None


def renamed_file(name: str) -> Change:
    def change(value: dict[str, Any]) -> None:
        old = shard_name(0, 1)
        value["files"][name] = value["files"].pop(old)
        for w in value["tensors"].values():
            for part in w["parts"]:
                part[0] = name

    return lambda folder: edit(folder, change)


def linked(folder: Path) -> None:
    path = folder / shard_name(0, 1)
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


def linked_manifest(folder: Path) -> None:
    (folder / MANIFEST).rename(folder.parent / "elsewhere")
    (folder / MANIFEST).symlink_to(folder.parent / "elsewhere")


def endless_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).symlink_to("/dev/zero")


def pipe(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)


def huge_manifest(folder: Path) -> None:
    with (folder / MANIFEST).open("r+b") as there:
        there.truncate(1 << 40)  # has holes: takes no room


LONG = [shard_name(0, 1), [0, 0], [3, 5]]
CRAFTED: dict[str, Change] = {
    "manifest missing": lambda folder: (folder / MANIFEST).unlink(),
    "manifest empty": text(""),
    "manifest truncated": lambda folder: rewrite(folder / MANIFEST, lambda c: c[: len(c) // 2]),
    "manifest of a byte flipped": lambda folder: rewrite(
        folder / MANIFEST, lambda c: c.replace(b'[1, null, "x"]', b'[2, null, "x"]')
    ),
    "manifest not UTF-8": lambda folder: rewrite(folder / MANIFEST, lambda c: b"\xff" + c),
    "manifest deep": text("[" * 200_000),
    "manifest deep within": entry("meta", value=json.loads("[" * 400 + "]" * 400)),
    "manifest a list": text("[]"),
    "manifest a number": text("1" * 10_000),
    "manifest huge": huge_manifest,
    "manifest endless": endless_manifest,
    "manifest a pipe": pipe,
    "manifest a link": linked_manifest,
    "another version": entry("version", value=2),
    "version a list": entry("version", value=[1]),
    "step renamed": entry("step", value=4),
    "step negative": entry("step", value=-3),
    "step a float": entry("step", value=3.0),
    "score NaN": lambda folder: rewrite(
        folder / MANIFEST, lambda c: c.replace(b'"score": null', b'"score": NaN')
    ),
    "score infinite": lambda folder: rewrite(
        folder / MANIFEST, lambda c: c.replace(b'"score": null', b'"score": 1e999')
    ),
    "score a word": entry("score", value="0.1"),
    "score true": entry("score", value=True),
    "meta a list": entry("meta", value=[]),
    "no files": entry("files", value={}),
    "files a list": entry("files", value=[]),
    "a path upwards": renamed_file("../../x.safetensors"),
    "an absolute path": renamed_file("/tmp/x.safetensors"),
    "a name with an end of line": renamed_file(shard_name(0, 1) + "\n"),
    "digits of another script": renamed_file("shard-٠٠٠٠٠-of-٠٠٠٠١.safetensors"),
    "a pickle as a file": renamed_file(".metadata"),
    "bytes negative": entry("files", shard_name(0, 1), "bytes", value=-1),
    "hash missing": entry("files", shard_name(0, 1), value={"bytes": 3}),
    "parts missing": entry("tensors", "torch.float32", "parts", value=[]),
    "a part that is empty": entry("tensors", "torch.float32", "parts", value=[[]]),
    "a part that is a word": entry("tensors", "torch.float32", "parts", value=["abc"]),
    "a part of an unknown file": entry("tensors", "torch.float32", "parts", value=[["x", [0, 0], [3, 5]]]),
    "a part outside": entry("tensors", "torch.float32", "parts", value=[[LONG[0], [1, 0], [3, 5]]]),
    "a part of other axes": entry("tensors", "torch.float32", "parts", value=[[LONG[0], [0], [15]]]),
    "a part negative": entry("tensors", "torch.float32", "parts", value=[[LONG[0], [-1, 0], [3, 5]]]),
    "a part twice": entry("tensors", "torch.float32", "parts", value=[LONG, LONG]),
    "two parts in one file": entry(
        "tensors", "torch.float32", "parts", value=[[LONG[0], [0, 0], [1, 5]], [LONG[0], [1, 0], [2, 5]]]
    ),
    "a shape without end": entry("tensors", "torch.float32", "shape", value=[1 << 62]),
    "a shape of many axes": entry("tensors", "torch.float32", "shape", value=[1] * 1000),
    "a tensor larger than its file": lambda folder: (
        (
            entry("tensors", "torch.float32", "shape", value=[1 << 40])(folder),
            entry("tensors", "torch.float32", "parts", value=[[LONG[0], [0], [1 << 40]]])(folder),
        )
        and None
    ),
    "an unknown number format": entry("tensors", "torch.float32", "dtype", value="C64"),
    "tensors a list": entry("tensors", value=[1]),
    "file missing": lambda folder: (folder / shard_name(0, 1)).unlink(),
    "file truncated": file(lambda c: c[:-1]),
    "file longer": file(lambda c: c + b"\0"),
    "file empty": file(lambda c: b""),
    "file of a byte flipped": file(flipped),
    "file of a byte of the header flipped": file(lambda c: flipped(c, 20)),
    "file a link": linked,
    "file a folder": lambda folder: (
        ((folder / shard_name(0, 1)).unlink(), (folder / shard_name(0, 1)).mkdir()) and None
    ),
}
"""Refused when opened."""


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_checkpoint_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    there = saved(tmp_path / "checkpoints")
    CRAFTED[name](there.folder)
    checkpoints, said = Checkpoints(tmp_path / "checkpoints"), list[str]()
    with pytest.raises(ValueError) as wrong:
        checkpoints.open(3)
    told(wrong)
    with pytest.raises(ValueError, match="1 damaged") as wrong:
        checkpoints.newest(said.append)
    told(wrong)
    assert len(said) == 1 and "\n" not in said[0]
    saved(tmp_path / "checkpoints", step=2)
    newest = checkpoints.newest(said.append)
    assert newest is not None and newest.step == 2


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a size without end": lambda h: (
        h | {"torch.float32": {**h["torch.float32"], "data_offsets": [0, 1 << 62]}}
    ),
    "another shape": lambda h: h["torch.float32"].update(shape=[5, 3]),
    "another format": lambda h: h["torch.float32"].update(dtype="I32"),
    "a tensor less": lambda h: h.pop("torch.float32") and None,
    "deep": lambda h: b"[" * 100_000,
    "no JSON": lambda h: b"x" * 64,
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_shard_that_is_not_what_its_manifest_says_is_refused(name: str, tmp_path: Path) -> None:
    """Its hash is right: whoever made it made the manifest too."""
    there = saved(tmp_path)
    reshape(there.folder, HEADERS[name])
    with pytest.raises(ValueError) as wrong:
        Checkpoints(tmp_path).open(3).restore(tensors())
    told(wrong)


@pytest.mark.parametrize("size", [1 << 62, (1 << 64) - 1, 1 << 30, 0])
def test_an_absurd_header_is_refused(size: int, tmp_path: Path) -> None:
    there = saved(tmp_path)
    rewrite(there.folder / shard_name(0, 1), lambda c: size.to_bytes(8, "little") + c[8:])
    rehash(there.folder)
    with pytest.raises(ValueError) as wrong:
        Checkpoints(tmp_path).open(3).restore(tensors())
    told(wrong)


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("long", [[0, 0, 4, 5], [2, 0, 3, 5]]),  # rows 2, 3 twice, rows 5, 6 never: the sum is right
        ("long", [[0, 0, 7, 3], [0, 2, 7, 2]]),
        ("long", [[0, 0, 7, 5], [0, 0, 0, 5]]),
    ],
    ids=["rows", "columns", "a part of nothing"],
)
def test_parts_that_overlap_and_leave_a_gap_are_found(
    name: str, parts: list[list[int]], tmp_path: Path
) -> None:
    there = together(tmp_path, 2)
    listed = [[shard_name(k, 2), p[:2], p[2:]] for k, p in enumerate(parts)]
    edit(there.folder, lambda value: value["tensors"][name].update(parts=listed))
    with pytest.raises(ValueError) as wrong:
        Checkpoints(tmp_path).open(7).tensor(name)
    said = told(wrong)
    assert "overlap" in said or "manifest says" in said


@pytest.mark.usefixtures("pretended")
def test_a_gap_is_found_where_it_is_read(tmp_path: Path) -> None:
    there = together(tmp_path, 2)
    gapped = there.manifest.tensors["long"]._replace(parts=there.manifest.tensors["long"].parts[:1])
    with pytest.raises(ValueError, match="20 of 35 numbers"):
        read_box(there.folder, "long", gapped, (0, 0), (7, 5))


WRONG = {
    "missing": lambda t: t | {"more": torch.zeros(1)},
    "unknown": lambda t: {k: v for k, v in t.items() if k != "scalar"},
    r"torch.float32: expected \[5, 3\]": lambda t: t | {"torch.float32": torch.zeros(5, 3)},
    "expected .* of F64": lambda t: t | {"torch.float32": torch.zeros(3, 5, dtype=torch.float64)},
}


@pytest.mark.parametrize("why", WRONG)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_changed(why: str, tmp_path: Path) -> None:
    live = WRONG[why]({name: torch.full_like(value, 1) for name, value in tensors().items()})
    before = {name: value.clone() for name, value in live.items()}
    with pytest.raises(ValueError, match=why) as wrong:
        saved(tmp_path).restore(live)
    told(wrong)
    assert all(same(live[name], before[name]) for name in live)


WATCHED = """if True:
    import os, sys
    opened = []
    sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
    from pathlib import Path
    from saltus.training import Checkpoints
    import torch
    folder = Path(sys.argv[1])
    Checkpoints(folder).clear_drafts()
    saved = Checkpoints(folder).newest()
    x = torch.zeros(2)
    saved.restore({"x": x})
    assert x.tolist() == [1.0, 2.0]
    inside = {os.path.relpath(p, folder) for p in opened if isinstance(p, str) and p.startswith(str(folder))}
    print("\\n".join(sorted(inside)))
"""


class Planted:
    """What a pickle of this does when it is read: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_planted_pickle_is_not_even_opened(tmp_path: Path) -> None:
    """Under the names that PyTorch's own checkpoints read."""
    folder, marker = tmp_path / "checkpoints", tmp_path / "executed"
    there = saved(folder, given={"x": torch.tensor([1.0, 2.0])})
    poison = pickle.dumps(Planted(marker))
    pickle.loads(poison)
    assert marker.exists(), "it would run if it were read"
    marker.unlink()
    for place in (folder, there.folder):
        for name in (".metadata", "model.pt", "state.pkl", "optimizer.bin", "__0_0.distcp", "rng_state.pth"):
            (place / name).write_bytes(poison)
    done = subprocess.run([sys.executable, "-c", WATCHED, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = set(done.stdout.split())
    assert f"{folder_of(3)}/{MANIFEST}" in names, "the hook sees what is opened"
    assert names <= {f"{folder_of(3)}/{MANIFEST}", f"{folder_of(3)}/{shard_name(0, 1)}"}, names
    assert not marker.exists()
