"""Samples of the student that carry gradient: what losses on the law of samples look at.

A trajectory loss asks for jumps at states that are given; a loss on a law asks for samples, and says nothing
of how they are made. A :class:`Maker` makes them, and its last jumps are live.

References:
    Yin et al., "Improved distribution matching distillation" (DMD2), 2024, arXiv 2405.14867 (backward
    simulation: the input of every step is the student's own output, re-noised).
    Sauer et al., "Fast high-resolution image synthesis with latent adversarial diffusion distillation",
    2024, arXiv 2403.12015 (one jump from noised data).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import Interpolant
from saltus.states import DataStates, PriorStates, State, States
from saltus.streams import Streams
from saltus.tensors import full_like_rows, like
from saltus.times import Law, Uniform, shifted
from saltus.typing import Batch, Condition, Draws, FlowMap

__all__ = [
    "CellStops",
    "Chain",
    "Chunks",
    "Ends",
    "FixedStops",
    "FromPrior",
    "Made",
    "Maker",
    "OneJump",
    "RandomStops",
    "Renoising",
    "Stops",
    "as_tokens",
    "draw_samples",
    "make_samples",
    "renoised",
]


class Made(NamedTuple):
    """Samples, and where the last jump to them began.

    Attributes:
        x: the samples, live, [n, ...].
        t: their time, [n]; 1 is data.
        start: the state that the last jump left, stopped.
        s: its time, [n].
    """

    x: Tensor
    t: Tensor
    start: State
    s: Tensor


class Maker(Protocol):
    """How samples are made of a batch; a value whose randomness is drawn beforehand."""

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """Times and noises."""
        ...

    def __call__(self, student: FlowMap, interpolant: Interpolant, batch: Batch, draws: Draws) -> Made:
        """The samples; the batch's condition is the student's."""
        ...


@runtime_checkable
class Ends(Protocol):
    """A loss that makes samples: what they are, without gradient, what it compares them with if it does, and
    their condition. ``draw`` is the loss's own; what they are compared with is None unless ``compared``."""

    def draw(self, batch: Batch, rng: Streams) -> Draws: ...

    def ends(
        self, batch: Batch, draws: Draws, compared: bool = True
    ) -> tuple[Made, Tensor | None, Condition | None]: ...


def renoised(interpolant: Interpolant, x: Tensor, m: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """A state at time m [n] with as much fresh noise as makes it one at t <= m [n]:

        x_t = a x_m + c n,   a = beta_t/beta_m,   c^2 = alpha_t^2 - a^2 alpha_m^2.

    If x_m has the law of I_m, x_t has that of I_t. At m = 1 it is alpha_t n + beta_t x.
    """
    here, there = interpolant(m), interpolant(t)
    a = there.beta / here.beta
    c = torch.sqrt((there.alpha.square() - (a * here.alpha).square()).clamp(min=0.0))
    return (like(a, x) * x + like(c, x) * noise.to(x.dtype)).to(x.dtype)


@dataclass(frozen=True)
class FromPrior:
    """X_{0,1}(alpha_0 x0): one jump from the prior to the data."""

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """Nothing: x0 is the batch's."""
        return {}

    def __call__(self, student: FlowMap, interpolant: Interpolant, batch: Batch, draws: Draws) -> Made:
        s = full_like_rows(0.0, batch.x0)
        return _last(student, PriorStates()(batch, interpolant, s, None), s, batch)


@dataclass(frozen=True, eq=False)
class OneJump:
    """X_{s,1}(x_s) from states at times of a law.

    Attributes:
        states: where x_s comes from: data at the time s, a roll-out of the student's own jumps.
        times: the law of s.
    """

    states: States = DataStates()
    times: Law = Uniform()

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The start s, [B], stratified over the global batch."""
        return {"s": self.times(rng.stratified("s")).clamp(0.0, 1.0)}

    def __call__(self, student: FlowMap, interpolant: Interpolant, batch: Batch, draws: Draws) -> Made:
        s = draws["s"]
        assert isinstance(s, Tensor)
        start = self.states(batch, interpolant, s, None)
        return _last(student, start, s, batch)


class Stops(Protocol):
    """Where a way through several jumps stops: ascending times [B, K], the first of them 0."""

    def __call__(self, rng: Streams) -> Tensor: ...


@dataclass(frozen=True)
class FixedStops:
    """The same times for every row: (0, 1/4, 1/2, 3/4), say."""

    times: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.times, self.times[1:], strict=False))
        if not self.times or self.times[0] != 0.0 or not ascending or self.times[-1] >= 1.0:
            raise ValueError(f"stops: expected ascending times from 0 to below 1, got {self.times}")

    def __call__(self, rng: Streams) -> Tensor:
        row = torch.tensor(self.times, dtype=rng.dtype)
        return row.expand(len(rng.index), -1).to(rng.device, non_blocking=True)


@dataclass(frozen=True)
class RandomStops:
    """0 and ``count`` - 1 ordered times of a law, of each row its own."""

    count: int = 4
    law: Law = Uniform()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"stops: expected at least 1, the prior, got {self.count}")

    def __call__(self, rng: Streams) -> Tensor:
        inner = self.law(rng.uniform("stops", self.count - 1)).clamp(0.0, 1.0).sort(dim=1).values
        return torch.cat([inner.new_zeros(len(inner), 1), inner], dim=1)


@dataclass(frozen=True)
class CellStops:
    """0 and both ends of a cell, of a grid of n equal cells drawn anew for every row: the walk of n steps,
    all cells before the row's own taken in one jump and all after it in another.

    Attributes:
        counts: n is one of them, all as likely.
        shift: of the grid's clock, see :func:`saltus.times.shifted`; 1 spaces it evenly.

    References:
        AnyFlow, 2026, arXiv 2605.13724.
    """

    counts: tuple[int, ...] = (2, 4, 8, 16, 50)
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"stops: expected numbers of cells of at least 1, got {self.counts}")

    def __call__(self, rng: Streams) -> Tensor:
        table = torch.tensor(self.counts, device=rng.device)
        n = table[rng.integers("count", len(self.counts))].to(rng.dtype)
        cell = torch.minimum((rng.uniform("cell") * n).floor(), n - 1.0)
        return torch.stack(
            [torch.zeros_like(n), shifted(cell / n, self.shift), shifted((cell + 1.0) / n, self.shift)], dim=1
        )


@dataclass(frozen=True, eq=False)
class Renoising:
    """Several steps by re-noising of which one is live: backward simulation.

    From the prior the student jumps to the data at each stop and its sample is noised anew to the next one,
    without gradient. Each row leaves at a stop of its own, drawn evenly; its jump from there is live. So the
    student learns from the states that it will see, and one network call carries gradient.

    Attributes:
        stops: the times of the steps.
    """

    stops: Stops = FixedStops()

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The stops [B, K], the one that each row leaves at, int64 [B], and K - 1 noises [B, K - 1, ...]."""
        stops = self.stops(rng)
        count = stops.shape[1]
        draws: Draws = {"stops": stops, "exit": rng.integers("exit", count)}
        if count > 1:
            draws["noise"] = rng.normal("noise", count - 1, *batch.x0.shape[1:])
        return draws

    def __call__(self, student: FlowMap, interpolant: Interpolant, batch: Batch, draws: Draws) -> Made:
        stops, leave, noise = draws["stops"], draws["exit"], draws.get("noise")
        assert isinstance(stops, Tensor) and isinstance(leave, Tensor) and not isinstance(noise, dict)
        x = PriorStates()(batch, interpolant, stops[:, 0], None).x
        fresh = [] if noise is None else list(noise.unbind(1))
        goes = [leave >= k for k in range(1, stops.shape[1])]
        return _renoising(student, interpolant, x, stops.unbind(1), fresh, goes, batch)


@dataclass(frozen=True, eq=False)
class Chain:
    """X_{t_K,1} o ... o X_{0,t_2}: jumps from the prior through every stop to the data, all of them live.

    Attributes:
        stops: their times.
    """

    stops: Stops

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The stops, [B, K]."""
        return {"stops": self.stops(rng)}

    def __call__(self, student: FlowMap, interpolant: Interpolant, batch: Batch, draws: Draws) -> Made:
        stops = draws["stops"]
        assert isinstance(stops, Tensor)
        s = stops[:, 0]
        x = PriorStates()(batch, interpolant, s, None).x
        for k in range(1, stops.shape[1]):
            x, s = student(x, s, stops[:, k], batch.cond), stops[:, k]
        return Made(student(x, s, torch.ones_like(s), batch.cond), torch.ones_like(s), State(x.detach()), s)


def as_tokens(cond: Condition | None, seen: Tensor) -> Condition:
    """The condition with the frames seen [n, F, ...] as its tokens [n, F, D].

    >>> as_tokens(None, torch.zeros(2, 3, 4, 5)).tokens.shape
    torch.Size([2, 3, 20])
    """
    if cond is not None and cond.tokens is not None:
        raise ValueError(
            "chunks: expected a condition without tokens, which are to be the frames before; give a ``see`` "
            "that joins both for your network"
        )
    return replace(cond or Condition(), tokens=seen.flatten(2) if seen.ndim > 2 else seen.unsqueeze(2))


@dataclass(frozen=True, eq=False)
class Chunks:
    """A clip made chunk by chunk, each in steps of its own number, given the one before.

    The first axis of a row counts frames; the student makes ``frames`` of them at a time, all where there are
    no more. Chunk k takes up to steps[k] steps by re-noising from its part of x0, the last chunks as many as
    the schedule ends with. Each row leaves at a step of its own, at the same place of every chunk's schedule,
    drawn evenly; its jump from there is live. A chunk sees the one before as that jump did, noisy, and
    without gradient: what is seen is never finished, so errors do not add up.

    Attributes:
        steps: by chunk; more for the first ones, which the others build on.
        frames: of a chunk; the number of a row's frames is a multiple of it.
        shift: of the clock on which the steps are even, see :func:`saltus.times.shifted`.
        see: (the batch's condition, the frames before) -> the student's condition.

    References:
        "Diagonal distillation", 2026, arXiv 2603.09488; Huang et al., "Self forcing", 2025, arXiv 2506.08009.
    """

    steps: tuple[int, ...] = (5, 4, 3, 2, 2)
    frames: int = 3
    shift: float = 1.0
    see: Callable[[Condition | None, Tensor], Condition] = as_tokens

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1 or self.frames < 1:
            raise ValueError(
                f"chunks: expected frames and steps of at least 1, got {self.frames} and {self.steps}"
            )

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """Where each row leaves, [B] in [0, 1), and the noises of all steps but the first,
        [B, K - 1, F, ...], K the most steps; nothing if it is 1."""
        most = max(self.steps) - 1
        if not most:
            return {}
        return {"exit": rng.uniform("exit"), "noise": rng.normal("noise", most, *batch.x0.shape[1:])}

    def __call__(self, student: FlowMap, interpolant: Interpolant, batch: Batch, draws: Draws) -> Made:
        zero = full_like_rows(0.0, batch.x0)
        x, noise, leave = (
            PriorStates()(batch, interpolant, zero, None).x,
            draws.get("noise"),
            draws.get("exit"),
        )
        assert not isinstance(noise, dict) and not isinstance(leave, dict)
        count = -(-x.shape[1] // self.frames)
        if count > 1 and x.shape[1] % self.frames:
            raise ValueError(
                f"chunks: expected a multiple of {self.frames} frames, got {x.shape[1]}; cut the clips to one"
            )
        made: list[Made] = []
        for k in range(count):
            part = slice(k * self.frames, (k + 1) * self.frames)
            steps = self.steps[min(k, len(self.steps) - 1)]
            stops = [shifted(zero + j / steps, self.shift) for j in range(steps)]
            fresh = [] if noise is None else [noise[:, j, part] for j in range(steps - 1)]
            goes = [] if leave is None else [leave * steps >= j for j in range(1, steps)]
            here = replace(batch, cond=self.see(batch.cond, made[-1].start.x) if made else batch.cond)
            made.append(_renoising(student, interpolant, x[:, part], stops, fresh, goes, here))
        whole, starts = (torch.cat(z, dim=1) for z in ([m.x for m in made], [m.start.x for m in made]))
        return Made(whole, zero + 1.0, State(starts), made[-1].s)


def _renoising(
    student: FlowMap,
    interpolant: Interpolant,
    x: Tensor,
    stops: Sequence[Tensor],
    noise: Sequence[Tensor],
    goes: Sequence[Tensor],
    batch: Batch,
) -> Made:
    """Steps by re-noising at the stops, each [n], of rows that go on, bool [n]; the last jump is live."""
    s, one = stops[0], torch.ones_like(stops[0])
    with torch.no_grad():
        for stop, fresh, on in zip(stops[1:], noise, goes, strict=True):
            moved = renoised(interpolant, student(x, s, one, batch.cond), one, stop, fresh)
            x, s = torch.where(like(on, x), moved, x), torch.where(on, stop, s)
    return _last(student, State(x), s, batch)


def _last(student: FlowMap, start: State, s: Tensor, batch: Batch) -> Made:
    """The live jump to the data."""
    one = torch.ones_like(s)
    return Made(student(start.x, s, one, batch.cond), one, start, s)


def draw_samples(
    maker: Maker, guidance: LabelDropout | GuidanceInput | None, batch: Batch, rng: Streams
) -> Draws:
    """What every loss on samples draws: under ``maker`` its own, if any, and the guidance's numbers."""
    draws: Draws = {}
    of = maker.draw(batch, rng.named("maker"))
    if of:
        draws["maker"] = of
    if guidance is not None:
        draws["guidance"] = guidance.draw(rng)
    return draws


def make_samples(
    maker: Maker,
    student: FlowMap,
    interpolant: Interpolant,
    guidance: LabelDropout | GuidanceInput | None,
    batch: Batch,
    draws: Draws,
) -> tuple[Made, Condition | None]:
    """The samples and the rows' condition, from what :func:`draw_samples` drew."""
    cond, drawn, of = batch.cond, draws.get("guidance"), draws.get("maker", {})
    assert isinstance(of, dict)
    if guidance is not None and isinstance(drawn, Tensor):
        cond = guidance.apply(cond, drawn)
    return maker(student, interpolant, replace(batch, cond=cond), of), cond
