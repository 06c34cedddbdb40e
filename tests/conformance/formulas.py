"""The formulas of the objectives' docstrings with two sets of parameters, live L and stopped S, and T those
of a separate target.

They share nothing with the code under test: derivatives in x, s and t come from reverse mode, and those in
L are for the caller to take by finite differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from systems import Perturbed, System, smooth
from torch import Tensor

from saltus.autodiff import TwoPass
from saltus.interpolants import Linear, path
from saltus.legs import HEUN, Along, Jump
from saltus.objectives import Composition, Diagonal, Endpoint, Eulerian, Lagrangian
from saltus.slots import Head, Own, Teacher
from saltus.tensors import like
from saltus.times import Constant, Fraction, Gaps, Midpoint, Ramp, Uniform
from saltus.typing import Batch, Draws, Gradient, Objective

__all__ = ["CASES", "P", "PROGRESS", "Model", "T", "rows"]

LIVE = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
OF_HEAD = torch.tensor([-0.2, 0.3, 0.1, -0.3, 0.2, -0.1, 0.3, 0.2], dtype=torch.float64)
P = torch.cat([LIVE, OF_HEAD])
T = torch.cat([LIVE.flip(0), OF_HEAD.flip(0)])
PROGRESS = 0.05


@dataclass(frozen=True, eq=False)
class Model:
    """The perturbed map as plain functions of its parameters p = (c, k), without gradient in p."""

    system: System

    def u(self, p: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.system.exact.average(x, s, t) + torch.einsum("k,kbd->bd", p[:8], smooth(x, s, t))

    def b(self, p: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.system.velocity(x, t) + torch.einsum("k,kbd->bd", p[:8], smooth(x, t, t))

    def head(self, p: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.system.velocity(x, s) + torch.einsum("k,kbd->bd", p[8:], smooth(x, s, t))

    def jump(self, p: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return x + like(t - s, x) * self.u(p, x, s, t)

    def slopes(self, p: Tensor, x: Tensor, s: Tensor, t: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """grad u . w, d_s u and d_t u by reverse mode, one output coordinate at a time."""
        with torch.enable_grad():
            x, s, t = (z.detach().requires_grad_() for z in (x, s, t))
            u = self.u(p, x, s, t)
            rows = [
                torch.autograd.grad(u[:, k].sum(), (x, s, t), retain_graph=True) for k in range(u.shape[1])
            ]
        pushed = torch.stack([(gx * w).sum(1) for gx, _, _ in rows], dim=1)
        return pushed, torch.stack([r[1] for r in rows], 1), torch.stack([r[2] for r in rows], 1)

    def along(self, p: Tensor, x: Tensor, s: Tensor, t: Tensor, w: Tensor) -> Tensor:
        """d_s u + grad u . w."""
        pushed, in_s, _ = self.slopes(p, x, s, t, w)
        return pushed + in_s

    def in_end(self, p: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """d_t u."""
        return self.slopes(p, x, s, t, torch.zeros_like(x))[2]


@dataclass(frozen=True, eq=False)
class Row:
    """What the rows of a batch are, worked out apart from the objectives."""

    x: Tensor
    v: Tensor
    s: Tensor
    t: Tensor
    h: Tensor
    gamma: Tensor
    batch: Batch

    def at(self, m: Tensor) -> Tensor:
        """The point I_m of the same pair."""
        return path(Linear(), self.batch.x0, self.batch.data(), m)[0]


Reference = Callable[[Model, Tensor, Tensor, Row], dict[str, Tensor]]
"""(model, live L, stopped S, rows) -> errors by term."""
Build = Callable[[Perturbed, Perturbed, System], Objective]


def _heun(m: Model, p: Tensor, x: Tensor, s: Tensor, d: Tensor) -> Tensor:
    first = m.b(p, x, s)
    second = m.b(p, x + like(d, x) * first, s + d)
    return x + like(d, x) * 0.5 * (first + second)


def _led(m: Model, r: Row) -> Tensor:
    """Two Heun steps of the exact velocity to m, then a jump of the target to t."""
    d = 0.5 * r.gamma * (r.t - r.s)
    half = _heun(m, 0 * P, r.x, r.s, d)
    return m.jump(T, _heun(m, 0 * P, half, r.s + d, d), r.s + 2.0 * d, r.t)


def _eulerian_finite(
    m: Model, live: Tensor, r: Row, x_m: Tensor, u_m: Tensor, u: Tensor, d: Tensor
) -> Tensor:
    d, h = like(d, r.x), r.h
    return m.u(live, r.x, r.s, r.t) - ((x_m - r.x) / d + (h - d) * (u_m - u) / d)


def _two(m: Model, p: Tensor, r: Row, clip: float | None = None, half: bool = False) -> Tensor:
    """gamma u_{s,m} + (1 - gamma) u_{m,t}(X_{s,m}), bounded in between and at the end."""
    gamma = torch.full_like(r.s, 0.5) if half else r.gamma
    mid, g = r.s + gamma * (r.t - r.s), like(gamma, r.x)
    first = m.u(p, r.x, r.s, mid)
    y = r.x + like(mid - r.s, r.x) * first
    y = y if clip is None else y.clamp(-clip, clip)
    out = g * first + (1.0 - g) * m.u(p, y, mid, r.t)
    return out if clip is None else out.clamp(-clip, clip)


def _two_jumps(m: Model, p: Tensor, r: Row) -> Tensor:
    mid = 0.5 * (r.s + r.t)
    return m.jump(p, m.jump(p, r.x, r.s, mid), mid, r.t)


def _thirds(m: Model, p: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The average velocity of three equal jumps."""
    d = (t - s) / 3.0
    y = m.jump(p, m.jump(p, m.jump(p, x, s, s + d), s + d, s + 2.0 * d), s + 2.0 * d, t)
    return (y - x) / like(t - s, x)


STEP = 0.1
STEPS = Fraction(lambda progress: torch.full_like(progress, STEP))
WARM = Ramp(0.2)
R = PROGRESS / 0.2


def d_of(r: Row) -> Tensor:
    return STEP * (r.t - r.s)


CASES: dict[str, tuple[Build, Reference]] = {
    # Diagonal: u_{t,t} - sg v
    "diagonal": (
        lambda u, o, y: Diagonal(u),
        lambda m, L, S, r: {"diagonal": m.b(L, r.at(r.t), r.t) - r.v},
    ),
    "diagonal, head": (
        lambda u, o, y: Diagonal(u, head="v"),
        lambda m, L, S, r: {
            "diagonal": m.b(L, r.at(r.t), r.t) - r.v,
            "v": m.head(L, r.at(r.t), r.t, r.t) - r.v,
        },
    ),
    "diagonal, of the target": (
        lambda u, o, y: Diagonal(u, o, velocity=Own()),
        lambda m, L, S, r: {"diagonal": m.b(L, r.at(r.t), r.t) - m.b(T, r.at(r.t), r.t)},
    ),
    "diagonal, of the head": (
        lambda u, o, y: Diagonal(u, velocity=Head("v")),
        lambda m, L, S, r: {"diagonal": m.b(L, r.at(r.t), r.t) - m.head(S, r.at(r.t), r.t, r.t)},
    ),
    # Lagrangian
    "lagrangian, target": (
        lambda u, o, y: Lagrangian(u, gradient=Gradient.TARGET),
        lambda m, L, S, r: {
            "lagrangian": m.u(L, r.x, r.s, r.t)
            - m.b(S, m.jump(S, r.x, r.s, r.t), r.t)
            + r.h * m.in_end(S, r.x, r.s, r.t)
        },
    ),
    "lagrangian, time": (
        lambda u, o, y: Lagrangian(u),
        lambda m, L, S, r: {
            "lagrangian": m.u(L, r.x, r.s, r.t)
            + r.h * m.in_end(L, r.x, r.s, r.t)
            - m.b(S, m.jump(S, r.x, r.s, r.t), r.t)
        },
    ),
    "lagrangian, derivative, of the target": (
        lambda u, o, y: Lagrangian(u, o, gradient=Gradient.DERIVATIVE),
        lambda m, L, S, r: {
            "lagrangian": m.u(L, r.x, r.s, r.t)
            + r.h * m.in_end(L, r.x, r.s, r.t)
            - m.b(T, m.jump(S, r.x, r.s, r.t), r.t)
        },
    ),
    "lagrangian, full": (
        lambda u, o, y: Lagrangian(u, gradient=Gradient.FULL),
        lambda m, L, S, r: {
            "lagrangian": m.u(L, r.x, r.s, r.t)
            + r.h * m.in_end(L, r.x, r.s, r.t)
            - m.b(L, m.jump(L, r.x, r.s, r.t), r.t)
        },
    ),
    "lagrangian, full, teacher at the live end": (
        lambda u, o, y: Lagrangian(u, gradient=Gradient.FULL, end=Teacher(y.velocity)),
        lambda m, L, S, r: {
            "lagrangian": m.u(L, r.x, r.s, r.t)
            + r.h * m.in_end(L, r.x, r.s, r.t)
            - m.b(0 * L, m.jump(L, r.x, r.s, r.t), r.t)
        },
    ),
    "lagrangian, finite": (
        lambda u, o, y: Lagrangian(u, gradient=Gradient.TARGET, step=STEPS),
        lambda m, L, S, r: {"lagrangian": _lagrangian_finite(m, L, S, S, r)},
    ),
    "lagrangian, finite, of the target": (
        lambda u, o, y: Lagrangian(u, o, gradient=Gradient.TARGET, step=STEPS),
        lambda m, L, S, r: {"lagrangian": _lagrangian_finite(m, L, S, T, r)},
    ),
    # Eulerian
    "eulerian, target, data": (
        lambda u, o, y: Eulerian(u),
        lambda m, L, S, r: {"eulerian": m.u(L, r.x, r.s, r.t) - r.v - r.h * m.along(S, r.x, r.s, r.t, r.v)},
    ),
    "eulerian, target, two passes, of the target": (
        lambda u, o, y: Eulerian(u, o, near=TwoPass(), tangent=Own(), velocity=Own()),
        lambda m, L, S, r: {
            "eulerian": m.u(L, r.x, r.s, r.t)
            - m.b(T, r.x, r.s)
            - r.h * m.along(S, r.x, r.s, r.t, m.b(T, r.x, r.s))
        },
    ),
    "eulerian, warm-up": (
        lambda u, o, y: Eulerian(u, tangent=Own(), warm_up=WARM),
        lambda m, L, S, r: {
            "eulerian": m.u(L, r.x, r.s, r.t) - r.v - R * r.h * m.along(S, r.x, r.s, r.t, m.b(S, r.x, r.s))
        },
    ),
    "eulerian, time": (
        lambda u, o, y: Eulerian(u, tangent=Own(), velocity=Own(), gradient=Gradient.TIME, warm_up=WARM),
        lambda m, L, S, r: {
            "eulerian": m.u(L, r.x, r.s, r.t)
            - R * r.h * m.slopes(L, r.x, r.s, r.t, r.v)[1]
            - m.b(S, r.x, r.s)
            - R * r.h * m.slopes(S, r.x, r.s, r.t, m.b(S, r.x, r.s))[0]
        },
    ),
    "eulerian, derivative": (
        lambda u, o, y: Eulerian(u, tangent=Own(), velocity=Own(), gradient=Gradient.DERIVATIVE),
        lambda m, L, S, r: {
            "eulerian": m.u(L, r.x, r.s, r.t)
            - r.h * m.along(L, r.x, r.s, r.t, m.b(S, r.x, r.s))
            - m.b(S, r.x, r.s)
        },
    ),
    "eulerian, full": (
        lambda u, o, y: Eulerian(u, tangent=Own(), velocity=Own(), gradient=Gradient.FULL),
        lambda m, L, S, r: {
            "eulerian": m.u(L, r.x, r.s, r.t)
            - r.h * m.along(L, r.x, r.s, r.t, m.b(L, r.x, r.s))
            - m.b(L, r.x, r.s)
        },
    ),
    "eulerian, head": (
        lambda u, o, y: Eulerian(u, tangent=Head("v"), head="v"),
        lambda m, L, S, r: {
            "eulerian": m.u(L, r.x, r.s, r.t)
            - r.v
            - r.h * m.along(S, r.x, r.s, r.t, m.head(S, r.x, r.s, r.s)),
            "v": m.head(L, r.x, r.s, r.t) - r.v,
        },
    ),
    "eulerian, head, two passes": (
        lambda u, o, y: Eulerian(u, near=TwoPass(), tangent=Head("v"), head="v"),
        lambda m, L, S, r: {
            "eulerian": m.u(L, r.x, r.s, r.t)
            - r.v
            - r.h * m.along(S, r.x, r.s, r.t, m.head(S, r.x, r.s, r.s)),
            "v": m.head(L, r.x, r.s, r.t) - r.v,
        },
    ),
    "eulerian, finite, line": (
        lambda u, o, y: Eulerian(u, step=STEPS),
        lambda m, L, S, r: {
            "eulerian": _eulerian_finite(
                m,
                L,
                r,
                r.at(r.s + d_of(r)),
                m.u(S, r.at(r.s + d_of(r)), r.s + d_of(r), r.t),
                m.u(S, r.x, r.s, r.t),
                d_of(r),
            )
        },
    ),
    "eulerian, finite, own Heun step, of the target": (
        lambda u, o, y: Eulerian(u, o, step=Constant(0.05), leg=Along(Own(), HEUN)),
        lambda m, L, S, r: {"eulerian": _heun_step(m, L, S, r)},
    ),
    "eulerian, finite, line, three jumps onward": (
        lambda u, o, y: Eulerian(u, step=STEPS, onward=Jump(3)),
        lambda m, L, S, r: {
            "eulerian": _eulerian_finite(
                m,
                L,
                r,
                r.at(r.s + d_of(r)),
                _thirds(m, S, r.at(r.s + d_of(r)), r.s + d_of(r), r.t),
                m.u(S, r.x, r.s, r.t),
                d_of(r),
            )
        },
    ),
    "eulerian, target, of a teacher": (
        lambda u, o, y: Eulerian(u, tangent=Teacher(y.velocity), velocity=Teacher(y.velocity)),
        lambda m, L, S, r: {
            "eulerian": m.u(L, r.x, r.s, r.t)
            - m.b(0 * L, r.x, r.s)
            - r.h * m.along(S, r.x, r.s, r.t, m.b(0 * L, r.x, r.s))
        },
    ),
    "eulerian, time, of a teacher": (
        lambda u, o, y: Eulerian(
            u, tangent=Teacher(y.velocity), velocity=Teacher(y.velocity), gradient=Gradient.TIME
        ),
        lambda m, L, S, r: {
            "eulerian": m.u(L, r.x, r.s, r.t)
            - r.h * m.slopes(L, r.x, r.s, r.t, r.v)[1]
            - m.b(0 * L, r.x, r.s)
            - r.h * m.slopes(S, r.x, r.s, r.t, m.b(0 * L, r.x, r.s))[0]
        },
    ),
    "eulerian, finite, a teacher's Heun step, of the target": (
        lambda u, o, y: Eulerian(u, o, step=Constant(0.05), leg=Along(Teacher(y.velocity), HEUN)),
        lambda m, L, S, r: {"eulerian": _heun_step(m, L, S, r, 0 * L)},
    ),
    # Composition
    "composition": (
        lambda u, o, y: Composition(u),
        lambda m, L, S, r: {"composition": m.u(L, r.x, r.s, r.t) - _two(m, S, r)},
    ),
    "composition, full, midpoint": (
        lambda u, o, y: Composition(u, gradient=Gradient.FULL, split=Midpoint()),
        lambda m, L, S, r: {"composition": m.u(L, r.x, r.s, r.t) - _two(m, L, r, half=True)},
    ),
    "composition, clip, of the target": (
        lambda u, o, y: Composition(u, o, clip=0.8),
        lambda m, L, S, r: {"composition": m.u(L, r.x, r.s, r.t) - _two(m, T, r, 0.8)},
    ),
    "composition, two Heun steps of a teacher, of the target": (
        lambda u, o, y: Composition(u, o, leg=Along(Teacher(y.velocity), HEUN, 2)),
        lambda m, L, S, r: {"composition": m.u(L, r.x, r.s, r.t) - (_led(m, r) - r.x) / r.h},
    ),
    "composition, two Heun steps of a teacher, pushed by the target": (
        lambda u, o, y: Composition(u, o, leg=Along(Teacher(y.velocity), HEUN, 2), push=Jump()),
        lambda m, L, S, r: {
            "composition": m.jump(T, m.jump(L, r.x, r.s, r.t), r.t, torch.ones_like(r.t))
            - m.jump(T, _led(m, r), r.t, torch.ones_like(r.t))
        },
    ),
    # Endpoint
    "endpoint, two jumps": (
        lambda u, o, y: Endpoint(u, leg=Jump(2), times=Gaps(Uniform(0.3, 1.0))),
        lambda m, L, S, r: {
            "endpoint": m.u(L, r.x, r.s, r.t) - (_two_jumps(m, S, r) - r.x) / r.h,
        },
    ),
    "endpoint, two jumps of the target": (
        lambda u, o, y: Endpoint(u, o, leg=Jump(2), times=Gaps(Uniform(0.3, 1.0))),
        lambda m, L, S, r: {
            "endpoint": m.u(L, r.x, r.s, r.t) - (_two_jumps(m, T, r) - r.x) / r.h,
        },
    ),
    "endpoint, the pair": (
        lambda u, o, y: Endpoint(u),
        lambda m, L, S, r: {"endpoint": m.u(L, r.x, r.s, r.t) - (r.batch.data() - r.x)},
    ),
}


def _lagrangian_finite(m: Model, live: Tensor, stopped: Tensor, own: Tensor, r: Row) -> Tensor:
    """u - ( b_m(X_{s,m}) - (h - d)(u - u_{s,m})/d ), m = t - d; X and u_{s,m} of ``own``."""
    mid, d = r.t - d_of(r), like(d_of(r), r.x)
    b = m.b(own, m.jump(own, r.x, r.s, mid), mid)
    u_m, u = m.u(own, r.x, r.s, mid), m.u(stopped, r.x, r.s, r.t)
    return m.u(live, r.x, r.s, r.t) - (b - (r.h - d) * (u - u_m) / d)


def _heun_step(m: Model, live: Tensor, stopped: Tensor, r: Row, of: Tensor = T) -> Tensor:
    d = torch.clamp(r.t - r.s, max=0.05)
    x_m = _heun(m, of, r.x, r.s, d)
    return _eulerian_finite(m, live, r, x_m, m.u(T, x_m, r.s + d, r.t), m.u(stopped, r.x, r.s, r.t), d)


def rows(batch: Batch, draws: Draws) -> Row:
    s, t, gamma = draws.get("s", draws["t"]), draws["t"], draws.get("gamma", draws["t"])
    assert isinstance(s, Tensor) and isinstance(t, Tensor) and isinstance(gamma, Tensor)
    x, v = path(Linear(), batch.x0, batch.data(), s)
    return Row(x, v, s, t, like(t - s, x), gamma, batch)
