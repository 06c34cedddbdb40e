"""Every published system as one file: its paper's defaults in terms of the algebra, and its card.

A file here exposes one function with the file's name, which takes the student first and returns an
Objective or a Game, and a :class:`Card` named ``CARD``; ``VARIANTS``, if any, are further methods made of
the same function with other options. :func:`discover` walks the package, so adding a method touches one
file.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from saltus.adversaries import Discriminator
from saltus.typing import FlowMap, Velocity

__all__ = ["Card", "Cost", "Method", "Need", "Sampler", "discover", "load"]


class Need(Enum):
    """What a method cannot do without."""

    DATA = "data"
    TEACHER = "teacher"
    JVP = "JVP"
    TARGET = "EMA target"
    HEAD = "second head"
    CRITIC = "critic"
    DISCRIMINATOR = "discriminator"
    LABELS = "labels"


class Sampler(Enum):
    """How samples may be drawn from a model that the method trained."""

    ODE = "ode"
    JUMPS = "jumps"
    RENOISE = "renoise"


@dataclass(frozen=True)
class Cost:
    """Network calls of one training step, per row of the batch.

    Attributes:
        live: calls whose gradient is taken.
        live_jvp: calls with a derivative beside the value, and the gradient taken through both.
        stopped: calls without gradient.
        stopped_jvp: calls with a derivative, without gradient.
        teacher: calls of the teacher.
    """

    live: float = 0.0
    live_jvp: float = 0.0
    stopped: float = 0.0
    stopped_jvp: float = 0.0
    teacher: float = 0.0

    @property
    def evaluations(self) -> float:
        """Forward calls a row, a call with its derivative counting 1.5 (arXiv 2505.18825, F.3)."""
        return self.live + self.stopped + 1.5 * (self.live_jvp + self.stopped_jvp) + self.teacher

    @property
    def predicted(self) -> float:
        """The step's time relative to flow matching, a backward pass costing two forward ones."""
        alone = self.stopped + 1.5 * self.stopped_jvp + self.teacher
        return (3.0 * self.live + 4.5 * self.live_jvp + alone) / 3.0


@dataclass(frozen=True)
class Card:
    """What sampling, comparison, conformance and the documentation must know of a method.

    Attributes:
        title: the system's name in print.
        paper: authors, year and arXiv id.
        needs: what it cannot do without.
        sampler: how to sample; composing jumps of a consistency model would be wrong.
        steps: the step counts at which samples are meaningful.
        two_times: whether it learns X_{s,t} for all s <= t (else only t = 1).
        bias: None if the exact map is a stationary point, else what moves it, in words.
        cost: its network calls in the plain form, those of a move as often as it moves in a step.
        threshold: map RMSE at the fewest of its steps on the reference mixture at the reference budget,
            squared error, mean of three seeds; None where it is printed, not bounded. With ``law_alone``
            the sliced Wasserstein distance instead, here and below.
        quick_threshold: the same after 300 steps at a learning rate of 5e-3, for any seed; about 1.25 times
            the largest of three. An Euler step of the exact velocity has 1.97.
        plain: options that give its plain form, whose stationary point is the exact map (squared error,
            no clipping, linear interpolant, a moving average that 2,500 steps outlive); tests and
            the mixture benchmark use it.
        second_hand: constants and formulas that are not from a primary source.
        pairs: whether its discriminator, if it needs one, judges jumps by their ends and their starts.
        rectifies: whether it learns a straighter flow than its teacher's, that of the pairs which the
            teacher's flow makes; the exact map of the teacher is then not its stationary point.
        law_alone: whether it asks of its samples only that they have the right law: any map to it will do.
        parametrisation: how the output of its student's network is read, by the recipes' name for it, where
            the method is made for one; its cost is then that of such a student.
    """

    title: str
    paper: str
    needs: frozenset[Need]
    sampler: Sampler
    steps: tuple[int, ...]
    two_times: bool
    cost: Cost
    threshold: float | None
    quick_threshold: float | None
    bias: str | None = None
    plain: Mapping[str, Any] = field(default_factory=dict)
    second_hand: tuple[str, ...] = ()
    pairs: bool = False
    rectifies: bool = False
    law_alone: bool = False
    parametrisation: str | None = None


@dataclass(frozen=True)
class Method:
    """A discovered method: its name, its function and its card."""

    name: str
    build: Callable[..., Any]
    card: Card

    def wired(
        self,
        student: FlowMap,
        *,
        teacher: Velocity | None = None,
        critic: FlowMap | None = None,
        discriminator: Discriminator | None = None,
        **options: Any,  # noqa: ANN401 - the function's own
    ) -> Any:  # noqa: ANN401 - an Objective, a Game or Stages
        """What the function returns for these players; those that the card does not need are left out.

        Raises:
            ValueError: if a player that the card needs is missing.
        """
        players = {
            Need.TEACHER: ("teacher", teacher),
            Need.CRITIC: ("critic", critic),
            Need.DISCRIMINATOR: ("discriminator", discriminator),
        }
        for need, (role, player) in players.items():
            if need not in self.card.needs:
                continue
            if player is None:
                raise ValueError(f"method {self.name}: expected a {role}, got none; give it one")
            options[role] = player
        return self.build(student, **options)


def discover() -> dict[str, Method]:
    """Every method of the package by name, in alphabetical order; a file's variants follow it."""
    found = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda i: i.name):
        module = vars(importlib.import_module(f"{__name__}.{info.name}"))
        found[info.name] = Method(info.name, module[info.name], module["CARD"])
        found.update({variant.name: variant for variant in module.get("VARIANTS", ())})
    return found


def load(name: str) -> Method:
    """One method by name, or a ValueError with near matches."""
    found = discover()
    if name not in found:
        near = difflib.get_close_matches(name, found, n=3)
        hint = f", did you mean {', '.join(near)}?" if near else ""
        raise ValueError(
            f"method {name!r}: expected one of the {len(found)} known (saltus methods lists them){hint}"
        )
    return found[name]
