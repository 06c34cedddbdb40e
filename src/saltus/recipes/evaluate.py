"""Figures of a trained map: by its own sampler at the card's step counts, beside plain integration of
its own velocity and beside fresh data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.legs import EULER, HEUN, Tableau
from saltus.maps import NetworkMap
from saltus.methods import Card, Sampler
from saltus.recipes.experiment import Experiment
from saltus.recipes.judged_by_teacher import NEAR, OFF
from saltus.recipes.sampling import draw
from saltus.recipes.system import MAP_ERROR, Drawn, asked
from saltus.recipes.teacher import guided_between, has_velocity
from saltus.report import Table
from saltus.samplers import integrate, prior
from saltus.streams import Streams
from saltus.tensors import full_like_rows
from saltus.typing import Condition

__all__ = [
    "EULERS",
    "GUIDED",
    "ODE_STEPS",
    "OWN",
    "REAL",
    "SOLVER",
    "STEPS",
    "TEACHER",
    "Exam",
    "Measured",
    "all_samplers",
    "evaluate",
    "samplers",
    "score",
    "tables",
]

STEPS = (1, 2, 4, 8)
"""The step counts of pictures, where the card allows them."""
PICTURED = (1, 4)
ODE_STEPS = 64
OWN, EULERS, SOLVER, REAL, PUBLISHED = "own", "euler", "solver", "real", "published"
GUIDED, TEACHER = "guided", "teacher"
"""Groups of rows: the method's sampler, Euler on its velocity, Heun on its velocity, fresh data, what the
method's authors print, the method's sampler with guidance, and its teacher."""
TAUGHT = (1, 4)
"""Euler steps at which a teacher is measured, beside its ODE."""
NAMES = {Sampler.JUMPS: "jump", Sampler.RENOISE: "re-noised jump", Sampler.ODE: "Euler step"}
JUDGED = 2**31
"""First index of the streams of an evaluation, far from those of training."""


@dataclass(frozen=True)
class Measured:
    """One line of an evaluation.

    Attributes:
        label: in words.
        group: one of those above.
        steps: of the sampler; 0 for data.
        figures: by name.
        ms: milliseconds an image, None for data.
    """

    label: str
    group: str
    steps: int
    figures: dict[str, float] = field(default_factory=dict)
    ms: float | None = None


def score(lines: Sequence[Measured]) -> tuple[str, float] | None:
    """What tells checkpoints of one run apart: the first figure of the sampler with the fewest steps, and
    its name. Less is better. None where nothing is measured.

    >>> score([Measured("2 jumps", OWN, 2, {"map RMSE": 0.1}), Measured("1 jump", OWN, 1, {"map RMSE": 0.2})])
    ('map RMSE at 1 jump', 0.2)
    """
    own = [m for m in lines if m.group == OWN and m.figures]
    if not own:
        return None
    least = min(own, key=lambda m: m.steps)
    name, value = next(iter(least.figures.items()))
    return f"{name} at {least.label}", value


def _timed(sample: Callable[[], Tensor], least: float) -> tuple[Tensor, float]:
    """Samples and milliseconds for one of them; a call is repeated up to the ``least`` seconds."""
    begin, rounds = time.perf_counter(), 0
    while rounds == 0 or (rounds < 20 and time.perf_counter() - begin < least):
        x = sample().cpu()  # which waits for the device
        rounds += 1
    return x, 1e3 * (time.perf_counter() - begin) / (len(x) * rounds)


@dataclass(frozen=True, eq=False)
class Row:
    """One way to sample a map.

    Attributes:
        label: in words.
        group: see :class:`Measured`.
        steps: how many.
        sample: draws from the noise that all rows share.
        pictured: whether pictures show it.
        w: the strength of guidance, or None.
    """

    label: str
    group: str
    steps: int
    sample: Callable[[], Tensor]
    pictured: bool
    w: float | None = None


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
    counts = [k for k in steps if k in card.steps] or [min(card.steps)]
    pictured = [k for k in counts if k in PICTURED] or counts[:1]
    name = NAMES[card.sampler]
    rows = [
        Row(_count(k, name), OWN, k, partial(draw, model, card, x0, k, cond, rng, interpolant), k in pictured)
        for k in counts
    ]
    if not has_velocity(card):
        return rows

    def solved(k: int, tableau: Tableau) -> Tensor:
        return integrate(model.velocity, x0, k, tableau, cond)

    if card.sampler is not Sampler.ODE:
        rows += [Row(_count(k, "Euler step"), EULERS, k, partial(solved, k, EULER), k == 1) for k in counts]
    return [*rows, Row(f"ODE, {ODE_STEPS} steps", SOLVER, ODE_STEPS, partial(solved, ODE_STEPS, HEUN), True)]


def _further(
    made: Experiment, model: NetworkMap, x0: Tensor, label: Tensor | None, rng: Streams
) -> list[Row]:
    """The map at its largest strength of guidance, and its teacher by a few steps and by many."""
    rows = []
    w = made.guidance
    if w is not None:
        cond = guided_between(asked(label, full_like_rows(w, x0)), made.interval)
        card, name = made.method.card, NAMES[made.method.card.sampler]
        k = min(card.steps)
        sample = partial(draw, model, card, x0, k, cond, rng, made.interpolant)
        rows.append(Row(f"{_count(k, name)}, w = {w:g}", GUIDED, k, sample, True, w))
    if made.teacher is None:
        return rows
    for k, tableau in [*((k, EULER) for k in TAUGHT), (ODE_STEPS, HEUN)]:
        way = f"teacher, {_count(k, 'Euler step')}" if tableau is EULER else f"teacher, ODE, {k} steps"
        sample = partial(made.teacher.sends, x0, made.interpolant, asked(label), k, tableau)
        rows.append(Row(way, TEACHER, k, sample, k != TAUGHT[-1]))
    if w is not None:
        sample = partial(made.teacher.sends, x0, made.interpolant, cond)
        rows.append(Row(f"teacher, ODE, w = {w:g}", TEACHER, ODE_STEPS, sample, True, w))
    return rows


def all_samplers(
    made: Experiment,
    model: NetworkMap,
    x0: Tensor,
    label: Tensor | None,
    rng: Streams,
    steps: tuple[int, ...],
) -> list[Row]:
    """Every row that draws: the map's, with guidance if it learned any, and its teacher's."""
    rows = samplers(model, made.method.card, x0, asked(label), rng, made.interpolant, steps)
    return [*rows, *_further(made, model, x0, label, rng)]


def _joined(parts: Sequence[Row]) -> Row:
    """One row that samples part after part, and keeps them on the CPU."""
    return replace(parts[0], sample=lambda: torch.cat([part.sample().cpu() for part in parts]))


class Exam:
    """What every sampler of a run is asked: one noise, one judge. Made once, and given to any weights.

    Attributes:
        made: what trained the map.
        judge: of the samples.
    """

    def __init__(self, made: Experiment) -> None:
        self.made, self.judge = made, made.judge()
        self._rng = Streams(made.training.seed, index=torch.arange(JUDGED, JUDGED + self.judge.count))
        self._x0 = prior(self._rng, made.system.shape, made.interpolant)

    def rows(self, model: NetworkMap) -> list[Row]:
        """Every way to sample a map, on the device where it is; the judge says how many samples at a time."""
        judge, device = self.judge, next(model.parameters()).device

        def of(places: Tensor) -> list[Row]:
            labels = None if judge.labels is None else judge.labels[places].to(device)
            rng = replace(self._rng.rows(places), device=device)
            return all_samplers(self.made, model, self._x0[places].to(device), labels, rng, judge.counts)

        parts = [of(places) for places in torch.split(torch.arange(judge.count), judge.batch or judge.count)]
        return parts[0] if len(parts) == 1 else [_joined(alike) for alike in zip(*parts, strict=True)]

    @torch.no_grad()
    def measure(self, row: Row, least: float = 0.2) -> Measured:
        """One line; the sampler is timed for ``least`` seconds, at least once."""
        x, ms = _timed(row.sample, least)
        figures = self.judge.figures(Drawn(self._x0, x, self.judge.labels, row.w))
        if self.made.method.card.sampler is Sampler.RENOISE and row.group == OWN and row.steps > 1:
            for name in (MAP_ERROR, OFF):  # fresh noise after a jump: the sample is no function of x0
                figures.pop(name, None)
        return Measured(row.label, row.group, row.steps, figures, ms)

    def own(self, model: NetworkMap) -> list[Measured]:
        """The lines of the method's own sampler alone, as :func:`evaluate` gives them, at a tenth of the
        cost: neither integration, nor a teacher, nor fresh data."""
        return [self.measure(row, 0.0) for row in self.rows(model) if row.group in (OWN, GUIDED)]


@torch.no_grad()
def evaluate(made: Experiment, model: NetworkMap, exam: Exam | None = None) -> Iterator[Measured]:
    """Yield one line after another; every sampler starts from the same noise.

    Args:
        made: what trained the map.
        model: the averaged map.
        exam: what it is asked; made now by default.
    """
    exam = exam or Exam(made)
    for row in exam.rows(model):
        yield exam.measure(row)
    real = exam.judge.real()
    if real:
        yield Measured("real data", REAL, 0, real)
    for k, figures in exam.judge.published.items():
        yield Measured(f"in print, {_count(k, NAMES[made.method.card.sampler])}", PUBLISHED, k, figures)


def _count(k: int, thing: str) -> str:
    return f"{k} {thing}" if k == 1 else f"{k} {thing}s"


def tables(lines: Sequence[Measured], title: str, against: str = "", protocol: str = "") -> list[Table]:
    """The lines as a table with a rule between groups; where a teacher judged, as two: what it says, and then
    what the system's own judge says of the same samples.

    Args:
        lines: of an evaluation.
        title: of the first table.
        against: the title of the second.
        protocol: of the figures of the system's own judge, below them.
    """
    names = list(dict.fromkeys(n for m in lines for n in m.figures))
    if OFF not in names:
        return [_table(lines, names, title, protocol)]
    beside = [n for n in (OFF, NEAR) if n in names]
    note = (
        f"{OFF}: distance to where the teacher's ODE of {ODE_STEPS} steps sends the same\n"
        f"noise, in units of its samples' spread. {NEAR}: energy distance to its\n"
        "samples from other noise.\n"
    )
    parts = [_table([m for m in lines if OFF in m.figures or NEAR in m.figures], beside, title, note)]
    rest = [n for n in names if n not in beside]
    return [*parts, _table(lines, rest, against, protocol, ms=False)] if rest else parts


def _table(
    lines: Sequence[Measured], names: Sequence[str], title: str, note: str = "", ms: bool = True
) -> Table:
    rows = [[m.label, *(m.figures.get(n) for n in names), *([m.ms] if ms else [])] for m in lines]
    rules = frozenset(k for k in range(1, len(lines)) if lines[k].group != lines[k - 1].group)
    return Table(("sampler", *names, *(["ms a sample"] if ms else [])), rows, title, note, rules)
