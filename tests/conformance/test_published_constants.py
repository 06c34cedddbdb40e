"""Defaults against the constants in print, converted here by hand from each paper's own time and units."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saltus.games import Follow, Game
from saltus.interpolants import Linear
from saltus.maps import AverageVelocity
from saltus.methods import load
from saltus.methods.imm import Evidence
from saltus.nn import MLP
from saltus.streams import Streams
from saltus.times import Midpoint, UniformSplit
from saltus.typing import Gradient
from saltus.weights import AdaptivePower, Span, Squared

U = torch.linspace(0.001, 0.999, 401, dtype=torch.float64)
Z = torch.special.ndtri(U)


def default(name: str, option: str) -> object:
    """The default of an option of a method's function."""
    value: object = inspect.signature(load(name).build).parameters[option].default
    return value


def law(name: str) -> Callable[[Tensor], Tensor]:
    """The default law of times of a method."""
    times = default(name, "times")
    assert callable(times)
    return times


def decay(name: str) -> float:
    """Of the moving average that a method keeps by default."""
    student = AverageVelocity(MLP((2,), width=8, depth=1))
    game = load(name).build(student)
    assert isinstance(game, Game)
    (follow,) = game.moves[0].after
    assert isinstance(follow, Follow) and follow.source is student
    return follow.decay


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("lsd", "eta", 0.75),
        ("lsd", "gradient", Gradient.TIME),
        ("esd", "eta", 0.75),
        ("esd", "gradient", Gradient.TIME),
        ("psd", "eta", 0.75),
        ("psd", "gradient", Gradient.TARGET),
        ("psd", "split", UniformSplit()),
        ("psd_midpoint", "split", Midpoint()),
        ("split_mean_flow", "split", UniformSplit()),
        ("mean_flow", "diagonal", 0.75),
        ("mean_flow", "weight", AdaptivePower(p=1.0, c=0.01)),
        ("improved_mean_flow", "diagonal", 0.5),
        ("improved_mean_flow", "weight", AdaptivePower(p=1.0, c=0.01)),
        ("shortcut", "bootstrap", 1 / 8),
        ("shortcut", "levels", 1 + math.log2(128)),
        ("shortcut", "clip", 4.0),
        ("tvm", "weight", Squared()),
    ],
)
def test_shares_weights_and_gradients(name: str, option: str, value: object) -> None:
    assert default(name, option) == value


@pytest.mark.parametrize("name", ["mean_flow", "improved_mean_flow", "alpha_flow"])
def test_logit_normal_times_are_mirrored(name: str) -> None:
    """Theirs is sigmoid(-0.4 + z) with noise at 1: the median lies nearer to data."""
    theirs = torch.sigmoid(-0.4 + Z)
    assert torch.allclose(law(name)(U), (1.0 - theirs).flip(0), atol=1e-12)
    assert float(law(name)(torch.tensor(0.5))) > 0.5


def test_tvm_draws_gaps_and_ends_as_its_authors() -> None:
    """Theirs, noise at 1: gap ~ sigmoid(N(-0.8, 1)), the end s ~ sigmoid(N(-0.4, 1)) drawn again until
    s < 1 - gap, t = s + gap."""
    s, t = default("tvm", "pairs")(Streams(3, index=torch.arange(40_000), dtype=torch.float64))  # type: ignore[operator]
    rng = torch.Generator().manual_seed(4)
    gap = torch.sigmoid(-0.8 + torch.randn(40_000, generator=rng).double())
    end = torch.full_like(gap, 2.0)
    while bool((again := end >= 1.0 - gap).any()):
        end = torch.where(again, torch.sigmoid(-0.4 + torch.randn(40_000, generator=rng).double()), end)
    assert bool((s >= 0.0).all()) and bool((t <= 1.0).all())
    for ours, theirs in ((t - s, gap), (1.0 - t, end), ((1.0 - t) * (t - s), end * gap)):
        assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=0.005)
        assert float(ours.std()) == pytest.approx(float(theirs.std()), abs=0.005)
    assert torch.allclose(law("tvm")(U), (1.0 - torch.sigmoid(-0.4 + Z)).flip(0), atol=1e-12)


def test_ect_draws_the_noise_level_of_edm() -> None:
    """log sigma ~ N(-1.1, 2^2), sigma = (1 - t)/t."""
    t = law("ect")(U)
    assert torch.allclose(torch.log((1.0 - t) / t), -1.1 + 2.0 * Z, atol=1e-9)


def test_scm_draws_the_angle_of_the_paper_at_its_scale() -> None:
    """a = atan(e^tau / 0.5), tau ~ N(-1, 1.4^2), for data and noise of s.d. 0.5: angles have no units."""
    times = load("scm").build(AverageVelocity(MLP((2,), width=8, depth=1))).times.law
    angle = torch.atan(torch.exp(-1.0 + 1.4 * Z) / 0.5)
    assert torch.allclose((math.pi / 2.0) * (1.0 - times(U)), angle, atol=1e-12)
    warm_up = default("scm", "warm_up")
    assert callable(warm_up)
    assert [float(warm_up(torch.tensor(p))) for p in (0.0, 0.05, 0.1, 1.0)] == [0.0, 0.5, 1.0, 1.0]


def test_consistency_training_walks_the_grid_of_edm() -> None:
    """sigma^(1/7) uniform from 80 to 0.002."""
    t = law("consistency_training")(U)
    root = ((1.0 - t) / t) ** (1.0 / 7.0)
    high, low = 80.0 ** (1.0 / 7.0), 0.002 ** (1.0 / 7.0)
    assert torch.allclose(root, high + U * (low - high), atol=1e-9)


def test_decays_of_moving_averages() -> None:
    """Consistency training: mu = exp(s0 log(mu0) / N), s0 = 2, mu0 = 0.9, N = 150."""
    assert decay("shortcut") == 0.999
    assert decay("consistency_training") == pytest.approx(0.9 ** (2 / 150), rel=1e-12)
    assert decay("tvm") == 0.99


@pytest.mark.parametrize(("a", "b"), [(1.0, 5.0), (2.0, 4.0)])
def test_imm_weights_times_by_its_evidence_bound(a: float, b: float) -> None:
    """1/2 sigmoid(b - l) (dl/ds) beta^a/(alpha^2 + beta^2), the log-SNR l = log(beta^2/alpha^2) of the
    interpolant and its slope by autograd."""
    s = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    c = Linear()(s)
    log_snr = torch.log(c.beta.square() / c.alpha.square())
    (slope,) = torch.autograd.grad(log_snr.sum(), s, retain_graph=True)
    wanted = 0.5 * torch.sigmoid(b - log_snr) * slope * c.beta**a / (c.alpha.square() + c.beta.square())
    assert torch.allclose(Evidence(a, b)(Span(s, torch.ones_like(s))), wanted, rtol=1e-12)
