"""Error control of an embedded Runge-Kutta pair, row by row.

References:
    Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", 1993, section II.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.legs import Tableau, advance, stages
from saltus.tensors import per_row_norm2
from saltus.typing import Condition, Velocity

__all__ = ["ErrorControl"]

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0


def _rms(x: Tensor) -> Tensor:
    """Root mean square of the entries of each row: [B, ...] -> [B]."""
    return (per_row_norm2(x) / max(x[0].numel(), 1)).sqrt()


@dataclass(frozen=True, eq=False)
class ErrorControl:
    """Integrates each row with steps of its own; see :func:`saltus.samplers.adaptive` for the rule.

    Attributes:
        velocity: b_t(x).
        tableau: an embedded pair.
        rtol, atol: tolerance of one step, relative and in units of x.
        max_evaluations: of the velocity, in one call of :meth:`arrive`.
    """

    velocity: Velocity
    tableau: Tableau
    rtol: float
    atol: float
    max_evaluations: int

    def __post_init__(self) -> None:
        if self.tableau.b_low is None:
            raise ValueError("tableau: expected an embedded pair (with b_low); take DORMAND_PRINCE")
        if self.rtol < 0.0 or self.atol <= 0.0:
            raise ValueError(f"tolerance: expected rtol >= 0 and atol > 0, got {self.rtol} and {self.atol}")

    def first_step(self, x: Tensor, slope: Tensor, span: Tensor) -> Tensor:
        """A signed step over which x changes by about a hundredth of itself, at most the span: [B]."""
        scale = self.atol + self.rtol * x.abs()
        size, rate = _rms(x / scale), _rms(slope / scale)
        known = (size > 1e-5) & (rate > 1e-5)
        h = torch.where(known, 0.01 * size / rate, 1e-3 * span.abs().to(size))
        return torch.minimum(h.to(span), span.abs()) * span.sign()

    def attempt(
        self, x: Tensor, first: Tensor, s: Tensor, t: Tensor, cond: Condition | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The state at t, the last stage and the error in units of the tolerance ([B])."""
        slopes = stages(self.tableau, self.velocity, x, s, t, cond, first)
        there = advance(x, t - s, self.tableau.b, slopes)
        gap = tuple(b - low for b, low in zip(self.tableau.b, self.tableau.b_low or (), strict=True))
        distance = advance(torch.zeros_like(x), t - s, gap, slopes)
        error = _rms(distance / (self.atol + self.rtol * torch.maximum(x.abs(), there.abs())))
        return there, slopes[-1], error.to(s)

    def arrive(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """The state at times t [B] of the trajectories through x [B, ...] at times s [B]."""
        x, now = x.clone(), s.clone()
        first = self.velocity(x, now, cond).clone()
        h = self.first_step(x, first, t - s)
        reuse = self.tableau.first_same_as_last
        cost = len(self.tableau.b) - int(reuse)
        evaluations = 1
        while len(rows := (now != t).nonzero().flatten()):
            start, end = now[rows], t[rows]
            aim = torch.where(h[rows].abs() >= (end - start).abs(), end, start + h[rows])
            self._check(rows, start, aim, evaluations + cost)
            some = None if cond is None else cond.rows(rows)
            there, last, error = self.attempt(x[rows], first[rows], start, aim, some)
            evaluations += cost
            growth = _SAFETY * error ** (-1.0 / self.tableau.order)
            h[rows] = (aim - start) * growth.nan_to_num(nan=_SHRINK).clamp(_SHRINK, _GROW)
            good = error <= 1.0  # false for NaN
            done = rows[good]
            if len(done):
                x[done], now[done] = there[good], aim[good]
                some = None if cond is None else cond.rows(done)
                first[done] = last[good] if reuse else self.velocity(x[done], now[done], some)
        return x

    def _check(self, rows: Tensor, start: Tensor, aim: Tensor, evaluations: int) -> None:
        stuck = (aim == start).nonzero().flatten()
        if len(stuck):
            raise ValueError(
                f"adaptive: expected a velocity that is smooth and finite on the way, but the step of row "
                f"{int(rows[stuck[0]])} vanished at t={float(start[stuck[0]]):.6g}; end the grid before a "
                f"singular time, or loosen rtol={self.rtol} and atol={self.atol}"
            )
        if evaluations > self.max_evaluations:
            raise ValueError(
                f"adaptive: expected to arrive within {self.max_evaluations} evaluations, but row "
                f"{int(rows[0])} is at t={float(start[0]):.6g}; raise max_evaluations, or loosen "
                f"rtol={self.rtol} and atol={self.atol}"
            )
