"""Minibatch optimal transport: optimal, a permutation of the noise alone, straighter."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from saltus.couplings import Independent, MinibatchOT
from saltus.interpolants import Linear
from saltus.states import DataStates, locate
from saltus.streams import Streams
from saltus.typing import Batch, Condition


def pairs(n: int, *shape: int) -> tuple[Tensor, Tensor]:
    rng = Streams(7, index=torch.arange(n), dtype=torch.float64)
    return rng.normal("x0", *shape), 2.0 + 0.5 * rng.normal("x1", *shape)


def cost(x0: Tensor, x1: Tensor) -> float:
    return float((x0 - x1).square().sum())


def test_the_order_is_the_cheapest_of_all_permutations() -> None:
    x0, x1 = pairs(6, 2, 1)
    order = MinibatchOT()(Batch(x0, x1))
    best = min((cost(x0[list(p)], x1), p) for p in permutations(range(6)))
    assert order.tolist() == list(best[1])
    assert cost(x0[order], x1) < 0.9 * cost(x0, x1)  # 57.6 against 65.0 as drawn


def test_on_the_line_the_order_is_the_sorted_one() -> None:
    x0, x1 = pairs(300, 1)
    order = MinibatchOT()(Batch(x0, x1))
    assert torch.equal(order.sort().values, torch.arange(300))
    want = torch.empty(300, 1, dtype=torch.float64)
    want[x1.flatten().argsort()] = x0.sort(dim=0).values
    assert torch.equal(x0[order], want)


def test_only_the_noise_moves_and_labels_stay_with_their_data() -> None:
    x0, x1 = pairs(16, 2)
    label = torch.arange(16)
    batch = Batch(x0, x1, Condition(label=label))
    order = MinibatchOT()(batch)
    t = torch.full((16,), 0.75, dtype=torch.float64)
    state, cond = locate(DataStates(), Linear(), None, batch, {"order": order}, t)
    assert cond is not None and cond.label is label
    assert state.x1 is x1
    assert torch.allclose(state.x, 0.25 * x0[order] + 0.75 * x1, atol=1e-15)
    assert state.velocity is not None and torch.allclose(state.velocity, x1 - x0[order], atol=1e-15)


def test_far_from_the_origin_the_costs_keep_their_digits() -> None:
    x0, x1 = pairs(6, 2)
    here = MinibatchOT()(Batch(x0, x1))
    assert torch.equal(here, MinibatchOT()(Batch(x0 + 1e4, x1 + 1e4)))


def test_independent_leaves_the_order_and_transport_needs_data() -> None:
    x0, x1 = pairs(3, 2)
    assert Independent()(Batch(x0, x1)) is None
    with pytest.raises(ValueError, match="x1=None"):
        MinibatchOT()(Batch(x0))
