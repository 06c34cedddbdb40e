"""Figures of a trained map: by its own sampler at the card's step counts, beside plain integration of
its own velocity and beside fresh data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.legs import EULER, HEUN, Tableau
from saltus.maps import NetworkMap
from saltus.methods import Card, Sampler
from saltus.recipes.sampling import draw
from saltus.recipes.system import MAP_ERROR, Drawn, Judge, asked
from saltus.report import Table
from saltus.samplers import integrate, prior
from saltus.streams import Streams
from saltus.typing import Condition

__all__ = [
    "EULERS",
    "ODE_STEPS",
    "OWN",
    "REAL",
    "SOLVER",
    "STEPS",
    "Measured",
    "evaluate",
    "samplers",
    "table",
]

STEPS = (1, 2, 4, 8)
"""The step counts of pictures, where the card allows them."""
PICTURED = (1, 4)
ODE_STEPS = 64
OWN, EULERS, SOLVER, REAL, PUBLISHED = "own", "euler", "solver", "real", "published"
"""Groups of rows: the method's sampler, Euler on its velocity, Heun on its velocity, fresh data, and what
the method's authors print."""
NAMES = {Sampler.JUMPS: "jump", Sampler.RENOISE: "re-noised jump", Sampler.ODE: "Euler step"}
JUDGED = 2**31
"""First index of the streams of an evaluation, far from those of training."""


@dataclass(frozen=True)
class Measured:
    """One line of an evaluation.

    Attributes:
        label: in words.
        group: OWN, EULERS, SOLVER or REAL.
        steps: of the sampler; 0 for data.
        figures: by name.
        ms: milliseconds an image, None for data.
    """

    label: str
    group: str
    steps: int
    figures: dict[str, float] = field(default_factory=dict)
    ms: float | None = None


def _timed(sample: Callable[[], Tensor], n: int) -> tuple[Tensor, float]:
    """Samples and milliseconds for one of them; a short call is repeated."""
    begin, rounds = time.perf_counter(), 0
    while rounds == 0 or (rounds < 20 and time.perf_counter() - begin < 0.2):
        x = sample()
        rounds += 1
    return x, 1e3 * (time.perf_counter() - begin) / (n * rounds)


def has_velocity(card: Card) -> bool:
    """Whether training fixed u_{t,t}, as every two-time method and flow matching do."""
    return card.two_times or card.sampler is Sampler.ODE


@dataclass(frozen=True, eq=False)
class Row:
    """One way to sample a map.

    Attributes:
        label: in words.
        group: see :class:`Measured`.
        steps: how many.
        sample: draws from the noise that all rows share.
        pictured: whether pictures show it.
    """

    label: str
    group: str
    steps: int
    sample: Callable[[], Tensor]
    pictured: bool


def samplers(
    model: NetworkMap,
    card: Card,
    x0: Tensor,
    cond: Condition | None,
    rng: Streams,
    interpolant: Interpolant,
    steps: tuple[int, ...] = STEPS,
) -> list[Row]:
    """Every way to sample a map that makes sense: the card's, and integration where u_{t,t} is learned."""
    counts = [k for k in steps if k in card.steps]
    name = NAMES[card.sampler]
    rows = [
        Row(_count(k, name), OWN, k, partial(draw, model, card, x0, k, cond, rng, interpolant), k in PICTURED)
        for k in counts
    ]
    if not has_velocity(card):
        return rows

    def solved(k: int, tableau: Tableau) -> Tensor:
        return integrate(model.velocity, x0, k, tableau, cond)

    if card.sampler is not Sampler.ODE:
        rows += [Row(_count(k, "Euler step"), EULERS, k, partial(solved, k, EULER), k == 1) for k in counts]
    return [*rows, Row(f"ODE, {ODE_STEPS} steps", SOLVER, ODE_STEPS, partial(solved, ODE_STEPS, HEUN), True)]


@torch.no_grad()
def evaluate(
    model: NetworkMap, card: Card, interpolant: Interpolant, judge: Judge, seed: int, shape: tuple[int, ...]
) -> Iterator[Measured]:
    """Yield one line after another; every sampler starts from the same noise.

    Args:
        model: the averaged map.
        card: of the method that trained it.
        interpolant: the method's.
        judge: of the system.
        seed: of the noise.
        shape: of one sample.
    """
    rng = Streams(seed, index=torch.arange(JUDGED, JUDGED + judge.count))
    x0 = prior(rng, shape, interpolant)
    for row in samplers(model, card, x0, asked(judge.labels), rng, interpolant, judge.counts):
        x, ms = _timed(row.sample, len(x0))
        figures = judge.figures(Drawn(x0, x, judge.labels))
        if card.sampler is Sampler.RENOISE and row.steps > 1:
            figures.pop(MAP_ERROR, None)  # fresh noise after a jump: the sample is no function of x0
        yield Measured(row.label, row.group, row.steps, figures, ms)
    yield Measured("real data", REAL, 0, judge.real())
    for k, figures in judge.published.items():
        yield Measured(f"in print, {_count(k, NAMES[card.sampler])}", PUBLISHED, k, figures)


def _count(k: int, thing: str) -> str:
    return f"{k} {thing}" if k == 1 else f"{k} {thing}s"


def table(lines: Sequence[Measured], title: str, note: str = "") -> Table:
    """The lines as a table with a rule between groups."""
    names = list(dict.fromkeys(n for m in lines for n in m.figures))
    rows = [[m.label, *(m.figures.get(n) for n in names), m.ms] for m in lines]
    rules = frozenset(k for k in range(1, len(lines)) if lines[k].group != lines[k - 1].group)
    return Table(("sampler", *names, "ms a sample"), rows, title, note, rules)
