"""The closed-form flow maps: what defines a flow map, to 1e-9, with derivatives of two orders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from saltus.autodiff import derivative
from saltus.exact import Gaussian, Mixture, MixtureMap1D, line_mixture
from saltus.interpolants import VE, VP, Cosine, Custom, Interpolant, Linear, Trigonometric
from saltus.streams import Streams
from saltus.tensors import like
from saltus.typing import Condition, FlowMap, Velocity

D = torch.float64
INTERPOLANTS = [
    Linear(),
    Trigonometric(),
    VP(),
    Cosine(),
    VE(sigma_min=0.002, sigma_max=80.0),
    Custom(lambda t: (1.0 - t) ** 2 + 0.1 * t, lambda t: t.square()),
]
SYSTEMS = ["diagonal", "full", "line", "class"]
GAPS = [None, 0.0, 1e-8, -1e-3, 0.049]


def system(name: str, interpolant: Interpolant) -> tuple[FlowMap, Velocity, Tensor]:
    """The map, its velocity, and samples of the data."""
    rng = Streams(3, index=torch.arange(40), dtype=D)
    if name in ("line", "class"):
        mixture = line_mixture(interpolant)
        if name == "class":
            mixture = Mixture(mixture.means + 0.3, mixture.weights, 0.25, mixture.labels, interpolant)
        return MixtureMap1D(mixture), mixture, mixture.sample(rng)[0]
    cov = {
        "diagonal": torch.tensor([0.5, 2.0], dtype=D),
        "full": torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=D),
    }[name]
    gaussian = Gaussian(torch.tensor([1.0, -2.0], dtype=D), cov, interpolant)
    return gaussian.flow_map(), gaussian, gaussian.sample(rng)


def places(interpolant: Interpolant, x1: Tensor, gap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    rng = Streams(4, index=torch.arange(len(x1)), dtype=D)
    s = 0.01 + 0.93 * rng.uniform("s")
    t = 0.01 + 0.93 * rng.uniform("t") if gap is None else s + gap
    c = interpolant(s)
    x = like(c.alpha, x1) * rng.normal_like("x0", x1) + like(c.beta, x1) * x1
    return x, s, t


def worst(residual: Tensor, truth: Tensor) -> float:
    return float((residual.abs() / (1.0 + truth.abs())).max().detach())


def gradient(y: Tensor, x: Tensor) -> Tensor:
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return g


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda i: type(i).__name__)
def test_identities(interpolant: Interpolant, name: str, gap: float | None) -> None:
    X, b, x1 = system(name, interpolant)
    x, s, t = places(interpolant, x1, gap)
    cond = Condition(label=torch.arange(len(x)) % 2) if name == "class" else None
    one, h = torch.ones_like(s), (t - s).unsqueeze(1)
    u, y, b_s = X.average(x, s, t, cond), X(x, s, t, cond), b(x, s, cond)
    b_t = b(y, t, cond)

    assert worst(x + h * u - y, y) < 1e-12
    assert worst(X.velocity(x, s, cond) - b_s, b_s) == 0.0
    assert worst(X.average(x, s, s, cond) - b_s, b_s) < 1e-11
    assert torch.equal(X.evaluate(x, s, t, cond).u, u)

    _, change = derivative(lambda m: X.average(x, s, m, cond), (t,), (one,))
    assert worst(u + h * change - b_t, b_t) < 1e-9  # Lagrangian
    _, change = derivative(lambda y, m: X.average(y, m, t, cond), (x, s), (b_s, one))
    assert worst(-u + b_s + h * change, b_s) < 1e-9  # Eulerian
    middle = s + 0.3 * (t - s)
    assert worst(X(X(x, s, middle, cond), middle, t, cond) - y, y) < 1e-9  # semigroup
    assert worst(X(y, t, s, cond) - x, x) < 1e-9


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda i: type(i).__name__)
def test_second_derivatives_on_the_line(interpolant: Interpolant, gap: float | None) -> None:
    """Reverse over forward and forward over forward, through the polished root."""
    X, b, x1 = system("line", interpolant)
    x, s, t = places(interpolant, x1, gap)
    x.requires_grad_()
    one, h = torch.ones_like(s), (t - s).unsqueeze(1)
    u, u_t = derivative(lambda m: X.average(x, s, m), (t,), (one,))
    b_at_end = gradient(b(X(x, s, t), t), x)  # grad_x of d_t X
    assert worst(gradient(u, x) + h * gradient(u_t, x) - b_at_end, b_at_end) < 1e-9

    def end(y: Tensor, m: Tensor) -> Tensor:
        return derivative(lambda end: X(y, m, end), (t,), (one,))[1]

    b_s = b(x, s).detach()
    _, mixed = derivative(end, (x, s), (b_s, one))
    assert worst(mixed, b_at_end) < 1e-9  # d_t of the Eulerian identity


@pytest.mark.parametrize("interpolant", [Linear(), VE()], ids=lambda i: type(i).__name__)
@pytest.mark.parametrize("name", SYSTEMS[:3])
def test_average_is_the_mean_velocity(name: str, interpolant: Interpolant) -> None:
    """u against 48-point quadrature of b along the exact trajectory, over spans up to 0.4."""
    X, b, x1 = system(name, interpolant)
    x, s, t = places(interpolant, x1, None)
    t = s + (0.4 * (t - s))
    nodes, weights = np.polynomial.legendre.leggauss(48)
    mean = torch.zeros_like(x)
    for node, weight in zip((nodes + 1.0) / 2.0, weights / 2.0, strict=True):
        m = s + node * (t - s)
        mean += weight * b(X(x, s, m), m)
    assert worst(X.average(x, s, t) - mean, mean) < 1e-9


def test_average_is_the_mean_velocity_on_the_diagonal_gap() -> None:
    """At s = t and beside it u and its derivative in t are b and half of d_t b + b b'."""
    X, b, x1 = system("line", Linear())
    x, s, _ = places(Linear(), x1, None)
    one = torch.ones_like(s)
    _, material = derivative(lambda y, m: b(y, m), (x, s), (b(x, s), one))
    u, u_t = derivative(lambda m: X.average(x, s, m), (s,), (one,))
    torch.testing.assert_close(u, b(x, s), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(u_t, material / 2.0, rtol=1e-8, atol=1e-8)


def test_quantiles_in_the_tails() -> None:
    """F_t(X) = F_s(x) six standard deviations out, against another implementation of the normal law."""
    mixture = line_mixture()
    weights, means = np.array([0.4, 0.6]), np.array([-1.0, 1.5])
    spreads = np.array([0.3, 0.4])
    x = torch.linspace(-6.0, 6.0, 49, dtype=D).unsqueeze(1)
    zero, one = torch.zeros(49, dtype=D), torch.ones(49, dtype=D)
    y = MixtureMap1D(mixture)(x, zero, one)
    z = (y.numpy() - means) / spreads
    below = np.logaddexp.reduce(np.log(weights) + norm.logcdf(z), axis=1)
    above = np.logaddexp.reduce(np.log(weights) + norm.logsf(z), axis=1)
    np.testing.assert_allclose(below[:25], norm.logcdf(x[:25, 0].numpy()), rtol=1e-12)
    np.testing.assert_allclose(above[24:], norm.logsf(x[24:, 0].numpy()), rtol=1e-12)
    assert (y.diff(dim=0) > 0).all()
    torch.testing.assert_close(MixtureMap1D(mixture)(y, one, zero), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SYSTEMS[:3])
def test_reaches_the_data_with_an_infinite_dalpha(name: str) -> None:
    """The maps of VP and Cosine are finite at t = 1, where dalpha is not, and invert."""
    for interpolant in (VP(), Cosine()):
        X, _, x1 = system(name, interpolant)
        s, t = torch.full((len(x1),), 0.3, dtype=D), torch.ones(len(x1), dtype=D)
        x = X(x1, t, s)
        assert worst(X(x, s, t) - x1, x1) < 1e-9
        assert worst(x + 0.7 * X.average(x, s, t) - x1, x1) < 1e-9


@pytest.mark.parametrize("name", SYSTEMS[:3])
def test_float32(name: str) -> None:
    X, _, x1 = system(name, Linear())
    x, s, t = places(Linear(), x1, None)
    single = X.average(x.float(), s.float(), t.float())
    assert single.dtype == torch.float32
    double = X.average(x.float().double(), s.float().double(), t.float().double())
    assert worst(single.double() - double, double) < 1e-6


def test_the_quantile_map_is_of_one_dimension() -> None:
    with pytest.raises(ValueError, match="expected one dimension, got 2"):
        MixtureMap1D(Mixture(torch.zeros(1, 2), torch.ones(1), 1.0))
