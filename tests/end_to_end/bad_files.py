"""Bad situations of what a command finds: checkpoints, run folders, data, and the command line itself."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from kit import RUN, Kit, Ran
from situations import EMPTY, Situation, Told, group, kept, nothing_begun, nothing_there, until, words

from saltus.training.manifest import read_manifest

__all__ = ["ALL"]

ALL: list[Situation] = []


checkpoints = group("Checkpoints", ALL)


@checkpoints("The newest checkpoint is truncated")
def truncated(kit: Kit) -> Told:
    kit.half()
    (shard,) = (kit.at / "run/checkpoints/step-00000040").glob("shard-*")
    os.truncate(shard, shard.stat().st_size // 2)
    ran = kit.saltus(*RUN).said(
        0, "passed over a checkpoint: .*step-00000040.* bytes as when it was saved, got"
    )
    return Told(ran, as_whole(kit))


def as_whole(kit: Kit) -> str:
    kit.undisturbed()
    return "20 steps, made again from the checkpoint before: the weights are those of an undisturbed run"


@checkpoints("A byte of the newest checkpoint has flipped", quick=False)
def flipped(kit: Kit) -> Told:
    kit.half()
    (shard,) = (kit.at / "run/checkpoints/step-00000040").glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    ran = kit.saltus(*RUN).said(0, "passed over a checkpoint: .*got another content")
    return Told(ran, as_whole(kit))


@checkpoints("All checkpoints are damaged")
def all_damaged(kit: Kit) -> Told:
    kit.half()
    for shard in (kit.at / "run/checkpoints").glob("*/shard-*"):
        os.truncate(shard, 100)
    before = kit.hashes()
    over = "passed over a checkpoint"
    ran = kit.saltus(*RUN).said(2, over, over, "expected a whole checkpoint, got 2 damaged; put one back")
    return Told(ran, kept(kit, before))


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
        return Told(ran, kept(kit, before))

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


checkpoints("A crafted checkpoint: a path out of the folder")(_crafted(_outward))
checkpoints("A crafted checkpoint: an absurd header", quick=False)(_crafted(_absurd))
checkpoints("A crafted checkpoint: malicious pickles in place of its files")(_crafted(_pickled))


run_folder = group("The run folder", ALL)


@run_folder("Two runs in one folder at once")
def two_at_once(kit: Kit) -> Told:
    first = kit.start(*RUN, faults=[("slow", 0.03)])
    until(first, kit.at / "run/options.json")
    ran = kit.saltus(*RUN).said(2, r"expected it free, but process \d+ on .* is training in it")
    first.wait().said(0)
    kit.undisturbed()
    return Told(ran, "nothing: the first run ended with the weights of an undisturbed one, bit for bit")


@run_folder("Going on with other options")
def other_options(kit: Kit) -> Told:
    kit.half()
    before = kit.hashes()
    ran = kit.saltus(*RUN, "--lr", "0.5").said(
        2, "unfinished run with other options .lr: 0.001 there, 0.5 here"
    )
    return Told(ran, kept(kit, before))


@run_folder("A finished run again")
def again(kit: Kit) -> Told:
    kit.whole()
    before = kit.hashes()
    ran = kit.saltus(*RUN).said(2, "holds a finished run already; add --overwrite")
    return Told(ran, kept(kit, before))


@run_folder("options.json is damaged")
def damaged_options(kit: Kit) -> Told:
    kit.half()
    (kit.at / "run/options.json").write_text("{")
    before = kit.hashes()
    ran = kit.saltus(*RUN).said(2, "expected JSON in run/options.json.*damaged")
    return Told(ran, kept(kit, before))


@run_folder("The last line of metrics.jsonl is cut off", quick=False)
def damaged_metrics(kit: Kit) -> Told:
    kit.half()
    with (kit.at / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    ran = kit.saltus(*RUN).said(0)
    rows = (kit.at / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [50, 60], rows
    kit.undisturbed()
    return Told(
        ran, "nothing: the line was taken back, and the weights are those of an undisturbed run, bit for bit"
    )


@run_folder("A report of a folder that is no run")
def no_run(kit: Kit) -> Told:
    (kit.at / "run").mkdir()
    ran = kit.saltus("report", "run").said(2, "run")
    assert not list((kit.at / "run").iterdir())
    return Told(ran, EMPTY)


@run_folder("The weights file of a finished run is a malicious pickle")
def pickled_weights(kit: Kit) -> Told:
    kit.whole()
    (kit.at / "run/model.safetensors").write_bytes(pickle.dumps(Owned()))
    before = kit.hashes()
    ran = kit.saltus("sample", "run").said(2, "expected a whole safetensors file.*damaged or of another kind")
    assert not (kit.at / "owned").exists()
    return Told(ran, kept(kit, before))


@run_folder("The weights file of a finished run is truncated")
def truncated_weights(kit: Kit) -> Told:
    kit.whole()
    os.truncate(kit.at / "run/model.safetensors", 2000)
    before = kit.hashes()
    ran = kit.saltus("sample", "run").said(2, "expected a whole safetensors file")
    return Told(ran, kept(kit, before))


data = group("Data and teachers", ALL)

DISTILL = words(
    "distill teacher --method emd --data data.npy --size tiny --batch 64 --steps 20 --save-every 10 "
    "--grid-every 0 --skip-evaluation --quiet --out run"
)


def with_teacher(kit: Kit, x: np.ndarray) -> None:
    kit.whole()
    (kit.at / "run").rename(kit.at / "teacher")
    np.save(kit.at / "data.npy", x)


@data("The data hold an infinity")
def infinite_data(kit: Kit) -> Told:
    x = np.zeros((256, 2), dtype=np.float32)
    x[77, 1] = np.inf
    with_teacher(kit, x)
    ran = kit.saltus(*DISTILL).said(2, "data.*finite")
    return Told(ran, nothing_there(kit))


@data("The file of the data is truncated")
def truncated_data(kit: Kit) -> Told:
    with_teacher(kit, np.zeros((256, 2), dtype=np.float32))
    os.truncate(kit.at / "data.npy", 500)
    ran = kit.saltus(*DISTILL).said(2, "data data.npy: expected an array that numpy.save wrote")
    return Told(ran, nothing_there(kit))


@data("The file of the data is a malicious pickle")
def pickled_data(kit: Kit) -> Told:
    with_teacher(kit, np.zeros((256, 2), dtype=np.float32))
    np.save(kit.at / "data.npy", np.array([Owned()], dtype=object), allow_pickle=True)
    ran = kit.saltus(*DISTILL).said(2, "data data.npy: expected an array that numpy.save wrote")
    assert not (kit.at / "owned").exists()
    return Told(ran, nothing_there(kit))


@data("The teacher is gone when the run is to go on", quick=False)
def teacher_gone(kit: Kit) -> Told:
    with_teacher(kit, np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32))
    kit.saltus(*DISTILL, faults=[("signal_at", 10, "SIGTERM")]).said(143, "stopped")
    (kit.at / "teacher").rename(kit.at / "moved")
    before = kit.hashes()
    ran = kit.saltus(*DISTILL).said(2, "teacher")
    same = kept(kit, before)
    (kit.at / "moved").rename(kit.at / "teacher")
    kit.saltus(*DISTILL).said(0)
    return Told(ran, f"{same}, and with the teacher back the run went on")


command_line = group("The command line", ALL)


def _refused(title: str, command: str, *patterns: str, quick: bool = True) -> None:
    def act(kit: Kit) -> Told:
        return Told(kit.saltus(*words(command)).said(2, *patterns), nothing_begun(kit))

    command_line(title, quick)(act)


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


@command_line("An unknown option")
def unknown_option(kit: Kit) -> Told:
    ran = kit.saltus("run", "mixture-lsd", "--stesp", "5")
    assert ran.status == 2 and "--steps" in ran.err + ran.out and "Traceback" not in ran.err
    return Told(ran, nothing_begun(kit))


@command_line("A package that is not installed")
def missing_extra(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, "--wandb", "project", faults=[("without", "wandb")]).said(2, "saltus.wandb.")
    return Told(ran, nothing_begun(kit))


@command_line("Three processes cannot hold two replicas")
def odd_replicas(kit: Kit) -> Told:
    env = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}
    ran = kit.saltus(*RUN, "--replicas", "2", env=env).said(2, "divisor of the 3 processes")
    told = " ".join(f"{name}={value}" for name, value in env.items())
    return Told(ran, nothing_begun(kit), f"{told} RUN --replicas 2")


@command_line("Two processes cannot share 63 rows", quick=False)
def odd_batch(kit: Kit) -> Told:
    more = [*RUN, "--batch", "63"]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "saltus"]
    ended = subprocess.run([*start, *more], cwd=kit.at, capture_output=True, text=True, check=False)
    own = {line for line in ended.stderr.splitlines() if line.startswith("saltus: ")}  # torchrun says more
    ran = Ran(tuple(more), ended.returncode, ended.stdout, "\n".join(own))
    ran.said(1, "batch 63: expected a multiple of 2 .processes times")
    return Told(ran, nothing_begun(kit), "torchrun --nproc-per-node 2 -m RUN --batch 63")


@command_line("Nobody reads the progress of a run any more (| head)", quick=False)
def head(kit: Kit) -> Told:
    os.mkfifo(kit.at / "pipe")
    reader = os.open(kit.at / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    command = [word for word in RUN if word != "--quiet"]
    started = kit.start(*command, out=str(kit.at / "pipe"))
    until(started, kit.at / "run/options.json")
    os.close(reader)
    ran = started.wait().said(0)
    kit.undisturbed()
    return Told(
        ran,
        "nothing: the run ended with the weights of one whose progress was read",
        f"saltus {' '.join(command)} | head -1",
    )
