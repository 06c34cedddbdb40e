"""Who moves: players, their objectives, and what happens after a move.

A :class:`Move` is one player: the module that is trained, what it minimises and how often. A
:class:`Game` is a tuple of moves that share a preparation. Plain training is a game of one move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from saltus.objectives import Sum
from saltus.typing import Batch, Objective

__all__ = ["After", "Follow", "Game", "Move", "Project", "as_game", "student_move"]


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
    """

    name: str
    module: nn.Module
    objective: Objective
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    when: Callable[[int], int] = every_step
    after: tuple[After, ...] = ()


@dataclass(frozen=True, eq=False)
class Game:
    """Players that move in order within each step.

    Attributes:
        moves: the players.
        prepare: runs once a step without gradient, before the moves (a roll-out they share).
    """

    moves: tuple[Move, ...]
    prepare: Callable[[Batch], Batch] | None = None


@dataclass(frozen=True, eq=False)
class Follow:
    """target <- decay * target + (1 - decay) * source for parameters; buffers are copied."""

    target: nn.Module
    source: nn.Module
    decay: float

    @torch.no_grad()
    def __call__(self) -> None:
        ours = [p.detach() for p in self.target.parameters()]
        theirs = [p.detach() for p in self.source.parameters()]
        torch._foreach_lerp_(ours, theirs, 1.0 - self.decay)
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


def learned_weights(objective: Objective) -> list[nn.Module]:
    """The modules in the role ``weight`` of an objective, or of the parts of a sum, each once; also where a
    weight is the inner one of others."""
    if isinstance(objective, Sum):
        found = [module for part in objective.parts for module in learned_weights(part.objective)]
        return list({id(module): module for module in found}.values())
    weight = vars(objective).get("weight")
    while weight is not None and not isinstance(weight, nn.Module):
        weight = vars(weight).get("inner")
    return [] if weight is None else [weight]


def student_move(student: nn.Module, objective: Objective, after: tuple[After, ...] = ()) -> Move:
    """The student's move, which also trains what learns in the role ``weight`` of its objective."""
    learned = learned_weights(objective)
    module = nn.ModuleList([student, *learned]) if learned else student
    return Move(name="student", module=module, objective=objective, after=after)


def as_game(objective: Objective | Game, student: nn.Module) -> Game:
    """A game from whatever a method returned. A bare objective is played by the student."""
    return objective if isinstance(objective, Game) else Game(moves=(student_move(student, objective),))
