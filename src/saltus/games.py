"""Who moves: players, their objectives, and what happens after a move.

A :class:`Move` is one player: the module that is trained, what it minimises and how often. A
:class:`Game` is a tuple of moves that share a preparation. Plain training is a game of one move.
:class:`Stages` are games played one after another, each made from what those before it produced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Protocol, overload, runtime_checkable

import torch
from torch import Tensor, nn

from saltus.objectives import Sum
from saltus.typing import Batch, Objective

__all__ = [
    "After",
    "Artifact",
    "Follow",
    "Freeze",
    "Game",
    "Move",
    "Project",
    "Projected",
    "Reproject",
    "Stage",
    "Stages",
    "as_game",
    "reprojecting",
    "student_move",
]

Artifact = nn.Module | Tensor
"""What a stage hands to later ones: a network, or numbers such as samples; both can be saved."""


class After(Protocol):
    """Something done once a move has stepped: a moving average, a projection of weights."""

    def __call__(self) -> None: ...


def every_step(step: int) -> int:
    """One move a step."""
    return 1


@dataclass(frozen=True, eq=False)
class Move:
    """One player.

    Attributes:
        name: of the player, for logs and random streams.
        module: what is trained; its parameters are the only ones that this move changes.
        objective: what it minimises.
        optimizer: parameters -> optimiser; None takes the run's own.
        when: step -> how many times to move in that step, each on a fresh batch.
        after: done in order when a move has stepped.
        rate: multiplies its learning rates, the run's or its own optimiser's.
    """

    name: str
    module: nn.Module
    objective: Objective
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    when: Callable[[int], int] = every_step
    after: tuple[After, ...] = ()
    rate: float = 1.0

    def __post_init__(self) -> None:
        if not self.rate > 0.0:
            raise ValueError(f"rate of move {self.name!r}: expected a number above 0, got {self.rate}")


@dataclass(frozen=True, eq=False)
class Game:
    """Players that move in order within each step.

    Attributes:
        moves: the players.
        prepare: runs without gradient once for each batch drawn: the step's, which the moves share, and
            one for every further turn of a move (a roll-out, say).
    """

    moves: tuple[Move, ...]
    prepare: Callable[[Batch], Batch] | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """A game with a beginning and an end.

    Within it progress runs from 0 to 1, and so do the schedules of learning rates; optimisers are new, and
    a move's ``when`` counts from the stage's first step. Random streams go on with the run's step.

    Attributes:
        name: in logs.
        build: artifacts of the stages before, by name -> what is played. A bare objective is played by
            the student that :func:`as_game` is given.
        share: of the run's steps, relative to the other stages.
        produce: name -> the artifact of that name, made when the last step is done; it replaces an
            earlier one.
    """

    name: str
    build: Callable[[Mapping[str, Artifact]], Objective | Game]
    share: float = 1.0
    produce: Mapping[str, Callable[[], Artifact]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Stages:
    """Games played one after another: :func:`saltus.training.fit` takes them as it takes a game.

    Raises:
        ValueError: for no stage, two of one name, or a share that is not positive.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"stages: expected some with different names, got {names}; rename them")
        for stage in self.stages:
            if not stage.share > 0.0:
                raise ValueError(
                    f"stage {stage.name!r}: expected a share above 0, got {stage.share}; leave it out instead"
                )


@dataclass(frozen=True, eq=False)
class Freeze:
    """A producer: a copy of a module as it is now, which takes no gradient."""

    module: nn.Module

    def __call__(self) -> nn.Module:
        return deepcopy(self.module).requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Follow:
    """target <- decay * target + (1 - decay) * source for parameters; buffers are copied."""

    target: nn.Module
    source: nn.Module
    decay: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"decay of a moving average: expected a number from 0 to 1, got {self.decay}")

    @torch.no_grad()
    def __call__(self) -> None:
        ours = [p.detach() for p in self.target.parameters()]
        theirs = [p.detach() for p in self.source.parameters()]
        for kind in dict.fromkeys(type(p) for p in ours):  # sharded tensors and others do not mix
            mine = [p for p in ours if type(p) is kind]
            torch._foreach_lerp_(mine, [p for p in theirs if type(p) is kind], 1.0 - self.decay)
        for a, b in zip(self.target.buffers(), self.source.buffers(), strict=True):
            a.copy_(b)


@dataclass(frozen=True, eq=False)
class Project:
    """Apply ``rule`` to the data of every parameter (weights held on a sphere, say)."""

    module: nn.Module
    rule: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self) -> None:
        for p in self.module.parameters():
            p.copy_(self.rule(p))


@runtime_checkable
class Projected(Protocol):
    """A network whose weights live on a set of their own, a sphere say."""

    def project(self) -> None:
        """Put the weights back onto it, in place; what the network computes stays the same."""
        ...


@dataclass(frozen=True, eq=False)
class Reproject:
    """Project every part of a module that is :class:`Projected`."""

    module: nn.Module

    def __call__(self) -> None:
        for part in _projected(self.module):
            part.project()


def _projected(module: nn.Module) -> list[Projected]:
    """The outermost parts of a module that are projected."""
    if isinstance(module, Projected):
        return [module]
    return [part for child in module.children() for part in _projected(child)]


@overload
def reprojecting(game: Game) -> Game: ...


@overload
def reprojecting(game: Stages) -> Stages: ...


def reprojecting(game: Game | Stages) -> Game | Stages:
    """The same game in which a move of a network that is :class:`Projected` projects it, before anything else
    that is done when it has stepped; magnitude-preserving networks are trained so."""
    if isinstance(game, Stages):
        return Stages(tuple(replace(stage, build=_Reprojecting(stage)) for stage in game.stages))
    moves = [
        replace(move, after=(Reproject(move.module), *move.after)) if _projected(move.module) else move
        for move in game.moves
    ]
    return replace(game, moves=tuple(moves))


def learned_weights(objective: Objective) -> list[nn.Module]:
    """The modules in the role ``weight`` of an objective, of the one that it wraps or of the parts of a sum,
    each once; also where a weight is the inner one of others."""
    if isinstance(objective, Sum):
        found = [module for part in objective.parts for module in learned_weights(part.objective)]
        return list({id(module): module for module in found}.values())
    wrapped = vars(objective).get("objective")
    if wrapped is not None:
        return learned_weights(wrapped)
    weight = vars(objective).get("weight")
    while weight is not None and not isinstance(weight, nn.Module):
        weight = vars(weight).get("inner")
    return [] if weight is None else [weight]


def student_move(
    student: nn.Module, objective: Objective, after: tuple[After, ...] = (), rate: float = 1.0
) -> Move:
    """The student's move, which also trains what learns in the role ``weight`` of its objective."""
    learned = learned_weights(objective)
    module = nn.ModuleList([student, *learned]) if learned else student
    return Move(name="student", module=module, objective=objective, after=after, rate=rate)


@overload
def as_game(objective: Objective | Game, student: nn.Module) -> Game: ...


@overload
def as_game(objective: Stages, student: nn.Module) -> Stages: ...


def as_game(objective: Objective | Game | Stages, student: nn.Module) -> Game | Stages:
    """A game, or stages of games, from what a method returned. A bare objective is the student's move."""
    if isinstance(objective, Game):
        return objective
    if isinstance(objective, Stages):
        return Stages(tuple(replace(stage, build=_Played(stage, student)) for stage in objective.stages))
    return Game(moves=(student_move(student, objective),))


@dataclass(frozen=True, eq=False)
class _Played:
    """The build of a stage whose bare objective is played by the student."""

    stage: Stage
    student: nn.Module

    def __call__(self, artifacts: Mapping[str, Artifact]) -> Game:
        return as_game(self.stage.build(artifacts), self.student)


@dataclass(frozen=True, eq=False)
class _Reprojecting:
    """The build of a stage whose game projects weights."""

    stage: Stage

    def __call__(self, artifacts: Mapping[str, Artifact]) -> Game:
        built = self.stage.build(artifacts)
        if not isinstance(built, Game):
            raise ValueError(
                f"reprojecting: expected stages that build games, got {type(built).__name__} in "
                f"{self.stage.name!r}; use as_game(stages, student) first"
            )
        return reprojecting(built)
