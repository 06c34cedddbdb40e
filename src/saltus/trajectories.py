"""States that no data made: on a teacher's trajectory from the prior, and on the student's own. Both start
at x = alpha_0 x0 and carry no gradient. With them the laws of times that they need, and the ends of whole
trajectories with a store that keeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saltus.interpolants import Interpolant
from saltus.legs import HEUN, Jump, Tableau, advance, slide, stages, step
from saltus.states import PriorStates, State
from saltus.streams import Streams
from saltus.tensors import answered, like, placed
from saltus.times import PairLaw, linear_time
from saltus.typing import Batch, Condition, FlowMap, Velocity

__all__ = ["Nodes", "PairStore", "Relay", "RollOut", "Started", "TrajectoryStates", "carried", "share"]


def _firsts(count: int, group: int, device: torch.device) -> Tensor:
    """The first row of each group, int64 [count / group]."""
    if count % group:
        raise ValueError(
            f"trajectory: expected rows in groups of {group}, got {count} rows; "
            "use a batch that is a multiple of it"
        )
    return torch.arange(0, count, group, device=device)


def share(batch: Batch, group: int) -> Batch:
    """The batch with each group of rows made equal to its first: one x0, one condition."""
    first = _firsts(batch.x0.shape[0], group, batch.x0.device)
    return batch.rows(first.repeat_interleave(group))


@dataclass(frozen=True, eq=False)
class TrajectoryStates:
    """The states that a teacher's flow visits on its way from the prior.

    The rows come in groups of ``group``, whose times ascend and begin at s = 0. A group's trajectory
    starts at the x0 of its first row, under that row's condition, and takes one step from each of the
    group's times to the next. The states know the teacher's velocity, which is asked once a row:
    nothing more is needed for a DDIM or an Euler step.

    Attributes:
        teacher: the velocity that is followed.
        group: visits of one trajectory.
        tableau: the Runge-Kutta method of a step; None is a DDIM step, which for the linear interpolant
            is an Euler step.
    """

    teacher: Velocity
    group: int
    tableau: Tableau | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, interpolant: Interpolant, s: Tensor, order: Tensor | None) -> State:
        first = _firsts(s.shape[0], self.group, s.device)
        seen = batch.rows(first)
        times = s.reshape(-1, self.group).unbind(1)
        x = PriorStates()(seen, interpolant, torch.zeros_like(times[0]), None).x
        visited: list[tuple[Tensor, Tensor]] = []
        for k, now in enumerate(times):
            b = answered(self.teacher(x, now, seen.cond), x)
            visited.append((x, b))
            if k + 1 < self.group:
                x = self._step(x, b, interpolant, now, times[k + 1], seen.cond)
        xs, bs = (torch.stack(z, dim=1).flatten(0, 1) for z in zip(*visited, strict=True))
        return State(xs, bs)

    def _step(
        self, x: Tensor, b: Tensor, interpolant: Interpolant, s: Tensor, t: Tensor, cond: Condition | None
    ) -> Tensor:
        if self.tableau is None:
            return slide(interpolant, x, b, s, t)
        slopes = stages(self.tableau, self.teacher, x, s, t, cond, first=b)
        return advance(x, t - s, self.tableau.b, slopes)


@dataclass(frozen=True, eq=False)
class RollOut:
    """x = X_{0,s}(x0), where the flow map's own jumps from the prior arrive.

    Attributes:
        student: the flow map that jumps.
        jumps: their number, of equal length.
    """

    student: FlowMap
    jumps: int = 1

    def __post_init__(self) -> None:
        Jump(self.jumps)  # says what is wrong with their number

    @torch.no_grad()
    def __call__(self, batch: Batch, interpolant: Interpolant, s: Tensor, order: Tensor | None) -> State:
        start = torch.zeros_like(s)
        prior = PriorStates()(batch, interpolant, start, None)
        return State(Jump(self.jumps)(self.student, prior, interpolant, start, s, batch.cond))


@dataclass(frozen=True, eq=False)
class Relay:
    """x = X_{0,s}(x0) by the flow map's jumps over equal cells: where k of them have led, at s = k/cells.

    For maps that are valid from cell to cell only; every row costs cells - 1 jumps, whatever its time.

    Attributes:
        student: the flow map that jumps.
        cells: their number in [0, 1].
    """

    student: FlowMap
    cells: int

    @torch.no_grad()
    def __call__(self, batch: Batch, interpolant: Interpolant, s: Tensor, order: Tensor | None) -> State:
        now = torch.zeros_like(s)
        x = PriorStates()(batch, interpolant, now, None).x
        for k in range(1, self.cells):
            then = torch.full_like(s, k / self.cells)
            past = s > then - 0.5 / self.cells
            x = torch.where(like(past, x), self.student(x, now, then, batch.cond), x)
            now = then
        return State(x)


@dataclass(frozen=True)
class Started:
    """The pairs of ``law``, a ``share`` of which starts at s = 0 instead.

    For maps whose states are made by jumps from the prior: a law of two free times never draws s = 0.
    """

    law: PairLaw
    share: float

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        s, t = self.law(rng)
        return torch.where(rng.uniform("started") < self.share, torch.zeros_like(s), s), t


@dataclass(frozen=True)
class Nodes:
    """t = 1, and s the nodes of a grid: sample k of the run has node k mod n, so that n samples in a row
    are one pass over the grid, ascending from s = 0.

    Node j > 0 lies at sigma = shift w/(1 + (shift - 1) w), w = 1 - (j + U - 1/2)/n: uniform between the
    middles of the cells on both sides, on a clock that ``shift`` > 1 slows down at the noise.

    Attributes:
        n: their number.
        shift: 1 spaces them evenly in w.
        time: noise-to-signal ratio sigma/(1 - sigma) -> time of the interpolant in use.
    """

    n: int
    shift: float = 1.0
    time: Callable[[Tensor], Tensor] = linear_time

    def __call__(self, rng: Streams) -> tuple[Tensor, Tensor]:
        place = rng.index % self.n
        if len(place) % self.n or not torch.equal(place, torch.arange(len(place)) % self.n):
            raise ValueError(
                f"nodes: expected rows in whole groups of {self.n}, got {len(place)} rows, the first of them "
                f"sample {int(rng.index[0])}; use a batch that is a multiple of {self.n}"
            )
        node = placed(place, rng.device, rng.dtype)
        w = 1.0 - (node + rng.uniform("node") - 0.5) / self.n
        s = self.time(self.shift * w / (1.0 - w).clamp(min=torch.finfo(w.dtype).eps))
        s = torch.where(node == 0, torch.zeros_like(s), s)
        return s, torch.ones_like(s)


@torch.no_grad()
def carried(
    teacher: Velocity,
    x0: Tensor,
    interpolant: Interpolant,
    tableau: Tableau = HEUN,
    steps: int = 32,
    cond: Condition | None = None,
) -> Tensor:
    """Where a teacher's flow carries the noise x0 [B, ...], by so many equal steps from t = 0 to t = 1."""
    if steps < 1:
        raise ValueError(f"steps along a velocity: expected at least 1, got {steps}; 0 stand still")

    def b(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return answered(teacher(x, t, cond), x)

    zero = torch.zeros(x0.shape[:1], device=x0.device, dtype=torch.promote_types(x0.dtype, torch.float32))
    x = PriorStates()(Batch(x0), interpolant, zero, None).x
    for k in range(steps):
        x = step(tableau, b, x, zero + k / steps, zero + (k + 1) / steps, cond)
    return x


def _check_labels_alone(cond: Condition | None) -> None:
    given = [name for name, v in vars(cond or Condition()).items() if name != "label" and v is not None]
    if given:
        raise ValueError(
            f"pairs: expected a condition of labels alone, which are all that is kept of it, got "
            f"{', '.join(given)}; without shape every row's pair is made anew"
        )


class PairStore(nn.Module):
    """A store of the last N pairs (x0, x1) that a teacher's flow made, which is part of a run's state.

    :meth:`fill`, the ``prepare`` of a game, makes the pairs of a batch; called after the move that learned
    from them, the store keeps them. So a step that was left out, or is played again, keeps nothing twice,
    and a run that goes on has the pairs it had made. Each of several processes keeps those of its own rows.
    Of a condition it keeps the labels, and refuses one that has more.

    Args:
        teacher: the velocity that carries x0 to x1.
        count: N.
        shape: of one sample.
        interpolant: the path between prior and data.
        tableau: the method of the teacher's steps.
        steps: their number, of equal length.
        device: of the store; the batches' own.
        dtype: of the pairs.
    """

    noise: Tensor
    ends: Tensor
    labels: Tensor
    made: Tensor

    def __init__(
        self,
        teacher: Velocity,
        count: int,
        shape: tuple[int, ...],
        interpolant: Interpolant,
        tableau: Tableau = HEUN,
        steps: int = 32,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"pairs: expected a number to keep, at least 1, got {count}")
        self._make = (teacher, interpolant, tableau, steps)
        self._waiting: list[Batch] = []
        for name in ("noise", "ends"):
            self.register_buffer(name, torch.zeros((count, *shape), device=device, dtype=dtype))
        self.register_buffer("labels", torch.full((count,), -1, device=device))
        self.register_buffer("made", torch.zeros((), dtype=torch.int64, device=device))

    def fill(self, batch: Batch) -> Batch:
        """The batch with the ends of its noise as its data.

        Raises:
            ValueError: for a condition that is more than labels.
        """
        _check_labels_alone(batch.cond)
        teacher, interpolant, tableau, steps = self._make
        x1 = carried(teacher, batch.x0, interpolant, tableau, steps, batch.cond)
        batch = Batch(batch.x0, x1, batch.cond, batch.progress, batch.mean)
        self._waiting.append(batch)
        return batch

    @torch.no_grad()
    def forward(self) -> None:
        """Keep what was made since; the oldest pairs give way."""
        for batch in self._waiting:
            assert batch.x1 is not None
            count, n = len(batch.x0), len(self.noise)
            rows = (self.made + torch.arange(count, device=self.made.device))[-n:] % n  # each once
            self.noise[rows], self.ends[rows] = batch.x0[-n:].to(self.noise), batch.x1[-n:].to(self.ends)
            if batch.cond is not None and batch.cond.label is not None:
                self.labels[rows] = batch.cond.label[-n:]
            self.made += count
        self._waiting.clear()

    def kept(self, name: str) -> Tensor:
        """A copy of "noise", "ends" or "labels" of the pairs made so far."""
        whole: Tensor = self.get_buffer(name)
        return whole[: min(int(self.made), len(whole))].clone()
