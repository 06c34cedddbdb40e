"""Data in memory: each row once an epoch, whatever the steps, processes and resumptions."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import Tensor

from saltus.data import ArrayData, digits
from saltus.streams import Streams

X = torch.arange(10.0).unsqueeze(1)


def rows(data: ArrayData, steps: range, seed: int = 0) -> Tensor:
    rng = Streams(seed, index=torch.arange(data.batch))
    return torch.cat([data.rows(rng.at(step)) for step in steps])


@pytest.mark.parametrize("batch", [1, 3, 4, 10])
def test_every_row_once_an_epoch(batch: int) -> None:
    """Also where an epoch ends inside a batch."""
    seen = rows(ArrayData(X, batch), range(60 // batch))
    epochs = seen.reshape(6, 10)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(10).expand(6, 10))
    assert len({tuple(e.tolist()) for e in epochs}) == 6
    assert torch.equal(seen, rows(ArrayData(X, 10), range(6)))


def test_order_is_a_function_of_seed_and_step() -> None:
    data = ArrayData(X, batch=4)
    late = rows(data, range(7, 9))
    assert torch.equal(late, rows(data, range(9))[28:])
    assert not torch.equal(late, rows(data, range(7, 9), seed=1))
    rng = Streams(0, step=7, index=torch.arange(4), prefix="other/")
    assert torch.equal(data.rows(rng), late[:4])


def test_processes_share_the_batch() -> None:
    labels = torch.arange(10)
    data = ArrayData(X, batch=4, labels=labels, prior=2.0)
    whole = data(Streams(0, step=5, index=torch.arange(4)))
    for rank in (0, 1):
        mine = torch.tensor([2 * rank, 2 * rank + 1])
        part = data(Streams(0, step=5, index=mine))
        assert torch.equal(part.data(), whole.data()[mine]) and torch.equal(part.x0, whole.x0[mine])
    assert whole.cond is not None and whole.cond.label is not None
    assert torch.equal(whole.data()[:, 0].long(), whole.cond.label)
    assert torch.equal(whole.x0, 2.0 * Streams(0, step=5, index=torch.arange(4)).normal("x0", 1))


def test_bytes_are_scaled() -> None:
    x = torch.tensor([[0, 255], [51, 204]], dtype=torch.uint8)
    data = ArrayData(x, batch=2)
    rng = Streams(0, index=torch.arange(2), dtype=torch.float64)
    drawn = data(rng).data()
    assert drawn.dtype == torch.float64
    truth = torch.tensor([[-1.0, 1.0], [-0.6, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(drawn, truth[data.rows(rng)])
    assert ArrayData(X.double(), 2)(Streams(0, index=torch.arange(2))).data().dtype == torch.float32


BAD: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.tensor([[1.0], [torch.nan], [0.0]])}, "data: expected finite numbers.*first in row 1"),
    ({"x": torch.zeros(0, 2)}, r"expected samples \[N, ...\] with N >= 1, got shape \[0, 2\]"),
    ({"x": torch.zeros(5)}, "expected samples"),
    ({"x": torch.zeros(5, 2, dtype=torch.int64)}, "floating point or uint8"),
    ({"batch": 11}, "a batch between 1 and the 10 rows of the data, got 11"),
    ({"batch": 0}, "a batch between 1 and"),
    ({"labels": torch.zeros(9, dtype=torch.int64)}, r"labels: expected int64 \[10\]"),
    ({"labels": torch.zeros(10)}, r"labels: expected int64 \[10\]"),
    ({"prior": 0.0}, "prior: expected a positive"),
    ({"x": X.numpy()}, r"data: expected a torch.Tensor, got ndarray; use torch.as_tensor"),
    ({"labels": torch.zeros(10).numpy()}, "labels: expected a torch.Tensor, got ndarray"),
    ({"labels": torch.arange(10) - 1}, "labels: expected classes from 0, got -1"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_rejects(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayData(**{"x": X, "batch": 2, **wrong})


def test_rejects_indices_beyond_the_batch() -> None:
    with pytest.raises(ValueError, match="global indices below the batch of 4, got one of 4"):
        ArrayData(X, batch=4)(Streams(0, index=torch.arange(5)))


def test_digits() -> None:
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert float(images.min()) == -1.0 and float(images.max()) == 1.0
    counts = torch.bincount(labels)
    assert labels.dtype == torch.int64 and len(counts) == 10 and int(counts.min()) >= 174
    zero, one = images[labels == 0].mean(0)[0], images[labels == 1].mean(0)[0]
    assert zero[3:5, 3:5].mean() < -0.5 < 0.5 < one[3:5, 3:5].mean()  # a hole and a stroke


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'saltus\[digits\]'"):
        digits()
