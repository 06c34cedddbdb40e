"""Best-of-N search on Gaussians, where the law of the best is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saltus.exact import Gaussian, reference_mixture
from saltus.interpolants import VE
from saltus.legs import RK4
from saltus.maps import EulerMap
from saltus.samplers import Best, best_of, integrate, jumps, prior
from saltus.streams import Streams
from saltus.tensors import full_like_rows
from saltus.typing import Condition

MEAN = torch.tensor([0.7, -0.5], dtype=torch.float64)
COV = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
LAW = Gaussian(MEAN, COV)
EXACT = LAW.flow_map()
A = torch.tensor([1.0, -2.0], dtype=torch.float64)
ROWS = 4000
RNG = Streams(0, index=torch.arange(ROWS), dtype=torch.float64)


def linear(x: Tensor, cond: Condition | None = None) -> Tensor:
    return x @ A


def furthest(u: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of numbers from the uniform law, times the root of their count."""
    u = u.sort().values
    grid = torch.arange(1, len(u) + 1, dtype=torch.float64) / len(u)
    return math.sqrt(len(u)) * max(float((grid - u).max()), float((u - grid + 1 / len(u)).max()))


@pytest.mark.parametrize("n", [1, 2, 8, 32])
def test_the_best_linear_reward_is_the_largest_of_n_normals(n: int) -> None:
    """a . x1 is N(a . mean, a' C a), so the n-th power of its distribution is that of the best."""
    best = best_of(n, EXACT, linear, RNG, (2,))
    z = (best.score - A @ MEAN) / torch.sqrt(A @ COV @ A)
    assert furthest(torch.special.ndtr(z) ** n) < 1.63, "1 % of fair draws exceed 1.63"
    expected = {1: 0.0, 2: 1 / math.sqrt(math.pi), 8: 1.42360, 32: 2.06967}[n]
    assert abs(float(z.mean()) - expected) < 4 / math.sqrt(ROWS)
    other = {1: 2, 2: 3, 8: 7, 32: 24}[n]
    assert furthest(torch.special.ndtr(z) ** other) > 3.0, "a wrong count of candidates is seen"


def test_the_best_quadratic_reward_is_the_smallest_of_n_chi_squares() -> None:
    def near(x: Tensor, cond: Condition | None = None) -> Tensor:
        distance2: Tensor = ((x - MEAN) @ torch.linalg.inv(COV) * (x - MEAN)).sum(1)
        return -distance2

    best = best_of(8, EXACT, near, RNG, (2,))
    above = torch.exp(0.5 * best.score)  # P(chi^2 of 2 degrees > q) = exp(-q/2)
    assert furthest(1.0 - above**8) < 1.63


def test_noise_sample_and_score_belong_together() -> None:
    best = best_of(5, EXACT, linear, RNG, (2,))
    one = jumps(EXACT, best.noise, 1)
    assert torch.equal(best.sample, one) and torch.equal(best.score, linear(one))
    four = best_of(5, EXACT, linear, RNG, (2,), grid=4)
    assert torch.allclose(four.sample, best.sample, atol=1e-12), "an exact map needs one jump"


def test_the_first_candidate_is_the_plain_sample_and_more_never_hurt() -> None:
    rng = RNG.rows(torch.arange(50))
    found = [best_of(n, EXACT, linear, rng, (2,)) for n in (1, 2, 3, 8, 16)]
    assert torch.equal(found[0].noise, prior(rng, (2,)))
    for few, many in zip(found, found[1:], strict=False):
        assert bool((many.score >= few.score).all())
        same = many.score == few.score
        assert torch.equal(many.noise[same], few.noise[same])
    assert bool((found[-1].score > found[0].score).any())
    flat = best_of(16, EXACT, lambda x, cond: torch.zeros(len(x)), rng, (2,))
    assert torch.equal(flat.noise, found[0].noise), "of equal scores the first"


def test_a_sample_does_not_depend_on_its_batch_nor_on_memory() -> None:
    rng = RNG.rows(torch.arange(37))
    whole = best_of(11, EXACT, linear, rng, (2,), size=10_000)
    seen: list[int] = []

    def watched(x: Tensor, cond: Condition | None = None) -> Tensor:
        seen.append(len(x))
        return linear(x)

    for size in (1, 10, 37, 100, 407):
        seen.clear()
        found = best_of(11, EXACT, watched, rng, (2,), size=size)
        assert max(seen) <= size and sum(seen) == 37 * 11
        for a, b in zip(found, whole, strict=True):
            assert torch.allclose(a, b, atol=1e-14)
    alone = best_of(11, EXACT, linear, rng.rows(torch.tensor([20, 3])), (2,))
    assert torch.allclose(alone.sample, whole.sample[[20, 3]], atol=1e-14)


@pytest.mark.parametrize("size", [1, 8, 1024])
def test_of_equal_scores_the_first_counts(size: int) -> None:
    """Within one slice of candidates and across several; so it is plain sampling where nothing is better."""
    rng = Streams(3, index=torch.arange(4), dtype=torch.float64)
    best = best_of(6, EXACT, lambda x, cond: torch.zeros_like(x[:, 0]), rng, (2,), size=size)
    assert torch.equal(best.noise, prior(rng, (2,)))


def test_every_candidate_has_the_condition_of_its_sample() -> None:
    """The labelled mixture: each row's best stays in its class, and the reward sees the class too."""
    mixture = reference_mixture()
    label = torch.arange(23) % 4
    rng = Streams(3, index=torch.arange(23), dtype=torch.float64)
    student = EulerMap(mixture)

    def reward(x: Tensor, cond: Condition | None = None) -> Tensor:
        assert cond is not None and cond.label is not None
        return -(x - mixture.means[cond.label]).square().sum(1) + 100.0 * cond.label

    for size in (7, 23, 50, 1000):
        best = best_of(6, student, reward, rng, (2,), Condition(label=label), size=size)
        near = (best.sample - mixture.means[label]).square().sum(1)
        assert torch.allclose(best.score - 100.0 * label, -near)
        zero, one = full_like_rows(0.0, best.noise), full_like_rows(1.0, best.noise)
        jumped = student(best.noise, zero, one, Condition(label=label))
        assert torch.allclose(jumped, best.sample, atol=1e-12)


def test_the_teachers_sample_from_the_best_noise_is_the_students_if_both_are_exact() -> None:
    best = best_of(16, EXACT, linear, RNG.rows(torch.arange(64)), (2,))
    assert torch.allclose(integrate(LAW, best.noise, 64, RK4), best.sample, atol=1e-6)
    ve = VE(sigma_max=10.0)
    student = Gaussian(MEAN, COV, ve).flow_map()
    wide = best_of(4, student, linear, RNG.rows(torch.arange(64)), (2,), interpolant=ve)
    assert 7.0 < float(wide.noise.std()) < 14.0, "the prior of its own path"


def test_the_gain_of_an_imperfect_student_carries_over_to_its_teacher() -> None:
    """The exact map of another Gaussian as student: not the teacher's, and still it picks better noises.

    Both are affine in the noise, a . x1 = g . x0 + const for the teacher and f . x0 + const for the student,
    so of the student's gain E[max of n normals] |f| the teacher keeps g . f/|f|.
    """
    other = torch.tensor([[0.5, 0.6], [0.6, 0.9]], dtype=torch.float64)
    crooked = Gaussian(MEAN + 0.5, other).flow_map()
    best = best_of(8, crooked, linear, RNG, (2,))
    taught = linear(integrate(LAW, best.noise, 32, RK4))
    axes = torch.eye(2, dtype=torch.float64)
    zero, one = full_like_rows(0.0, axes), full_like_rows(1.0, axes)
    f, g = ((m(axes, zero, one) - m(0.0 * axes, zero, one)) @ A for m in (crooked, EXACT))
    gain = float(taught.mean() - A @ MEAN)
    kept = 1.42360 * float(g @ f / f.norm())
    assert gain > 0.5 and abs(gain - kept) < 4 * float(taught.std()) / math.sqrt(ROWS)
    assert kept < 0.9 * 1.42360 * float(g.norm()), "the student is imperfect"


def test_bad_rewards_are_named() -> None:
    rng = RNG.rows(torch.arange(4))
    wrong = {
        r"expected floating numbers of shape \[12\].* got torch.float64 of shape \[12, 2\]": lambda x, c: x,
        "got torch.int64": lambda x, c: torch.zeros(len(x), dtype=torch.int64),
        "got float": lambda x, c: 1.0,
        "reward: expected numbers, got NaN for 12 of 12 samples": lambda x, c: x[:, 0] * torch.nan,
    }
    for words, reward in wrong.items():
        with pytest.raises(ValueError, match=words):
            best_of(3, EXACT, reward, rng, (2,))
    refused = best_of(3, EXACT, lambda x, c: torch.where(x[:, 0] > 0.7, x[:, 1], -torch.inf), rng, (2,))
    assert isinstance(refused, Best)
    with pytest.raises(ValueError, match="n: expected at least one candidate"):
        best_of(0, EXACT, linear, rng, (2,))
    with pytest.raises(ValueError, match="size: expected a batch of at least 1"):
        best_of(3, EXACT, linear, rng, (2,), size=0)
