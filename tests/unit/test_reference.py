"""The reference solver against closed-form maps: its stated error, both ways, densities, failures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saltus.exact import (
    Gaussian,
    ImageMixture,
    Mixture,
    MixtureMap1D,
    ReferenceMap,
    line_mixture,
    reference,
    reference_density,
    reference_map,
    reference_mixture,
    warped_rk4,
)
from saltus.interpolants import VE, VP, Cosine, Interpolant, Linear, Trigonometric
from saltus.streams import Streams
from saltus.tensors import like
from saltus.typing import Condition, FlowMap

D = torch.float64
INTERPOLANTS = [Linear(), Trigonometric(), VP(), Cosine(), VE(sigma_min=0.01, sigma_max=20.0)]
STATED = 1e-8


def cases(interpolant: Interpolant) -> list[tuple[Gaussian | Mixture, FlowMap, Tensor]]:
    rng = Streams(2, index=torch.arange(64), dtype=D)
    cov = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=D)
    wide = Gaussian(torch.tensor([1.0, -2.0], dtype=D), cov, interpolant)
    narrow = Gaussian(torch.tensor([1.0, -2.0], dtype=D), 1e-3, interpolant)
    line = line_mixture(interpolant)
    return [
        (wide, wide.flow_map(), wide.sample(rng)),
        (narrow, narrow.flow_map(), narrow.sample(rng)),
        (line, MixtureMap1D(line), line.sample(rng)[0]),
    ]


def places(interpolant: Interpolant, x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both directions, equal times, a tiny gap and nearly the whole span in one batch."""
    rng = Streams(4, index=torch.arange(len(x1)), dtype=D)
    s, t = 0.98 * rng.uniform("s"), 0.98 * rng.uniform("t")
    s[:2] = t[:2]
    s[2:4] = t[2:4] + 1e-9
    s[4:6], t[4:6] = 0.0, 0.98
    s[6:8], t[6:8] = 0.98, 0.0
    c = interpolant(s)
    return like(c.alpha, x1) * rng.normal_like("x0", x1) + like(c.beta, x1) * x1, s, t


@pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda i: type(i).__name__)
def test_stated_error(interpolant: Interpolant) -> None:
    for system, X, x1 in cases(interpolant):
        x, s, t = places(interpolant, x1)
        solved = ReferenceMap(system)
        assert float((solved(x, s, t) - X(x, s, t)).abs().max()) < STATED
        u, truth = solved.average(x, s, t), X.average(x, s, t)
        assert float(((u - truth).abs() / (1.0 + truth.abs())).max()) < STATED
        torch.testing.assert_close(u[:2], system(x[:2], s[:2]), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(solved.velocity(x, s), system(x, s), rtol=0, atol=0)

        y, gain = reference_density(system, x, s, t)
        assert float((y - X(x, s, t)).abs().max()) < STATED
        change = system.log_density(X(x, s, t), t) - system.log_density(x, s)
        assert float((gain - change).abs().max()) < STATED


def test_shaped_samples_with_conditions_in_two_dimensions() -> None:
    """Invertible, a semigroup, and its rows do not depend on their neighbours."""
    images = torch.randn(12, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    system = ImageMixture(images, 0.3, torch.arange(12) % 3)
    rng = Streams(0, index=torch.arange(8), dtype=D)
    x, cond = rng.normal("x", 1, 2, 2), Condition(label=torch.arange(8) % 3)
    s, t = torch.zeros(8, dtype=D), rng.uniform("t")
    y = reference_map(system, x, s, t, cond)
    torch.testing.assert_close(reference_map(system, y, t, s, cond), x, rtol=0, atol=STATED)
    middle = reference_map(system, x, s, t / 2, cond)
    torch.testing.assert_close(reference_map(system, middle, t / 2, t, cond), y, rtol=0, atol=STATED)
    alone = reference_map(system, x[3:4], s[3:4], t[3:4], cond.rows(torch.tensor([3])))
    torch.testing.assert_close(alone, y[3:4], rtol=0, atol=1e-12)
    z, gain = reference_density(system, x, s, t, cond, tolerance=1e-7)
    change = system.log_density(z, t, cond) - system.log_density(x, s, cond)
    torch.testing.assert_close(gain, change, rtol=0, atol=1e-5)


def test_the_tableau_to_the_last_digit() -> None:
    """c_i = sum_j a_ij = 2 sum_j a_ij c_j / c_i, quadrature to order 8, error weights that sum to 0."""
    table = reference._DOP853
    c, b = torch.tensor(table.c, dtype=D), torch.tensor(table.b, dtype=D)
    a = torch.stack([torch.nn.functional.pad(torch.tensor(r, dtype=D), (0, 12 - len(r))) for r in table.a])
    torch.testing.assert_close(a.sum(1), c, rtol=0, atol=2e-14)
    torch.testing.assert_close((a @ c)[2:], c[2:].square() / 2.0, rtol=0, atol=2e-14)
    for k in range(8):
        assert abs(float(b @ c**k) - 1.0 / (k + 1)) < 1e-14
    for weights, order in ((reference._FIFTH_ORDER_ERROR, 5), (reference._THIRD_ORDER_ERROR, 3)):
        for k in range(order):
            assert abs(float(torch.tensor(weights, dtype=D) @ c**k)) < 1e-14


def test_a_divergence_of_ones_own() -> None:
    system = reference_mixture()
    rng = Streams(0, index=torch.arange(8), dtype=D)
    x, s, t = rng.normal("x", 2), torch.zeros(8, dtype=D), torch.ones(8, dtype=D)

    def doubled(x: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        return 2.0 * torch.ones_like(t)

    _, gain = reference_density(system, x, s, t, div=doubled)
    torch.testing.assert_close(gain, torch.full((8,), -2.0, dtype=D))


def test_tolerance_is_the_error() -> None:
    """A looser tolerance costs less and errs more: the estimate controls the step."""
    calls = 0
    system = line_mixture()

    def counted(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        nonlocal calls
        calls += len(x)
        return system(x, t, cond)

    x = torch.linspace(-2.0, 2.0, 32, dtype=D).unsqueeze(1)
    s, t = torch.zeros(32, dtype=D), torch.ones(32, dtype=D)
    truth = MixtureMap1D(system)(x, s, t)
    errors, costs = [], []
    for tolerance in (1e-5, 1e-8, 1e-11):
        calls = 0
        errors.append(float((reference_map(counted, x, s, t, tolerance=tolerance) - truth).abs().max()))
        costs.append(calls)
        assert errors[-1] < 100 * tolerance
    assert errors[0] > errors[1] > errors[2] and costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("forward", [True, False])
def test_warped_runge_kutta(forward: bool) -> None:
    """Within its stated error on the reference mixture, and of fourth order."""
    system = reference_mixture()
    x = Streams(0, index=torch.arange(512), dtype=D).normal("x", 2)
    s, t = torch.zeros(512, dtype=D), torch.ones(512, dtype=D)
    y = reference_map(system, x, s, t)
    a, b, first, last = (x, y, s, t) if forward else (y, x, t, s)
    errors = [(warped_rk4(system, a, first, last, steps=n) - b).abs().max().item() for n in (64, 128, 256)]
    assert errors[0] < 5e-5
    assert errors[0] / errors[1] > 2**3.4 and errors[1] / errors[2] > 2**3.5


def test_float32_in_and_out() -> None:
    system = reference_mixture()
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    s, t = torch.zeros(8), torch.ones(8)
    y = reference_map(system, x, s, t)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), reference_map(system, x.double(), s.double(), t.double()))


def test_a_velocity_that_is_not_finite_is_named() -> None:
    x, s, t = torch.zeros(3, 1, dtype=D), torch.zeros(3, dtype=D), torch.ones(3, dtype=D)

    def broken(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return torch.where(torch.arange(len(x)) == 2, torch.nan, 1.0).to(x).unsqueeze(1)

    def root(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return like(torch.sqrt(0.5 - t), x).expand_as(x)

    with pytest.raises(ValueError, match=r"finite velocity, got NaN or infinity in row 2 at time 0"):
        reference_map(broken, x, s, t)
    with pytest.raises(ValueError, match=r"row 0 stopped near time 0\.5"):
        reference_map(root, x, s, t)
    with pytest.raises(ValueError, match="NaN"):
        reference_map(root, x * torch.nan, s, t)
    with pytest.raises(ValueError, match="time s: expected"):
        reference_map(root, x, s.long(), t)
