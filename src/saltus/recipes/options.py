"""The groups of options that every recipe shares. Their fields are the command line's.

All of it is plain data: a run's ``options.json`` holds it, and ``saltus run options.json`` reads it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

__all__ = ["Network", "Output", "Student", "Training", "as_arguments", "parse"]


HELP = ("-h", "--help")

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A switch without an opposite."""


Backbone = Literal["mlp", "residual-mlp", "unet", "dit"]
Size = Literal["tiny", "small", "base", "large"]
Parametrisation = Literal["average", "trigonometric", "edm"]


@dataclass(frozen=True)
class Network:
    """The network."""

    backbone: Backbone = "mlp"
    """Architecture."""
    size: Size = "small"
    """Width and depth by name."""
    parametrisation: Parametrisation | None = None
    """What its output means; None takes what the method asks for."""


@dataclass(frozen=True)
class Student:
    """The student's network; what is None is the teacher's."""

    backbone: Backbone | None = None
    """Architecture; another one than the teacher's starts at random."""
    size: Size | None = None
    """Width and depth by name; another one than the teacher's starts at random."""
    parametrisation: Parametrisation | None = None
    """What its output means; None takes what the method asks for."""


@dataclass(frozen=True)
class Training:
    """How the network is trained."""

    steps: int = 2500
    """Optimiser steps."""
    batch: int = 512
    """Rows of data in a step."""
    lr: float = 1e-3
    """Learning rate of Adam at the start; it falls to zero along a cosine."""
    warmup: int = 0
    """Steps over which the learning rate rises first."""
    clip: float | None = None
    """Largest norm of the gradient; None does not clip."""
    ema: tuple[float, ...] = (0.999,)
    """Decays of moving averages of the weights; the first is the one that is evaluated."""
    power_ema: tuple[float, ...] = ()
    """Widths of power-function averages, as parts of the run; 0.05 0.1 lets saltus ema form any other."""
    power_snapshots: int = 20
    """How often these are stored over the run."""
    seed: int = 0
    """Decides every random number of the run."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bf16 where this machine has it, with times and losses in float32."""
    compile: bool = False
    """Compile the loss with torch.compile (worth it for long runs)."""


@dataclass(frozen=True)
class Output:
    """Where results go."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Run folder; by default runs/SYSTEM-METHOD."""
    overwrite: Flag = False
    """Replace a finished run in that folder."""
    grid_every: int = 0
    """Draw a sample picture every so many steps, besides the last one; 0 never."""
    skip_evaluation: Flag = False
    """Measure nothing at the end; saltus evaluate does it later."""
    quiet: Flag = False
    """No progress and no table, only errors."""
    dry_run: Flag = False
    """Say what would run, how large it is and about how long it takes; write nothing."""


def as_arguments(groups: dict[str, dict[str, object]]) -> list[str]:
    """Command-line arguments that say what the groups of ``options.json`` say.

    >>> as_arguments({"training": {"steps": 5, "clip": None, "compile": False}})
    ['--steps', '5', '--clip', 'None', '--no-compile']
    """
    args: list[str] = []
    for group, fields in groups.items():
        if not isinstance(fields, dict):
            raise ValueError(f"saved options: expected options by name in {group!r}, got {fields!r}")
        for name, value in fields.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                args.append(f"--{flag}" if value else f"--no-{flag}")
            elif isinstance(value, list):
                args += [f"--{flag}", *(str(v) for v in value)]
            else:
                args += [f"--{flag}", str(value)]
    return args


def parse(function: Callable[..., Any], prog: str, args: Sequence[str]) -> Any:  # noqa: ANN401 - the function's own
    """Call ``function`` with arguments parsed by its signature; its docstring is the help page.

    A mistake is told and ends in SystemExit(2).
    """
    documented = function.func if isinstance(function, partial) else function
    page = (inspect.getdoc(documented) or "").split("\nArgs:")[0].rstrip()
    config = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(function, prog=prog, args=list(args), description=page, config=config)
