"""Single steps from s to t along a velocity, the legs that samplers fold and objectives bootstrap on.

A Runge-Kutta method is data, a :class:`Tableau`; one :func:`step` executes them all. With
h = t - s, K_i = b_{s + c_i h}(x + h sum_j a_ij K_j) and x_t = x + h sum_i b_i K_i. Times are
per row, so rows of one batch may take steps of different length, and t < s integrates backwards.
Every step is differentiable; samplers are what switches gradients off.

References:
    Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", 1993 (tableaux, control).
    Ralston, "Runge-Kutta methods with minimum error bounds", 1962.
    Dormand and Prince, "A family of embedded Runge-Kutta formulae", 1980.
    Song, Meng and Ermon, "Denoising diffusion implicit models", 2020, arXiv 2010.02502.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from saltus.interpolants import Interpolant, path
from saltus.slots import Own, Slot
from saltus.states import State
from saltus.streams import Streams
from saltus.tensors import like
from saltus.typing import Batch, Condition, Draws, FlowMap, Velocity

__all__ = [
    "DORMAND_PRINCE",
    "EULER",
    "HEUN",
    "RALSTON3",
    "RK4",
    "Along",
    "Driven",
    "Jump",
    "Leg",
    "Line",
    "Slide",
    "Tableau",
    "advance",
    "ddim",
    "draw_noise",
    "ends",
    "euler",
    "heun",
    "ralston3",
    "slide",
    "stages",
    "step",
]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    Attributes:
        a: row i holds the weights of the stages before i; the first row is empty.
        b: the weights of the result.
        c: where in [s, t] each stage sits, 0 at s and 1 at t; c_i is the sum of row i of a.
        order: the global error is O(h^order) on a smooth velocity.
        b_low: the weights of a result of lower order, whose distance to b's estimates the error.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int
    b_low: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.b)
        lengths = [len(row) for row in self.a]
        if len(self.c) != n or lengths != list(range(n)) or len(self.b_low or self.b) != n:
            raise ValueError(
                f"tableau: expected b, c (and b_low) of one length n and rows of a of length 0..n-1, "
                f"got b of {n}, c of {len(self.c)}, rows of {lengths}; an explicit method is lower triangular"
            )

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the velocity at the result, so the next step starts with it."""
        return len(self.b) > 1 and self.c[-1] == 1.0 and (*self.a[-1], 0.0) == self.b


EULER = Tableau(a=((),), b=(1.0,), c=(0.0,), order=1)
HEUN = Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), order=2)
RALSTON3 = Tableau(a=((), (1 / 2,), (0.0, 3 / 4)), b=(2 / 9, 1 / 3, 4 / 9), c=(0.0, 1 / 2, 3 / 4), order=3)
RK4 = Tableau(
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    order=4,
)
DORMAND_PRINCE = Tableau(
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    order=5,
    b_low=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
)


def advance(x: Tensor, h: Tensor, weights: tuple[float, ...], slopes: tuple[Tensor, ...]) -> Tensor:
    """x + h sum_i weights_i slopes_i, with h [B]; zero weights cost nothing."""
    used = [w * k for w, k in zip(weights, slopes, strict=True) if w != 0.0]
    return (x + like(h, x) * sum(used[1:], used[0])).to(x.dtype) if used else x


def stages(
    tableau: Tableau,
    velocity: Velocity,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    cond: Condition | None = None,
    first: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The velocities K_1..K_n of one step; ``first`` is b_s(x) where it is known already."""
    found: tuple[Tensor, ...] = ()
    for row, c in zip(tableau.a, tableau.c, strict=True):
        if not found and first is not None:
            found = (first,)
            continue
        # lerp gives exactly t at c = 1; s + (t - s) may round past the end of the interval
        found += (velocity(advance(x, t - s, row, found), torch.lerp(s, t, c), cond),)
    return found


def step(
    tableau: Tableau, velocity: Velocity, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None
) -> Tensor:
    """One step of a Runge-Kutta method: x [B, ...] at times s [B] -> the state at times t [B].

    >>> def decay(x, t, cond=None):
    ...     return -x
    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> step(RK4, decay, one, torch.zeros(1), torch.full((1,), 0.1)) - torch.exp(-0.1 * one) < 1e-6
    tensor([[True]])
    """
    return advance(x, t - s, tableau.b, stages(tableau, velocity, x, s, t, cond))


def euler(velocity: Velocity, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    """x + (t - s) b_s(x): first order, one evaluation."""
    return step(EULER, velocity, x, s, t, cond)


def heun(velocity: Velocity, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    """Euler corrected by the mean of the velocities at both ends: second order, two evaluations."""
    return step(HEUN, velocity, x, s, t, cond)


def ralston3(velocity: Velocity, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    """Ralston's third-order step, three evaluations, none at t (where some schedules are singular)."""
    return step(RALSTON3, velocity, x, s, t, cond)


def ends(interpolant: Interpolant, x: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(x0, x1) of the path I_t = alpha_t x0 + beta_t x1 that passes x at s with velocity b.

    They solve x = alpha_s x0 + beta_s x1 and b = dalpha_s x0 + dbeta_s x1, so nothing is divided by alpha
    or beta, only by alpha dbeta - dalpha beta, which is positive for any interpolant.
    """
    alpha, beta, dalpha, dbeta = (like(c, x) for c in interpolant(s))
    det = alpha * dbeta - dalpha * beta
    return (dbeta * x - beta * b) / det, (alpha * b - dalpha * x) / det


def slide(interpolant: Interpolant, x: Tensor, b: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The point at t of the path I_t = alpha_t x0 + beta_t x1 that passes x at s with velocity b."""
    end = interpolant(t)
    x0, x1 = ends(interpolant, x, b, s)
    return (like(end.alpha, x) * x0 + like(end.beta, x) * x1).to(x.dtype)


def ddim(
    velocity: Velocity,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    interpolant: Interpolant,
    cond: Condition | None = None,
) -> Tensor:
    """The exact step of the flow whose denoiser E[x1 | x_s] is held fixed from s to t.

    First order, one evaluation; exact for data at a single point, and Euler for the linear interpolant.

    >>> from saltus.interpolants import Trigonometric
    >>> x, s, t = torch.ones(1, 1), torch.zeros(1), torch.ones(1)
    >>> ddim(lambda x, t, cond=None: 0.5 * torch.pi * torch.ones_like(x), x, s, t, Trigonometric())
    tensor([[1.0000]])
    """
    return slide(interpolant, x, velocity(x, s, cond), s, t)


class Leg(Protocol):
    """How a state at s reaches a state at m: (flow map, state, interpolant, s, m, condition) -> x_m."""

    def __call__(
        self,
        own: FlowMap,
        state: State,
        interpolant: Interpolant,
        s: Tensor,
        m: Tensor,
        cond: Condition | None,
    ) -> Tensor: ...


@runtime_checkable
class Driven(Protocol):
    """A leg that noise drives: each row needs so many normals of its shape, in ``State.noise``."""

    @property
    def noises(self) -> int:
        """How many."""
        ...


def draw_noise(leg: Leg | None, batch: Batch, rng: Streams) -> Draws:
    """The noise [B, k, ...] of a leg that needs some, under ``leg``; nothing for any other."""
    if not (isinstance(leg, Driven) and leg.noises):
        return {}
    return {"leg": rng.normal("leg", leg.noises, *batch.x0.shape[1:])}


@dataclass(frozen=True)
class Line:
    """Along the path of the pair (x0, x1) that made the state: I_m with the same noise and data."""

    def __call__(
        self,
        own: FlowMap,
        state: State,
        interpolant: Interpolant,
        s: Tensor,
        m: Tensor,
        cond: Condition | None,
    ) -> Tensor:
        if state.x0 is None or state.x1 is None:
            raise ValueError("a line needs the pair that made the state; use data states or another leg")
        return path(interpolant, state.x0, state.x1, m)[0]


@dataclass(frozen=True, eq=False)
class Along:
    """``steps`` equal Runge-Kutta steps along a velocity: a teacher's, or the own one.

    Attributes:
        velocity: who supplies it.
        tableau: the method of a step.
        steps: their number.
    """

    velocity: Slot = Own()
    tableau: Tableau = EULER
    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps along a velocity: expected at least 1, got {self.steps}; 0 stand still")

    def __call__(
        self,
        own: FlowMap,
        state: State,
        interpolant: Interpolant,
        s: Tensor,
        m: Tensor,
        cond: Condition | None,
    ) -> Tensor:
        def b(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
            return self.velocity(own, State(x), t, cond)

        x, start = state.x, s
        for k in range(self.steps):
            end = torch.lerp(s, m, (k + 1) / self.steps)
            x, start = step(self.tableau, b, x, start, end, cond), end
        return x


@dataclass(frozen=True, eq=False)
class Slide:
    """One DDIM step along a velocity: the denoiser E[x1 | x_s] is held fixed, the path does the rest.

    Attributes:
        velocity: who supplies it.
    """

    velocity: Slot = Own()

    def __call__(
        self,
        own: FlowMap,
        state: State,
        interpolant: Interpolant,
        s: Tensor,
        m: Tensor,
        cond: Condition | None,
    ) -> Tensor:
        return slide(interpolant, state.x, self.velocity(own, state, s, cond), s, m)


@dataclass(frozen=True)
class Jump:
    """``jumps`` equal jumps of the flow map."""

    jumps: int = 1

    def __post_init__(self) -> None:
        if self.jumps < 1:
            raise ValueError(f"jumps: expected at least 1, got {self.jumps}; 0 stand still")

    def __call__(
        self,
        own: FlowMap,
        state: State,
        interpolant: Interpolant,
        s: Tensor,
        m: Tensor,
        cond: Condition | None,
    ) -> Tensor:
        x, start = state.x, s
        for k in range(self.jumps):
            end = torch.lerp(s, m, (k + 1) / self.jumps)
            x, start = own(x, start, end, cond), end
        return x
