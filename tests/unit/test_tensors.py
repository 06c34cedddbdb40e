"""The one broadcast, reductions, frozen calls, checks; and conditions and batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saltus.tensors import (
    check_finite,
    check_times,
    frozen,
    full_like_rows,
    like,
    per_row_norm2,
    per_row_sum,
    sg,
    upcast,
)
from saltus.typing import Batch, Condition


def test_like_multiplies_each_row_by_its_own_number() -> None:
    t, x = torch.tensor([2.0, -3.0]), torch.ones(2, 3, 4)
    assert torch.equal(like(t, x) * x, torch.stack([torch.full((3, 4), 2.0), torch.full((3, 4), -3.0)]))
    assert torch.equal(like(t, torch.ones(2)), t)


def test_full_like_rows_never_gives_times_in_half_precision() -> None:
    for dtype, want in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        t = full_like_rows(0.25, torch.zeros(3, 2, dtype=dtype))
        assert t.dtype == want and torch.equal(t, torch.full((3,), 0.25, dtype=want))


def test_reductions_sum_over_everything_but_the_rows() -> None:
    x = torch.tensor([[[1.0, -2.0], [3.0, 4.0]], [[0.0, 1.0], [-1.0, 0.0]]])
    assert per_row_sum(x).tolist() == [6.0, 0.0]
    assert per_row_norm2(x).tolist() == [30.0, 2.0]
    assert per_row_sum(torch.tensor([3.0, -1.0])).tolist() == [3.0, -1.0]
    assert per_row_norm2(torch.zeros(0, 2, 3)).shape == (0,), "a split may leave a term no rows"


def test_losses_are_never_in_half_precision() -> None:
    # 300^2 overflows float16 and 1 + 2^-9 is not a bfloat16
    assert per_row_norm2(torch.full((1, 1), 300.0, dtype=torch.float16)).tolist() == [90000.0]
    assert upcast(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert upcast(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_sg_stops_the_gradient_and_keeps_the_value() -> None:
    x = torch.tensor([3.0], requires_grad=True)
    (grad,) = torch.autograd.grad((sg(x) * x).sum(), x)
    assert grad.tolist() == [3.0]  # 6 if the gradient passed


def test_frozen_passes_the_gradient_to_the_input_only() -> None:
    net = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        net.weight.fill_(-2.5)
    x = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    with frozen(net):
        net(x).sum().backward()
    assert x.grad is not None and x.grad.item() == -2.5
    assert net.weight.grad is None and net.weight.requires_grad


def test_frozen_restores_only_what_it_froze_also_after_an_error() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    a.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="inside"), frozen(a, b, a):
        assert not any(p.requires_grad for m in (a, b) for p in m.parameters())
        raise RuntimeError("inside")
    assert a.weight.requires_grad and not a.bias.requires_grad
    assert b.weight.requires_grad and b.bias.requires_grad


def test_check_times_says_expected_got_and_fix() -> None:
    x = torch.zeros(2, 3)
    check_times(x, s=torch.zeros(2), t=torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"time s: expected .*\[2\], got torch.int64 .*use s.float\(\)"):
        check_times(x, s=torch.tensor([0, 1]), t=torch.ones(2))
    with pytest.raises(ValueError, match=r"time t: .*got torch.float16"):
        check_times(x, s=torch.zeros(2), t=torch.ones(2, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \[2, 1\]; use one time a row"):
        check_times(x, t=torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \[\]"):
        check_times(x, t=torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"got float; use full_like_rows\(0.5, x\)"):
        check_times(x, t=0.5)  # type: ignore[arg-type]


def test_check_finite_counts_and_finds_the_first_bad_row() -> None:
    x = torch.zeros(4, 2)
    check_finite(x, "data")
    x[2, 1], x[3, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="data: expected finite numbers, got 2 .* first in row 2"):
        check_finite(x, "data")


CONDITION = Condition(
    label=torch.tensor([4, 5, 6]),
    w=torch.tensor([1.0, 2.0, 3.0]),
    interval=torch.tensor([[0.0, 0.1], [0.2, 0.3], [0.4, 0.5]]),
    null=torch.tensor([False, True, False]),
)


@pytest.mark.parametrize("index", [torch.tensor([2, 1]), torch.tensor([False, True, True])])
def test_the_rows_of_a_condition_keep_every_field_together(index: torch.Tensor) -> None:
    part = CONDITION.rows(index)
    want = [2, 1] if index.dtype == torch.int64 else [1, 2]
    assert part.label is not None and part.w is not None
    assert part.interval is not None and part.null is not None and CONDITION.interval is not None
    assert part.label.tolist() == [4 + i for i in want]
    assert part.w.tolist() == [1.0 + i for i in want]
    assert torch.equal(part.interval, CONDITION.interval[want])
    assert part.null.tolist() == [i == 1 for i in want]
    assert Condition().rows(index) == Condition()


def test_drop_adds_to_the_dropped_rows_and_nulled_drops_all() -> None:
    dropped = CONDITION.drop(torch.tensor([True, False, False]))
    assert dropped.null is not None and dropped.null.tolist() == [True, True, False]
    fresh = Condition(label=torch.tensor([1, 2])).drop(torch.tensor([False, True]))
    assert fresh.null is not None and fresh.null.tolist() == [False, True]
    nulled = CONDITION.nulled()
    assert nulled.null is not None and nulled.null.tolist() == [True, True, True]
    assert nulled.label is CONDITION.label and nulled.w is CONDITION.w
    assert Condition().nulled().null is None
    moved = CONDITION.to(torch.device("cpu"))
    assert moved.label is not None and moved.label.tolist() == [4, 5, 6]


def test_the_rows_of_a_batch_keep_pairs_and_conditions_together() -> None:
    batch = Batch(torch.arange(3.0)[:, None], 10.0 + torch.arange(3.0)[:, None], CONDITION, torch.tensor(0.5))
    part = batch.rows(torch.tensor([2, 0]))
    assert part.x0.flatten().tolist() == [2.0, 0.0] and part.data().flatten().tolist() == [12.0, 10.0]
    assert part.cond is not None and part.cond.label is not None and part.cond.label.tolist() == [6, 4]
    assert part.progress.item() == 0.5
    with pytest.raises(ValueError, match="learns from data"):
        Batch(torch.zeros(1, 1)).rows(torch.tensor([0])).data()
