"""A finished run as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from saltus.guidance import CFG
from saltus.interpolants import Interpolant
from saltus.legs import HEUN, Tableau
from saltus.maps import AverageVelocity, NetworkMap
from saltus.methods import Card, Sampler
from saltus.recipes.model import HEADS, ModelSpec
from saltus.recipes.opened import Finished, open_run
from saltus.samplers import integrate
from saltus.streams import Streams
from saltus.teachers import from_teacher, probe
from saltus.teachers import teacher as on_path
from saltus.teachers.diffusers.student import DiffusersBackbone
from saltus.tensors import full_like_rows, like
from saltus.training import World, shard
from saltus.typing import Batch, Condition, Velocity

__all__ = ["Interval", "TeacherRun", "guided_between", "has_velocity", "open_start", "open_teacher"]

SOLVED = 64
"""Heun steps of the ODE that says where a teacher sends noise."""
PROBED = 32
"""Rows that a teacher is asked about before training."""
FEW = 4
"""The same for a network of diffusers, which may be a large one."""


def has_velocity(card: Card) -> bool:
    """Whether training fixed u_{t,t}, as every two-time method and flow matching do."""
    return card.two_times or card.sampler is Sampler.ODE


@dataclass(frozen=True, eq=False)
class TeacherRun:
    """A finished run that teaches.

    Attributes:
        run: its map.
        place: the run folder or the weights file.
    """

    run: Finished
    place: Path

    def velocity(self, onto: Interpolant) -> Velocity:
        """Its velocity on a student's path."""
        backbone = self.run.model.backbone
        if isinstance(backbone, DiffusersBackbone):  # which is asked in its own terms, and converted once
            return AverageVelocity(backbone.on(onto)).velocity
        return on_path(self.run.model, self.run.interpolant, onto=onto)

    @property
    def files(self) -> Mapping[str, Path]:
        """What its answers depend on, by name."""
        return {"teacher's weights": self.run.weights}

    @property
    def marks(self) -> Mapping[str, str]:
        """What else its students learn from, by its content."""
        return {}

    def keep(self, folder: Path) -> None:
        """Write into a run's folder what the run needs of it beside its weights."""

    def placed(self, world: World) -> TeacherRun:
        """The same for training: a copy of its map on the world's device, sharded if there are several
        processes; itself where there is one on the CPU."""
        if world.size == 1 and world.device == next(self.run.model.parameters()).device:
            return self
        return replace(self, run=replace(self.run, model=shard(deepcopy(self.run.model), world)))

    def suits(self, spec: ModelSpec, onto: Interpolant) -> bool:
        """Whether a network of this description can start as the teacher on this path."""
        mine = self.run.spec
        if mine.foreign is not None:  # a network of two times is at home on any path
            return spec.foreign is not None and spec.foreign["network"] == mine.foreign["network"]
        begins = spec.parametrisation in HEADS and mine.parametrisation == "average"  # as its velocity
        kind = mine.parametrisation if begins else spec.parametrisation
        alike = replace(spec, classes=mine.classes, heads=mine.heads, guidance=mine.guidance)
        same = replace(alike, parametrisation=kind) == mine
        return same and onto == self.run.interpolant

    def start(self, student: NetworkMap) -> None:
        """Give the student the teacher's weights, so that u_{s,t} = b_s."""
        from_teacher(student, self.run.model)

    def hand_on(self, student: NetworkMap) -> None:
        """Give a student of the same kind its weights: those of a map as they are, those of a velocity so
        that u_{s,t} = b_s."""
        if self.run.method.card.sampler is Sampler.ODE:
            self.start(student)
        else:
            student.load_state_dict(self.run.model.state_dict())

    def tell(self, student: NetworkMap) -> None:
        """Tell a student that starts at random the texts that labels stand for, if they stand for any."""
        mine, theirs = self.run.model.backbone, student.backbone
        if isinstance(mine, DiffusersBackbone) and isinstance(theirs, DiffusersBackbone):
            theirs.learn(mine.texts)

    def check(self, guided: bool = False) -> None:
        """Raise a ValueError if its velocity is not finite or not of the samples' shape, or does not depend
        on labels though it shall be guided."""
        spec = self.run.spec
        rows = PROBED if spec.foreign is None else FEW
        cond = None if spec.classes is None else Condition(label=torch.arange(rows) % spec.classes)
        path = self.run.interpolant  # its sign and clock are known: a run of this package is in our times
        b = self.run.model.velocity
        try:
            few = Streams(0, index=torch.arange(rows))
            probe(b, spec.shape, few, cond, interpolant=path, independent=False, guided=guided)
        except ValueError as wrong:
            what = str(wrong).removeprefix("teacher: ").partition(";")[0]
            raise ValueError(f"teacher {self.place}: {what}; train it again") from wrong

    def sends(
        self,
        x0: Tensor,
        onto: Interpolant,
        cond: Condition | None,
        steps: int = SOLVED,
        tableau: Tableau = HEUN,
    ) -> Tensor:
        """Where its ODE sends states x0 at t = 0 of a student's path, [n, ...] -> [n, ...].

        It is solved on the teacher's own path, whose noise is a multiple of the student's. A strength in
        the condition guides it.
        """
        zero = full_like_rows(0.0, x0)
        x = like(self.run.interpolant(zero).alpha / onto(zero).alpha, x0) * x0
        b: Velocity = self.run.model.velocity
        guided = cond is not None and cond.w is not None
        return integrate(CFG(b) if guided else b, x, steps, tableau, cond)


def open_teacher(place: Path) -> TeacherRun:
    """The teacher of a run folder or weights file; it has a velocity, or a ValueError says why not."""
    run = open_run(place)
    if not has_velocity(run.method.card):
        raise ValueError(
            f"teacher {place}: expected a run that learned a velocity, got {run.name}, which learned "
            f"jumps alone; train a teacher with saltus run {run.recipe}-flow_matching"
        )
    return TeacherRun(run, place.resolve())


def open_start(place: Path | None, spec: ModelSpec, onto: Interpolant) -> TeacherRun | None:
    """The run whose weights a network of this description starts with, on this path; a ValueError if it
    cannot; None without a place."""
    if place is None:
        return None
    found = TeacherRun(open_run(place), place.resolve())
    run = found.run
    velocity = run.method.card.sampler is Sampler.ODE
    theirs, wanted = run.spec.plain(), spec.plain()
    free = {"classes", "heads", "guidance"} if velocity else set()
    unlike = [name for name in wanted if name not in free and theirs[name] != wanted[name]]
    if unlike:
        told = "; ".join(f"{name} {theirs[name]} in place of {wanted[name]}" for name in unlike)
        raise ValueError(f"start {place}: expected a run with the same network, got {told}; give its options")
    if run.interpolant != onto:
        raise ValueError(
            f"start {place}: expected a run on the path {onto}, which this method trains on, got one of "
            f"{run.name} on {run.interpolant}; choose another method, or start at random"
        )
    return found


def guided_between(cond: Condition | None, interval: tuple[float, float] | None) -> Condition | None:
    """The condition with guidance only between two times."""
    given = None if cond is None else cond.given
    if cond is None or given is None or interval is None:
        return cond
    bounds = torch.tensor(interval, device=given.device).expand(len(given), 2)
    return replace(cond, interval=bounds)


@dataclass(frozen=True, eq=False)
class Interval:
    """A source whose rows are guided only between two times."""

    source: Callable[[Streams], Batch]
    interval: tuple[float, float]

    def __call__(self, rng: Streams) -> Batch:
        batch = self.source(rng)
        return replace(batch, cond=guided_between(batch.cond, self.interval))
