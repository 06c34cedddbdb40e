"""Maps made of networks: the published formulas, the diagonal, derivatives, precision, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from saltus.autodiff import derivative
from saltus.exact import Gaussian
from saltus.interpolants import Trigonometric as TrigonometricPath
from saltus.maps import EDM, AverageVelocity, NetworkMap, Spliced, Trigonometric
from saltus.typing import Condition, Output

SD = 0.6
G = torch.Generator().manual_seed(0)
X = torch.randn(6, 2, dtype=torch.float64, generator=G)
S = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.8, 0.97], dtype=torch.float64)
E = torch.tensor([0.3, 1.0, 0.9, 0.55, 0.8, 1.0], dtype=torch.float64)


class Smooth(nn.Module):
    """F = tanh(W [x, s, t] + label), with a second head 2 F + 1."""

    def __init__(self, dtype: torch.dtype = torch.float64, out: torch.dtype | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2, dtype=dtype)
        self.blocks = nn.ModuleList()
        self.out = out
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.9, -0.4, 0.8, -0.5], [0.3, 0.7, -0.6, 1.1]]))
            self.linear.bias.copy_(torch.tensor([0.1, -0.2]))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        self.asked.append((x.detach(), s.detach(), t.detach()))
        times = torch.stack([s, t], 1).to(x)
        u = torch.tanh(self.linear(torch.cat([x, times], 1)))
        if cond is not None and cond.label is not None:
            u = u + cond.label[:, None]
        u = u.to(self.out or u.dtype)
        return Output(u, {"v": 2.0 * u + 1.0})


class Zero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        return Output(torch.zeros_like(x), {})


MAPS: dict[str, Callable[[nn.Module], NetworkMap]] = {
    "average": AverageVelocity,
    "trigonometric": lambda net: Trigonometric(net, SD),
    "edm": lambda net: EDM(net, SD),
}
every = pytest.mark.parametrize("name", MAPS)


@every
def test_the_average_velocity_is_smooth_through_the_diagonal(name: str) -> None:
    """u at s = t is the limit of (X - x)/(t - s), and its derivatives are those of finite differences."""
    own = MAPS[name](Smooth())
    for gap in (1e-1, 1e-5, 0.0, -1e-5, -1e-1):
        s = torch.full((6,), 0.5, dtype=torch.float64)
        t = s + gap
        u = own.average(X, s, t)
        if abs(gap) > 1e-6:
            assert torch.allclose(u, (own(X, s, t) - X) / gap, rtol=1e-9)
        for direction in ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.3, -0.8)):
            v = (direction[0] * X.flip(1), torch.full_like(s, direction[1]), torch.full_like(s, direction[2]))
            value, slope = derivative(own.average, (X, s, t), v)
            assert torch.allclose(value, u, atol=1e-14)
            h = 1e-5
            above = own.average(X + h * v[0], s + h * v[1], t + h * v[2])
            below = own.average(X - h * v[0], s - h * v[1], t - h * v[2])
            assert torch.allclose(slope, (above - below) / (2 * h), rtol=1e-7, atol=1e-8)
    near = own.average(X, s, s + 1e-7)
    assert torch.allclose(own.average(X, s, s), near, atol=1e-6)


@every
def test_the_map_follows_from_the_average_velocity(name: str) -> None:
    own = MAPS[name](Smooth())
    assert torch.equal(own(X, S, S), X)
    assert torch.equal(own.velocity(X, S), own.average(X, S, S))
    assert torch.allclose(own(X, S, E), X + (E - S)[:, None] * own.average(X, S, E), atol=1e-15)
    assert torch.equal(own.average(X, S, E), own.evaluate(X, S, E).u)
    label = Condition(label=torch.arange(6))
    assert not torch.allclose(own(X, S, E, label)[1:4], own(X, S, E)[1:4], atol=1e-3)


def test_average_velocity_is_the_networks_output() -> None:
    net = Smooth()
    own = AverageVelocity(net)
    assert torch.equal(own.average(X, S, E), net(X, S, E).u)
    assert torch.equal(own.evaluate(X, S, E).heads["v"], 2.0 * net(X, S, E).u + 1.0)


def test_trigonometric_is_a_rotation() -> None:
    net = Smooth()
    own = Trigonometric(net, SD)
    a = (math.pi / 2 * (E - S))[:, None]
    want = torch.cos(a) * X + torch.sin(a) * SD * net(X / SD, S, E).u
    assert torch.allclose(own(X, S, E), want, atol=1e-14)
    rate = math.pi / 2 * SD  # dX/dt at t = s
    assert torch.allclose(own.velocity(X, S), rate * net(X / SD, S, S).u, atol=1e-14)
    assert torch.allclose(own.evaluate(X, S, E).heads["v"], rate * (2 * net(X / SD, S, E).u + 1), atol=1e-14)


def test_trigonometric_at_zero_is_exact_for_data_like_the_prior() -> None:
    """With variance 1 on both sides nothing moves: b = 0. The velocity of any data is (pi/2) F."""
    unit = Gaussian(torch.zeros(2, dtype=torch.float64), 1.0, TrigonometricPath())
    own = Trigonometric(Zero(), 1.0)
    assert torch.allclose(own.velocity(X, S), unit(X, S), atol=1e-15)


def test_edm_is_the_exact_velocity_of_a_gaussian_at_zero() -> None:
    exact = Gaussian(torch.zeros(2, dtype=torch.float64), SD**2)
    own = EDM(Zero(), SD)
    assert torch.allclose(own.velocity(X, S), exact(X, S), rtol=1e-13, atol=1e-14)
    one = torch.ones_like(S)
    assert torch.allclose(own(X, S, one), exact.posterior_mean(X, S), rtol=1e-13, atol=1e-14)


def test_edm_jumps_to_the_data_as_published() -> None:
    """D = c_skip y + c_out F(c_in y), y = x/s = x1 + sigma x0 (arXiv 2206.00364, table 1)."""
    net = Smooth()
    own = EDM(net, SD)
    s, x = S[1:], X[1:]
    one = torch.ones_like(s)
    sigma = ((1 - s) / s)[:, None]
    y = x / s[:, None]
    c_skip = SD**2 / (sigma**2 + SD**2)
    c_out = sigma * SD / torch.sqrt(sigma**2 + SD**2)
    c_in = 1 / torch.sqrt(sigma**2 + SD**2)
    d = c_skip * y + c_out * net(c_in * y, s, one).u
    assert torch.allclose(own(x, s, one), d, rtol=1e-12)
    t = E[1:]
    part = c_skip * y + c_out * net(c_in * y, s, t).u
    want = x + ((t - s) / (1 - s))[:, None] * (part - x)
    assert torch.allclose(own(x, s, t), want, rtol=1e-12)
    head = own.evaluate(x, s, one).heads["v"]
    d2 = c_skip * y + c_out * (2 * net(c_in * y, s, one).u + 1)
    assert torch.allclose(head, (d2 - x) / (1 - s)[:, None], rtol=1e-10)


@every
def test_half_precision_outputs_and_float64_times(name: str) -> None:
    net = Smooth(torch.float32, out=torch.bfloat16)
    own = MAPS[name](net)
    x = X.float()
    for dtype in (torch.float32, torch.float64):
        out = own.evaluate(x, S.to(dtype), E.to(dtype))
        assert out.u.dtype == torch.float32 and out.heads["v"].dtype == torch.float32
        assert own(x, S.to(dtype), E.to(dtype)).dtype == torch.float32
        assert net.asked[-1][0].dtype == torch.float32 and net.asked[-1][1].dtype == dtype
    full = MAPS[name](Smooth(torch.float32))(x, S.float(), E.float())
    assert torch.allclose(own(x, S.float(), E.float()), full, atol=1e-2)


@every
def test_the_gradient_reaches_the_input_and_every_parameter(name: str) -> None:
    net = Smooth()
    own = MAPS[name](net)
    x = X.clone().requires_grad_(True)
    own(x, S, E).square().sum().backward()
    weight = net.linear.weight
    assert x.grad is not None and weight.grad is not None
    h = 1e-6
    with torch.no_grad():
        ends = []
        for sign in (1.0, -1.0):
            weight[1, 2] += sign * h
            ends.append(float(own(X, S, E).square().sum()))
            weight[1, 2] -= sign * h
    assert math.isclose(float(weight.grad[1, 2]), (ends[0] - ends[1]) / (2 * h), rel_tol=1e-6)
    step = torch.zeros_like(X)
    step[2, 1] = h
    with torch.no_grad():
        difference = (own(X + step, S, E).square().sum() - own(X - step, S, E).square().sum()) / (2 * h)
    assert math.isclose(float(x.grad[2, 1]), float(difference), rel_tol=1e-6)


@every
def test_bad_times_are_one_clear_error(name: str) -> None:
    own = MAPS[name](Smooth())
    with pytest.raises(ValueError, match="time t: expected float32 or float64"):
        own(X, S, torch.ones(6, dtype=torch.int64))


def test_a_spliced_map_asks_the_late_one_after_its_time_only() -> None:
    early, late = AverageVelocity(Smooth()), EDM(Smooth(), SD)
    both = Spliced(early, late, 0.5)
    after = S > 0.5
    assert after.tolist() == [False, False, False, False, True, True]
    for ask in (
        lambda own: own(X, S, E),
        lambda own: own.average(X, S, E),
        lambda own: own.velocity(X, S),
        lambda own: own.evaluate(X, S, E).heads["v"],
    ):
        found, a, b = ask(both), ask(early), ask(late)
        assert torch.equal(found[~after], a[~after]) and torch.equal(found[after], b[after])
        assert not torch.allclose(a[after], b[after])
