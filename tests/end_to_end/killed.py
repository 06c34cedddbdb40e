"""The saltus command in a process that kills itself, by SIGKILL, where it is told to.

A phase names a point of the saving or of the end of a run; it is the count-th time that the process comes
there that counts. A phase that is a number kills so many steps after the run has gone on, at any moment.
The process dies as it would by another's signal: nothing of it runs any more.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import saltus.recipes.execute as execute
import saltus.recipes.train as train
import saltus.training.checkpoint as checkpoint
import saltus.training.run as run
import saltus.training.single_file as single_file
from saltus.cli import main

LEFT = 1


def die() -> None:
    """At once, when it is the time that counts."""
    global LEFT
    LEFT -= 1
    if LEFT == 0:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # another thread may be told first


def wrap(
    owner: object, name: str, before: Callable[..., None] | None, after: Callable[..., None] | None
) -> None:
    """Call something before or after a function, with its arguments."""
    inner = vars(owner)[name]

    def outer(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        if before is not None:
            before(*args)
        result = inner(*args, **options)
        if after is not None:
            after(*args)
        return result

    setattr(owner, name, outer)


def at(*_: object) -> None:
    die()


def named(name: str) -> Callable[..., None]:
    """Die where the first argument is a path of this name."""
    return lambda path, *_: die() if Path(path).name == name else None


def half_of_a_file(path: Path, *_: object) -> None:
    if LEFT == 1:
        os.truncate(path, path.stat().st_size // 2)
    die()


def half_of_a_folder(path: Path, *_: object, **__: object) -> None:
    if "-gone-" in path.name:
        if LEFT == 1:
            sorted(path.iterdir())[0].unlink()
        die()


PHASES: dict[str, Callable[[], None]] = {
    "copied": lambda: wrap(checkpoint.Checkpoints, "_copied", None, at),
    "a draft without files": lambda: wrap(checkpoint, "write_shard", at, None),
    "shard half written": lambda: wrap(checkpoint, "write_shard", None, half_of_a_file),
    "shard without notes": lambda: wrap(checkpoint, "write_shard", None, at),
    "notes without manifest": lambda: wrap(checkpoint.Checkpoints, "_finished", at, None),
    "manifest beside its place": lambda: wrap(Path, "replace", named("manifest.json.part"), None),
    "manifest in a draft": lambda: wrap(checkpoint, "_put", None, named("manifest.json")),
    "renamed, not pruned": lambda: wrap(checkpoint.Checkpoints, "_prune", at, None),
    "pruning half done": lambda: wrap(shutil, "rmtree", half_of_a_folder, None),
    "pruned": lambda: wrap(checkpoint.Checkpoints, "_prune", None, at),
    "between two steps": lambda: wrap(run.Run, "after", at, None),
    "last step": lambda: wrap(train, "gathered", at, None),
    "weights beside their place": lambda: wrap(
        single_file.os, "replace", lambda _, to: named("model.safetensors")(to), None
    ),
    "weights without pictures": lambda: wrap(execute, "show_samples", at, None),
    "pictures without evaluation": lambda: wrap(execute, "record", at, None),
}


def later(moment: float) -> None:
    """Kill so many steps after the run has gone on, and the fraction of 40 ms later, wherever it is then."""
    steps, begun = 0, vars(run.Run)["after"]

    def after(*args: Any, **options: Any) -> None:  # noqa: ANN401
        nonlocal steps
        if steps == int(moment):
            timer = threading.Timer(0.04 * (moment % 1.0), die)
            timer.daemon = True
            timer.start()
        steps += 1
        begun(*args, **options)

    run.Run.after = after  # type: ignore[method-assign]


def play(phase: str, count: int, options: list[str]) -> int:
    """The command, until it is killed."""
    global LEFT
    LEFT = count
    if phase in PHASES:
        PHASES[phase]()
    else:
        later(float(phase))
    return main(options)


def serve() -> None:
    """Play what comes in, a line of JSON each: [phase, count, options, file for what it prints]; the answer
    is the exit status. Each is a process of its own, which need not import PyTorch again."""
    for line in sys.stdin:
        phase, count, options, said = json.loads(line)
        child = os.fork()
        if child == 0:
            sys.argv[1:] = options
            handle = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            status = play(phase, count, options)
            sys.stdout.flush()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
