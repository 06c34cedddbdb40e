"""Checkpoints, by doing: what is written is read again to the bit, by any number of processes; a save that
fails leaves those before it; what is saved is what was there when it was asked for.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from made_checkpoints import (
    DTYPES,
    TRUTH,
    Held,
    flipped,
    held,
    rewrite,
    same,
    saved,
    tensors,
    together,
    told,
    whole,
)
from torch import Tensor

from saltus.training import Checkpoints
from saltus.training import checkpoint as module
from saltus.training.checkpoint import folder_of
from saltus.training.manifest import MANIFEST, read_manifest, shard_name


def test_what_is_written_is_read_to_the_bit(tmp_path: Path) -> None:
    truth = tensors()
    there = saved(tmp_path)
    assert there.step == 3 and there.manifest.meta == {"a": [1, None, "x"]} and there.manifest.score is None
    for name, value in truth.items():
        assert same(there.tensor(name), value), name
    live = {name: torch.empty_like(value) for name, value in truth.items()}
    live["wide"] = torch.empty(4, 6).T[1:, ::2]
    places = {name: value.data_ptr() for name, value in live.items()}
    there.restore(live)
    assert all(same(live[name], truth[name]) for name in truth)
    assert places == {name: value.data_ptr() for name, value in live.items()}, "the live tensors themselves"


def test_a_tensor_under_two_names_is_read_under_both(tmp_path: Path) -> None:
    one = torch.arange(6.0)
    there = saved(tmp_path, given={"a": one, "b": one, "part": one[2:4]})
    assert same(there.tensor("a"), one) and same(there.tensor("b"), one)
    assert same(there.tensor("part"), one[2:4])


def test_the_safetensors_library_reads_the_shards(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    there = saved(tmp_path)
    found = load_file(there.folder / shard_name(0, 1))
    assert all(same(found[name], value) for name, value in tensors().items())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16])
def test_other_number_formats_are_told(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": torch.zeros(2, dtype=dtype)}, {})
    with pytest.raises(ValueError, match="convert it"):
        checkpoints.wait()


@pytest.fixture()
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "piece", lambda held: held.value if isinstance(held, Held) else whole(held))


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("writers", [1, 2, 3, 4])
def test_any_number_of_processes_reads_what_any_number_wrote(writers: int, tmp_path: Path) -> None:
    there = together(tmp_path, writers)
    assert len(there.manifest.files) == writers
    for name, value in TRUTH.items():
        assert same(there.tensor(name), value), name
    for readers in (1, 2, 3, 4, 9):
        for rank in range(readers):
            mine = held(rank, readers)
            parts = {name: h.value.local.clone() for name, h in mine.items()}
            for h in mine.values():
                h.value = h.value._replace(local=torch.zeros_like(h.value.local))
            there.restore(mine)
            assert all(same(mine[name].value.local, part) for name, part in parts.items())


def test_processes_write_and_read_without_a_word(tmp_path: Path) -> None:
    """Real processes that share nothing but the folder, the first one early."""
    code = """if True:
        import sys; from pathlib import Path
        sys.path[:0] = sys.argv[3:]
        import torch
        import made_checkpoints as t
        from saltus.training import checkpoint
        checkpoint.piece = lambda held: held.value
        rank = int(sys.argv[1])
        made = t.Checkpoints(Path(sys.argv[2]), rank=rank, size=2, attempt="x")
        made.save(7, {"x": t.rows(torch.arange(10.0), rank, 2)}, {})
        made.wait()
    """
    here = str(Path(__file__).parent)
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(tmp_path), here], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=120)
        assert rank.returncode == 0, said.decode()
    assert same(Checkpoints(tmp_path).open(7).tensor("x"), torch.arange(10.0))


@pytest.mark.usefixtures("pretended")
def test_a_process_that_cannot_write_is_told_by_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module.write_shard

    def fails(path: Path, copies: dict[str, Tensor]) -> str:
        if "00001-of" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, copies)

    ranks = [Checkpoints(tmp_path, rank=r, size=2, attempt="x") for r in range(2)]
    monkeypatch.setattr(module, "write_shard", fails)
    for rank in (1, 0):
        ranks[rank].save(7, held(rank, 2), {})
    for rank in ranks:
        with pytest.raises(ValueError, match="No space left on device"):
            rank.wait()
    assert not list(tmp_path.iterdir())


def many(folder: Path, scores: list[float | None], **options: Any) -> Checkpoints:  # noqa: ANN401
    checkpoints = Checkpoints(folder, **options)
    for step, score in enumerate(scores, start=1):
        checkpoints.save(step, {"x": torch.tensor(float(step))}, {}, score)
    checkpoints.wait()
    return checkpoints


def test_the_newest_whole_one_is_found_and_damaged_ones_are_told(tmp_path: Path) -> None:
    checkpoints, said = many(tmp_path, [None] * 4, keep_last=4), list[str]()
    rewrite(tmp_path / folder_of(4) / shard_name(0, 1), flipped)
    (tmp_path / folder_of(3) / MANIFEST).unlink()
    newest = checkpoints.newest(said.append)
    assert newest is not None and newest.step == 2
    assert len(said) == 2 and "step-00000004" in said[0] and "step-00000003" in said[1]
    for step in (1, 2):
        rewrite(tmp_path / folder_of(step) / shard_name(0, 1), lambda c: c[:-1])
    with pytest.raises(ValueError, match="expected a whole checkpoint, got 4 damaged"):
        checkpoints.newest()
    assert Checkpoints(tmp_path / "none").newest() is None


def test_a_damaged_one_does_not_push_a_whole_one_out(tmp_path: Path) -> None:
    """Going on from step 2, with 3 to 5 damaged, every new one must stay although there are later ones."""
    checkpoints = many(tmp_path, [None] * 5, keep_last=5)
    for step in (3, 4, 5):
        (tmp_path / folder_of(step) / MANIFEST).unlink()
    again = Checkpoints(tmp_path, keep_last=1)
    again.save(3, {"x": torch.tensor(30.0)}, {})
    again.wait()
    newest = checkpoints.newest()
    assert newest is not None and newest.step == 3 and newest.tensor("x") == 30.0
    assert again.steps() == [3, 4, 5]
    for step in (4, 5, 6):
        again.save(step, {"x": torch.tensor(10.0 * step)}, {})
    again.wait()
    assert again.steps() == [6]


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    scores = [0.5, 0.1, None, 0.3, 0.1, 0.2, 0.9]
    assert many(tmp_path / "a", scores, keep_last=2, keep_best=0).steps() == [6, 7]
    assert many(tmp_path / "b", scores, keep_last=1, keep_best=1).steps() == [2, 7], "the earlier of equals"
    assert many(tmp_path / "c", scores, keep_last=1, keep_best=3).steps() == [2, 5, 6, 7]
    assert many(tmp_path / "d", [None] * 3, keep_last=1, keep_best=3).steps() == [3]
    for wrong in ({"keep_last": 0}, {"keep_best": -1}):
        with pytest.raises(ValueError, match="keep at least the last one"):
            Checkpoints(tmp_path, **wrong)


def test_other_names_are_nobody_s(tmp_path: Path) -> None:
    """What is no checkpoint's name is neither read nor removed."""
    saved(tmp_path, step=5)
    for name in ("step-5", "step-000000005", "step-0000000x", "step-٠٠٠٠٠٠٠٩", "best"):
        (tmp_path / name).mkdir()
    (tmp_path / folder_of(6)).write_text("a file")
    (tmp_path / folder_of(7)).symlink_to(tmp_path / folder_of(5))
    there = sorted(p.name for p in tmp_path.iterdir())
    assert Checkpoints(tmp_path).steps() == [5]
    saved(tmp_path, step=8, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*there, folder_of(8)])


def test_what_is_saved_is_what_was_there_when_save_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors change while the thread has not written a byte yet."""
    write, may = module.write_shard, threading.Event()

    def slow(path: Path, copies: dict[str, Tensor]) -> str:
        assert may.wait(30)
        return write(path, copies)

    monkeypatch.setattr(module, "write_shard", slow)
    live = tensors()
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):  # the second goes into the memory of the first
        truth = {name: value.clone() for name, value in live.items()}
        may.clear()
        checkpoints.save(step, live, {})
        for value in live.values():
            value.copy_(torch.ones_like(value) if step == 1 else torch.zeros_like(value))
        may.set()
        checkpoints.wait()
        there = checkpoints.open(step)
        assert all(same(there.tensor(name), value) for name, value in truth.items())
    assert checkpoints.count == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite_are_never_saved(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    checkpoints = many(tmp_path, [None])
    checkpoints.save(2, {"x": torch.tensor([0.0, value], dtype=dtype)}, {})
    with pytest.raises(ValueError, match="NaN or infinity in x"):
        checkpoints.wait()
    assert checkpoints.steps() == [1] and not list(tmp_path.glob(".draft*"))


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process may grow beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # Python ignores the signal: EFBIG
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fails(number: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@contextmanager
def patched(owner: object, name: str, number: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fails(number))
        yield


@contextmanager
def unexpected() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_shard", lambda *_: 1 / 0)
        yield


FAULTS = {
    "File too large": lambda: limited(20_000),
    "No space left on device": lambda: patched(os, "fsync", errno.ENOSPC),
    "Input/output error": lambda: patched(module.Path, "rename", errno.EIO),
    "Disk quota exceeded": lambda: patched(module, "_put", errno.EDQUOT),
    "Permission denied": lambda: patched(module.Path, "mkdir", errno.EACCES),
    "division by zero": unexpected,
}


@pytest.mark.parametrize("why", FAULTS)
def test_a_save_that_fails_is_told_by_the_next_and_the_others_stay(why: str, tmp_path: Path) -> None:
    checkpoints = many(tmp_path, [None, None])
    large = {"x": torch.zeros(9_000)}
    with FAULTS[why]():
        checkpoints.save(3, large, {})  # returns: the fault is in the thread
        thread = checkpoints._thread
        assert thread is not None
        thread.join()
    with pytest.raises(ValueError, match=why) as wrong:
        checkpoints.save(4, large, {})
    said = told(wrong)
    assert "goes on from the newest" in said
    newest = checkpoints.newest()
    assert newest is not None and newest.step == 2 and newest.tensor("x") == 2.0
    assert not list(tmp_path.glob(".draft*"))
    checkpoints.save(4, large, {})
    checkpoints.wait()
    assert checkpoints.steps()[-1] == 4


def test_meta_that_is_no_json_is_told(tmp_path: Path) -> None:
    for meta in ({"x": object()}, {"x": float("nan")}, {"x": {1, 2}}):
        checkpoints = many(tmp_path, [None])
        checkpoints.save(2, {}, meta)
        with pytest.raises(ValueError, match="finite numbers"):
            checkpoints.wait()


def test_drafts_of_a_killed_process_are_cleared_and_never_read(tmp_path: Path) -> None:
    there = saved(tmp_path, step=1)
    (tmp_path / ".draft-abc-step-00000002").mkdir()
    for path in there.folder.iterdir():
        (tmp_path / ".draft-abc-step-00000002" / path.name).write_bytes(path.read_bytes())
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [1]
    checkpoints.clear_drafts()
    assert [p.name for p in tmp_path.iterdir()] == [folder_of(1)]


def test_the_same_step_again_replaces_what_was_there(tmp_path: Path) -> None:
    saved(tmp_path, step=1, given={"x": torch.zeros(2)})
    there = saved(tmp_path, step=1, given={"x": torch.ones(3)})
    assert there.tensor("x").tolist() == [1.0] * 3 and read_manifest(there.folder).step == 1


def test_a_checkpoint_that_was_replaced_by_a_link_is_not_overlooked(tmp_path: Path) -> None:
    """A run whose only checkpoint was put elsewhere does not begin anew in silence."""
    there = saved(tmp_path / "run", step=1)
    there.folder.rename(tmp_path / "elsewhere")
    assert Checkpoints(tmp_path / "run").newest() is None
    there.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="expected a whole checkpoint, got 1 links or files"):
        Checkpoints(tmp_path / "run").newest()


def test_a_run_that_was_moved_is_told_and_leaves_no_second_folder(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(1, {"x": torch.zeros(2)}, {})
    checkpoints.wait()
    (tmp_path / "run").rename(tmp_path / "moved")
    checkpoints.save(2, {"x": torch.zeros(2)}, {})
    with pytest.raises(ValueError, match="expected to save a checkpoint here, got No such file"):
        checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_no_checkpoint_is_removed_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is killed while a folder is emptied leaves nothing that looks like a checkpoint."""
    names: list[str] = []
    real = shutil.rmtree

    def emptied(path: Path, ignore_errors: bool) -> None:
        names.append(path.name)
        real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", emptied)
    for step in (1, 2, 2):
        saved(tmp_path, step=step, keep_last=1, keep_best=0)
    assert len(names) == 2 and all(name.startswith(".draft-") for name in names)
