"""The groups of options that every recipe shares. Their fields are the command line's.

All of it is plain data: a run's ``options.json`` holds it, and ``saltus run options.json`` reads it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

__all__ = ["Machine", "Network", "Output", "Student", "Training", "as_arguments", "parse"]


HELP = ("-h", "--help")

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A switch without an opposite."""


Backbone = Literal["mlp", "residual-mlp", "unet", "dit", "edm2", "ddpmpp"]
Small = Literal["tiny", "small", "base", "large"]
Published = Literal["xs", "s", "b", "m", "l", "xl", "xxl", "cifar10", "celeba64"]
Size = Small | Published
Positions = Literal["learned", "rotary"]
Parametrisation = Literal["average", "trigonometric", "edm", "mixture-policy", "grid-policy", "momentum"]
Optimizer = Literal["adamw", "radam", "muon"]
Decline = Literal["cosine", "constant", "inverse-sqrt"]


@dataclass(frozen=True)
class Network:
    """The network."""

    backbone: Backbone = "mlp"
    """Architecture."""
    size: Size = "small"
    """Width and depth by name; dit has s b l xl as published, edm2 xs to xxl, cifar10 and celeba64."""
    patch: int | None = None
    """dit: side of a patch; None is 2, and 4 and 8 are usual for large pictures."""
    positions: Positions | None = None
    """dit: a learned vector for each place, or rotary; None is learned."""
    parametrisation: Parametrisation | None = None
    """What its output means; None takes what the method asks for."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """A run with a like network, whose weights it starts with; None starts at random."""


@dataclass(frozen=True)
class Student:
    """The student's network; what is None is the teacher's."""

    backbone: Backbone | None = None
    """Architecture; another one than the teacher's starts at random."""
    size: Size | None = None
    """Width and depth by name; another one than the teacher's starts at random."""
    patch: int | None = None
    """dit: side of a patch; another one than the teacher's starts at random."""
    positions: Positions | None = None
    """dit: learned or rotary; other ones than the teacher's start at random."""
    parametrisation: Parametrisation | None = None
    """What its output means; None takes what the method asks for."""


@dataclass(frozen=True)
class Machine:
    """How a machine computes a run, not what: an unfinished run goes on with other values of these."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where it is. With torchrun each process takes a device of its own."""
    accumulate: int = 1
    """Micro-batches into which each process divides its rows of a batch, to need less memory."""
    replicas: int = 1
    """With torchrun: copies of the weights, each sharded over its part of the processes."""
    recompute: bool = False
    """Compute the inside of the networks' blocks again in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the loss with torch.compile (worth it for long runs)."""
    skip_nonfinite: int = 0
    """Leave out so many moves with a loss or gradient that is not finite before one ends the run."""


@dataclass(frozen=True)
class Training:
    """How the network is trained."""

    steps: int = 2500
    """Optimiser steps."""
    batch: int = 512
    """Rows of data in a step."""
    lr: float = 1e-3
    """Learning rate at its peak."""
    optimizer: Optimizer = "adamw"
    """Adam, rectified Adam, or Muon for matrices with Adam for the rest."""
    weight_decay: float = 0.0
    """Matrices and kernels shrink by the rate times this in a step; biases and scales do not."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decays of Adam's moments."""
    schedule: Decline = "cosine"
    """How the rate falls after the warm-up: to zero, not at all, or with the root of the step."""
    warmup: int = 0
    """Steps over which the rate rises from zero first."""
    hold: int | None = None
    """inverse-sqrt: the step at which the rate begins to fall; None is a tenth of the run."""
    floor: float | None = None
    """cosine: the part of the peak at which the rate ends; None is zero."""
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
    machine: Machine = Machine()
    """How it is computed."""


@dataclass(frozen=True)
class Output:
    """Where results go."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Run folder; by default runs/SYSTEM-METHOD."""
    overwrite: Flag = False
    """Replace a finished run in that folder, or one with other options; the same unfinished one goes on."""
    save_every: int = 500
    """Save everything needed to go on every so many steps; 0 only when the run is told to end."""
    keep_last: int = 2
    """So many of the newest checkpoints stay."""
    keep_best: int = 1
    """And so many of those with the best figure: with --evaluate-every a run saves what it has measured."""
    grid_every: int | None = None
    """Draw samples every so many steps and at the last; 0 never, None an eighth of the run, at least 50."""
    evaluate_every: int = 0
    """Measure the averaged weights every so many steps; 0 only at the end."""
    tensorboard: Flag = False
    """Write TensorBoard's event files too (pip install 'saltus[tensorboard]')."""
    wandb: Annotated[str | None, tyro.conf.arg(metavar="PROJECT")] = None
    """Log to Weights & Biases too (pip install 'saltus[wandb]'); WANDB_MODE=offline keeps it here."""
    skip_evaluation: Flag = False
    """Measure nothing at the end; saltus evaluate does it later."""
    quiet: Flag = False
    """No progress and no table, only errors."""
    dry_run: Flag = False
    """Say what would run, how large it is and about how long it takes; write nothing."""


def as_arguments(groups: Mapping[str, object]) -> list[str]:
    """Command-line arguments that say what the groups of ``options.json`` say; groups may hold groups.

    >>> as_arguments({"training": {"steps": 5, "clip": None, "machine": {"compile": False}}})
    ['--steps', '5', '--clip', 'None', '--no-compile']

    Raises:
        ValueError: for what would be another option on the command line, or one of :class:`Output`: a file
            that somebody else wrote may say what is trained, not what is written over.
    """
    args: list[str] = []
    for group, fields in groups.items():
        if not isinstance(fields, dict):
            raise ValueError(f"saved options: expected options by name in {group!r}, got {fields!r}")
        for name, value in fields.items():
            _check_said(name, value)
            flag = name.replace("_", "-")
            if isinstance(value, dict):
                args += as_arguments({name: value})
            elif isinstance(value, bool):
                args.append(f"--{flag}" if value else f"--no-{flag}")
            elif isinstance(value, list):
                args += [f"--{flag}", *(str(v) for v in value)]
            else:
                args += [f"--{flag}", str(value)]
    return args


def _check_said(name: str, value: object) -> None:
    """Raise a ValueError unless a saved option is one word and says nothing of where results go."""
    ours = {field.name for field in fields_of(Output)}
    if not name.isidentifier() or name in ours:
        raise ValueError(
            f"saved options: expected options of a training, got {name[:40]!r}; give it on the command line"
        )
    for word in value if isinstance(value, list) else [value]:
        if isinstance(word, str) and re.match("-(?![0-9.])", word):
            raise ValueError(
                f"saved options: expected a value of {name}, got {word[:40]!r}, an option; correct it"
            )


def parse(function: Callable[..., Any], prog: str, args: Sequence[str]) -> Any:  # noqa: ANN401 - the function's own
    """Call ``function`` with arguments parsed by its signature; its docstring is the help page.

    A mistake is told and ends in SystemExit(2).
    """
    documented = function.func if isinstance(function, partial) else function
    page = (inspect.getdoc(documented) or "").split("\nArgs:")[0].rstrip()
    config = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(function, prog=prog, args=list(args), description=page, config=config)
