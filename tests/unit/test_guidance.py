"""Guidance on the exact labelled mixture, and what trains for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from saltus.exact import Mixture, reference_mixture
from saltus.guidance import CFG, AutoGuidance, GuidanceInput, LabelDropout
from saltus.streams import Streams
from saltus.typing import Condition

MIXTURE = reference_mixture()
G = torch.Generator().manual_seed(0)
X = 2.0 * torch.randn(8, 2, dtype=torch.float64, generator=G)
T = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
LABEL = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
COND = Condition(label=LABEL)
FREE = Mixture(MIXTURE.means, MIXTURE.weights, MIXTURE.covs)(X, T)
OWN = torch.stack([MIXTURE.restricted(int(k))(X[i : i + 1], T[i : i + 1])[0] for i, k in enumerate(LABEL)])


@dataclass
class Recorded:
    """The mixture, with the conditions that it was asked under."""

    asked: list[Condition | None] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        self.asked.append(cond)
        return MIXTURE(x, t, cond)


def test_strength_0_is_unconditional_1_conditional_and_the_rest_a_line() -> None:
    assert int(((OWN - FREE).norm(dim=1) > 0.5).sum()) >= 5, "the branches differ, so the test can fail"
    assert torch.allclose(CFG(MIXTURE, 0.0)(X, T, COND), FREE, atol=1e-13)
    assert torch.allclose(CFG(MIXTURE, 1.0)(X, T, COND), OWN, atol=1e-13)
    for w in (-0.5, 2.5, 7.0):
        assert torch.allclose(CFG(MIXTURE, w)(X, T, COND), FREE + w * (OWN - FREE), atol=1e-12)


def test_guidance_is_the_velocity_of_the_tilted_score() -> None:
    """For the linear path b = (x + (1 - t) score)/t, so guidance acts on scores alike."""
    w, t = 3.0, T[:, None]
    score = MIXTURE.score(X, T) + w * (MIXTURE.score(X, T, COND) - MIXTURE.score(X, T))
    assert torch.allclose(CFG(MIXTURE, w)(X, T, COND), (X + (1 - t) * score) / t, atol=1e-10)


def test_each_row_has_its_own_strength_and_dropped_rows_none() -> None:
    w = torch.linspace(0.0, 3.5, 8)
    found = CFG(MIXTURE)(X, T, Condition(label=LABEL, w=w))
    assert torch.allclose(found, FREE + w.double()[:, None] * (OWN - FREE), atol=1e-12)
    null = torch.arange(8) % 2 == 0
    dropped = CFG(MIXTURE, 3.0)(X, T, Condition(label=LABEL, null=null))
    assert torch.allclose(dropped[null], FREE[null], atol=1e-13)
    assert torch.allclose(dropped[~null], (FREE + 3.0 * (OWN - FREE))[~null], atol=1e-12)


def test_outside_a_rows_interval_the_strength_is_1() -> None:
    interval = torch.tensor([[0.3, 0.6]]).repeat(8, 1)
    interval[7] = torch.tensor([0.9, 1.0])
    inside = ((T >= 0.3) & (T <= 0.6)).clone()
    inside[7] = True
    assert inside.sum() == 4
    w = torch.full((8,), 4.0)
    for cfg, cond in [
        (CFG(MIXTURE, 4.0), Condition(label=LABEL, interval=interval)),
        (CFG(MIXTURE), Condition(label=LABEL, w=w, interval=interval)),
    ]:
        found = cfg(X, T, cond)
        assert torch.allclose(found[~inside], OWN[~inside], atol=1e-13)
        assert torch.allclose(found[inside], (FREE + 4.0 * (OWN - FREE))[inside], atol=1e-12)


def test_a_network_that_takes_the_strength_is_asked_for_its_unguided_velocity() -> None:
    velocity = Recorded()
    CFG(velocity)(X, T, Condition(label=LABEL, w=torch.full((8,), 3.0)))
    assert len(velocity.asked) == 2
    for cond in velocity.asked:
        assert cond is not None and cond.w is not None and bool((cond.w == 1).all())
    nulls = [cond.null for cond in velocity.asked if cond is not None]
    assert nulls[0] is not None and bool(nulls[0].all()) and nulls[1] is None


def test_guidance_without_labels_or_strength_is_one_clear_error() -> None:
    for cond in (None, Condition()):
        with pytest.raises(ValueError, match="guidance needs labels"):
            CFG(MIXTURE, 2.0)(X, T, cond)
        for rule in (LabelDropout(), GuidanceInput()):
            with pytest.raises(ValueError, match="guidance needs labels"):
                rule.apply(cond, rule.draw(Streams(0, index=torch.arange(8))))
    with pytest.raises(ValueError, match="guidance strength"):
        CFG(MIXTURE)(X, T, COND)


def test_auto_guidance_moves_away_from_the_weak_model() -> None:
    weak = Mixture(MIXTURE.means, MIXTURE.weights, 0.8**2)
    a, b = weak(X, T), MIXTURE(X, T)
    for w in (0.0, 1.0, 2.5):
        assert torch.allclose(AutoGuidance(MIXTURE, weak, w)(X, T), a + w * (b - a), atol=1e-13)


def test_labels_are_dropped_per_sample_at_the_rate() -> None:
    rng = Streams(0, index=torch.arange(20_000))
    for rate in (0.1, 0.4):
        rule = LabelDropout(rate)
        rows = rule.draw(rng)
        assert rows.dtype == torch.bool and rows.shape == (20_000,)
        assert abs(float(rows.double().mean()) - rate) < 4 * math.sqrt(rate * (1 - rate) / 20_000)
        assert torch.equal(rule.draw(rng.rows(torch.tensor([17, 4]))), rows[[17, 4]])
        assert not torch.equal(rule.draw(rng.at(1)), rows)
    cond = LabelDropout().apply(Condition(label=LABEL), LABEL == 2)
    assert cond.null is not None and torch.equal(cond.null, LABEL == 2) and cond.label is LABEL
    twice = LabelDropout().apply(cond, LABEL == 0)
    assert twice.null is not None and torch.equal(twice.null, LABEL % 2 == 0)


def test_guidance_as_an_input_is_uniform_between_1_and_its_highest() -> None:
    rule = GuidanceInput(5.0)
    w = rule.draw(Streams(0, index=torch.arange(20_000), dtype=torch.float64))
    assert 1.0 < float(w.min()) < 1.001 and 4.999 < float(w.max()) < 5.0
    assert abs(float(w.mean()) - 3.0) < 4 * math.sqrt(16 / 12 / 20_000)
    assert abs(float(w.var()) - 16 / 12) < 0.03
    cond = rule.apply(Condition(label=LABEL, null=LABEL == 1), w[:8])
    assert cond.w is not None and torch.equal(cond.w, w[:8])
    assert cond.label is LABEL and cond.null is not None
