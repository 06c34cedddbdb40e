"""Guidance on the exact labelled mixture, and what trains for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from saltus.exact import Mixture, reference_mixture
from saltus.guidance import CFG, AutoGuidance, GuidanceInput, LabelDropout, guided
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


def test_one_teacher_may_be_guided_on_two_intervals() -> None:
    """A fixed interval replaces the rows' own, at fixed strength and at each row's."""
    own = Condition(label=LABEL, interval=torch.tensor([[0.0, 0.2]]).repeat(8, 1), w=torch.full((8,), 4.0))
    for start, end in ((0.3, 0.6), (0.0, 1.0), (0.5, 0.5)):
        inside = ((T >= start) & (T <= end))[:, None]
        want = torch.where(inside, FREE + 4.0 * (OWN - FREE), OWN)
        for cfg in (CFG(MIXTURE, 4.0, interval=(start, end)), CFG(MIXTURE, interval=(start, end))):
            assert torch.allclose(cfg(X, T, own), want, atol=1e-12)
    assert torch.allclose(CFG(MIXTURE, 4.0)(X, T, COND), FREE + 4.0 * (OWN - FREE), atol=1e-12)


@pytest.mark.parametrize("w", [True, math.nan, math.inf, "2", torch.tensor(2.0)])
def test_a_strength_is_a_finite_number(w: float) -> None:
    for build in (lambda: CFG(MIXTURE, w), lambda: AutoGuidance(MIXTURE, MIXTURE, w)):
        with pytest.raises(ValueError, match="guidance strength w: expected a finite number, got"):
            build()


def test_an_interval_runs_forward() -> None:
    with pytest.raises(ValueError, match=r"expected \(start, end\) with start <= end, got \(0.7, 0.2\)"):
        CFG(MIXTURE, 2.0, interval=(0.7, 0.2))
    for wrong in ((math.nan, 0.5), (0.1, math.nan), (False, True)):
        with pytest.raises(ValueError, match="guidance interval, .*: expected a finite number"):
            CFG(MIXTURE, 2.0, interval=wrong)


def test_rates_and_ranges_have_bounds() -> None:
    for rate in (2.0, -0.1, math.nan, True):
        with pytest.raises(ValueError, match="rate of label dropout: expected a"):
            LabelDropout(rate)
    for high in (0.5, math.inf, math.nan, True):
        with pytest.raises(ValueError, match="highest guidance strength: expected a"):
            GuidanceInput(high)
    for group in (0, 1.5, True):
        with pytest.raises(ValueError, match="group: expected a whole number of samples"):
            GuidanceInput(2.0, group)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a number from 0 to 1, got 2.0"):
        LabelDropout(2.0)
    assert (LabelDropout(0.0).rate, LabelDropout(1).rate, GuidanceInput(1).high) == (0.0, 1, 1)


def test_a_fixed_strength_is_not_multiplied_by_the_rows() -> None:
    """CFG of CFG(b, 2) would learn 2 w where w is asked for."""
    with pytest.raises(ValueError, match="not guided yet, got CFG.*w=2"):
        guided(CFG(reference_mixture(), 2.0), GuidanceInput(3.0))
    fixed = CFG(reference_mixture(), 2.0)
    assert guided(fixed, None) is fixed
