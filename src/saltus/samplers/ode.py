"""Integration of a velocity, dx/dt = b_t(x), on a grid or under error control.

References:
    Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", 1993, chapter II.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from saltus.legs import DORMAND_PRINCE, HEUN, Tableau, step
from saltus.samplers.control import ErrorControl
from saltus.samplers.grids import as_grid
from saltus.samplers.trajectory import Trajectory, fold
from saltus.typing import Condition, Velocity

__all__ = ["adaptive", "integrate"]


@overload
def integrate(
    velocity: Velocity,
    x: Tensor,
    grid: Tensor | int,
    tableau: Tableau = HEUN,
    cond: Condition | None = None,
    record: Literal[False] = False,
) -> Tensor: ...
@overload
def integrate(
    velocity: Velocity,
    x: Tensor,
    grid: Tensor | int,
    tableau: Tableau = HEUN,
    cond: Condition | None = None,
    *,
    record: Literal[True],
) -> Trajectory: ...
@torch.no_grad()
def integrate(
    velocity: Velocity,
    x: Tensor,
    grid: Tensor | int,
    tableau: Tableau = HEUN,
    cond: Condition | None = None,
    record: bool = False,
) -> Tensor | Trajectory:
    """One Runge-Kutta step for each interval of a grid, without gradient.

    Args:
        velocity: b_t(x).
        x: the state at the grid's first time, [B, ...].
        grid: times [k + 1] or [k + 1, B], increasing, or decreasing to go back to noise; or a
            number of equal steps from 0 to 1.
        tableau: the method, for instance ``EULER``, ``HEUN`` or ``RALSTON3`` of :mod:`saltus.legs`.
        cond: passed to every evaluation.
        record: return the :class:`Trajectory` instead of its end.
    """

    def leg(i: int, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return step(tableau, velocity, x, s, t, cond)

    return fold(leg, x, as_grid(grid, x, either_way=True), record)


@overload
def adaptive(
    velocity: Velocity,
    x: Tensor,
    grid: Tensor | int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_evaluations: int = 10_000,
    tableau: Tableau = DORMAND_PRINCE,
    cond: Condition | None = None,
    record: Literal[False] = False,
) -> Tensor: ...
@overload
def adaptive(
    velocity: Velocity,
    x: Tensor,
    grid: Tensor | int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_evaluations: int = 10_000,
    tableau: Tableau = DORMAND_PRINCE,
    cond: Condition | None = None,
    *,
    record: Literal[True],
) -> Trajectory: ...
@torch.no_grad()
def adaptive(
    velocity: Velocity,
    x: Tensor,
    grid: Tensor | int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_evaluations: int = 10_000,
    tableau: Tableau = DORMAND_PRINCE,
    cond: Condition | None = None,
    record: bool = False,
) -> Tensor | Trajectory:
    """Integrate with steps chosen for each row, so that each step's error is within the tolerance.

    A row's error is the root mean square, over its entries, of the distance between the pair's two
    results divided by atol + rtol max(|x_s|, |x_t|), and a step is accepted at 1 or less. Rows
    choose their steps apart, so a sample does not depend on its batch.

    Args:
        velocity: b_t(x); called with the rows that have not arrived yet.
        x: the state at the grid's first time, [B, ...].
        grid: where states are wanted (not the steps): times [k + 1] or [k + 1, B], increasing or
            decreasing, or a number of equal intervals of [0, 1].
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step, in units of x.
        max_evaluations: of the velocity, in one interval of the grid.
        tableau: an embedded pair whose ``b_low`` is one order lower.
        cond: passed to every evaluation.
        record: return the :class:`Trajectory` instead of its end.

    Raises:
        ValueError: if a row did not arrive within ``max_evaluations``, or its step fell below the
            spacing of its times (a velocity that is singular or not finite).
    """
    control = ErrorControl(velocity, tableau, rtol, atol, max_evaluations)

    def leg(i: int, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return control.arrive(x, s, t, cond)

    return fold(leg, x, as_grid(grid, x, either_way=True), record)
