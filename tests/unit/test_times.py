"""Laws of times against their distributions, splits and steps against the published formulas."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from saltus.curricula import DoublingGap, KarrasGap, LogHyperbolic, Phases, Segments, SigmoidGap
from saltus.streams import Streams
from saltus.times import (
    Cells,
    Constant,
    Dyadic,
    Fraction,
    FromStart,
    Gaps,
    Grid,
    Karras,
    Law,
    LogitNormal,
    Lognormal,
    Midpoint,
    PairLaw,
    Ramp,
    Restricted,
    SigmoidAnneal,
    StepLaw,
    ToEnd,
    Triangle,
    Uniform,
    UniformSplit,
    UShaped,
    linear_time,
    trigonometric_time,
)

N = 20_000
RNG = Streams(1, index=torch.arange(N), dtype=torch.float64)
U = (torch.arange(N, dtype=torch.float64) + 0.5) / N
ZERO, HALF, ONE = torch.tensor(0.0), torch.tensor(0.5), torch.tensor(1.0)


def uniform_after(t: Tensor, cdf: object) -> bool:
    return bool(stats.kstest(t.numpy(), cdf).pvalue > 0.01)


def log_ratio(t: Tensor) -> Tensor:
    return torch.log((1.0 - t) / t)


LAWS: dict[str, Law] = {
    "uniform": Uniform(),
    "narrow": Uniform(0.2, 0.7),
    "logit-normal": LogitNormal(-0.4, 1.0),
    "lognormal": Lognormal(-1.1, 2.0),
    "lognormal-trigonometric": Lognormal(-1.0, 1.4, trigonometric_time),
    "karras": Karras(),
    "karras-trigonometric": Karras(time=trigonometric_time),
    "grid": Grid(128),
    "u-shaped": UShaped(),
}


def test_laws_have_their_distributions() -> None:
    """Each law at equidistant levels, transformed to a variable whose law is known."""
    z = {name: law(U) for name, law in LAWS.items()}
    assert float((z["narrow"] - (0.2 + 0.5 * U)).abs().max()) < 1e-14
    normal = torch.special.ndtri(U)
    assert torch.allclose(-log_ratio(z["logit-normal"]), -0.4 + normal, atol=1e-9)
    # noise-to-signal ratio exp(z): its logarithm is z, larger is noisier, so later times have less
    assert torch.allclose(log_ratio(z["lognormal"]), -1.1 + 2.0 * normal, atol=1e-9)
    angle = math.pi / 2 * z["lognormal-trigonometric"]
    assert torch.allclose(torch.log(torch.cos(angle) / torch.sin(angle)), -1.0 + 1.4 * normal, atol=1e-9)
    root = ((1 - z["karras"]) / z["karras"]) ** (1 / 7)
    assert torch.allclose(root, 80 ** (1 / 7) + U * (0.002 ** (1 / 7) - 80 ** (1 / 7)), atol=1e-10)
    assert torch.equal(z["grid"], torch.floor(U * 128) / 128) and len(set(z["grid"].tolist())) == 128


def test_u_shaped_times_have_the_density_cosh() -> None:
    a, t = 4.0, UShaped(4.0)(U)
    assert bool((t.diff() > 0).all()), "a law is a quantile function"
    width = t[1:] - t[:-1]
    middle = 0.5 * (t[1:] + t[:-1])
    norm = 2.0 * math.sinh(a / 2) / a
    density = torch.cosh(a * (middle - 0.5)) / norm
    assert torch.allclose(width * density * N, torch.ones(N - 1, dtype=torch.float64), rtol=1e-6)
    variance = float(((t - 0.5) ** 2).mean())
    exact = 0.25 - (1.0 / a) / math.tanh(a / 2) + 2.0 / a**2  # of cosh(a v) on [-1/2, 1/2]
    assert math.isclose(variance, exact, rel_tol=1e-6) and math.isclose(float(t.mean()), 0.5, abs_tol=1e-12)


def test_logit_normal_mirrors_a_source_whose_time_runs_backwards() -> None:
    assert torch.allclose(LogitNormal(0.4, 1.3)(U), (1.0 - LogitNormal(-0.4, 1.3)(U)).flip(0), atol=1e-12)


def test_times_of_a_noise_to_signal_ratio() -> None:
    sigma = torch.tensor([1e-3, 0.5, 1.0, 80.0], dtype=torch.float64)
    t = linear_time(sigma)
    assert torch.allclose((1 - t) / t, sigma, rtol=1e-12)
    angle = math.pi / 2 * trigonometric_time(sigma)
    assert torch.allclose(torch.cos(angle) / torch.sin(angle), sigma, rtol=1e-12)
    clock = Karras()
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert torch.allclose(clock.place(clock.sigma(u)), u, atol=1e-12)
    assert math.isclose(float(clock.sigma(ZERO)), 80.0, rel_tol=1e-5)
    assert math.isclose(float(clock.sigma(ONE.double())), 0.002, rel_tol=1e-9)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_laws_are_finite_times_at_the_ends_of_u(name: str, dtype: torch.dtype) -> None:
    u = torch.tensor([2.0**-53, 1e-9, 0.5, 1.0 - 2.0**-24, 1.0], dtype=dtype)  # 1 comes of rounding
    t = LAWS[name](u)
    assert t.dtype == dtype and bool(((t >= 0) & (t <= 1)).all())
    rise = LAWS[name](torch.linspace(0, 1, 500, dtype=dtype)).diff()
    assert bool((rise >= 0).all()) or bool((rise <= 0).all()), "strata of u are strata of the times"


PAIRS: dict[str, PairLaw] = {
    "triangle": Triangle(),
    "to-end": ToEnd(),
    "to-end-stratified": ToEnd(Uniform(), True),
    "from-start": FromStart(),
    "from-start-stratified": FromStart(Uniform(), True),
    "gaps": Gaps(Uniform(0.0, 1.0)),
    "restricted": Restricted(0.3),
    "dyadic": Dyadic(),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_are_ordered_and_belong_to_their_samples(name: str, dtype: torch.dtype) -> None:
    rng = Streams(3, index=torch.arange(N), dtype=dtype)
    s, t = PAIRS[name](rng)
    assert s.dtype == t.dtype == dtype and s.shape == t.shape == (N,)
    assert bool(((s >= 0) & (s <= t) & (t <= 1)).all())
    part = PAIRS[name](rng.rows(torch.tensor([7, 3])))
    assert torch.equal(part[0], s[[7, 3]]) and torch.equal(part[1], t[[7, 3]])


def test_pair_laws_have_their_distributions() -> None:
    s, t = Triangle()(RNG)
    assert uniform_after(1 - (1 - s) ** 2, "uniform") and uniform_after(t**2, "uniform")
    assert uniform_after(s / t, "uniform")
    s, t = Triangle(LogitNormal())(RNG)
    both = torch.cat([s, t])
    assert uniform_after(torch.logit(both), "norm")
    s, t = ToEnd(Uniform(0.2, 0.6))(RNG)
    assert bool((t == 1).all()) and uniform_after((s - 0.2) / 0.4, "uniform")
    s, t = FromStart(LogitNormal(0.5, 0.5))(RNG)
    assert bool((s == 0).all()) and uniform_after((torch.logit(t) - 0.5) / 0.5, "norm")
    s, t = Gaps(LogitNormal(-1.0, 1.0))(RNG)
    assert uniform_after(torch.logit(t - s) + 1.0, "norm") and uniform_after(s / (1 - (t - s)), "uniform")
    s, t = Restricted(0.3)(RNG)
    assert uniform_after(s, "uniform")
    assert uniform_after((t - s) / (1 - s).clamp(max=0.3), "uniform"), "t ~ U[s, min(1, s + span)], no atom"


def test_stratified_laws_are_even_over_the_batch() -> None:
    rng = Streams(5, index=torch.arange(512), dtype=torch.float64)
    ideal = (torch.arange(512) + 0.5) / 512
    for law in (ToEnd(Uniform(), True), FromStart(Uniform(), True)):
        s, t = law(rng)
        drawn = s if bool((t == 1).all()) else t
        assert float((drawn.sort().values - ideal).abs().max()) < 4 / 512


def test_dyadic_steps_are_exact_multiples_on_every_level() -> None:
    s, t = Dyadic(7)(RNG)
    gap = t - s
    level = -torch.log2(gap)
    assert torch.equal(level, level.round()) and torch.equal(s / gap, (s / gap).round())
    counts = torch.bincount(level.long())
    assert len(counts) == 7 and stats.chisquare(counts.numpy()).pvalue > 0.01
    cells = (s / gap)[level == 3].long()  # p is 0.007 as drawn, 0.45 over 300 other seeds pooled
    assert stats.chisquare(torch.bincount(cells, minlength=8).numpy()).pvalue > 0.001


def test_splits() -> None:
    t = torch.zeros(N, dtype=torch.float64)
    assert uniform_after(UniformSplit()(RNG, t), "uniform")
    assert bool((Midpoint()(RNG, t) == 0.5).all())
    single = Streams(1, index=torch.arange(4))
    assert UniformSplit()(single, t[:4]).dtype == torch.float64


STEPS: dict[str, StepLaw] = {
    "constant": Constant(0.05),
    "fraction": Fraction(SigmoidAnneal()),
    "karras": KarrasGap(),
    "sigmoid": SigmoidGap(),
    "doubling": DoublingGap(),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_positive_and_end_within_the_span(name: str, dtype: torch.dtype) -> None:
    s = torch.cat([torch.linspace(0, 0.999, 400), torch.linspace(0.999, 0.99999, 20)]).to(dtype)
    for t in (torch.ones_like(s), s + 0.3 * (1 - s)):
        for progress in torch.linspace(0, 1, 9):
            d = STEPS[name](s, t, progress)
            assert d.dtype == dtype and bool((d > 0).all()) and bool((d <= t - s).all())
    same = STEPS[name](s, s, HALF)
    assert bool((same == 0).all())


def test_constant_and_fractional_steps() -> None:
    s, t = torch.tensor([0.0, 0.5, 0.9]), torch.tensor([1.0, 0.75, 0.9375])
    assert torch.allclose(Constant(0.1)(s, t, ZERO), torch.tensor([0.1, 0.1, 0.0375]))
    assert torch.allclose(Fraction(lambda p: 1 - p / 2)(s, t, HALF), 0.75 * (t - s))


def test_the_sigmoid_step_is_the_published_one() -> None:
    """r = sigma (1 - n(sigma)/q^(stage + 1)), n = 1 + 8/(1 + exp(sigma)), clipped at 0 (arXiv 2406.14548)."""
    s = torch.linspace(1 / 81, 0.998, 200, dtype=torch.float64)
    sigma = (1 - s) / s
    for progress, stage in [(0.0, 0), (0.124, 0), (0.126, 1), (0.6, 4), (0.9999, 7), (1.0, 7)]:
        m = s + SigmoidGap()(s, torch.ones_like(s), torch.tensor(progress))
        r = sigma * (1 - (1 + 8 / (1 + torch.exp(sigma))) / 2 ** (stage + 1))
        assert torch.allclose((1 - m) / m, r.clamp(min=0.0), atol=1e-12), stage
    last = SigmoidGap()(torch.tensor([0.1], dtype=torch.float64), torch.ones(1, dtype=torch.float64), ONE)
    then = 0.1 + float(last)
    assert math.isclose((1 - then) / then / 9.0, 1 - (1 + 8 / (1 + math.exp(9.0))) / 256, rel_tol=1e-9)


def test_the_karras_step_is_one_cell_of_the_papers_grid() -> None:
    """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 points (arXiv 2303.01469)."""
    for progress, n in [(0.0, 2), (0.001, 6), (0.25, 76), (0.5, 107), (1.0, 151)]:
        assert n == math.ceil(math.sqrt(progress * (151**2 - 4) + 4) - 1) + 1
        high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
        place = torch.arange(n, dtype=torch.float64) / (n - 1)
        sigma = (high + place * (low - high)) ** 7
        s = 1 / (1 + sigma[:-1])
        m = s + KarrasGap()(s, torch.ones_like(s), torch.tensor(progress))
        inner = slice(0, n - 2)
        assert torch.allclose(((1 - m) / m)[inner], sigma[1:-1][inner], rtol=1e-9)
        assert float(m[-1]) == pytest.approx(1.0, abs=2.1e-3)  # sigma_min or, past it, the data
    # a row within the last cell goes to the data itself
    s = linear_time(Karras().sigma(torch.tensor([1 - 0.5 / 150], dtype=torch.float64)))
    assert float(s + KarrasGap()(s, torch.ones_like(s), ONE)) == 1.0


def test_schedules() -> None:
    p = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha = SigmoidAnneal()(p)
    inner = torch.sigmoid(-25 * (p - 0.5))
    assert torch.allclose(alpha[30:70], inner[30:70], atol=1e-14)
    assert float(alpha[0]) == 1.0 and float(alpha[-1]) == 0.005 and bool((alpha.diff() <= 0).all())
    kept = (inner <= 0.995) & (inner >= 0.005)
    assert torch.allclose(alpha[kept], inner[kept]) and bool((alpha[inner > 0.995] == 1.0).all())
    assert [float(Ramp(0.2)(x)) for x in (ZERO, torch.tensor(0.1), HALF)] == [0.0, 0.5, 1.0]
    for schedule in (SigmoidAnneal(), Ramp()):
        assert schedule(HALF).shape == ()


def test_the_doubling_step_is_one_cell_of_the_improved_grid() -> None:
    """N(k) = min(s0 2^floor(k/K'), s1) + 1 levels, K' = K/(log2(s1/s0) + 1) (arXiv 2310.14189)."""
    found = {0.0: 10, 0.124: 10, 0.126: 20, 0.49: 80, 0.51: 160, 0.99: 1280, 1.0: 1280}
    for progress, cells in found.items():
        high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
        sigma = (high + torch.arange(cells, dtype=torch.float64) / cells * (low - high)) ** 7
        s = 1 / (1 + sigma[:-1])
        m = s + DoublingGap()(s, torch.ones_like(s), torch.tensor(progress))
        assert torch.allclose((1 - m) / m, sigma[1:], rtol=1e-7), progress
    with pytest.raises(ValueError, match="1 <= first <= last"):
        DoublingGap(first=20, last=10)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_phases_end_at_their_edge_and_segments_within(count: int) -> None:
    s, t = Phases(count)(RNG)
    assert uniform_after(s, "uniform")
    assert torch.equal(t * count, torch.floor(s * count) + 1.0)
    s, m = Segments(count)(RNG)
    assert torch.equal(s, Phases(count)(RNG)[0])
    assert uniform_after((m - s) / (t - s), "uniform")
    for wrong in (Phases, Segments):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            wrong(0)
    ends = Phases(4, lambda u: torch.ones_like(u))(RNG)
    assert torch.equal(*ends), "at the data there is no way left"


def test_one_phase_is_to_the_end_and_one_segment_any_time_after() -> None:
    for stratified in (False, True):
        (s, t), (same, one) = Phases(1, Uniform(), stratified)(RNG), ToEnd(Uniform(), stratified)(RNG)
        assert torch.equal(s, same) and torch.equal(t, one)
    s, t = Segments(1)(RNG)
    assert uniform_after(s, "uniform") and uniform_after((t - s) / (1 - s), "uniform")


def test_noise_levels_follow_the_cut_student_law() -> None:
    """Quantiles against the density (1 + z^2/df)^(-(df + 1)/2) on [log 1, log 80], by summation."""
    law = LogHyperbolic(0.0, 0.2, 0.01, 1.0, 80.0)
    t = law(U)
    assert float(t[0]) == pytest.approx(1 / 81, rel=1e-2) and float(t[-1]) == pytest.approx(0.5, rel=1e-4)
    assert bool((t.diff() > 0).all())
    z = torch.linspace(0.0, math.log(80.0) / 0.2, 200_001, dtype=torch.float64)
    density = (1.0 + z.square() / 0.01) ** (-0.505)
    cdf = density.cumsum(0) / density.sum()
    for q in (0.1, 0.5, 0.9):
        exact = float(z[torch.searchsorted(cdf, q)])
        ours = float(torch.log((1 - t) / t).quantile(q)) / 0.2
        assert math.asinh(ours / 0.1) == pytest.approx(math.asinh(exact / 0.1), abs=0.06)
    with pytest.raises(ValueError, match="low < high"):
        LogHyperbolic(0.0, 0.2, 0.01, 80.0, 1.0)


def test_cells_of_a_grid_are_at_least_one() -> None:
    s, t = Cells(2)(RNG)
    assert set(s.tolist()) == {0.0, 0.5} and torch.equal(t, s + 0.5)
    with pytest.raises(ValueError, match="cells: expected at least 1, got 0"):
        Cells(0)
