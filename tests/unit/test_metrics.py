"""Every metric against a closed form."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from saltus.exact import Gaussian
from saltus.interpolants import path
from saltus.metrics import (
    RBF,
    TWO_SAMPLE,
    Laplace,
    Moments,
    bin_masses,
    directions,
    energy_distance,
    frechet,
    frechet_of_moments,
    histogram_kl,
    mmd,
    nearest,
    precision_recall,
    residuals,
    rmse,
    scaled,
    sliced_wasserstein,
    wasserstein,
)
from saltus.metrics.pairs import distances, mean_over_pairs
from saltus.metrics.wasserstein import line_wasserstein2
from saltus.streams import Streams
from saltus.tensors import full_like_rows, like
from saltus.typing import Condition, Output


def normal(count: int, dim: int, seed: int = 0) -> Tensor:
    return Streams(seed=seed, index=torch.arange(count), dtype=torch.float64).normal("x", dim)


def mean_absolute(mean: float, sd: float) -> float:
    """E|N(mean, sd^2)|."""
    z = mean / sd
    return sd * math.sqrt(2 / math.pi) * math.exp(-z * z / 2) + mean * math.erf(z / math.sqrt(2))


def repeats(metric: object, count: int, draws: int, dim: int, shift: float, scale: float) -> Tensor:
    assert callable(metric)
    pairs = ((normal(count, dim, 2 * i), normal(count, dim, 2 * i + 1)) for i in range(draws))
    return torch.stack([metric(x, shift + scale * y) for x, y in pairs])


def agrees(values: Tensor, truth: float) -> None:
    """The mean of independent unbiased estimates is within 4 standard errors, which are small."""
    error = float(values.std() / len(values) ** 0.5)
    assert abs(float(values.mean()) - truth) < 4 * error
    assert error < 0.05 * abs(truth)


def test_energy_distance_of_gaussians_on_the_line() -> None:
    shift, scale = 0.8, 1.5
    truth = (
        2 * mean_absolute(shift, math.hypot(1, scale))
        - mean_absolute(0, math.sqrt(2))
        - mean_absolute(0, scale * math.sqrt(2))
    )
    agrees(repeats(energy_distance, 200, 60, 1, shift, scale), truth)


def test_energy_distance_by_hand_and_by_distribution_functions() -> None:
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0], [5.0]])
    across = (1 + 5 + 5 + 1 + 3 + 3) / 6
    assert float(energy_distance(x, y)) == pytest.approx(2 * across - 2 - 8 / 3)
    # the V-statistic is 2 int (F - G)^2 of the empirical distribution functions
    steps = [(1, 0.5), (1, 0.5 - 1 / 3), (3, 1 - 1 / 3)]
    assert float(energy_distance(x, y, unbiased=False)) == pytest.approx(2 * sum(w * g * g for w, g in steps))


@pytest.mark.parametrize("dim", [1, 3])
def test_mmd_of_gaussians(dim: int) -> None:
    shift, scale, h = 0.7, 1.4, 1.3

    def kernel_mean(variance: float, gap: float) -> float:  # E exp(-|z|^2 / 2h^2), z ~ N(gap, variance I)
        return ((h * h / (h * h + variance)) ** 0.5 * math.exp(-gap * gap / (2 * (h * h + variance)))) ** dim

    truth = kernel_mean(2, 0) + kernel_mean(2 * scale**2, 0) - 2 * kernel_mean(1 + scale**2, shift)
    agrees(repeats(lambda x, y: mmd(x, y, RBF((h,))), 200, 60, dim, shift, scale), truth)


def test_mmd_by_hand() -> None:
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    for kernel, k in (
        (RBF((0.5, 2.0)), lambda d: (math.exp(-2 * d * d) + math.exp(-d * d / 8)) / 2),
        (Laplace((0.5, 4.0)), lambda d: (math.exp(-2 * d) + math.exp(-d / 4)) / 2),
    ):
        across = (k(0) + k(3) + k(1) + k(2)) / 4
        assert float(mmd(x, y, kernel)) == pytest.approx(k(1) + k(3) - 2 * across)
        biased = (1 + k(1)) / 2 + (1 + k(3)) / 2 - 2 * across
        assert float(mmd(x, y, kernel, unbiased=False)) == pytest.approx(biased)
    assert scaled(torch.tensor([[0.0], [1.0], [3.0]]), (0.5, 1.0)) == (1.0, 2.0)


def test_wasserstein_of_a_shift_is_the_shift() -> None:
    x, v = normal(300, 3), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    shuffled = (x + v)[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    assert float(wasserstein(x, shuffled)) == pytest.approx(float(v.norm()), rel=1e-12)
    assert float(sliced_wasserstein(x, shuffled, directions(6, 3))) == pytest.approx(
        float(v.norm()) / math.sqrt(3), rel=1e-12
    )
    assert float(sliced_wasserstein(x, shuffled)) == pytest.approx(float(v.norm()) / math.sqrt(3), rel=0.02)


def test_wasserstein_of_a_scaling() -> None:
    """x -> c x is a gradient of a convex function, hence optimal: W2^2 = (c - 1)^2 mean |x|^2."""
    x = normal(200, 2)
    truth = 0.7 * float(x.square().sum(1).mean()) ** 0.5
    assert float(wasserstein(x, 1.7 * x.flip(0))) == pytest.approx(truth, rel=1e-12)
    assert float(sliced_wasserstein(x, 1.7 * x, directions(2, 2))) == pytest.approx(truth / 2**0.5, rel=1e-12)


def test_wasserstein_of_gaussians_on_the_line() -> None:
    n = 20_000
    x, y = normal(n, 1), 0.6 + 1.5 * normal(n, 1, seed=1)
    assert float(sliced_wasserstein(x, y)) == pytest.approx(math.hypot(0.6, 0.5), rel=0.02)


def test_wasserstein_on_the_line_for_unequal_sizes() -> None:
    x, y = torch.tensor([[0.0, 3.0]]), torch.tensor([[6.0, 1.0, 0.0]])
    # levels 1/3, 1/2, 2/3, 1: quantiles 0|0, 0|1, 3|1, 3|6
    assert float(line_wasserstein2(x, y)) == pytest.approx(0 / 3 + 1 / 6 + 4 / 6 + 9 / 3)
    a, b = normal(30, 2), 0.3 + normal(20, 2, seed=1)
    expanded = sliced_wasserstein(a.repeat_interleave(2, 0), b.repeat_interleave(3, 0))
    assert float(sliced_wasserstein(a, b)) == pytest.approx(float(expanded), rel=1e-12)


def test_directions_are_uniform_frames() -> None:
    d = directions(12, 4)
    frames = d.reshape(3, 4, 4)
    assert torch.allclose(frames @ frames.transpose(1, 2), torch.eye(4).double().expand(3, 4, 4), atol=1e-12)
    many = directions(40_000, 2)
    assert float(many.mean(0).norm()) < 0.02  # a fixed sign of QR would leave a mean of order one
    assert torch.equal(directions(5, 4), directions(12, 4)[:5])
    assert not torch.equal(directions(5, 4), directions(5, 4, seed=1))


def test_wasserstein_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ValueError, match=r"saltus\[metrics\]"):
        wasserstein(normal(3, 1), normal(3, 1))


def test_frechet_of_gaussians() -> None:
    """Commuting covariances: |m|^2 + sum (sd - sd')^2; and rotated ones against scipy's root."""
    axes, _ = torch.linalg.qr(normal(3, 3))
    sd, other = torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([1.5, 1.0, 0.1]).double()
    shift = torch.tensor([1.0, 2.0, -2.0]).double()
    white = normal(5000, 3)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T @ white / 4999)).T  # moments exactly 0, I
    x, y = white * sd @ axes.T, shift + white * other @ axes.T
    assert float(frechet(x, y)) == pytest.approx(9.0 + float((sd - other).square().sum()), rel=1e-9)
    from scipy.linalg import sqrtm

    z = white @ normal(3, 3, seed=5)
    a, b = Moments.of(x).cov, Moments.of(z).cov
    truth = float((a + b).trace()) - 2 * float(sqrtm((a @ b).numpy()).real.trace())
    assert float(frechet(x, z)) == pytest.approx(truth, rel=1e-9)


def test_frechet_in_features_and_with_fewer_samples_than_dimensions() -> None:
    x = normal(4, 9)
    assert float(frechet(x, x)) == pytest.approx(0.0, abs=1e-6)
    assert float(frechet(x, x + 2.0)) == pytest.approx(36.0, rel=1e-6)
    assert float(frechet(x, -x, features=lambda z: z.square())) == pytest.approx(0.0, abs=1e-6)
    assert float(frechet(x, 3.0 + x, features=lambda z: z[:, :2])) == pytest.approx(18.0, rel=1e-6)


def test_moments_by_batches() -> None:
    x = 1e4 + normal(101, 3)
    running = Moments.of(x[:7])
    for start in range(7, 101, 7):
        running = running.seen(x[start : start + 7])
    assert running.count == 101
    assert torch.allclose(running.mean, x.mean(0), rtol=1e-14)
    assert torch.allclose(running.cov, torch.cov(x.T), rtol=1e-10)
    assert float(frechet_of_moments(running, Moments.of(x))) == pytest.approx(0.0, abs=1e-8)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        _ = Moments.of(x[:1]).cov


def checkerboard(x: Tensor) -> Tensor:
    """1/2 on the squares of side 1/2 of [-1, 1]^2 whose column and row add to an even number."""
    cell = torch.floor(2.0 * x).sum(dim=1)
    return torch.where(cell.remainder(2.0) == 0.0, 0.5, 0.0).double()


def test_bin_masses_of_a_checkerboard_and_of_a_gaussian() -> None:
    masses = bin_masses(checkerboard)
    assert masses.shape == (50, 50) and float(masses.sum()) == pytest.approx(1.0, rel=1e-12)
    assert float(masses[3, 5]) == pytest.approx(0.5 * 0.04**2)
    assert float(masses[12, 5]) == pytest.approx(0.25 * 0.04**2)  # [-0.52, -0.48]: the edge halves it
    skew = bin_masses(lambda x: torch.exp(-0.5 * (x[:, 0] ** 2 + 4 * x[:, 1] ** 2)) / math.pi, bins=4)
    first = 0.5 * (math.erf(1 / math.sqrt(2)) - math.erf(0.5 / math.sqrt(2)))
    second = 0.5 * (math.erf(1.0 / math.sqrt(2)) - math.erf(0.0))
    assert float(skew[3, 2]) == pytest.approx(first * second, rel=1e-9)


def test_histogram_kl_of_known_histograms() -> None:
    masses = torch.tensor([[0.5, 0.3], [0.2, 0.0]], dtype=torch.float64)
    corners = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5], [3.0, 0.0]])

    def sample(*counts: int) -> Tensor:
        return corners.repeat_interleave(torch.tensor(counts), dim=0)

    assert float(histogram_kl(sample(5, 3, 2, 0, 0), masses).value) == pytest.approx(0.0, abs=1e-15)
    swapped = histogram_kl(sample(4, 0, 8, 4, 0), masses)
    truth = 0.5 * math.log(0.5 / 0.25) + 0.3 * math.log(0.3 / (0.5 / 16)) + 0.2 * math.log(0.2 / 0.5)
    assert float(swapped.value) == pytest.approx(truth)
    assert (swapped.empty, swapped.outside) == (1, 0.0)
    assert swapped.floor == 2 / 32
    lost = histogram_kl(sample(5, 3, 2, 0, 10), masses)
    assert float(lost.value) == pytest.approx(math.log(2.0)) and lost.outside == 0.5
    rest = histogram_kl(sample(5, 3, 2, 0, 30), masses / 2)  # half of the target is outside too
    assert float(rest.value) == pytest.approx(0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0))
    edge = histogram_kl(torch.ones(4, 2), torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert float(edge.value) == 0.0 and edge.outside == 0.0
    with pytest.raises(ValueError, match="sum of 2"):
        histogram_kl(torch.ones(4, 2), masses * 2)


def test_histogram_kl_of_perfect_samples_is_its_floor_and_of_wrong_ones_the_truth() -> None:
    """The checkerboard protocol itself: 64,000 samples, 50 x 50 bins."""
    rng = Streams(seed=0, index=torch.arange(64_000), dtype=torch.float64)
    u = 2.0 * rng.uniform("u", 2) - 1.0
    perfect = u.clone()
    perfect[:, 1] += torch.where(checkerboard(u) > 0, 0.0, 0.5)
    perfect[:, 1] -= torch.where(perfect[:, 1] > 1.0, 2.0, 0.0)
    masses = bin_masses(checkerboard)
    found = histogram_kl(perfect, masses)
    assert found.floor == pytest.approx((int((masses > 0).sum()) - 1) / 128_000)
    assert float(found.value) == pytest.approx(found.floor, rel=0.2)
    uniform = histogram_kl(u, masses)  # the divergence is log 2, less where an edge halves a bin
    p = masses[masses > 0]
    truth = float((p * torch.log(p / 0.04**2 * 4)).sum())
    assert 0.6 < truth < math.log(2.0)
    assert float(uniform.value) == pytest.approx(truth + uniform.floor * 2, abs=0.01)


def test_precision_and_recall_of_known_sets() -> None:
    x = normal(300, 2)
    assert precision_recall(x, x)[:2] == (1.0, 1.0) and precision_recall(x, x).coverage == 1.0
    assert precision_recall(x + 1e3, x) == (0.0, 0.0, 0.0, 0.0)
    half = torch.cat([x[:150], x[:150] + 1e3])
    found = precision_recall(half, x)
    assert found.precision == 0.5 and found.recall > 0.5
    twice = precision_recall(x[:150], torch.cat([x[:150], x[:150] + 1e3]))
    assert twice.precision == 1.0 and twice.recall == 0.5
    real, few = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([[0.9], [2.0], [20.0]])
    # k = 1: balls of real points reach 1, 1, 2, 4; balls of samples reach 1.1, 1.1, 18
    # 0.9 is in the balls of 0 and 1; 2 of 1 and 3; 20 of none. 0.9 holds 0, 1; 2 holds 1, 3; 20 holds 3, 7
    assert precision_recall(few, real, k=1) == (2 / 3, 1.0, 4 / 3, 3 / 4)
    with pytest.raises(ValueError, match="from 1 to 3 for 4 samples, got 4"):
        precision_recall(few.repeat(2, 1), real, k=4)


def test_density_of_equal_laws_is_one() -> None:
    found = precision_recall(normal(1500, 2), normal(1500, 2, seed=1), k=5)
    assert found.density == pytest.approx(1.0, abs=0.06)
    assert found.coverage == pytest.approx(1.0 - 0.5**5, abs=0.03)


def test_nearest_neighbour() -> None:
    train = normal(2500, 3)
    order = torch.randperm(2500, generator=torch.Generator().manual_seed(0))
    found = nearest(train[order] + torch.tensor([1e-6, 0.0, 0.0]), train)
    assert torch.equal(found.place, order)
    assert torch.allclose(found.distance, torch.full((2500,), 1e-6).double(), rtol=1e-5)
    copies = normal(20, 64)
    assert float(nearest(copies, copies).distance.max()) == 0.0
    images = nearest(torch.zeros(2, 1, 8, 8), torch.full((3, 1, 8, 8), 2.0))
    assert torch.allclose(images.distance, torch.full((2,), 16.0).double())


@pytest.mark.parametrize("metric", TWO_SAMPLE, ids=lambda m: m.__name__)
def test_two_sample_metrics_are_symmetric_and_vanish_only_for_equal_laws(metric: object) -> None:
    assert callable(metric)
    x, y, z = normal(200, 2), normal(200, 2, seed=1), 1.0 + normal(200, 2, seed=2)
    assert metric(x, z).dtype == torch.float64 and metric(x, z).ndim == 0
    assert float(metric(x, z)) == pytest.approx(float(metric(z, x)), rel=1e-9)
    assert float(metric(x, z)) > 3 * abs(float(metric(x, y)))
    images = metric(x.float().reshape(200, 1, 2), z.float().reshape(200, 1, 2))
    assert images.dtype == torch.float64 and float(images) == pytest.approx(float(metric(x, z)), rel=1e-5)
    with pytest.raises(ValueError, match="NaN"):
        metric(x, y * float("nan"))
    with pytest.raises(ValueError, match=r"200, 3\]|got 2 and 3"):
        metric(x, normal(200, 3))


@pytest.mark.parametrize("dim", [2, 40])
def test_pairs_in_chunks_are_all_pairs(dim: int) -> None:
    x, y = normal(53, dim), normal(31, dim, seed=1)
    full = (x.unsqueeze(1) - y).norm(dim=2)
    assert torch.allclose(distances(x, y), full, rtol=1e-9)
    mean = float(full.sqrt().mean())
    assert float(mean_over_pairs(torch.sqrt, x, y, chunk=10)) == pytest.approx(mean, rel=1e-9)
    own = (x.unsqueeze(1) - x).norm(dim=2)
    mean = float(torch.exp(-own)[~torch.eye(53, dtype=torch.bool)].mean())
    assert float(mean_over_pairs(lambda d: torch.exp(-d), x, chunk=10)) == pytest.approx(mean, rel=1e-9)


def test_rmse_sums_over_dimensions() -> None:
    x = normal(10, 12).reshape(10, 3, 4)
    assert float(rmse(x, x + 0.5)) == pytest.approx(0.5 * math.sqrt(12))
    with pytest.raises(ValueError, match=r"\[10, 3, 4\] and \[10, 12\]"):
        rmse(x, x.reshape(10, 12))


SYSTEM = Gaussian(torch.tensor([0.4, -0.7], dtype=torch.float64), 0.3)
EXACT = SYSTEM.flow_map()
TIMES = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)


class Leaning:
    """The exact map with c (t - s) more average velocity, so X gains c (t - s)^2 in each entry."""

    c = 0.1

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return EXACT.average(x, s, t, cond) + like(self.c * (t - s), x)

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return x + like(t - s, x) * self.average(x, s, t, cond)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.average(x, t, t, cond)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        return Output(self.average(x, s, t, cond), {})


def states() -> Tensor:
    x0, x1 = normal(16, 2), SYSTEM.sample(Streams(seed=1, index=torch.arange(16), dtype=torch.float64))
    return torch.stack([path(SYSTEM.interpolant, x0, x1, full_like_rows(float(t), x0))[0] for t in TIMES])


@pytest.mark.parametrize("velocity", [None, SYSTEM], ids=["own velocity", "exact velocity"])
def test_residuals_of_the_exact_map_vanish(velocity: Gaussian | None) -> None:
    found = residuals(EXACT, TIMES, states(), velocity)
    upper = torch.triu(torch.ones(4, 4, dtype=torch.bool))
    for matrix in (found.lagrangian, found.eulerian, found.semigroup):
        assert bool(matrix[~upper].isnan().all())
        assert float(matrix[upper].max()) < 1e-12


def test_residuals_of_a_leaning_map() -> None:
    """X = X* + c h^2 1: Lagrangian 2 c h - A_t c h^2 with b_t(x) = A_t x + .., Eulerian 2 c h, and the
    semigroup's c (h/2)^2 (1 + J_{m,t}) - c h^2 with J the slope of the affine exact map."""
    found = residuals(Leaning(), TIMES, states())
    c = Leaning.c
    one, zero = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    for i in range(4):
        for j in range(i, 4):
            s, t = TIMES[i : i + 1], TIMES[j : j + 1]
            h, m = float(t - s), (s + t) / 2
            slope = float((SYSTEM(one, t) - SYSTEM(zero, t))[0, 0])
            stretch = float((EXACT(one, m, t) - EXACT(zero, m, t))[0, 0])
            root = math.sqrt(2.0)
            rate = 2 * c * h - slope * c * h * h
            assert float(found.lagrangian[i, j]) == pytest.approx(root * abs(rate), abs=1e-12)
            assert float(found.eulerian[i, j]) == pytest.approx(root * 2 * c * h, abs=1e-12)
            gap = c * (h / 2) ** 2 * (1 + stretch) - c * h * h
            assert float(found.semigroup[i, j]) == pytest.approx(root * abs(gap), abs=1e-12)
