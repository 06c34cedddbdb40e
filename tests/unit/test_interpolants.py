"""Every interpolant: derivatives, ends, monotone signal-to-noise ratio, divided differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saltus.autodiff import derivative
from saltus.interpolants import VE, VP, Cosine, Custom, Interpolant, Linear, Trigonometric, path, slopes

INTERPOLANTS: dict[str, Interpolant] = {
    "linear": Linear(),
    "trigonometric": Trigonometric(),
    "vp": VP(),
    "cosine": Cosine(),
    "ve": VE(),
    "custom": Custom(alpha=lambda t: (1 - t) ** 2, beta=lambda t: torch.sin(t)),
}
T = torch.linspace(0.0, 0.97, 98, dtype=torch.float64)
every = pytest.mark.parametrize("name", INTERPOLANTS)


@every
def test_derivatives_against_autodiff_and_finite_differences(name: str) -> None:
    interpolant = INTERPOLANTS[name]
    c = interpolant(T)
    h = 1e-6
    above, below = interpolant(T + h), interpolant(T - h)
    t = T.clone().requires_grad_(True)
    live = interpolant(t)
    for value, rate, hi, lo in [
        (live.alpha, c.dalpha, above.alpha, below.alpha),
        (live.beta, c.dbeta, above.beta, below.beta),
    ]:
        scale = 1.0 + rate.abs()
        assert float((((hi - lo) / (2 * h) - rate) / scale).abs().max()) < 1e-6
        grad = torch.zeros_like(T)  # VE's beta is constant
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert float(((grad - rate) / scale).abs().max()) < 1e-11


@every
def test_forward_derivatives_pass_through(name: str) -> None:
    """The derivative of a function of the coefficients, their own derivatives included."""
    interpolant = INTERPOLANTS[name]
    t = T[5:90:7]

    def f(t: Tensor) -> Tensor:
        c = interpolant(t)
        return c.alpha * c.dbeta - 2.0 * c.beta * c.dalpha

    _, slope = derivative(f, (t,), (torch.ones_like(t),))
    h = 1e-5
    assert torch.allclose(slope, (f(t + h) - f(t - h)) / (2 * h), rtol=1e-6, atol=1e-6)


def test_ends() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    trace = math.exp(-20.1 / 4)  # VP's log beta_0 = -(b_max - b_min)/4 - b_min/2
    table = {
        "linear": ([1.0, 0.0], [0.0, 1.0]),
        "trigonometric": ([1.0, 0.0], [0.0, 1.0]),
        "vp": ([math.sqrt(1 - trace**2), 0.0], [trace, 1.0]),
        "cosine": ([1.0, 0.0], [0.0, 1.0]),
        "ve": ([80.0, 0.002], [1.0, 1.0]),
        "custom": ([1.0, 0.0], [0.0, math.sin(1.0)]),
    }
    for name, (alpha, beta) in table.items():
        c = INTERPOLANTS[name](ends)
        assert torch.allclose(c.alpha, torch.tensor(alpha, dtype=torch.float64), atol=1e-14), name
        assert torch.allclose(c.beta, torch.tensor(beta, dtype=torch.float64), atol=1e-14), name


def test_published_schedules_at_interior_points() -> None:
    """VP: variance 1 and integral of the rate; cosine: Nichol and Dhariwal's bar alpha; VE: Karras' grid."""
    t = torch.tensor([0.1, 0.35, 0.8], dtype=torch.float64)
    tau = 1.0 - t
    vp, cosine, ve = VP()(t), Cosine()(t), VE()(t)
    assert torch.allclose(vp.beta**2, torch.exp(-(0.1 * tau + 19.9 * tau**2 / 2)), atol=1e-14)

    def f(u: Tensor) -> Tensor:
        return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    assert torch.allclose(cosine.beta**2, f(tau) / f(torch.zeros(1, dtype=torch.float64)), atol=1e-14)
    for c in (vp, cosine, Trigonometric()(t)):
        assert torch.allclose(c.alpha**2 + c.beta**2, torch.ones(3, dtype=torch.float64), atol=1e-14)
    grid = (80 ** (1 / 7) + 5 / 10 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert math.isclose(float(VE()(torch.tensor([0.5], dtype=torch.float64)).alpha), grid, rel_tol=1e-13)
    assert bool((ve.dalpha < 0).all()) and bool((ve.dbeta == 0).all())


@every
def test_the_signal_to_noise_ratio_rises(name: str) -> None:
    c = INTERPOLANTS[name](torch.linspace(0, 0.999, 1000, dtype=torch.float64))
    assert bool(((c.beta / c.alpha).diff() > 0).all())
    assert bool((c.alpha * c.dbeta - c.dalpha * c.beta > 0).all())


@every
def test_slopes_are_divided_differences_smooth_on_the_diagonal(name: str) -> None:
    interpolant = INTERPOLANTS[name]
    s = torch.tensor([0.0, 0.2, 0.5, 0.7, 0.3], dtype=torch.float64)
    t = torch.tensor([0.6, 0.3, 0.55, 0.1, 0.3 + 1e-9], dtype=torch.float64)  # also t < s, and t near s
    da, db = slopes(interpolant, s, t)
    a, b = interpolant(s), interpolant(t)
    rough = 4  # rows where plain division keeps its digits
    want = (b.alpha - a.alpha) / (t - s), (b.beta - a.beta) / (t - s)
    assert torch.allclose(da[:rough], want[0][:rough], rtol=1e-9, atol=1e-12)
    assert torch.allclose(db[:rough], want[1][:rough], rtol=1e-9, atol=1e-12)
    same = slopes(interpolant, s, s)
    assert torch.allclose(same[0], a.dalpha, rtol=1e-13) and torch.allclose(same[1], a.dbeta, rtol=1e-13)
    assert torch.allclose(da[4], a.dalpha[4], rtol=1e-6) and torch.allclose(db[4], a.dbeta[4], rtol=1e-6)


@every
def test_the_path_and_its_velocity(name: str) -> None:
    interpolant = INTERPOLANTS[name]
    x0, x1 = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.05, 0.9, 5, dtype=torch.float64)
    x, v = path(interpolant, x0, x1, t)
    c = interpolant(t)
    assert torch.equal(x[2], c.alpha[2] * x0[2] + c.beta[2] * x1[2])
    h = 1e-6
    slope = (path(interpolant, x0, x1, t + h)[0] - path(interpolant, x0, x1, t - h)[0]) / (2 * h)
    assert torch.allclose(v, slope, rtol=1e-6, atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_times_is_kept_and_states_keep_theirs(name: str, dtype: torch.dtype) -> None:
    interpolant = INTERPOLANTS[name]
    t = torch.tensor([0.0, 0.5, 0.999], dtype=dtype)
    assert all(c.dtype == dtype and bool(torch.isfinite(c).all()) for c in interpolant(t))
    x, v = path(interpolant, torch.ones(3, 2), torch.ones(3, 2), t)
    assert x.dtype == v.dtype == torch.float32


def test_alpha_keeps_its_digits_near_the_data() -> None:
    """sqrt(1 - beta^2) computed plainly loses all digits of float32 near t = 1."""
    t = torch.tensor([0.999, 0.9999])
    for interpolant in (VP(), Cosine()):
        assert torch.allclose(interpolant(t).alpha.double(), interpolant(t.double()).alpha, rtol=2e-4)


def test_a_custom_interpolant_may_have_constant_coefficients() -> None:
    constant = Custom(alpha=lambda t: 2.0 - t, beta=torch.ones_like)
    c = constant(torch.tensor([0.25, 0.5]))
    assert c.dbeta.tolist() == [0.0, 0.0] and c.dalpha.tolist() == [-1.0, -1.0]
