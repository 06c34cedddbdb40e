"""Samplers against the exact Gaussian flow, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saltus.exact import Gaussian
from saltus.interpolants import VE, VP, Cosine, Interpolant, Linear, Trigonometric
from saltus.legs import HEUN, RK4, ddim
from saltus.samplers import (
    Trajectory,
    adaptive,
    batched,
    cosine,
    integrate,
    jumps,
    karras,
    prior,
    renoise,
    uniform,
)
from saltus.streams import Streams
from saltus.tensors import full_like_rows, like
from saltus.typing import Condition

MEAN = torch.tensor([0.4, -0.7], dtype=torch.float64)
COV = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
SYSTEM = Gaussian(MEAN, COV)
MAP = SYSTEM.flow_map()
GRIDS = {"equal": 5, "cosine": cosine(5), "one": 1, "uneven": torch.tensor([0.0, 0.7, 0.71, 1.0])}


def streams(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Streams:
    return Streams(seed=seed, index=torch.arange(count), dtype=dtype)


X0 = prior(streams(8), (2,))
END = MAP(X0, full_like_rows(0.0, X0), full_like_rows(1.0, X0))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_any_number_of_exact_jumps_is_the_exact_map(grid: Tensor | int) -> None:
    assert torch.allclose(jumps(MAP, X0, grid), END, rtol=0, atol=1e-12)


def test_jumps_walk_the_trajectory_of_the_flow() -> None:
    walk = jumps(MAP, X0, cosine(6), record=True)
    assert isinstance(walk, Trajectory)
    assert walk.times.shape == (7,) and walk.states.shape == (7, 8, 2)
    zero = full_like_rows(0.0, X0)
    for t, x in zip(walk.times, walk.states, strict=True):
        assert torch.allclose(x, MAP(X0, zero, full_like_rows(float(t), X0)), rtol=0, atol=1e-12)
    assert torch.equal(walk.end, walk.states[-1])


def test_rows_may_have_grids_of_their_own() -> None:
    spans = torch.stack([torch.linspace(0.0, 0.35, 8), torch.linspace(0.5, 1.0, 8)]).double()
    there = jumps(MAP, X0, spans)
    assert torch.allclose(there, MAP(X0, spans[0], spans[1]), rtol=0, atol=1e-12)
    walk = adaptive(SYSTEM, X0, spans, rtol=1e-9, atol=1e-9, record=True)
    assert torch.allclose(walk.end, there, rtol=0, atol=1e-8)


def test_integrate_there_and_back() -> None:
    end = integrate(SYSTEM, X0, 100, RK4)
    assert torch.allclose(end, END, rtol=0, atol=1e-6)
    assert torch.allclose(integrate(SYSTEM, end, uniform(100).flip(0), RK4), X0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("backwards", [False, True])
def test_adaptive_keeps_its_tolerance(tolerance: float, backwards: bool) -> None:
    grid = uniform(1).flip(0) if backwards else uniform(1)
    start, truth = (END, X0) if backwards else (X0, END)
    end = adaptive(SYSTEM, start, grid, rtol=tolerance, atol=tolerance)
    error = float((end - truth).abs().max())
    assert tolerance / 1e4 < error < 10 * tolerance


class Counted:
    """A velocity that counts the rows it was asked for, by their label."""

    def __init__(self, rate: Tensor) -> None:
        self.rate, self.calls = rate, torch.zeros(len(rate), dtype=torch.int64)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        assert cond is not None and cond.label is not None
        self.calls.index_add_(0, cond.label, torch.ones_like(cond.label))
        return like(self.rate[cond.label], x) * torch.cos(like(self.rate[cond.label] * t, x)) * x


def test_adaptive_rows_choose_their_steps_apart() -> None:
    rate = torch.tensor([1.0, 40.0, 5.0], dtype=torch.float64)
    x = torch.ones(3, 2, dtype=torch.float64)
    together, alone = Counted(rate), Counted(rate)
    end = adaptive(together, x, 1, rtol=1e-7, atol=1e-7, cond=Condition(label=torch.arange(3)))
    assert torch.allclose(end[:, 0], torch.exp(torch.sin(rate)), rtol=1e-5)
    for i in range(3):
        one = adaptive(alone, x[i : i + 1], 1, rtol=1e-7, atol=1e-7, cond=Condition(label=torch.tensor([i])))
        assert torch.equal(one[0], end[i])
    assert torch.equal(together.calls, alone.calls)
    assert together.calls[1] > 4 * together.calls[0]


def test_adaptive_in_float32_and_on_images() -> None:
    def decay(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return -like(2.0 * t, x) * x

    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    end = adaptive(decay, x, 4)
    assert end.dtype == torch.float32
    assert torch.allclose(end, x * torch.exp(torch.tensor(-1.0)), rtol=1e-4, atol=1e-5)


def test_adaptive_says_when_it_cannot_arrive() -> None:
    with pytest.raises(ValueError, match="within 20 evaluations.*max_evaluations"):
        adaptive(SYSTEM, X0, 1, rtol=1e-10, atol=1e-10, max_evaluations=20)
    with pytest.raises(ValueError, match=r"row \d vanished at t=1;"):
        adaptive(lambda x, t, cond=None: like(1.0 / (1.0 - t), x) + 0 * x, X0[:2], 1, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="vanished at t=0"):
        adaptive(lambda x, t, cond=None: x * float("nan"), X0, 1)
    with pytest.raises(ValueError, match="embedded pair"):
        adaptive(SYSTEM, X0, 1, tableau=HEUN)
    with pytest.raises(ValueError, match="atol > 0"):
        adaptive(SYSTEM, X0, 1, atol=0.0)


def law(x: Tensor, mean: Tensor, cov: Tensor) -> None:
    """Every mean and covariance of x [n, D] is within 5 standard errors of the Gaussian's."""
    n, d = len(x), x - mean
    assert bool((d.mean(0).abs() < 5 * (cov.diagonal() / n).sqrt()).all())
    products = d.unsqueeze(2) * d.unsqueeze(1)
    assert bool(((products.mean(0) - cov).abs() < 5 * products.std(0) / n**0.5).all())


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric(), VP(), Cosine(), VE(0.01, 5.0)])
@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_renoise_keeps_the_law_at_every_time(interpolant: Interpolant, gamma: float) -> None:
    system = Gaussian(MEAN, COV, interpolant)
    rng = streams(20_000)
    c = interpolant(torch.tensor(0.0, dtype=torch.float64))
    # the exact law at t = 0, with the trace of data that VP, cosine and VE leave there
    start = c.beta * MEAN + prior(rng, (2,)) @ torch.linalg.cholesky(
        c.alpha**2 * torch.eye(2, dtype=torch.float64) + c.beta**2 * COV
    ).T
    grid = torch.tensor([0.0, 0.3, 0.8, 1.0])
    walk = renoise(system.flow_map(), start, grid, interpolant, rng, gamma, record=True)
    for t, x in zip(walk.times, walk.states, strict=True):
        c = interpolant(t)
        law(x, c.beta * MEAN, c.alpha**2 * torch.eye(2, dtype=torch.float64) + c.beta**2 * COV)
    assert not torch.allclose(walk.end, jumps(system.flow_map(), start, grid))


def test_renoise_without_noise_is_jumps() -> None:
    there = renoise(MAP, X0, cosine(4), Linear(), streams(8), gamma=0.0)
    assert torch.equal(there, jumps(MAP, X0, cosine(4)))


class EndOnly:
    """The exact map for t = 1, and an error elsewhere: what a consistency model knows."""

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        assert bool((t == 1.0).all())
        return MAP(x, s, t, cond)

    average, velocity, evaluate = MAP.average, MAP.velocity, MAP.evaluate


def test_consistency_sampling_asks_for_the_end_only() -> None:
    one = renoise(EndOnly(), X0, 1, Linear(), streams(8))
    assert torch.allclose(one, END, rtol=0, atol=1e-12)
    two = renoise(EndOnly(), X0, 2, Linear(), streams(8))
    fresh = 0.5 * END + 0.5 * streams(8).normal("renoise/0", 2)
    half, full = full_like_rows(0.5, X0), full_like_rows(1.0, X0)
    assert torch.allclose(two, MAP(fresh, half, full), rtol=0, atol=1e-12)


def test_renoise_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match=r"gamma: expected a number in \[0, 1\], got 1.5"):
        renoise(MAP, X0, 2, Linear(), streams(8), gamma=1.5)
    with pytest.raises(ValueError, match="rng: expected 8 rows like x, got 3"):
        renoise(MAP, X0, 2, Linear(), streams(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    rng = streams(100, dtype)
    labels = Condition(label=torch.arange(100) % 10)

    def shifted(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        assert cond is not None and cond.label is not None
        return like(cond.label.to(x), x) - x

    def sample(rng: Streams, places: Tensor) -> Tensor:
        x = renoise(MAP, prior(rng, (2,)), 3, Linear(), rng, gamma=0.5)
        return integrate(shifted, x, 3, cond=labels.rows(places))

    whole = sample(rng, torch.arange(100))
    parts = torch.cat(list(batched(sample, rng, size=7)))
    assert parts.dtype == dtype
    assert torch.equal(parts, whole) if dtype == torch.float64 else torch.allclose(parts, whole)
    assert not torch.equal(whole, sample(streams(100, dtype, seed=1), torch.arange(100)))


def test_batched_sizes() -> None:
    sizes = [len(x) for x in batched(lambda rng, places: prior(rng, (1,)), streams(10), 4)]
    assert sizes == [4, 4, 2]
    with pytest.raises(ValueError, match="batch of at least 1"):
        list(batched(lambda rng, places: prior(rng, (1,)), streams(10), 0))


def test_prior_of_a_variance_exploding_path_is_as_wide_as_its_first_noise() -> None:
    x = prior(streams(4), (2,), VE())
    assert torch.allclose(x, 80.0 * X0[:4], rtol=1e-12)
    law(prior(streams(20_000), (2,)), torch.zeros(2).double(), torch.eye(2).double())


def test_samplers_build_no_graph() -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def velocity(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return scale * SYSTEM(x, t)

    assert not integrate(velocity, X0, 2).requires_grad
    assert not adaptive(velocity, X0).requires_grad


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric(), VP(), Cosine(), VE()])
def test_karras_grid_has_the_noise_levels_of_edm(interpolant: Interpolant) -> None:
    grid = karras(10, interpolant)
    levels = (80 ** (1 / 7) + torch.linspace(0, 1, 11).double() * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    c = interpolant(grid[1:-1])
    assert torch.allclose(c.alpha / c.beta, levels[1:-1], rtol=1e-6)
    assert grid[0] == 0.0 and grid[-1] == 1.0 and bool((grid.diff() > 0).all())
    if isinstance(interpolant, VE):  # whose time is made to be this grid
        assert torch.allclose(grid, uniform(10), atol=1e-9)


def test_cosine_grid_is_finer_at_both_ends() -> None:
    gaps = cosine(8).diff()
    assert torch.allclose(gaps, gaps.flip(0)) and bool((gaps[:4].diff() > 0).all())
    assert torch.allclose(cosine(8, 0.2, 0.6)[[0, 4, -1]], torch.tensor([0.2, 0.4, 0.6]).double())


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric(), VP(), Cosine(), VE()])
def test_ddim_is_exact_for_data_at_one_point(interpolant: Interpolant) -> None:
    point = torch.tensor([1.3, -0.4], dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        alpha, beta, dalpha, dbeta = (like(c, x) for c in interpolant(t))
        return dalpha * (x - beta * point) / alpha + dbeta * point

    def on_path(t: Tensor) -> Tensor:
        c = interpolant(t)
        return like(c.alpha, X0) * X0 + like(c.beta, X0) * point

    s = torch.linspace(0.0, 0.5, 8, dtype=torch.float64)
    t = torch.linspace(0.9, 0.6, 8, dtype=torch.float64)
    assert torch.allclose(ddim(velocity, on_path(s), s, t, interpolant), on_path(t), rtol=1e-12, atol=1e-12)
    assert torch.allclose(ddim(velocity, on_path(t), t, s, interpolant), on_path(s), rtol=1e-12, atol=1e-12)


BAD_GRIDS = {
    "integers": (torch.tensor([0, 1]), "floating times, got torch.int64"),
    "one time": (torch.tensor([0.5]), r"got \[1\]"),
    "wrong rows": (torch.rand(3, 5), r"one grid a row \[k \+ 1, 8\], got \[3, 5\]"),
    "outside": (torch.tensor([0.0, 0.5, 1.5]), r"in \[0, 1\].*got 0 to 1.5"),
    "not a number": (torch.tensor([0.0, float("nan")]), r"in \[0, 1\]"),
    "repeated": (torch.tensor([0.0, 0.5, 0.5, 1.0]), r"increasing times, got \[0.5, 0.5\] in interval 1"),
    "decreasing": (torch.tensor([1.0, 0.0]), r"increasing times, got \[1.0, 0.0\]"),
    "no steps": (0, "int of at least 1, got 0"),
    "half a step": (0.5, "int of at least 1, got 0.5"),
}


@pytest.mark.parametrize(("grid", "message"), BAD_GRIDS.values(), ids=BAD_GRIDS)
def test_bad_grids_are_refused(grid: Tensor | int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jumps(MAP, X0, grid)


def test_a_grid_that_turns_round_is_refused_by_integration_too() -> None:
    with pytest.raises(ValueError, match=r"strictly decreasing times, got \[0.5\d*, 0.75\] in interval 1"):
        integrate(SYSTEM, X0, torch.tensor([1.0, 0.5, 0.75]))
