"""The memory of a training, counted by playing a few of its steps with tensors that have no data.

What is counted is what runs: the recipe's own networks, averages, players, optimisers and losses, derivatives
and backward passes included. Only the batches and the draws are real.
"""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from saltus.games import Artifact, Game, Stages
from saltus.recipes.averages import averages
from saltus.recipes.experiment import Experiment
from saltus.recipes.opened import Finished
from saltus.training import EMA, Fit, World
from saltus.training.memory import (
    BACKWARD,
    DERIVATIVE,
    FORWARD,
    Tracker,
    gradients_labelled,
    on_cuda,
    unallocated,
)

__all__ = ["PARTS", "Growth", "Memory", "footprint", "growth", "rows_at_once", "size", "summary"]

STUDENT, TEACHER, CRITIC, COPIES = "student", "teacher", "critic", "other networks"
AVERAGES, OPTIMISER, GRADIENTS = "averages", "optimiser", "gradients"
GATHERED, SAVED = "gathered weights", "checkpoint"

PARTS = {
    STUDENT: "weights of the student",
    AVERAGES: "moving averages of them",
    TEACHER: "weights of the teacher",
    CRITIC: "weights of the critic",
    COPIES: "targets and learned weights of losses",
    OPTIMISER: "state of the optimisers",
    GRADIENTS: "gradients",
    GATHERED: "the blocks whose weights are together",
    SAVED: "copy of the state that is being saved",
    FORWARD: "batch and activations of plain passes",
    DERIVATIVE: "activations of passes with a derivative",
    BACKWARD: "in work on the way back",
}
"""What takes memory, by label, and what it is."""

STATE = (STUDENT, AVERAGES, CRITIC, COPIES, OPTIMISER)
SHARDED = (STUDENT, AVERAGES, TEACHER, CRITIC, COPIES, OPTIMISER, GRADIENTS, SAVED)
_PASSING = (FORWARD, DERIVATIVE, BACKWARD)
_STEPS = 64  # so many steps at most are looked through for a turn of every player


@dataclass(frozen=True)
class Memory:
    """The most memory that a training takes on one device.

    Attributes:
        parts: bytes by a key of :data:`PARTS`, at the moment of the peak.
        rows: of the batch that a device computes at once.
        devices: over which weights are sharded.
    """

    parts: Mapping[str, int]
    rows: int
    devices: int = 1

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return sum(self.parts.values())

    @property
    def fixed(self) -> int:
        """What does not depend on the rows, in bytes."""
        return sum(self.parts.get(part, 0) for part in (*SHARDED, GATHERED))


@dataclass(frozen=True)
class Growth:
    """The memory of a device by its rows, an affine function in the neighbourhood of two counts.

    Attributes:
        memory: at the larger count.
        row: bytes of each further row.
    """

    memory: Memory
    row: float

    def at(self, rows: int) -> float:
        """Bytes for so many rows at once."""
        return self.memory.total + self.row * (rows - self.memory.rows)

    def fits(self, room: float) -> int:
        """The most rows at once that take no more than ``room`` bytes, 0 if not even one does."""
        rows = self.memory.rows + math.floor((room - self.memory.total) / max(self.row, 1.0))
        return max(0, rows)


def growth(made: Experiment, devices: int = 1, rows: int | None = None) -> Growth:
    """How the memory of a training grows with the rows; the arguments are those of :func:`footprint`."""
    memory = footprint(made, devices, rows)
    fewer = memory.rows // 2
    if fewer < 1:
        return Growth(memory, float(memory.total - memory.fixed))
    less = footprint(made, devices, fewer)
    return Growth(memory, max(0.0, (memory.total - less.total) / (memory.rows - fewer)))


def size(count: float) -> str:
    """Bytes as a reader says them.

    >>> size(512 * 2**20), size(31.25 * 2**30)
    ('512 MiB', '31.2 GiB')
    """
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:.1f} MiB"


def footprint(made: Experiment, devices: int = 1, rows: int | None = None) -> Memory:
    """The memory of a training on each of some devices, in the stage that takes most.

    Args:
        made: what to train; where it trains a teacher first, the student's training is meant.
        devices: over which weights, averages and optimiser states are sharded, and the rows divided.
        rows: that a device computes at once; None is the recipe's.
    """
    rows = rows_at_once(made, devices) if rows is None else rows
    parts = made.training.machine.accumulate
    machine = replace(made.training.machine, compile=False)
    steps = max(made.training.steps, 8)
    training = replace(made.training, batch=rows * parts, steps=steps, machine=machine)
    made = _alone(replace(made, training=training))
    with warnings.catch_warnings():  # PyTorch asks tensors without data for its place, among others
        warnings.simplefilter("ignore")
        stages = list(_stages(made))
    found = [_sharded(parts, gathered, rows, devices) for parts, gathered in stages]
    return max(found, key=lambda memory: memory.total)


def rows_at_once(made: Experiment, devices: int = 1) -> int:
    """The rows of a batch that each device computes at once."""
    return math.ceil(made.training.batch / (devices * made.training.machine.accumulate))


def _alone(made: Experiment) -> Experiment:
    """The same on one process, which waits for no other."""
    first = None if made.first is None else _alone(made.first)
    return replace(made, first=first, processes=World.alone(made.world.device))


def _stages(made: Experiment) -> Iterator[tuple[Mapping[str, int], int]]:
    """Of each stage on one device the parts of its peak, and the bytes that several would gather."""
    tracker, mode = Tracker(), unallocated()

    def making(label: str, allocated: bool = False) -> ExitStack:
        tracker.label = label
        stack = ExitStack()
        if not allocated:
            stack.enter_context(mode)  # before the tracker, which then sees what is made
            stack.enter_context(made.world.device)
        stack.enter_context(tracker)
        return stack

    with making(TEACHER):
        made = _taught(made)
    with making(STUDENT):
        student = made.model()
    with making(CRITIC):
        critic = made.critic() if made.has_critic else None
    gathered = sum(_gathered(net) for net in (student, critic) if net is not None)
    with making(AVERAGES, allocated=True):
        kept = list(averages(made.training, student).values())
    with making(COPIES, allocated=True):
        game = made.game(student, critic)
    artifacts: dict[str, Artifact] = {}
    for stage in game.stages if isinstance(game, Stages) else (None,):
        with making(COPIES, allocated=True):
            playing = game if stage is None else stage.build(artifacts)
            assert isinstance(playing, Game)
            steps = made.fit(student, playing)
        yield _saved(made, _play(steps, kept, tracker)), gathered
        if stage is not None:
            with making(COPIES, allocated=True):
                artifacts |= {name: make() for name, make in stage.produce.items()}
        del steps, playing


def summary(memory: Memory) -> str:
    """One line: the sum and what it consists of.

    >>> summary(Memory({"student": 2**30, "optimiser": 2**31, "forward": 2**33}, rows=512))
    '11.0 GiB (weights 1.0 GiB, optimiser 2.0 GiB, 512 rows 8.0 GiB)'
    """
    part = memory.parts.get
    sums = {
        "weights": sum(part(k, 0) for k in (STUDENT, TEACHER, CRITIC, COPIES, GATHERED)),
        "averages": part(AVERAGES, 0),
        "optimiser": part(OPTIMISER, 0),
        "gradients": part(GRADIENTS, 0),
        "checkpoint": part(SAVED, 0),
        f"{memory.rows:,} rows": sum(part(k, 0) for k in (FORWARD, DERIVATIVE, BACKWARD)),
    }
    words = ", ".join(f"{name} {size(count)}" for name, count in sums.items() if count)
    return f"{size(memory.total)} ({words})"


def _saved(made: Experiment, parts: Mapping[str, int]) -> Mapping[str, int]:
    """With the copy that a checkpoint is written from, if the same memory holds it."""
    saves = 0 < made.output.save_every < made.training.steps
    if not saves or on_cuda(made.world.device):
        return parts
    return {**parts, SAVED: sum(parts.get(part, 0) for part in STATE)}


def _taught(made: Experiment) -> Experiment:
    """The same with a teacher whose weights are not allocated."""
    if made.first is not None:
        return made.under(made.first.model().eval().requires_grad_(False))
    teacher = made.teacher
    if teacher is None:
        return made
    run: Finished = teacher.run
    model = run.spec.build()
    teacher.tell(model)
    model = model.eval().requires_grad_(False)
    return replace(made, teacher=replace(teacher, run=replace(run, model=model)))


def _play(steps: Fit, kept: list[EMA], tracker: Tracker) -> Mapping[str, int]:
    """The parts of the peak of some steps, after one that makes the optimisers' states: at the beginning, in
    the middle and near the end, since schedules may change what a step does, until each player has moved."""
    tracker.label = None
    everyone = {id(p): p for player in steps.players for p in player.parameters}
    last = steps.length - 2  # after the last of a stage somebody looks at the numbers, and there are none
    found: list[dict[str, int]] = []
    with tracker, gradients_labelled(tracker, everyone.values(), GRADIENTS):
        waiting = {player.move.name for player in steps.players}
        for index in range(min(last, _STEPS)):
            steps.index = index
            waiting -= set(next(steps).moved)
            if not waiting:
                break
        for player in steps.players:
            tracker.relabel(_state(player.optimizer), OPTIMISER)
        waiting = {player.move.name for player in steps.players}
        for index in (1, steps.length // 2, last, *range(2, min(last, _STEPS))):
            if len(found) >= 3 and not waiting:
                break
            gc.collect()  # circles of references that earlier steps have left: when they go is chance
            left = tracker.by_label  # PyTorch keeps some tensors without data; real ones are let go
            tracker.forget()
            steps.index = index
            waiting -= set(next(steps).moved)
            for average in kept:
                average.update()
            parts = tracker.at_peak.items()
            found.append({k: size - left.get(k, 0) * (k in _PASSING) for k, size in parts})
    return max(found, key=lambda parts: sum(parts.values()))


def _state(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The tensors of an optimiser's state, those of each parameter."""
    for entries in optimizer.state.values():
        yield from (value for value in entries.values() if isinstance(value, Tensor))


def _gathered(network: nn.Module) -> int:
    """Bytes that a process holds of others' pieces: what lies outside the blocks, and of the largest block
    the weights and the gradients, each twice, as they arrive or leave and in place."""
    lists = [dict(m.named_children()).get("blocks") for m in network.modules()]
    blocks = [block for found in lists if found is not None for block in found.children()]
    sizes = [sum(p.nbytes for p in block.parameters()) for block in blocks]
    whole = sum(p.nbytes for p in network.parameters())
    return whole - sum(sizes) + 4 * max(sizes, default=0)


def _sharded(parts: Mapping[str, int], gathered: int, rows: int, devices: int) -> Memory:
    """What each of some devices holds."""
    if devices == 1:
        return Memory(parts, rows)
    pieces = {k: math.ceil(v / devices) if k in SHARDED else v for k, v in parts.items()}
    return Memory({**pieces, GATHERED: gathered}, rows, devices)
