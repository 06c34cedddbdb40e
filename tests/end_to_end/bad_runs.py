"""Bad situations of a run under way: numbers, signals, the disk."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kit import RUN, Kit
from situations import Situation, Told, group, kept, nothing_there, until, words

__all__ = ["ALL"]

NOBODY = 65534
ALL: list[Situation] = []


numbers = group("Numbers", ALL)

LMD = words(
    "run mixture-lmd --size tiny --batch 64 --steps 30 --save-every 10 --grid-every 0 --skip-evaluation "
    "--quiet --out run"
)
NAN = (("singular_teacher", 0.9996),)


@numbers("The teacher is NaN at some times: the loss is NaN")
def nan_loss(kit: Kit) -> Told:
    ran = kit.saltus(*LMD, faults=NAN).said(
        2,
        r"step 11: term 'lagrangian' .* NaN in 1 of .* batch index 27 at \(s, t\) .*after 10 steps",
    )
    assert (kit.at / "run/checkpoints/step-00000010/manifest.json").exists()
    return Told(ran, "nothing: the checkpoint after 10 steps is whole")


@numbers("The same, and such moves are skipped", quick=False)
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


@numbers("More such moves than may be skipped", quick=False)
def nan_too_often(kit: Kit) -> Told:
    ran = kit.saltus(*LMD, "--skip-nonfinite", "1", faults=NAN).said(
        2, "1 such moves? (were|was) skipped already"
    )
    assert (kit.at / "run/checkpoints/step-00000020/manifest.json").exists()
    return Told(ran, "nothing: the checkpoint after 20 steps is whole")


@numbers("A learning rate of 1e30, in a game of two players")
def wild_rate(kit: Kit) -> Told:
    command = [word.replace("mixture-lmd", "mixture-freeflow") for word in LMD]
    ran = kit.saltus(*command, "--lr", "1e30").said(
        2, "move 'critic' .*largest weight before it is 1.0e.30.*lower --lr"
    )
    return Told(ran, nothing_there(kit))


@numbers("Out of memory", quick=False)
def out_of_memory(kit: Kit) -> Told:
    kit.whole()
    before = kit.hashes()
    command = [*RUN[:-1], "other", "--batch", "400000"]
    ran = kit.saltus(*command, limits={"AS": 500_000_000}).said(2, "out of memory.*needs about.*--accumulate")
    nothing_there(kit, "other")
    return Told(ran, kept(kit, before))


signals = group("Signals", ALL)


@signals("Ctrl-C")
def interrupted(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, faults=[("signal_at", 30, "SIGINT")]).said(
        130, "stopped after step 30, which is saved"
    )
    return Told(ran, kit.resumed())


@signals("Ctrl-C twice: it does not wait for the step", quick=False)
def interrupted_twice(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, faults=[("signal_at", 30, "SIGINT", "SIGINT")]).said(130, "interrupted")
    assert [p.name for p in (kit.at / "run/checkpoints").glob("step-*")] == ["step-00000020"]
    kit.resumed()
    return Told(ran, "10 steps since the last checkpoint, which the same command made again, bit for bit")


@signals("SIGTERM", quick=False)
def terminated(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, faults=[("signal_at", 30, "SIGTERM")]).said(
        143, "stopped after step 30, which is saved"
    )
    return Told(ran, kit.resumed())


@signals("SIGTERM while a checkpoint is written", quick=False)
def terminated_in_save(kit: Kit) -> Told:
    faults = [("signal_in_save", 20, "shard", "SIGTERM")]
    ran = kit.saltus(*RUN, faults=faults).said(143, r"stopped after step \d+, which is saved")
    return Told(ran, kit.resumed())


@signals("The terminal is closed (SIGHUP)")
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


for _phase, _words in (
    ("shard", "while tensors are written"),
    ("manifest", "before the manifest is written"),
    ("rename", "before the checkpoint gets its name"),
):
    signals(f"SIGKILL {_words}", quick=False)(_killed(_phase))


@signals("SIGKILL before the first checkpoint", quick=False)
def killed_early(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, faults=[("signal_at", 10, "SIGKILL")]).said(-9)
    return Told(ran, kit.resumed())


disk = group("Disk", ALL)


def root() -> str:
    """Why file systems cannot be mounted here."""
    return "" if os.geteuid() == 0 and shutil.which("mount") else "needs root, to mount a small file system"


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


@disk("The disk is full when a checkpoint is saved", quick=False, needs=root)
def full_disk(kit: Kit) -> Told:
    with _small(kit, "8m") as place:
        started = kit.start(*RUN, "--save-every", "5", faults=[("slow", 0.2)])
        until(started, place / "checkpoints/step-00000005/manifest.json")
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


@disk("No file may be larger than 50 kB, nor a checkpoint")
def large_file(kit: Kit) -> Told:
    ran = kit.saltus(*RUN, limits={"FSIZE": 50_000}).said(2, "File too large")
    return Told(ran, nothing_there(kit))


@disk("The permission to write is lost while it trains", quick=False, needs=lambda: sealing())
def lost_permission(kit: Kit) -> Told:
    started = kit.start(*RUN, faults=[("slow", 0.1)])
    place = kit.at / "run/checkpoints"
    until(started, place / "step-00000020/manifest.json")
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


@disk("No permission to write where the run folder would be", quick=False)
def read_only(kit: Kit) -> Told:
    uid = NOBODY if os.geteuid() == 0 else None
    kit.at.chmod(0o555)
    ran = kit.saltus(*RUN, uid=uid).said(2, "no permission to write in .*--out")
    kit.at.chmod(0o777)
    return Told(ran, nothing_there(kit))


@disk("--out is a file")
def out_is_a_file(kit: Kit) -> Told:
    (kit.at / "run").write_text("a letter")
    ran = kit.saltus(*RUN).said(2, "expected a folder, got a file; choose another with --out")
    assert (kit.at / "run").read_text() == "a letter"
    return Told(ran, "nothing: the file is as it was")


@disk("--out is a folder with other files")
def out_is_taken(kit: Kit) -> Told:
    (kit.at / "run").mkdir()
    (kit.at / "run/thesis.tex").write_text("text")
    before = kit.hashes()
    ran = kit.saltus(*RUN, "--overwrite").said(2, "a folder with other files; choose another with --out")
    return Told(ran, kept(kit, before))
