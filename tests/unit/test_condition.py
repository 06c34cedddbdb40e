"""A condition: every field of it follows its rows, and what is dropped is dropped for labels and tokens."""

from dataclasses import fields

import pytest
import torch

from saltus.guidance import CFG
from saltus.typing import Condition


def full() -> Condition:
    """A condition of four rows that has every field."""
    return Condition(
        label=torch.arange(4),
        w=torch.arange(4.0),
        interval=torch.arange(8.0).reshape(4, 2),
        null=torch.tensor([True, False, True, False]),
        tokens=torch.arange(24.0).reshape(4, 3, 2),
        mask=torch.arange(12).reshape(4, 3) % 2 == 0,
        pooled=torch.arange(20.0).reshape(4, 5),
    )


def test_every_field_follows_its_rows() -> None:
    index = torch.tensor([3, 1])
    whole, some = vars(full()), vars(full().rows(index))
    assert set(whole) == {f.name for f in fields(Condition)}
    for name, value in whole.items():
        torch.testing.assert_close(some[name], value[index], rtol=0, atol=0)


@pytest.mark.parametrize("given", ["label", "tokens"])
def test_what_is_given_is_dropped(given: str) -> None:
    value = {"label": torch.arange(3), "tokens": torch.randn(3, 2, 4)}[given]
    cond = Condition(**{given: value})
    assert cond.given is value
    assert cond.nulled().null is not None and bool(cond.nulled().null.all())
    once = cond.drop(torch.tensor([True, False, False]))
    assert once.drop(torch.tensor([False, False, True])).null.tolist() == [True, False, True]
    assert Condition(w=torch.ones(3)).nulled().null is None


def test_text_is_guided_like_labels() -> None:
    """v = v(null) + w (v(tokens) - v(null)) with a velocity that is 3 with its tokens and 1 without."""

    def velocity(x: torch.Tensor, t: torch.Tensor, cond: Condition | None = None) -> torch.Tensor:
        assert cond is not None and cond.tokens is not None
        dropped = torch.zeros(len(x)) if cond.null is None else cond.null.float()
        return (3.0 - 2.0 * dropped).unsqueeze(1).expand_as(x)

    x = torch.zeros(2, 1)
    cond = Condition(tokens=torch.ones(2, 3, 4))
    assert CFG(velocity, w=2.0)(x, torch.full((2,), 0.5), cond).tolist() == [[5.0], [5.0]]
