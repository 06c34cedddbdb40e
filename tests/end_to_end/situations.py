"""Bad situations, each brought about for real: what was said, the exit status, and what was lost.

``docs/faults.py`` writes the table of all of them, ``test_faults.py`` runs those that are quick.
"""

from __future__ import annotations

import json
import os
import pickle
import pty
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from kit import PATIENCE, RUN, Kit, Ran, Started

from saltus.training.manifest import read_manifest

NOBODY = 65534
KEPT = "nothing: every file is as it was"
EMPTY = "nothing: the folder is as it was before"


@dataclass(frozen=True)
class Told:
    """What became of a situation.

    Attributes:
        ran: the command that met it.
        lost: in words; what they say was found to be so.
        command: as a reader would type it; None is that of ``ran``.
    """

    ran: Ran
    lost: str
    command: str | None = None


@dataclass(frozen=True)
class Situation:
    """A bad situation.

    Attributes:
        title: in words.
        group: what it is about.
        quick: whether it is tested in CI.
        act: brings it about.
        needs: why it cannot be brought about here; empty if it can.
    """

    title: str
    group: str
    quick: bool
    act: Callable[[Kit], Told]
    needs: Callable[[], str]


ALL: list[Situation] = []
_GROUP = [""]


def situation(
    title: str, quick: bool = True, needs: Callable[[], str] = lambda: ""
) -> Callable[[Callable[[Kit], Told]], Callable[[Kit], Told]]:
    """Register a function as a situation of the present group."""

    def register(act: Callable[[Kit], Told]) -> Callable[[Kit], Told]:
        ALL.append(Situation(title, _GROUP[0], quick, act, needs))
        return act

    return register


def root() -> str:
    """Whether file systems can be mounted here."""
    return "" if os.geteuid() == 0 and shutil.which("mount") else "needs root, to mount a small file system"


def _kept(kit: Kit, before: dict[str, str]) -> str:
    """That every file is there and as it was, but for the list of starts."""
    after = kit.hashes()
    changed = {name for name, digest in before.items() if after.get(name) != digest}
    assert changed <= {"run/environment.json"}, changed
    if changed:
        return "nothing: every file is as it was; environment.json also tells of this start"
    return KEPT


def _until(started: Started, there: Path) -> None:
    """Wait for a file that a command writes."""
    last = time.monotonic() + PATIENCE
    while not there.exists():
        assert time.monotonic() < last, started.err.read_text()
        assert Path(f"/proc/{started.pid}/cmdline").read_bytes(), f"it has ended: {started.err.read_text()}"
        time.sleep(0.01)


def _nothing_there(kit: Kit, name: str = "run") -> str:
    assert not (kit.at / name).exists(), list((kit.at / name).iterdir())
    return EMPTY


def _arguments(command: str) -> list[str]:
    return command.split()


# ----------------------------------------------------------------------------------------------------
_GROUP[0] = "Numbers"

LMD = _arguments(
    "run mixture-lmd --size tiny --batch 64 --steps 30 --save-every 10 --grid-every 0 --skip-evaluation "
    "--quiet --out run"
)
NAN = (("singular_teacher", 0.9996),)


@situation("The teacher is NaN at some times: the loss is NaN")
def nan_loss(kit: Kit) -> Told:
    ran = kit.saltus(*LMD, faults=NAN).said(
        2,
        r"step 11: term 'lagrangian' .* NaN in 1 of .* batch index 27 at \(s, t\) .*after 10 steps",
    )
    assert (kit.at / "run/checkpoints/step-00000010/manifest.json").exists()
    return Told(ran, "nothing: the checkpoint after 10 steps is whole")


@situation("The same, and such moves are skipped", quick=False)
def nan_skipped(kit: Kit) -> Told:
    kit.saltus(*LMD, faults=NAN)
    ran = kit.saltus(*LMD, "--skip-nonfinite", "10", faults=NAN).said(0)
    last = json.loads((kit.at / "run/metrics.jsonl").read_text().splitlines()[-1])
    mine = (kit.at / "run/model.safetensors").read_bytes()
    kit.fresh()
    kit.saltus(*LMD, "--skip-nonfinite", "10", faults=NAN).said(0)
    assert mine == (kit.at / "run/model.safetensors").read_bytes()
    assert last["skipped"] > 0
    return Told(
        ran,
        f"{last['skipped']} moves, which the log counts; the run went on after step 10 and ended as one that "
        "had skipped from the beginning, bit for bit",
    )


@situation("More such moves than may be skipped", quick=False)
def nan_too_often(kit: Kit) -> Told:
    ran = kit.saltus(*LMD, "--skip-nonfinite", "1", faults=NAN).said(
        2, "1 such moves? (were|was) skipped already"
    )
    assert (kit.at / "run/checkpoints/step-00000020/manifest.json").exists()
    return Told(ran, "nothing: the checkpoint after 20 steps is whole")


@situation("A learning rate of 1e30, in a game of two players")
def wild_rate(kit: Kit) -> Told:
    command = [word.replace("mixture-lmd", "mixture-freeflow") for word in LMD]
    ran = kit.saltus(*command, "--lr", "1e30").said(
        2, "move 'critic' .*largest weight before it is 1.0e.30.*lower --lr"
    )
    return Told(ran, _nothing_there(kit))


@situation("Out of memory", quick=False)
def out_of_memory(kit: Kit) -> Told:
    kit.whole()
    before = kit.hashes()
    command = [*RUN[:-1], "other", "--batch", "400000"]
    ran = kit.saltus(*command, limits={"AS": 1_000_000_000}).said(
        2, "out of memory.*needs about.*--accumulate"
    )
    _nothing_there(kit, "other")
    return Told(ran, _kept(kit, before))


# ----------------------------------------------------------------------------------------------------
_GROUP[0] = "Signals"


@situation("Ctrl-C")
def interrupted(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, faults=[("signal_at", 30, "SIGINT")]).said(
        130, "stopped after step 30, which is saved"
    )
    return Told(ran, kit.resumed())


@situation("Ctrl-C twice: it does not wait for the step", quick=False)
def interrupted_twice(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, faults=[("signal_at", 30, "SIGINT", "SIGINT")]).said(130, "interrupted")
    assert [p.name for p in (kit.at / "run/checkpoints").glob("step-*")] == ["step-00000020"]
    kit.resumed()
    return Told(ran, "10 steps since the last checkpoint, which the same command made again, bit for bit")


@situation("SIGTERM", quick=False)
def terminated(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, faults=[("signal_at", 30, "SIGTERM")]).said(
        143, "stopped after step 30, which is saved"
    )
    return Told(ran, kit.resumed())


@situation("SIGTERM while a checkpoint is written")
def terminated_in_save(kit: Kit) -> Told:
    faults = [("signal_in_save", 20, "shard", "SIGTERM")]
    ran = kit.saltus(*RUN, faults=faults).said(143, r"stopped after step \d+, which is saved")
    return Told(ran, kit.resumed())


@situation("The terminal is closed (SIGHUP)")
def hung_up(kit: Kit) -> Told:
    master, slave = pty.openpty()
    command = [word for word in RUN if word != "--quiet"]
    started = kit.start(*command, terminal=os.ttyname(slave), faults=[("slow", 0.05)])
    os.close(slave)
    while not (kit.at / "run/checkpoints/step-00000020/manifest.json").exists():
        time.sleep(0.01)
        os.read(master, 65536)
    os.close(master)
    ran = started.wait().said(129)
    steps = sorted(int(p.name[5:]) for p in (kit.at / "run/checkpoints").glob("step-*"))
    assert 20 < steps[-1] < 60, steps
    return Told(ran, kit.resumed())


def _killed(phase: str) -> Callable[[Kit], Told]:
    def act(kit: Kit) -> Told:
        ran = kit.saltus(*RUN, faults=[("signal_in_save", 40, phase, "SIGKILL")]).said(-9)
        return Told(ran, kit.resumed())

    return act


for _phase, _words, _quick in (
    ("shard", "while tensors are written", True),
    ("manifest", "before the manifest is written", False),
    ("rename", "before the checkpoint gets its name", False),
):
    situation(f"SIGKILL {_words}", _quick)(_killed(_phase))


@situation("SIGKILL before the first checkpoint", quick=False)
def killed_early(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, faults=[("signal_at", 10, "SIGKILL")]).said(-9)
    return Told(ran, kit.resumed())


# ----------------------------------------------------------------------------------------------------
_GROUP[0] = "Disk"


@contextmanager
def _small(kit: Kit, size: str) -> Iterator[Path]:
    """A file system of this size at run/."""
    place = kit.at / "run"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@situation("The disk is full when a checkpoint is saved", quick=False, needs=root)
def full_disk(kit: Kit) -> Told:
    with _small(kit, "8m") as place:
        started = kit.start(*RUN, "--save-every", "5", faults=[("slow", 0.2)])
        _until(started, place / "checkpoints/step-00000005/manifest.json")
        with suppress_full(), (place / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)
        ran = started.wait().said(2, "No space left on device.*free some room")
        (place / "filler").unlink()
        ran2 = kit.saltus(*RUN)
        assert ran2.status == 0, ran2.err
        mine = (place / "model.safetensors").read_bytes()
    kit.fresh()
    kit.whole()
    assert mine == (kit.at / "run/model.safetensors").read_bytes()
    return Told(
        ran,
        "nothing: with room again, the same command ended with the undisturbed run's weights, bit for bit",
    )


@contextmanager
def suppress_full() -> Iterator[None]:
    """Until the disk is full."""
    try:
        yield
    except OSError:
        return


@situation("No file may be larger than 50 kB, nor a checkpoint")
def large_file(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, limits={"FSIZE": 50_000}).said(2, "File too large")
    return Told(ran, _nothing_there(kit))


@situation("The permission to write is lost while it trains", quick=False, needs=lambda: sealing())
def lost_permission(kit: Kit) -> Told:
    started = kit.start(*RUN, faults=[("slow", 0.1)])
    place = kit.at / "run/checkpoints"
    _until(started, place / "step-00000020/manifest.json")
    with _sealed(place):
        ran = started.wait().said(2, "(Permission denied|Operation not permitted).*mend the permissions")
    return Told(ran, kit.resumed())


@contextmanager
def _sealed(folder: Path) -> Iterator[None]:
    """A folder in which nothing can be written; permissions do not hold root back, so for root it is made
    immutable."""
    if os.geteuid():
        folder.chmod(0o555)
    else:
        subprocess.run(["chattr", "+i", str(folder)], check=True)
    try:
        yield
    finally:
        if os.geteuid():
            folder.chmod(0o755)
        else:
            subprocess.run(["chattr", "-i", str(folder)], check=True)


def sealing() -> str:
    """Whether a folder can be sealed here."""
    try:
        with TemporaryDirectory() as folder, _sealed(Path(folder)):
            return ""
    except (OSError, subprocess.CalledProcessError):
        return "needs chattr +i, where root runs it"


@situation("No permission to write where the run folder would be", quick=False)
def read_only(kit: Kit) -> Told:
    uid = NOBODY if os.geteuid() == 0 else None
    kit.at.chmod(0o555)
    ran = kit.saltus(*RUN, uid=uid).said(2, "no permission to write in .*--out")
    kit.at.chmod(0o777)
    return Told(ran, _nothing_there(kit))


@situation("--out is a file")
def out_is_a_file(kit: Kit) -> Told:
    (kit.at / "run").write_text("a letter")
    ran = kit.saltus(*RUN).said(2, "expected a folder, got a file; choose another with --out")
    assert (kit.at / "run").read_text() == "a letter"
    return Told(ran, "nothing: the file is as it was")


@situation("--out is a folder with other files")
def out_is_taken(kit: Kit) -> Told:
    (kit.at / "run").mkdir()
    (kit.at / "run/thesis.tex").write_text("text")
    before = kit.hashes()
    ran = kit.saltus(*RUN, "--overwrite").said(2, "a folder with other files; choose another with --out")
    return Told(ran, _kept(kit, before))


# ----------------------------------------------------------------------------------------------------
_GROUP[0] = "Checkpoints"


@situation("The newest checkpoint is truncated")
def truncated(kit: Kit) -> Told:
    kit.half()
    (shard,) = (kit.at / "run/checkpoints/step-00000040").glob("shard-*")
    os.truncate(shard, shard.stat().st_size // 2)
    ran = kit.saltus(*RUN).said(
        0, "passed over a checkpoint: .*step-00000040.* bytes as when it was saved, got"
    )
    return Told(ran, _as_whole(kit))


def _as_whole(kit: Kit) -> str:
    mine = (kit.at / "run/model.safetensors").read_bytes()
    kit.fresh()
    kit.whole()
    assert mine == (kit.at / "run/model.safetensors").read_bytes()
    return "20 steps, made again from the checkpoint before: the weights are those of an undisturbed run"


@situation("A byte of the newest checkpoint has flipped", quick=False)
def flipped(kit: Kit) -> Told:
    kit.half()
    (shard,) = (kit.at / "run/checkpoints/step-00000040").glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    ran = kit.saltus(*RUN).said(0, "passed over a checkpoint: .*got another content")
    return Told(ran, _as_whole(kit))


@situation("All checkpoints are damaged")
def all_damaged(kit: Kit) -> Told:
    kit.half()
    for shard in (kit.at / "run/checkpoints").glob("*/shard-*"):
        os.truncate(shard, 100)
    before = kit.hashes()
    over = "passed over a checkpoint"
    ran = kit.saltus(*RUN).said(2, over, over, "expected a whole checkpoint, got 2 damaged; put one back")
    return Told(ran, _kept(kit, before))


def _crafted(change: Callable[[Path], None]) -> Callable[[Kit], Told]:
    def act(kit: Kit) -> Told:
        kit.half()
        shutil.rmtree(kit.at / "run/checkpoints/step-00000020")
        change(kit.at / "run/checkpoints/step-00000040")
        before = kit.hashes()
        ran = kit.saltus(*RUN).said(
            2, "passed over a checkpoint", "expected a whole checkpoint, got 1 damaged"
        )
        assert not (kit.at / "owned").exists()
        return Told(ran, _kept(kit, before))

    return act


def _outward(folder: Path) -> None:
    """A whole manifest, its own hash too, that names a file elsewhere."""
    made = read_manifest(folder)
    (name,) = made.files
    away = {"../../options.json": made.files[name]}
    tensors = {
        key: w._replace(parts=tuple(p._replace(file="../../options.json") for p in w.parts))
        for key, w in made.tensors.items()
    }
    (folder / "manifest.json").write_text(replace(made, files=away, tensors=tensors).text())


def _absurd(folder: Path) -> None:
    (shard,) = folder.glob("shard-*")
    shard.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


class Owned:
    """Unpickling makes a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def _pickled(folder: Path) -> None:
    for name in (".metadata", "manifest.json", "shard-00000-of-00001.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Owned()))


situation("A crafted checkpoint: a path out of the folder")(_crafted(_outward))
situation("A crafted checkpoint: an absurd header", quick=False)(_crafted(_absurd))
situation("A crafted checkpoint: malicious pickles in place of its files")(_crafted(_pickled))


# ----------------------------------------------------------------------------------------------------
_GROUP[0] = "The run folder"


@situation("Two runs in one folder at once")
def two_at_once(kit: Kit) -> Told:
    first = kit.start(*RUN, faults=[("slow", 0.1)])
    _until(first, kit.at / "run/options.json")
    ran = kit.saltus(*RUN).said(2, r"expected it free, but process \d+ on .* is training in it")
    first.wait().said(0)
    mine = (kit.at / "run/model.safetensors").read_bytes()
    kit.fresh()
    kit.whole()
    assert mine == (kit.at / "run/model.safetensors").read_bytes()
    return Told(ran, "nothing: the first run ended with the weights of an undisturbed one, bit for bit")


@situation("Going on with other options")
def other_options(kit: Kit) -> Told:
    kit.half()
    before = kit.hashes()
    ran = kit.saltus(*RUN, "--lr", "0.5").said(
        2, "unfinished run with other options .lr: 0.001 there, 0.5 here"
    )
    return Told(ran, _kept(kit, before))


@situation("A finished run again")
def again(kit: Kit) -> Told:
    kit.whole()
    before = kit.hashes()
    ran = kit.saltus(*RUN).said(2, "holds a finished run already; add --overwrite")
    return Told(ran, _kept(kit, before))


@situation("options.json is damaged")
def damaged_options(kit: Kit) -> Told:
    kit.half()
    (kit.at / "run/options.json").write_text("{")
    before = kit.hashes()
    ran = kit.saltus(*RUN).said(2, "expected JSON in run/options.json.*damaged")
    return Told(ran, _kept(kit, before))


@situation("The last line of metrics.jsonl is cut off", quick=False)
def damaged_metrics(kit: Kit) -> Told:
    kit.half()
    with (kit.at / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    ran = kit.saltus(*RUN).said(0)
    rows = (kit.at / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [50, 60], rows
    mine = (kit.at / "run/model.safetensors").read_bytes()
    kit.fresh()
    kit.whole()
    assert mine == (kit.at / "run/model.safetensors").read_bytes()
    return Told(
        ran, "nothing: the line was taken back, and the weights are those of an undisturbed run, bit for bit"
    )


@situation("A report of a folder that is no run")
def no_run(kit: Kit) -> Told:
    (kit.at / "run").mkdir()
    ran = kit.saltus("report", "run").said(2, "run")
    assert not list((kit.at / "run").iterdir())
    return Told(ran, EMPTY)


@situation("The weights file of a finished run is a malicious pickle")
def pickled_weights(kit: Kit) -> Told:
    kit.whole()
    (kit.at / "run/model.safetensors").write_bytes(pickle.dumps(Owned()))
    before = kit.hashes()
    ran = kit.saltus("sample", "run").said(2, "expected a whole safetensors file.*damaged or of another kind")
    assert not (kit.at / "owned").exists()
    return Told(ran, _kept(kit, before))


@situation("The weights file of a finished run is truncated")
def truncated_weights(kit: Kit) -> Told:
    kit.whole()
    os.truncate(kit.at / "run/model.safetensors", 2000)
    before = kit.hashes()
    ran = kit.saltus("sample", "run").said(2, "expected a whole safetensors file")
    return Told(ran, _kept(kit, before))


# ----------------------------------------------------------------------------------------------------
_GROUP[0] = "Data and teachers"

DISTILL = _arguments(
    "distill teacher --method emd --data data.npy --size tiny --batch 64 --steps 20 --save-every 10 "
    "--grid-every 0 --skip-evaluation --quiet --out run"
)


def _with_teacher(kit: Kit, x: np.ndarray) -> None:
    kit.whole()
    (kit.at / "run").rename(kit.at / "teacher")
    np.save(kit.at / "data.npy", x)


@situation("The data hold an infinity")
def infinite_data(kit: Kit) -> Told:
    x = np.zeros((256, 2), dtype=np.float32)
    x[77, 1] = np.inf
    _with_teacher(kit, x)
    ran = kit.saltus(*DISTILL).said(2, "data.*finite")
    return Told(ran, _nothing_there(kit))


@situation("The file of the data is truncated")
def truncated_data(kit: Kit) -> Told:
    _with_teacher(kit, np.zeros((256, 2), dtype=np.float32))
    os.truncate(kit.at / "data.npy", 500)
    ran = kit.saltus(*DISTILL).said(2, "data data.npy: expected an array that numpy.save wrote")
    return Told(ran, _nothing_there(kit))


@situation("The file of the data is a malicious pickle")
def pickled_data(kit: Kit) -> Told:
    _with_teacher(kit, np.zeros((256, 2), dtype=np.float32))
    np.save(kit.at / "data.npy", np.array([Owned()], dtype=object), allow_pickle=True)
    ran = kit.saltus(*DISTILL).said(2, "data data.npy: expected an array that numpy.save wrote")
    assert not (kit.at / "owned").exists()
    return Told(ran, _nothing_there(kit))


@situation("The teacher is gone when the run is to go on", quick=False)
def teacher_gone(kit: Kit) -> Told:
    _with_teacher(kit, np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32))
    kit.saltus(*DISTILL, faults=[("signal_at", 10, "SIGTERM")]).said(143, "stopped")
    (kit.at / "teacher").rename(kit.at / "moved")
    before = kit.hashes()
    ran = kit.saltus(*DISTILL).said(2, "teacher")
    kept = _kept(kit, before)
    (kit.at / "moved").rename(kit.at / "teacher")
    kit.saltus(*DISTILL).said(0)
    return Told(ran, f"{kept}, and with the teacher back the run went on")


# ----------------------------------------------------------------------------------------------------
_GROUP[0] = "The command line"


def _refused(title: str, command: str, *patterns: str, quick: bool = True) -> None:
    def act(kit: Kit) -> Told:
        return Told(kit.saltus(*_arguments(command)).said(2, *patterns), _clean(kit))

    situation(title, quick)(act)


def _clean(kit: Kit) -> str:
    assert not list(kit.at.iterdir()), list(kit.at.iterdir())
    return "nothing: nothing was begun"


_refused("An unknown command", "rnu mixture-lsd", "unknown command 'rnu'; near matches: run")
_refused("A mistyped recipe", "run mixtrue-lsd", "unknown recipe 'mixtrue-lsd'; near matches: mixture-lsd")
_refused("A mistyped method", "run mixture-lsdd", "did you mean lsd")
_refused("A run folder that is not there", "sample runs/digits-lds", "runs/digits-lds")
_refused(
    "A batch that cannot be divided into micro-batches",
    "run mixture-lsd --batch 63 --accumulate 2",
    "multiple of 2",
)
_refused(
    "A GPU is asked for, and there is none", "run mixture-lsd --device cuda", "found none; use --device cpu"
)
_refused(
    "More replicas than processes",
    "run mixture-lsd --replicas 2",
    "replicas: expected a divisor of the 1 process",
)
_refused("An impossible number", "run mixture-lsd --lr nan", "lr")


@situation("An unknown option")
def unknown_option(kit: Kit) -> Told:
    ran = kit.saltus("run", "mixture-lsd", "--stesp", "5")
    assert ran.status == 2 and "--steps" in ran.err + ran.out and "Traceback" not in ran.err
    return Told(ran, _clean(kit))


@situation("A package that is not installed")
def missing_extra(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, "--wandb", "project", faults=[("without", "wandb")]).said(2, "saltus.wandb.")
    return Told(ran, _clean(kit))


@situation("Three processes cannot hold two replicas")
def odd_replicas(kit: Kit) -> Told:
    env = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}
    ran = kit.saltus(*RUN, "--replicas", "2", env=env).said(2, "divisor of the 3 processes")
    told = " ".join(f"{name}={value}" for name, value in env.items())
    return Told(ran, _clean(kit), f"{told} RUN --replicas 2")


@situation("Two processes cannot share 63 rows", quick=False)
def odd_batch(kit: Kit) -> Told:
    more = [*RUN, "--batch", "63"]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "saltus"]
    ended = subprocess.run([*start, *more], cwd=kit.at, capture_output=True, text=True, check=False)
    own = {line for line in ended.stderr.splitlines() if line.startswith("saltus: ")}  # torchrun says more
    ran = Ran(tuple(more), ended.returncode, ended.stdout, "\n".join(own))
    ran.said(1, "batch 63: expected a multiple of 2 .processes times")
    return Told(ran, _clean(kit), "torchrun --nproc-per-node 2 -m RUN --batch 63")


@situation("Nobody reads the progress of a run any more (| head)", quick=False)
def head(kit: Kit) -> Told:
    os.mkfifo(kit.at / "pipe")
    reader = os.open(kit.at / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    command = [word for word in RUN if word != "--quiet"]
    started = kit.start(*command, out=str(kit.at / "pipe"))
    _until(started, kit.at / "run/options.json")
    os.close(reader)
    ran = started.wait().said(0)
    mine = (kit.at / "run/model.safetensors").read_bytes()
    kit.fresh()
    kit.whole()
    assert mine == (kit.at / "run/model.safetensors").read_bytes()
    return Told(
        ran,
        "nothing: the run ended with the weights of one whose progress was read",
        f"saltus {' '.join(command)} | head -1",
    )
