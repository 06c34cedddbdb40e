"""Every published system as one file: its paper's defaults in terms of the algebra, and its card.

A file here exposes one function with the file's name, which takes the student first and returns an
Objective or a Game, and a :class:`Card` named ``CARD``. :func:`discover` walks the package, so adding
a method touches one file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["Card", "Method", "Need", "Sampler", "discover", "load"]


class Need(Enum):
    """What a method cannot do without."""

    DATA = "data"
    TEACHER = "teacher"
    JVP = "JVP"
    TARGET = "EMA target"
    HEAD = "second head"


class Sampler(Enum):
    """How samples may be drawn from a model that the method trained."""

    ODE = "ode"
    JUMPS = "jumps"
    RENOISE = "renoise"


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
        evaluations: network evaluations of one step, in units of one forward call a row
            (a JVP counts 1.5 beside the value, as the literature counts).
        threshold: one-step map RMSE on the reference mixture at the reference budget, squared
            error, mean of three seeds; None where it is printed, not bounded.
        quick_threshold: the same after 300 steps.
        second_hand: constants and formulas that are not from a primary source.
    """

    title: str
    paper: str
    needs: frozenset[Need]
    sampler: Sampler
    steps: tuple[int, ...]
    two_times: bool
    evaluations: float
    threshold: float | None
    quick_threshold: float | None
    bias: str | None = None
    second_hand: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A discovered method: its name, its function and its card."""

    name: str
    build: Callable[..., Any]
    card: Card


def discover() -> dict[str, Method]:
    """Every method of the package by name, in alphabetical order."""
    found = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda i: i.name):
        module = vars(importlib.import_module(f"{__name__}.{info.name}"))
        found[info.name] = Method(info.name, module[info.name], module["CARD"])
    return found


def load(name: str) -> Method:
    """One method by name, or a ValueError with near matches."""
    import difflib

    found = discover()
    if name not in found:
        near = difflib.get_close_matches(name, found, n=3) or sorted(found)
        raise ValueError(f"method {name!r}: expected one of the {len(found)} known, near matches: {', '.join(near)}")
    return found[name]
