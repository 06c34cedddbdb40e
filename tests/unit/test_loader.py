"""Batches of pictures are a function of the streams: no worker, cache, guess or process changes a bit."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saltus.data import ArrayData, ImageData, Images, Loading, open_images
from saltus.data.ahead import Ahead
from saltus.data.decoded import InFile, InMemory
from saltus.data.decoders import Decoders
from saltus.data.pixels import unpack
from saltus.streams import Streams
from saltus.typing import Batch

COUNT, BATCH = 40, 16
X = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """JPEG files in two classes."""
    place = tmp_path_factory.mktemp("images")
    for k, x in enumerate(X):
        path = place / ("even", "odd")[k % 2] / f"{k:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(x).save(path)
    return open_images(place)


@pytest.fixture(scope="module")
def truth(images: Images) -> ArrayData:
    """The same pixels in memory."""
    return ArrayData(images.read(torch.arange(COUNT)), BATCH, images.labels)


def rng(step: int, rows: torch.Tensor | None = None, prefix: str = "data/") -> Streams:
    return Streams(3, step=step, index=torch.arange(BATCH) if rows is None else rows, prefix=prefix)


def same(a: Batch, b: Batch) -> bool:
    assert a.cond is not None and b.cond is not None and a.cond.label is not None and b.cond.label is not None
    pairs = ((a.x0, b.x0), (a.data(), b.data()), (a.cond.label, b.cond.label))
    return all(torch.equal(one, other) for one, other in pairs)


LOADINGS: dict[str, dict[str, int]] = {
    "plain": {"ahead": 0, "memory": 0},
    "ahead": {"ahead": 3, "memory": 0},
    "one worker": {"workers": 1, "ahead": 0, "memory": 0},
    "two workers ahead": {"workers": 2, "ahead": 2, "memory": 0},
    "some kept": {"workers": 1, "memory": 15 * 3 * 6 * 6},
    "all kept": {"memory": 2**20},
}


@pytest.mark.parametrize("options", LOADINGS.values(), ids=LOADINGS)
def test_batches_equal_those_of_an_array(options: dict[str, int], images: Images, truth: ArrayData) -> None:
    """Over three epochs in order, resumed, back, with steps left out, and of several processes and parts."""
    data = ImageData(images, BATCH, labels=True, loading=Loading(**options))
    for step in (*range(8), 20, 21, 22, 5, 6, 6, 7, 9, 11, 12):
        assert same(data(rng(step)), truth(rng(step))), step
    parts = [torch.arange(k, BATCH, 4) for k in range(4)]
    for step in range(12, 15):
        for rows in parts:
            found = data(rng(step, rows))
            assert same(found, truth(rng(step, rows)))
            found.data().zero_()  # a batch is the taker's own
    assert same(data(rng(12, prefix="data.critic.1/")), truth(rng(12, prefix="data.critic.1/")))
    data.close()
    assert same(data(rng(15)), truth(rng(15)))
    data.close()


def test_a_file_keeps_pictures_for_the_next_run_and_is_not_believed_blindly(
    images: Images, truth: ArrayData, tmp_path: Path
) -> None:
    def refused(*_: object) -> object:
        raise AssertionError("decoded again")

    every = torch.arange(COUNT)
    data = ImageData(images, BATCH, labels=True, loading=Loading(folder=tmp_path / "kept"))
    for step in range(5):
        assert same(data(rng(step)), truth(rng(step)))
    assert torch.equal(data.read(every), truth.x)
    again = InFile(images, tmp_path / "kept", refused)  # type: ignore[arg-type]
    assert torch.equal(again(every), truth.x)
    path = next((tmp_path / "kept").glob("*.pixels"))
    with path.open("r+b") as file:
        file.seek(7 * 108 + 3)
        file.write(bytes([255 - truth.x[7].flatten()[3].item()]))  # a disk that lost a byte
    asked = []

    def noted(items: object, form: object) -> object:
        asked.append(len(items))  # type: ignore[arg-type]
        return unpack(items, form)  # type: ignore[arg-type]

    mended = InFile(images, tmp_path / "kept", noted)  # type: ignore[arg-type]
    assert torch.equal(mended(every), truth.x) and asked == [1]
    assert torch.equal(InFile(images, tmp_path / "kept", refused)(every), truth.x)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cache .*file: expected a folder to write to"):
        InFile(images, tmp_path / "file")


def test_what_is_kept_in_memory_is_decoded_once(images: Images, truth: ArrayData) -> None:
    asked: list[int] = []

    def noted(items: object, form: object) -> object:
        asked.append(len(items))  # type: ignore[arg-type]
        return unpack(items, form)  # type: ignore[arg-type]

    kept = InMemory(images, 30 * 108, noted)  # type: ignore[arg-type]
    every = torch.arange(COUNT)
    assert torch.equal(kept(every), truth.x) and torch.equal(kept(every), truth.x)
    assert asked == [40, 10]
    assert torch.equal(kept(torch.tensor([3, 3, 29])), truth.x[[3, 3, 29]]) and asked == [40, 10]


def test_half_of_the_pictures_are_mirrored_by_the_streams(images: Images, truth: ArrayData) -> None:
    data = ImageData(images, BATCH, labels=True, flip=True, loading=Loading(memory=2**20))
    turned = 0
    for step in range(30):
        x, plain = data(rng(step)).data(), truth(rng(step)).data()
        mirrored = (x == plain.flip(-1)).flatten(1).all(dim=1)
        assert bool(((x == plain).flatten(1).all(dim=1) ^ mirrored).all())
        turned += int(mirrored.sum())
    assert abs(turned - 240) < 4 * (480 * 0.25) ** 0.5
    rows = torch.tensor([5, 9])
    assert torch.equal(data(rng(4, rows)).data(), data(rng(4)).data()[rows])


def test_guesses_are_made_ahead_and_wrong_ones_dropped() -> None:
    made: list[int] = []

    def make(streams: Streams) -> int:
        made.append(streams.step)
        return streams.step

    ahead = Ahead(make, 2)
    assert [ahead(rng(k)) for k in (0, 1)] == [0, 1]
    assert [ahead(rng(k)) for k in (2, 3)] == [2, 3]
    ahead._threads.shutdown(wait=True)
    assert sorted(made) == [0, 1, 2, 3, 4, 5]  # each once, two of them before they were asked for
    with pytest.raises(ValueError, match="ahead: expected a number of steps"):
        Ahead(make, -1)


def test_a_fault_ahead_is_told_when_its_step_comes(tmp_path: Path) -> None:
    for k in range(4):
        Image.fromarray(X[k]).save(tmp_path / f"{k}.png")
    found = open_images(tmp_path)
    (tmp_path / "2.png").write_bytes(b"")
    data = ImageData(found, 1, loading=Loading(ahead=2))
    order = [int(ArrayData(torch.arange(4.0)[:, None], 1).rows(rng(k, torch.tensor([0])))) for k in range(4)]
    told = []
    for step in range(4):
        try:
            data(rng(step, torch.tensor([0])))
        except ValueError as wrong:
            told.append((step, str(wrong)))
    assert [step for step, _ in told] == [order.index(2)] and "2.png (no picture" in told[0][1]


def test_processes_name_the_same_faults_at_the_same_places(images: Images) -> None:
    items = list(images.stored.encoded(range(COUNT)))
    items[3], items[-2] = b"hello", b""
    here, faults = unpack(items, images.form)
    with Decoders(2) as decode:
        found, named = decode(items, images.form)
    assert np.array_equal(found, here) and named == faults
    assert [fault.place for fault in named] == [3, COUNT - 2]


def processes() -> set[int]:
    """The children of this process."""
    return {int(k) for k in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


@pytest.fixture
def before() -> Iterator[set[int]]:
    gc.collect()
    yield processes()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_processes_end_with_whoever_asked_and_a_lost_one_is_replaced(
    images: Images, truth: ArrayData, before: set[int]
) -> None:
    data = ImageData(images, BATCH, labels=True, loading=Loading(workers=2, memory=0))
    for step in range(4):
        data(rng(step))
    mine = processes() - before
    assert len(mine) == 2
    del data
    end = time.monotonic() + 20.0
    while mine & processes() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert not mine & processes()
    with Decoders(2) as decode:
        items = images.stored.encoded(range(COUNT))
        found, _ = decode(items, images.form)
        assert torch.equal(torch.from_numpy(found), truth.x)
        os.kill(min(processes() - before), signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match="has ended with code -9"):
            found, _ = decode(items, images.form)
        assert torch.equal(torch.from_numpy(found), truth.x)
    assert processes() == before


SCRIPT = """
import sys, time, torch
from saltus.data import ImageData, Loading, open_images
from saltus.streams import Streams
data = ImageData(open_images(sys.argv[1]), 16, loading=Loading(workers=2, memory=0))
for step in range(5):
    data(Streams(0, step=step, index=torch.arange(16)))
print(*[process.pid for process in data._decoders._crew.all], flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
if sys.argv[2] == "raise":
    raise ValueError("a fault")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals")
@pytest.mark.parametrize("end", ["raise", "interrupt", "kill"])
def test_no_process_outlives_the_program(end: str, images: Images, tmp_path: Path) -> None:
    """Whether it fails, is interrupted with its group as by Ctrl-C, or is killed."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    place = next(iter(images.stored.encoded([0])))
    assert isinstance(place, Path)
    ways = {"raise": "raise", "interrupt": "wait", "kill": "wait"}
    command = [sys.executable, str(tmp_path / "script.py"), str(place.parent.parent), ways[end]]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stdout is not None
    pids = [int(k) for k in program.stdout.readline().split()]
    assert len(pids) == 2
    if end == "interrupt":
        os.killpg(program.pid, signal.SIGINT)
    if end == "kill":
        program.kill()
    _, said = program.communicate(timeout=60)
    limit = time.monotonic() + 20.0
    while any(alive(k) for k in pids) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not any(alive(k) for k in pids)
    assert said.count("Traceback") == (end in ("raise", "interrupt")), said


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_impossible_numbers_are_told(images: Images) -> None:
    with pytest.raises(ValueError, match="expected a batch between 1 and the 40 pictures of images0, got 41"):
        ImageData(images, 41)
    with pytest.raises(ValueError, match="workers: expected a number of processes"):
        ImageData(images, 4, loading=Loading(workers=-1))
    with pytest.raises(ValueError, match="cache: expected a number of bytes"):
        ImageData(images, 4, loading=Loading(memory=-1))
    with pytest.raises(ValueError, match="prior: expected a positive"):
        ImageData(images, 4, prior=0.0)
    with pytest.raises(ValueError, match="expected global indices below the batch of 4"):
        ImageData(images, 4)(rng(0))
