"""Every pair of predictions and every change of interpolant, against exact Gaussians."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from saltus.autodiff import derivative
from saltus.exact import Gaussian
from saltus.interpolants import VE, VP, Cosine, Custom, Interpolant, Linear, Trigonometric
from saltus.predictions import Converted, Prediction, convert, matching_time
from saltus.streams import Streams
from saltus.typing import Condition

INTERPOLANTS: dict[str, Interpolant] = {
    "linear": Linear(),
    "trigonometric": Trigonometric(),
    "vp": VP(),
    "cosine": Cosine(),
    "ve": VE(sigma_max=10.0, sigma_min=0.05),
    "custom": Custom(alpha=lambda t: (1 - t) ** 2, beta=lambda t: torch.sin(t)),
}
every = pytest.mark.parametrize("name", INTERPOLANTS)
T = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
X0, X1 = torch.randn(2, 10, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MEAN = torch.tensor([0.7, -1.2], dtype=torch.float64)
COV = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)


def system(interpolant: Interpolant) -> Gaussian:
    return Gaussian(MEAN, COV, interpolant)


def states(interpolant: Interpolant, t: Tensor) -> Tensor:
    rng = Streams(0, index=torch.arange(len(t)), dtype=torch.float64)
    c = interpolant(t)
    x1 = MEAN + rng.normal("x1", 2) @ torch.linalg.cholesky(COV).T
    x: Tensor = c.alpha[:, None] * rng.normal("x0", 2) + c.beta[:, None] * x1
    return x


@every
def test_every_prediction_of_a_pair_from_every_other(name: str) -> None:
    """The rows themselves, written out, and each pair of kinds both ways."""
    c = INTERPOLANTS[name](T)
    a, b, da, db = (v[:, None, None] for v in c)
    x = a * X0 + b * X1
    value = {
        Prediction.X0: X0,
        Prediction.NOISE: X0,
        Prediction.X1: X1,
        Prediction.VELOCITY: da * X0 + db * X1,
        Prediction.V: b * X0 - a * X1,
        Prediction.SCORE: -X0 / a,
    }
    assert set(value) == set(Prediction)
    for have, want in [*permutations(Prediction, 2), *((k, k) for k in Prediction)]:
        found = convert(value[have], x, T, INTERPOLANTS[name], have, want)
        scale = 1.0 + value[want].abs()
        # x1 from x0 divides by beta_t, 0.0077 for VP at t = 0.05: it loses the digits that the state has not
        allowed = 1e-12 / min(1.0, float(c.beta.min()), float(c.alpha.min()))
        assert float(((found - value[want]) / scale).abs().max()) < allowed, (have, want)
        back = convert(found, x, T, INTERPOLANTS[name], want, have)
        assert float(((back - value[have]) / (1.0 + value[have].abs())).abs().max()) < allowed, (have, want)


@every
def test_all_pairs_round_trip_at_interior_times(name: str) -> None:
    t = torch.linspace(0.35, 0.85, 10, dtype=torch.float64)
    c = INTERPOLANTS[name](t)
    x = c.alpha[:, None, None] * X0 + c.beta[:, None, None] * X1
    for have, want in permutations(Prediction, 2):
        value = convert(X1, x, t, INTERPOLANTS[name], Prediction.X1, have)
        there = convert(value, x, t, INTERPOLANTS[name], have, want)
        back = convert(there, x, t, INTERPOLANTS[name], want, have)
        assert torch.allclose(back, value, rtol=1e-12, atol=1e-12), (have, want)


@every
def test_conditional_means_of_the_exact_gaussian(name: str) -> None:
    exact, interpolant = system(INTERPOLANTS[name]), INTERPOLANTS[name]
    x = states(interpolant, T)
    b, score, x1 = exact(x, T), exact.score(x, T), exact.posterior_mean(x, T)

    def same(value: Tensor, have: Prediction, want: Prediction, exact: Tensor) -> bool:
        return torch.allclose(convert(value, x, T, interpolant, have, want), exact, rtol=1e-10, atol=1e-10)

    assert same(x1, Prediction.X1, Prediction.VELOCITY, b)
    assert same(x1, Prediction.X1, Prediction.SCORE, score)
    assert same(b, Prediction.VELOCITY, Prediction.X1, x1)
    assert same(b, Prediction.VELOCITY, Prediction.SCORE, score)
    alpha = interpolant(T).alpha[:, None]
    assert same(-alpha * score, Prediction.NOISE, Prediction.VELOCITY, b)
    assert same(score, Prediction.SCORE, Prediction.VELOCITY, b)


def test_the_ends_where_a_prediction_says_something() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x = torch.stack([X0[0], X1[1]])
    for interpolant in (Linear(), Trigonometric()):
        c = interpolant(ends)
        v = c.dalpha[:, None, None] * X0[:2] + c.dbeta[:, None, None] * X1[:2]
        for want, value in [(Prediction.X0, X0[:2]), (Prediction.X1, X1[:2])]:
            found = convert(v, x, ends, interpolant, Prediction.VELOCITY, want)
            assert torch.allclose(found, value, atol=1e-14)


@every
def test_a_model_of_any_kind_is_a_velocity(name: str) -> None:
    interpolant = INTERPOLANTS[name]
    exact = system(interpolant)
    x = states(interpolant, T)
    seen: list[Condition | None] = []

    def model(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        seen.append(cond)
        return exact.posterior_mean(x, t)

    cond = Condition(label=torch.arange(10))
    velocity = Converted(model, interpolant, Prediction.X1, between=(0.01, 0.99))
    assert torch.allclose(velocity(x, T, cond), exact(x, T), rtol=1e-10) and seen == [cond]
    assert velocity(x.float(), T).dtype == torch.float32


@pytest.mark.parametrize(("given", "other"), [*permutations(["linear", "trigonometric", "vp", "cosine"], 2)])
def test_matching_times_have_one_signal_to_noise_ratio(given: str, other: str) -> None:
    a, b = INTERPOLANTS[given], INTERPOLANTS[other]
    t = torch.linspace(0.1, 0.999, 30, dtype=torch.float64)
    tau = matching_time(t, a, b)
    ours, theirs = a(t), b(tau)
    assert torch.allclose(ours.alpha * theirs.beta, ours.beta * theirs.alpha, atol=1e-14)
    assert torch.allclose(matching_time(tau, b, a), t, atol=1e-12)
    assert matching_time(t.float(), a, b).dtype == torch.float32


def test_matching_times_in_closed_form_and_at_the_ends() -> None:
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    tau = matching_time(t, Trigonometric(), Linear())  # tan(pi t/2) = tau/(1 - tau)
    c, s = torch.cos(torch.pi / 2 * t), torch.sin(torch.pi / 2 * t)
    assert torch.allclose(tau, s / (c + s), atol=1e-15)
    for other in (Trigonometric(), Cosine()):
        ends = matching_time(t[[0, 3]], Linear(), other)
        assert torch.allclose(ends, t[[0, 3]], atol=1e-14)


CHANGES = [
    *permutations(["linear", "trigonometric", "cosine"], 2),
    ("linear", "vp"),
    ("trigonometric", "vp"),
    ("linear", "ve"),
    ("linear", "custom"),
    ("vp", "linear"),
    ("ve", "linear"),
    ("custom", "trigonometric"),
]


@pytest.mark.parametrize(("given", "wanted"), CHANGES)
def test_a_velocity_moves_to_another_interpolant(given: str, wanted: str) -> None:
    """The exact velocity of one interpolant, re-interpolated, is that of the other in closed form."""
    interpolant = INTERPOLANTS[wanted]
    t = torch.linspace(0.2, 0.9, 12, dtype=torch.float64)
    x = states(interpolant, t)
    law, old = system(INTERPOLANTS[given]), INTERPOLANTS[given]
    found = Converted(law, old, onto=interpolant, between=(0.0, 0.999))(x, t)
    want = system(interpolant)(x, t)
    assert float(((found - want) / (1 + want.abs())).abs().max()) < 1e-9


@pytest.mark.parametrize(("given", "wanted"), [("linear", "trigonometric"), ("trigonometric", "linear")])
def test_a_velocity_moves_to_another_interpolant_at_the_ends(given: str, wanted: str) -> None:
    interpolant = INTERPOLANTS[wanted]
    for dtype, allowed in [(torch.float64, 1e-9), (torch.float32, 1e-4)]:
        ends = torch.tensor([0.0, 1e-6, 1 - 1e-6, 1.0], dtype=dtype)
        x = states(interpolant, ends.double()).to(dtype)
        found = Converted(system(INTERPOLANTS[given]), INTERPOLANTS[given], onto=interpolant)(x, ends)
        assert found.dtype == dtype
        assert torch.allclose(found, system(interpolant)(x, ends), rtol=allowed, atol=allowed)


@pytest.mark.parametrize("wanted", ["trigonometric", "vp"])
def test_a_moved_velocity_has_its_derivatives(wanted: str) -> None:
    """Along (x, t) together, as an Eulerian loss on a teacher of another interpolant takes it."""
    interpolant = INTERPOLANTS[wanted]
    t = torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    x = states(interpolant, t)
    moved, exact = Converted(system(Linear()), Linear(), onto=interpolant), system(interpolant)
    direction = (torch.ones_like(x), torch.full_like(t, 0.7))
    _, slope = derivative(lambda x, t: moved(x, t), (x, t), direction)
    _, want = derivative(lambda x, t: exact(x, t), (x, t), direction)
    assert torch.allclose(slope, want, rtol=1e-8, atol=1e-8)


def test_mixed_precision_of_states_and_times() -> None:
    """Times in float64 beside float32 states: a network is asked in the precision of its states."""
    net = torch.nn.Linear(2, 2)

    def model(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        out: Tensor = net(x)
        return out

    x, t = torch.ones(3, 2), torch.full((3,), 0.5, dtype=torch.float64)
    assert Converted(model, Linear(), onto=Trigonometric())(x, t).dtype == torch.float32
    assert Converted(model, Linear(), Prediction.X1, between=(0.0, 0.9))(x, t).dtype == torch.float32
