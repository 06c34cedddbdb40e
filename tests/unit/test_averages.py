"""Schedules, averages of weights and initial weights in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from saltus.training import (
    EMA,
    Constant,
    Cosine,
    InverseSqrt,
    initialised,
)


def test_schedules() -> None:
    def at(schedule: Callable[[Tensor], Tensor], p: float) -> float:
        return float(schedule(torch.tensor(p, dtype=torch.float64)))

    assert at(Constant(), 0.3) == 1.0
    assert [at(Constant(warmup=0.5), p) for p in (0.0, 0.125, 0.5, 0.9)] == [0.0, 0.25, 1.0, 1.0]
    cosine = Cosine(warmup=0.2, floor=0.1)
    assert at(cosine, 0.1) == pytest.approx(0.5, rel=1e-15)
    assert at(cosine, 0.2) == pytest.approx(1.0, rel=1e-15)
    assert at(cosine, 0.4) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, rel=1e-14)
    assert at(cosine, 1.0) == pytest.approx(0.1, rel=1e-14)
    root = InverseSqrt(hold=0.04, warmup=0.02)
    assert at(root, 0.01) == pytest.approx(0.5, rel=1e-15)
    assert [at(root, p) for p in (0.03, 0.04, 0.16, 0.64)] == pytest.approx([1.0, 1.0, 0.5, 0.25], rel=1e-14)
    never = InverseSqrt.in_steps(steps=1000, hold=35_000)  # a run that ends before the fall
    assert [at(never, p) for p in (0.0, 0.5, 0.999)] == [1.0, 1.0, 1.0]
    for wrong in (lambda: Constant(warmup=1.0), lambda: Cosine(floor=2.0), lambda: InverseSqrt(hold=0.0)):
        with pytest.raises(ValueError, match="expected"):
            wrong()


def test_inverse_root_is_that_of_the_papers_at_every_step() -> None:
    """arXiv 2505.18825: lr/sqrt(max(k/35000, 1)); arXiv 2312.02696 counts images, warm-up over 10 million."""
    images, batch = 10e6, 2048
    for steps in (20_000, 400_000):
        plain = InverseSqrt.in_steps(steps, hold=35_000)
        karras = InverseSqrt.in_steps(steps, hold=70_000, warmup=round(images / batch))
        for k in (0, 1, 999, 4882, 4884, 34_999, 35_000, 35_001, 69_999, 140_000, 399_999):
            if k >= steps:
                continue
            progress = torch.tensor(k / steps, dtype=torch.float64)
            assert float(plain(progress)) == pytest.approx(1 / math.sqrt(max(k / 35_000, 1)), rel=1e-14)
            rate = min(k * batch / images, 1) / math.sqrt(max(k * batch / (70_000 * batch), 1))
            assert float(karras(progress)) == pytest.approx(rate, rel=1e-4)  # the warm-up in whole steps


def test_average_of_weights_in_closed_form() -> None:
    net = nn.BatchNorm1d(1, affine=True, dtype=torch.float64)
    decay, updates = 0.9, 30
    with torch.no_grad():
        net.weight.fill_(-3.0)
    ema, warm = EMA(net, decay, warmup=False), EMA(net, decay)
    rates, truth = [min(decay, (1 + k) / (10 + k)) for k in range(updates)], -3.0
    for k in range(updates):
        with torch.no_grad():
            net.weight.fill_(float(k))
            net.running_mean.fill_(float(k))  # type: ignore[union-attr]
        ema.update()
        warm.update()
        truth = rates[k] * truth + (1 - rates[k]) * k
    geometric = decay**updates * -3.0 + sum(
        (1 - decay) * decay ** (updates - 1 - k) * k for k in range(updates)
    )
    assert float(ema.module.weight) == pytest.approx(geometric, rel=1e-13)
    assert float(warm.module.weight) == pytest.approx(truth, rel=1e-13)
    assert float(warm.module.running_mean) == updates - 1  # type: ignore[arg-type]
    assert int(ema.count) == updates
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())
    with pytest.raises(ValueError, match="decay"):
        EMA(net, 1.0)


def test_initialised_leaves_the_generator_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = initialised(5, lambda: nn.Linear(4, 4))
    assert torch.equal(torch.rand(3), expected)
    second = initialised(5, lambda: nn.Linear(4, 4))
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, initialised(6, lambda: nn.Linear(4, 4)).weight)
