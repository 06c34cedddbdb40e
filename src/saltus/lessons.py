"""Lessons on pairs: stages in which a student learns from pairs (x0, x1) that a teacher's flow makes.

The pairs are made anew for every row, or made once, kept and drawn from again: then they are artifacts of the
run's stages, and while they are made part of its state, so a run that is interrupted goes on with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from saltus.games import Artifact, Game, Stage, Stages, student_move
from saltus.guidance import GuidanceInput
from saltus.interpolants import Interpolant
from saltus.legs import Tableau
from saltus.objectives import Continued, OnFlow, OnStored
from saltus.trajectories import PairStore
from saltus.typing import Objective, Velocity

__all__ = ["FlowPairs", "lessons_on_pairs"]


@dataclass(frozen=True, eq=False)
class FlowPairs:
    """Pairs (x0, x1) of noise and where a teacher's flow carries it: how they are made, and whether kept.

    Attributes:
        teacher: the velocity, guided where it is to be.
        interpolant: the path between prior and data.
        tableau: the method of the teacher's steps.
        steps: their number, of equal length.
        shape: of one sample, which a store needs; None makes each row's pair anew.
        count: so many pairs are kept.
        making: the part of the first lesson, above 0 and below 1, in which they are made.
        guidance: strengths as an input of the network, or None; with strengths nothing is kept.
    """

    teacher: Velocity
    interpolant: Interpolant
    tableau: Tableau
    steps: int
    shape: tuple[int, ...] | None = None
    count: int = 65_536
    making: float = 0.25
    guidance: GuidanceInput | None = None

    def anew(self, objective: Objective) -> OnFlow:
        """The objective on pairs that are made for every row."""
        how = (self.interpolant, self.tableau, self.steps, self.guidance)
        return OnFlow(self.teacher, objective, *how)

    def store(self, student: nn.Module) -> PairStore | None:
        """Where pairs are kept, with the student's weights; None where none are."""
        if self.shape is None or self.guidance is not None:
            return None
        lead = next(student.parameters())
        how = (self.interpolant, self.tableau, self.steps, lead.device, lead.dtype)
        return PairStore(self.teacher, self.count, self.shape, *how)


_STORED = ("noise", "ends", "labels")


@dataclass(frozen=True, eq=False)
class _FromStore:
    """The build of a stage on pairs that are kept."""

    objective: Callable[[Mapping[str, Artifact]], Objective]
    device: torch.device

    def __call__(self, artifacts: Mapping[str, Artifact]) -> Objective:
        noise, ends, labels = (artifacts[f"pairs_{name}"].to(self.device) for name in _STORED)
        assert isinstance(noise, Tensor) and isinstance(ends, Tensor) and isinstance(labels, Tensor)
        known = bool((labels >= 0).all())
        return OnStored(self.objective(artifacts), noise, ends, labels if known else None)


def lessons_on_pairs(student: nn.Module, pairs: FlowPairs, *lessons: Stage) -> Stages:
    """Stages in which the student learns from pairs: made anew for each row, or made once and kept.

    Kept, they are made in the first part of the first lesson, which learns from each batch of them at once;
    what follows draws from those kept, and goes on with the lesson's progress.

    Args:
        student: who learns.
        pairs: how they are made.
        lessons: stages whose builds give the objective that is minimised on pairs.
    """
    store = pairs.store(student)
    if store is None:
        return Stages(tuple(replace(one, build=_Anew(pairs, one)) for one in lessons))
    if not 0.0 < pairs.making < 1.0:
        raise ValueError(
            f"making: expected a part of the steps to make pairs in, above 0 and below 1, got {pairs.making}"
        )
    first, until = lessons[0], pairs.making

    def made(artifacts: Mapping[str, Artifact]) -> Game:
        lesson = Continued(_lesson(first, artifacts), 0.0, until)
        return Game((student_move(student, lesson, after=(store,)),), prepare=store.fill)

    def kept(artifacts: Mapping[str, Artifact]) -> Objective:
        return Continued(_lesson(first, artifacts), until, 1.0)

    device = store.noise.device
    keep = {f"pairs_{name}": partial(store.kept, name) for name in _STORED}
    making = Stage(f"{first.name}, pairs made", made, until * first.share, keep)
    rest = replace(first, build=_FromStore(kept, device), share=(1.0 - until) * first.share)
    others = [replace(one, build=_FromStore(partial(_lesson, one), device)) for one in lessons[1:]]
    return Stages((making, rest, *others))


def _lesson(stage: Stage, artifacts: Mapping[str, Artifact]) -> Objective:
    built = stage.build(artifacts)
    if isinstance(built, Game):
        raise ValueError(f"pairs: expected a lesson that builds an objective, got a game in {stage.name!r}")
    return built


@dataclass(frozen=True, eq=False)
class _Anew:
    """The build of a stage on pairs that are made for every row."""

    pairs: FlowPairs
    stage: Stage

    def __call__(self, artifacts: Mapping[str, Artifact]) -> Objective:
        return self.pairs.anew(_lesson(self.stage, artifacts))
