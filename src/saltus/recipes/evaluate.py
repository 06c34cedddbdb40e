"""Figures of a trained map: by its own sampler at the card's step counts, beside plain integration of
its own velocity and beside fresh data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.legs import EULER, HEUN
from saltus.maps import NetworkMap
from saltus.methods import Card, Sampler
from saltus.recipes.sampling import draw
from saltus.recipes.system import Drawn, Judge, asked
from saltus.report import Table
from saltus.samplers import integrate, prior
from saltus.streams import Streams

__all__ = ["ODE_STEPS", "Measured", "evaluate", "table"]

STEPS = (1, 2, 4, 8)
"""The step counts of every table, where the card allows them."""
ODE_STEPS = 64
NAMES = {Sampler.JUMPS: "jump", Sampler.RENOISE: "re-noised jump", Sampler.ODE: "Euler step"}
JUDGED = 2**31
"""First index of the streams of an evaluation, far from those of training."""


@dataclass(frozen=True)
class Measured:
    """One line of an evaluation.

    Attributes:
        label: in words.
        group: rows that belong together: the method's sampler, Euler, the ODE, real data.
        steps: of the sampler; 0 for data.
        figures: by name.
        ms: milliseconds an image, None for data.
    """

    label: str
    group: str
    steps: int
    figures: dict[str, float] = field(default_factory=dict)
    ms: float | None = None

    def plain(self) -> dict[str, object]:
        """As JSON values."""
        return asdict(self)


def _timed(sample: Callable[[], Tensor], n: int) -> tuple[Tensor, float]:
    """Samples and milliseconds for one of them; a short call is repeated."""
    begin, rounds = time.perf_counter(), 0
    while rounds == 0 or (rounds < 20 and time.perf_counter() - begin < 0.2):
        x = sample()
        rounds += 1
    return x, 1e3 * (time.perf_counter() - begin) / (n * rounds)


def has_velocity(card: Card) -> bool:
    """Whether training fixed u_{t,t}: for all two-time methods, and for flow matching."""
    return card.two_times or card.sampler is Sampler.ODE


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
    x0, label = prior(rng, shape, interpolant), judge.labels
    cond = asked(label)

    def line(label_: str, group: str, steps: int, sample: Callable[[], Tensor]) -> Measured:
        x, ms = _timed(sample, len(x0))
        return Measured(label_, group, steps, judge(Drawn(x0, x, label)), ms)

    name = NAMES[card.sampler]
    counts = [k for k in STEPS if k in card.steps]
    for k in counts:
        yield line(_count(k, name), card.sampler.value, k, lambda k=k: draw(model, card, x0, k, cond, rng, interpolant))
    if not has_velocity(card):
        yield Measured("real data", "real", 0, judge.real())
        return
    if card.sampler is not Sampler.ODE:
        for k in counts:
            yield line(_count(k, "Euler step"), "euler", k, lambda k=k: integrate(model.velocity, x0, k, EULER, cond))
    yield line(f"ODE, {ODE_STEPS} steps", "heun", ODE_STEPS, lambda: integrate(model.velocity, x0, ODE_STEPS, HEUN, cond))
    yield Measured("real data", "real", 0, judge.real())


def _count(k: int, thing: str) -> str:
    return f"{k} {thing}" if k == 1 else f"{k} {thing}s"


def table(lines: Sequence[Measured], title: str, note: str = "") -> Table:
    """The lines as a table with a rule between groups."""
    names = list(dict.fromkeys(n for m in lines for n in m.figures))
    rows = [[m.label, *(m.figures.get(n) for n in names), m.ms] for m in lines]
    rules = frozenset(k for k in range(1, len(lines)) if lines[k].group != lines[k - 1].group)
    return Table(("sampler", *names, "ms a sample"), rows, title, note, rules)
