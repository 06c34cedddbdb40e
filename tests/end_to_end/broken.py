"""What can be broken in a process before a command begins: each function breaks one thing."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saltus.recipes import mixture, train
from saltus.recipes.system import System
from saltus.tensors import like
from saltus.training import checkpoint
from saltus.typing import Condition, Velocity


@dataclass(frozen=True)
class Singular:
    """A velocity that is not a number where t > last."""

    inner: Velocity
    last: float

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.inner(x, t, cond) + like(torch.where(t > self.last, float("nan"), 0.0), x)


def singular_teacher(last: float) -> None:
    """The mixture's own velocity is NaN at times after ``last``."""
    whole = mixture.system

    def system() -> System:
        made = whole()
        assert made.velocity is not None
        return replace(made, velocity=Singular(made.velocity, last))

    vars(mixture)["system"] = system


def signal_at(step: int, *names: str) -> None:
    """The process gets these signals after a step, one after the other."""
    average = vars(train)["_average"]

    def then(kept: Any, done: Any) -> None:  # noqa: ANN401 - as it is called
        average(kept, done)
        if done.index + 1 == step:
            for name in names:
                os.kill(os.getpid(), vars(signal)[name])

    vars(train)["_average"] = then


def signal_in_save(step: int, phase: str, name: str) -> None:
    """The process gets a signal in the middle of the save after ``step``."""
    inner = {"shard": "write_shard", "manifest": "_put", "rename": "_flush"}[phase]
    plain, written = vars(checkpoint)[inner], checkpoint.Checkpoints._written

    def save(self: Any, at: int, *rest: Any) -> None:  # noqa: ANN401 - as it is called
        vars(checkpoint)[inner] = struck if at == step else plain
        written(self, at, *rest)

    def struck(path: Path, *rest: Any) -> Any:  # noqa: ANN401 - as it is called
        if name == "SIGKILL" and phase == "shard":  # half a file is there
            path.write_bytes(b"half")
        if phase != "manifest" or path.name == "manifest.json":
            os.kill(os.getpid(), vars(signal)[name])
            time.sleep(0.2)
        return plain(path, *rest)

    checkpoint.Checkpoints._written = save  # type: ignore[method-assign]


def slow(seconds: float) -> None:
    """Every step takes so long."""
    average = vars(train)["_average"]

    def then(kept: Any, done: Any) -> None:  # noqa: ANN401 - as it is called
        time.sleep(seconds)
        average(kept, done)

    vars(train)["_average"] = then


def without(name: str) -> None:
    """A package is not installed."""
    sys.modules[name] = None  # type: ignore[assignment]


def take_terminal(path: str) -> None:
    """Make a terminal the one that controls this process, and all its streams."""
    handle = os.open(path, os.O_RDWR)
    fcntl.ioctl(handle, termios.TIOCSCTTY, 0)
    for stream in range(3):
        os.dup2(handle, stream)
