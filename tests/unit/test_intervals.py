"""KID, intervals, and Frechet distances of streams, resamples and endless samples, against truths."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from saltus.metrics import (
    Moments,
    bootstrap,
    frechet,
    frechet_at_infinity,
    frechet_of_moments,
    from_seeds,
    kid,
    kid_by_subsets,
    resamples,
)
from saltus.streams import Streams


def normal(count: int, dim: int, seed: int) -> Tensor:
    return Streams(seed, index=torch.arange(count), dtype=torch.float64).normal("x", dim)


def within(values: Tensor, truth: float) -> None:
    """The mean of independent values is within 4 standard errors."""
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / len(values) ** 0.5


def test_kid_by_hand() -> None:
    x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    within_x = ((1 / 2 + 1) ** 3 + (0 + 1) ** 3 + (2 / 2 + 1) ** 3) / 3
    across = ((2 / 2 + 1) ** 3 + (2 / 2 + 1) ** 3 + 1 + 3) / 6
    assert float(kid(x, y)) == pytest.approx(within_x + 1.0 - 2 * across, abs=1e-14)


def test_kid_is_unbiased_for_equal_laws_and_for_others() -> None:
    """On the line k = (xy + 1)^3, so the discrepancy is that of three moments: with y ~ N(m, 1),
    3 m^2 + 3 (m^2)^2 + (m^3 + 3 m)^2."""
    m = 0.4
    pairs = [(normal(15, 1, 2 * k), normal(10, 1, 2 * k + 1)) for k in range(600)]
    same = torch.stack([kid(x, y) for x, y in pairs])
    within(same, 0.0)
    assert 0.3 < float((same < 0).double().mean()) < 0.9
    within(torch.stack([kid(x, y + m) for x, y in pairs]), 3 * m**2 + 3 * m**4 + (m**3 + 3 * m) ** 2)


def test_kid_does_not_depend_on_the_order_or_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, 4, 0), 0.3 + normal(40, 4, 1)
    whole = float(kid(x, y))
    assert float(kid(x.flip(0), y)) == pytest.approx(whole, abs=1e-12)
    monkeypatch.setattr(sys.modules["saltus.metrics.kid"], "CHUNK", 7)
    assert float(kid(x, y)) == pytest.approx(whole, abs=1e-12)
    weights = torch.stack([torch.ones(50), torch.cat([torch.ones(25), torch.zeros(25)])])
    assert kid(x, y, weights).tolist() == pytest.approx([whole, float(kid(x[:25], y))], abs=1e-12)


def test_kid_by_subsets_estimates_the_same() -> None:
    x, y = normal(300, 3, 0), 0.2 + normal(300, 3, 1)
    found = kid_by_subsets(x, y, subsets=200, size=60)
    assert abs(found.value - float(kid(x, y))) < 4 * found.spread / 200**0.5
    assert kid_by_subsets(x, y, 3, 300).spread < 1e-12
    with pytest.raises(ValueError, match="2 to 300 rows"):
        kid_by_subsets(x, y, size=301)


def test_moments_of_a_stream_are_those_of_the_whole() -> None:
    f = 1e3 + normal(1000, 6, 0)
    stream = Moments.of(f[:1])
    for part in f[1:].split(37):
        stream = stream.seen(part)
    whole = Moments.of(f)
    assert stream.count == 1000
    assert float((stream.mean - f.mean(0)).abs().max()) < 1e-10
    assert float((stream.cov - torch.cov(f.T)).abs().max()) < 1e-10
    other = Moments.of(normal(300, 6, 1))
    one, two = (float(frechet_of_moments(m, other)) for m in (stream, whole))
    assert one == pytest.approx(two, rel=1e-10)


def test_weighted_moments_are_those_of_repeated_rows() -> None:
    f, w = normal(8, 3, 0), torch.tensor([0, 1, 2, 0, 3, 1, 1, 0])
    found, wanted = Moments.weighted(f, w), Moments.of(f.repeat_interleave(w, dim=0))
    assert found.count == wanted.count
    assert torch.allclose(found.mean, wanted.mean, atol=1e-14)
    assert torch.allclose(found.cov, wanted.cov, atol=1e-14)


def test_the_distance_at_infinity_has_lost_its_bias() -> None:
    dim = 12
    exact = Moments(2, torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64))  # cov = I
    samples = [0.1 + normal(400, dim, seed) for seed in range(40)]
    truth = dim * 0.1**2
    plain = torch.stack([frechet_of_moments(Moments.of(x), exact) for x in samples])
    assert float(plain.mean()) - truth > 15 * float(plain.std()) / 40**0.5
    endless = torch.tensor([frechet_at_infinity(x, exact) for x in samples])
    assert abs(float(endless.mean()) - truth) < 0.1 * (float(plain.mean()) - truth)


def test_bootstrap_intervals_cover() -> None:
    """90 % intervals of a Frechet distance hold its mean over samples in 80 to 97 % of 200 repetitions."""
    exact = Moments.of(normal(5000, 2, 10**6))
    truth = torch.stack(
        [frechet_of_moments(Moments.of(0.5 + 1.2 * normal(60, 2, 10**5 + k)), exact) for k in range(1500)]
    ).mean()
    hits = 0
    for k in range(200):
        f = 0.5 + 1.2 * normal(60, 2, k)

        def statistic(w: Tensor, f: Tensor = f) -> Tensor:
            return torch.stack([frechet_of_moments(Moments.weighted(f, row), exact) for row in w])

        found = bootstrap(statistic, 60, level=0.9, repeats=40, seed=k)
        assert found.value == pytest.approx(float(frechet_of_moments(Moments.of(f), exact)), rel=1e-9)
        hits += int(found.low < float(truth) < found.high)
    assert 160 <= hits <= 194


def test_students_intervals_cover() -> None:
    found = [from_seeds(normal(4, 1, seed).flatten().tolist(), 0.8) for seed in range(600)]
    share = sum(f.low < 0.0 < f.high for f in found) / len(found)
    assert abs(share - 0.8) < 4 * (0.8 * 0.2 / 600) ** 0.5
    one, two = from_seeds([0.0, 1.0], 0.5), from_seeds([float(k % 2) for k in range(1000)], 0.95)
    assert one.high - one.value == pytest.approx(0.5, rel=1e-6)  # t of one degree of freedom at 75 % is 1
    assert two.high - two.value == pytest.approx(1.9623 * (0.25 / 999) ** 0.5, rel=1e-4)
    for wrong in (lambda: from_seeds([1.0]), lambda: from_seeds([1.0, 2.0], 95.0)):
        with pytest.raises(ValueError):
            wrong()


def test_resamples_are_multinomial() -> None:
    w = resamples(20, 3000)
    assert bool((w.sum(1) == 20).all())
    within(w[:, 0], 1.0)
    within(w[:, 0] * w[:, 1], 20 * 19 / 20**2)  # E w_i w_j = n (n - 1) / n^2
    assert torch.equal(w[:5], resamples(20, 5))


def test_frechet_of_shifted_and_scaled_features_in_closed_form() -> None:
    x = normal(4000, 3, 0)
    x = (x - x.mean(0)) @ torch.linalg.cholesky(torch.linalg.inv(torch.cov(x.T)))  # mean 0, covariance I
    y = torch.tensor([1.0, 0.0, 2.0]) + x * torch.tensor([2.0, 0.5, 1.0])
    assert float(frechet(x, y)) == pytest.approx(5.0 + 1.0 + 0.25, rel=1e-9)
