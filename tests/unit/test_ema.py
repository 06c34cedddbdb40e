"""Power-function averages against closed forms, and any profile from two that were stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from saltus.training import (
    EMA,
    PowerEMA,
    PowerProfile,
    Snapshot,
    blend,
    load_snapshots,
    reconstruct,
    save_weights,
)
from saltus.training.posthoc import WIDEST


class Point(nn.Module):
    """A parameter, a counter and a running value, all set by hand."""

    def __init__(self, size: int = 1, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((size,), math.nan, dtype=dtype))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def put(self, value: Tensor | float) -> None:
        self.w.copy_(torch.as_tensor(value))
        self.get_buffer("seen").add_(1)


def follow(values: Tensor, sigma_rel: Sequence[float], every: int) -> tuple[Point, PowerEMA, list[Snapshot]]:
    """Averages of w(t) = values[t - 1], with snapshots every so many steps."""
    net = Point(values.shape[1], values.dtype)
    power, snapshots = PowerEMA(net, sigma_rel), []
    for t, value in enumerate(values, 1):
        net.put(value)
        power.update()
        if t % every == 0:
            snapshots += power.snapshot()
    return net, power, snapshots


def walks(steps: int, size: int = 64) -> Tensor:
    """Random walks of unit variance at the end, far from zero."""
    generator = torch.Generator().manual_seed(0)
    steps_ = torch.randn(steps, size, dtype=torch.float64, generator=generator)
    return 3.0 + steps_.cumsum(0) / math.sqrt(steps)


def test_exponents_are_the_published_ones_and_round_trip() -> None:
    assert PowerProfile(0.05).gamma == pytest.approx(16.97, abs=5e-3)  # arXiv 2312.02696, section 3.1
    assert PowerProfile(0.10).gamma == pytest.approx(6.94, abs=5e-3)
    assert PowerProfile(WIDEST).gamma == pytest.approx(0.0, abs=1e-14)
    for gamma in (1e-3, 0.1, 1.0, 2.0, 6.94, 16.97, 100.0, 1e4, 1e7):
        assert PowerProfile.of_gamma(gamma).gamma == pytest.approx(gamma, rel=2e-12)
    for sigma_rel in (1e-6, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.28, WIDEST):
        gamma = PowerProfile(sigma_rel).gamma
        assert PowerProfile.of_gamma(gamma).sigma_rel == pytest.approx(sigma_rel, rel=1e-14)
        r = sigma_rel**-2
        roots = np.roots([1.0, 7.0, 16.0 - r, 12.0 - r])
        assert gamma == pytest.approx(roots.real.max(), rel=1e-7, abs=1e-12)


def test_width_is_the_standard_deviation_of_the_shares() -> None:
    t, i = 20_000, torch.arange(1, 20_001, dtype=torch.float64)
    for sigma_rel in (0.02, 0.1, 0.25):
        share = torch.tensor([PowerProfile(sigma_rel)(int(k)) for k in i - 1], dtype=torch.float64)
        kept = torch.cat([torch.log1p(-share[1:]).flip(0).cumsum(0).flip(0), torch.zeros(1).double()]).exp()
        weight = share * kept
        assert float(weight.sum()) == pytest.approx(1.0, rel=1e-11)
        mean = (weight * i).sum()
        spread = (weight * (i - mean) ** 2).sum().sqrt() / t
        assert float(spread) == pytest.approx(sigma_rel, rel=1e-6)


def test_average_of_whole_exponent_is_a_polynomial_at_every_step() -> None:
    """w(i) = i: gamma = 0 gives (t + 1)/2, gamma = 1 gives (t + 1)(4 t - 1)/(6 t)."""
    net = Point()
    mean, ramp = (EMA(net, PowerProfile.of_gamma(gamma)) for gamma in (0.0, 1.0))
    for t in range(1, 400):
        net.put(float(t))
        mean.update()
        ramp.update()
        assert float(mean.module.get_parameter("w")) == pytest.approx((t + 1) / 2, rel=1e-12)
        assert float(ramp.module.get_parameter("w")) == pytest.approx(
            (t + 1) * (4 * t - 1) / (6 * t), rel=1e-12
        )


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.1, 0.2, WIDEST])
def test_average_is_the_sum_in_closed_form_at_every_step(sigma_rel: float) -> None:
    """The shares ((i/t)^(gamma + 1) - ((i - 1)/t)^(gamma + 1)) of arbitrary weights."""
    values = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 2.0
    net = Point(5)
    ema, g = EMA(net, PowerProfile(sigma_rel)), PowerProfile(sigma_rel).gamma + 1.0
    for t, value in enumerate(values, 1):
        net.put(value)
        ema.update()
        edges = (torch.arange(t + 1, dtype=torch.float64) / t) ** g
        truth = edges.diff() @ values[:t]
        torch.testing.assert_close(ema.module.get_parameter("w").data, truth, rtol=1e-12, atol=1e-13)
        if t == 1:
            assert torch.equal(ema.module.get_parameter("w"), value)  # a copy: no trace of the NaNs before


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_average_of_a_polynomial_tends_to_its_integral(degree: int) -> None:
    """w(tau) = (tau/T)^n: (gamma + 1)/(gamma + 1 + n), to first order in 1/T."""
    g = PowerProfile(0.1).gamma + 1.0
    errors = []
    for steps in (250, 500, 1000):
        values = (torch.arange(1, steps + 1, dtype=torch.float64) / steps)[:, None] ** degree
        _, power, _ = follow(values, (0.1,), steps)
        errors.append(float(power.averages[0.1].module.get_parameter("w")) - g / (g + degree))
    assert 0.0 < errors[0] < degree / 250
    assert [a / b for a, b in zip(errors, errors[1:], strict=False)] == pytest.approx([2.0, 2.0], abs=0.05)


@pytest.mark.parametrize(
    ("wanted", "bounds"),
    [
        (0.03, (2.4e-2, 9.7e-3, 1.6e-3, 1.2e-4)),
        (0.075, (3.4e-3, 7.4e-4, 8.8e-5, 5.5e-6)),
        (0.15, (7.4e-3, 1.2e-3, 1.5e-4, 9.1e-6)),
        (0.2, (2.2e-2, 6.2e-3, 1.4e-3, 1.5e-4)),
    ],
)
def test_reconstruction_agrees_with_the_tracked_average(wanted: float, bounds: tuple[float, ...]) -> None:
    """Two widths stored 4, 8, 16, 40 times over walks of unit spread: the measured error plus a quarter."""
    steps = 1920
    values = walks(steps)
    _, tracked, _ = follow(values, (wanted,), steps)
    truth = tracked.averages[wanted].module.get_parameter("w").detach()
    for count, bound in zip((4, 8, 16, 40), bounds, strict=True):
        _, _, snapshots = follow(values, (0.05, 0.10), steps // count)
        assert len(snapshots) == 2 * count
        assert float((reconstruct(snapshots, wanted, tolerance=0.3)["w"] - truth).std()) < 1.25 * bound


def test_reconstruction_ends_at_any_stored_step() -> None:
    values = walks(1000)
    _, _, snapshots = follow(values, (0.05, 0.10), 50)
    for end, tolerance, bound in ((500, 0.03, 2e-3), (1000, 0.01, 1e-3), (735, 0.25, 2e-2)):
        _, tracked, _ = follow(values[:end], (0.15,), end)
        truth = tracked.averages[0.15].module.get_parameter("w").detach()
        state = reconstruct(snapshots, 0.15, end, tolerance)
        assert float((state["w"] - truth).std()) < bound
        assert int(state["seen"]) == end // 50 * 50
    with pytest.raises(ValueError, match="one of their steps"):
        reconstruct(snapshots, 0.15, step=735)


def test_constant_weights_and_stored_profiles_come_back_exactly() -> None:
    _, power, snapshots = follow(torch.full((120, 3), 7.5, dtype=torch.float64), (0.05, 0.10), 30)
    state = reconstruct(snapshots, 0.2, tolerance=1.0)
    torch.testing.assert_close(state["w"], torch.full((3,), 7.5, dtype=torch.float64), rtol=1e-13, atol=0.0)
    _, power, snapshots = follow(walks(120, 3), (0.05, 0.10), 30)
    for sigma_rel, average in power.averages.items():
        state = reconstruct(snapshots, sigma_rel)
        torch.testing.assert_close(state["w"], average.module.get_parameter("w").data, rtol=1e-11, atol=0.0)
    twice = reconstruct([*snapshots, *snapshots], 0.07)  # a resumed run stores some again
    torch.testing.assert_close(twice["w"], reconstruct(snapshots, 0.07)["w"], rtol=1e-10, atol=0.0)


def test_blend_is_the_least_squares_fit() -> None:
    """Against integrals by quadrature: the mismatch, and that no other shares of sum one do better."""
    stored = [(s, t) for t in (20, 45, 60, 100) for s in (0.05, 0.15)]
    edges = torch.linspace(0.0, 100.0, 200_001, dtype=torch.float64)
    tau = 0.5 * (edges[1:] + edges[:-1])

    def profile(sigma_rel: float, t: int) -> Tensor:
        g = PowerProfile(sigma_rel).gamma
        return torch.where(tau <= t, (g + 1) * (tau / t) ** g / t, 0.0)

    stack, wanted = torch.stack([profile(*s) for s in stored]), profile(0.11, 90)
    shares, mismatch = blend(stored, 0.11, 90)

    def miss(x: Tensor) -> float:
        return float((wanted - x @ stack).norm() / wanted.norm())

    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-13)
    assert mismatch == pytest.approx(miss(shares), rel=1e-3)
    for generator in map(torch.Generator().manual_seed, range(20)):
        other = torch.randn(len(stored), dtype=torch.float64, generator=generator)
        for size in (1e-2, -1e-2):
            assert miss(shares + size * (other - other.mean())) > miss(shares)


def test_float32_loses_nothing_to_cancellation() -> None:
    values = walks(1000)
    exact = reconstruct(follow(values, (0.05, 0.10), 25)[2], 0.15)["w"]
    _, _, snapshots = follow(values.float(), (0.05, 0.10), 25)
    rounded = reconstruct(snapshots, 0.15)["w"]
    torch.testing.assert_close(rounded.double(), exact, rtol=5e-6, atol=0.0)
    shares = blend([(s.sigma_rel, s.step) for s in snapshots], 0.15, 1000).shares
    total = sum(float(x) * s.weights["w"].double() for x, s in zip(shares, snapshots, strict=True))
    assert isinstance(total, Tensor) and torch.equal(rounded, total.float())


def test_tied_weights_stay_weights(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    net["b"].weight = net["a"].weight
    power = PowerEMA(net)
    for _ in range(2):
        power.update()
    (snapshot, _) = power.snapshot()
    power.save(tmp_path / "tied.safetensors")
    for s in (snapshot, *load_snapshots(tmp_path / "tied.safetensors")):
        assert set(s.weights) == {"a.weight", "b.weight"} and not s.buffers
    assert len(list(power.averages[0.05].module.parameters())) == 1


def test_snapshots_survive_the_disk(tmp_path: Path) -> None:
    net = Point(4)
    power, kept, paths = PowerEMA(net), [], []
    for t, value in enumerate(walks(300, 4), 1):
        net.put(value)
        power.update()
        if t % 30 == 0:
            kept += power.snapshot()
            paths.append(tmp_path / f"{t}.safetensors")
            power.save(paths[-1])
    read = [s for path in paths for s in load_snapshots(path)]
    assert [(s.sigma_rel, s.step) for s in read] == [(s.sigma_rel, s.step) for s in kept]
    expected, state = reconstruct(kept, 0.13), reconstruct(read, 0.13)
    assert state.keys() == expected.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    net.load_state_dict(state)
    assert int(net.get_buffer("seen")) == 300
    save_weights(tmp_path / "other.safetensors", {"net": net}, {})
    with pytest.raises(ValueError, match="expected snapshots of a PowerEMA"):
        load_snapshots(tmp_path / "other.safetensors")


def test_an_update_is_one_fused_call_a_width_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    lerp = torch._foreach_lerp_

    def counted(averages: list[Tensor], weights: list[Tensor], share: float) -> None:
        calls.append(len(averages))
        lerp(averages, weights, share)

    monkeypatch.setattr(torch, "_foreach_lerp_", counted)
    # A tensor of the meta device has no numbers: whoever reads one in an update raises.
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).to("meta")
    power = PowerEMA(net, (0.05, 0.10, 0.2))
    for _ in range(3):
        power.update()
    assert calls == [6] * 6  # the first update of each is a copy
    assert all(not p.requires_grad for a in power.averages.values() for p in a.module.parameters())


def test_parameters_that_are_replaced_before_the_first_update_are_followed() -> None:
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, PowerProfile(0.1))
    net.weight = nn.Parameter(torch.tensor([[5.0]]))  # as sharding does
    ema.update()
    assert float(ema.module.get_parameter("weight")) == 5.0


def test_several_rates_at_once() -> None:
    net = Point()
    net.put(0.0)
    rates = (0.5, 0.9, 0.99)
    averages = [EMA(net, rate, warmup=False) for rate in rates]
    net.put(1.0)
    for k in range(1, 6):
        for ema, rate in zip(averages, rates, strict=True):
            ema.update()
            assert float(ema.module.get_parameter("w")) == pytest.approx(1.0 - rate**k, rel=1e-13)


def test_refusals() -> None:
    net = Point()
    fresh = PowerEMA(net)
    _, _, snapshots = follow(walks(100, 2), (0.05, 0.10), 50)
    _, _, others = follow(walks(100, 3), (0.05, 0.10), 50)
    for words, call in (
        ("sigma_rel.*0.2887", lambda: PowerProfile(0.3)),
        ("sigma_rel", lambda: PowerProfile(0.0)),
        ("sigma_rel", lambda: PowerProfile(math.nan)),
        ("gamma", lambda: PowerProfile.of_gamma(-0.5)),
        ("different widths", lambda: PowerEMA(net, ())),
        ("different widths", lambda: PowerEMA(net, (0.1, 0.1))),
        ("at least one update", fresh.snapshot),
        ("step.*from 1 to 100", lambda: reconstruct(snapshots, 0.1, step=101)),
        ("step", lambda: reconstruct([], 0.1)),
        ("miss by", lambda: reconstruct(snapshots, 0.01)),
        ("same tensors", lambda: reconstruct([*snapshots, *others], 0.1)),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "expected" in str(caught.value) and "\n" not in str(caught.value)
