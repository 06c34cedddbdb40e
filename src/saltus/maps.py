"""Flow maps from networks: X_{s,t}(x) = x + (t - s) u_{s,t}(x).

Three network outputs are in use in the literature. Each is a function from the network to the
average velocity u in closed form, smooth at s = t; :class:`NetworkMap` makes a flow map of it. So
every objective works with any of them unchanged.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saltus.tensors import answered, check_times, like
from saltus.typing import Condition, FlowMap, Output, Velocity

__all__ = ["EDM", "AverageVelocity", "EulerMap", "NetworkMap", "Spliced", "Trigonometric", "Twin"]


class NetworkMap(nn.Module, ABC):
    """A flow map made of a network; a subclass says only how u follows from the network's output.

    Args:
        backbone: a network of protocol :class:`saltus.typing.Backbone`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    @abstractmethod
    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads of the same network call, as velocities."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """X_{s,t}(x): x [B, ...], s and t [B] -> [B, ...], in x's dtype."""
        check_times(x, s=s, t=t)
        return (x + like(t - s, x) * self.average(x, s, t, cond)).to(x.dtype)

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{s,t}(x)."""
        return self.evaluate(x, s, t, cond).u

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """b_t(x) = u_{t,t}(x)."""
        return self.average(x, t, t, cond)


class AverageVelocity(NetworkMap):
    """The network's output is u itself: X_{s,t}(x) = x + (t - s) F(x, s, t), for any interpolant.

    References:
        Boffi, Albergo and Vanden-Eijnden, 2025, arXiv 2505.18825, eq. (6).
    """

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """The network's output as it is, in x's precision also under autocast."""
        output: Output = self.backbone(x, s, t, cond)
        return Output(output.u.to(x.dtype), {name: h.to(x.dtype) for name, h in output.heads.items()})


class Trigonometric(NetworkMap):
    """The network's output is the direction of a rotation, for the trigonometric interpolant:

        X_{s,t}(x) = cos(a) x + sin(a) sd F(x/sd, s, t),   a = (pi/2)(t - s),

    so u = (pi/2) [ sinc(a) sd F - (a/2) sinc(a/2)^2 x ] with sinc(a) = sin(a)/a.

    A second head h is a velocity by the same formula at s = t: (pi/2) sd h.

    References:
        Lu and Song, 2024, arXiv 2410.11081 (TrigFlow, with t = 1 only; two times follow from the same
        rotation).

    Args:
        backbone: the network F.
        sigma_data: the standard deviation sd that data and prior share.
    """

    def __init__(self, backbone: nn.Module, sigma_data: float = 1.0) -> None:
        super().__init__(backbone)
        self.sigma_data = sigma_data

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads as velocities."""
        output: Output = self.backbone(x / self.sigma_data, s, t, cond)
        rate = math.pi / 2.0
        half = 0.5 * (t - s)  # torch.sinc(z) = sin(pi z)/(pi z), and a = pi half
        of_f = rate * torch.sinc(half) * self.sigma_data
        of_x = -rate * (0.5 * math.pi * half) * torch.sinc(0.5 * half).square()
        u = like(of_f, x) * output.u + like(of_x, x) * x
        gain = rate * self.sigma_data
        return Output(u.to(x.dtype), {name: gain * h.to(x.dtype) for name, h in output.heads.items()})


class EDM(NetworkMap):
    """The network's output is a preconditioned estimate D of the data, for the linear interpolant:

        X_{s,t}(x) = x + (t - s)(D - x)/(1 - s),   D = c_skip(sigma) x/s + c_out(sigma) F,

    with sigma = (1 - s)/s, c_skip = sd^2/(sigma^2 + sd^2), c_out = sigma sd/sqrt(sigma^2 + sd^2), the
    network seeing x/N with N^2 = (1 - s)^2 + s^2 sd^2. The divisor cancels:

        u = [(s sd^2 - (1 - s))/N^2] x + (sd/N) F(x/N, s, t).

    At F = 0 this is the exact velocity of N(0, sd^2) data. With t = 1, X_{s,1} = D is the
    consistency model; with all t, the consistency trajectory model.

    References:
        Karras et al., 2022, arXiv 2206.00364, table 1; Song et al., 2023, arXiv 2303.01469;
        Kim et al., 2023, arXiv 2310.02279.

    Args:
        backbone: the network F.
        sigma_data: the standard deviation sd of the data (the prior's is 1).
    """

    def __init__(self, backbone: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__(backbone)
        self.sigma_data = sigma_data

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) and the second heads as velocities, by the same formula."""
        variance = self.sigma_data**2
        n2 = (1.0 - s).square() + s.square() * variance
        n = torch.sqrt(n2)
        output: Output = self.backbone((x / like(n, x)).to(x.dtype), s, t, cond)
        base = like((s * variance - (1.0 - s)) / n2, x).to(x.dtype) * x
        gain = like(self.sigma_data / n, x).to(x.dtype)
        return Output(base + gain * output.u, {name: base + gain * h for name, h in output.heads.items()})


@dataclass(frozen=True, eq=False)
class Twin:
    """A second flow map in the same network, asked at times beyond the data: u'_{s,t} = u_{2-s,2-t}.

    Networks take any real times, and t in [1, 2] is free; what is stored there costs no weights. With the
    velocity of the student's own samples in it, the student is its own critic. Networks whose output is u or
    a rotation (:class:`AverageVelocity`, :class:`Trigonometric`) can hold one; :class:`EDM`'s scales are not
    meant for such times.

    Attributes:
        student: the flow map whose network it shares.

    References:
        Cheng et al., "TwinFlow", 2025, arXiv 2512.05150 (there the time -t with 1 the noise).
    """

    student: FlowMap

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """X'_{s,t}(x)."""
        return (x + like(t - s, x) * self.average(x, s, t, cond)).to(x.dtype)

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u'_{s,t}(x)."""
        return self.evaluate(x, s, t, cond).u

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u'_{t,t}(x)."""
        return self.student.velocity(x, 2.0 - t, cond)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u'_{s,t}(x) with the second heads there."""
        end = 2.0 - t
        return self.student.evaluate(x, end if s is t else 2.0 - s, end, cond)


@dataclass(frozen=True, eq=False)
class EulerMap:
    """One Euler step of a velocity as a flow map, X_{s,t}(x) = x + (t - s) b_s(x): wrong by O((t - s)^2).

    Where progressive methods begin: a map that holds for short jumps only.

    Attributes:
        b: the velocity.
    """

    b: Velocity

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """X_{s,t}(x)."""
        return (x + like(t - s, x) * self.b(x, s, cond)).to(x.dtype)

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """b_s(x), whatever t is."""
        return answered(self.b(x, s, cond), x)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """b_t(x)."""
        return self.b(x, t, cond)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """b_s(x), and no second heads."""
        return Output(self.b(x, s, cond), {})


@dataclass(frozen=True, eq=False)
class Spliced:
    """Two flow maps as one: up to ``at`` jumps start with the one, after it with the other.

    Each is asked about all rows. For maps that are trained in stages, the later times first.

    Attributes:
        early: asked where s <= at.
        late: asked where s > at.
        at: a time.
    """

    early: FlowMap
    late: FlowMap
    at: float

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """X_{s,t}(x)."""
        return self._either(s, self.early(x, s, t, cond), self.late(x, s, t, cond))

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{s,t}(x)."""
        return self._either(s, self.early.average(x, s, t, cond), self.late.average(x, s, t, cond))

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """b_t(x)."""
        return self._either(t, self.early.velocity(x, t, cond), self.late.velocity(x, t, cond))

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x), and the second heads that both have."""
        a, b = self.early.evaluate(x, s, t, cond), self.late.evaluate(x, s, t, cond)
        heads = {name: self._either(s, a.heads[name], b.heads[name]) for name in a.heads if name in b.heads}
        return Output(self._either(s, a.u, b.u), heads)

    def _either(self, s: Tensor, early: Tensor, late: Tensor) -> Tensor:
        return torch.where(like(s > self.at, early), late, early)
