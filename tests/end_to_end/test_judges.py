"""Evaluations say what they claim: the exact map scores zero, and known errors score their size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saltus.data import Checkerboard
from saltus.exact import Gaussian
from saltus.games import as_game
from saltus.interpolants import Linear
from saltus.maps import AverageVelocity
from saltus.methods import load
from saltus.methods.lsd import lsd
from saltus.nn import MLP
from saltus.objectives import Sum
from saltus.recipes.checkerboard import SCALE, checkerboard
from saltus.recipes.digits import AGREEMENT, FRECHET, digits
from saltus.recipes.evaluate import samplers
from saltus.recipes.options import Training
from saltus.recipes.parts import emphasised
from saltus.recipes.planar import PlanarTruth
from saltus.recipes.system import Drawn
from saltus.streams import Streams


def test_the_map_error_is_the_distance_to_the_exact_map() -> None:
    law = Gaussian(torch.tensor([1.0, -0.5], dtype=torch.float64), 0.25)
    truth = PlanarTruth(law.sample, 500, law.flow_map())
    x0 = Streams(0, index=torch.arange(500)).normal("x0", 2)
    exact = torch.tensor([1.0, -0.5]) + 0.5 * x0  # X_{0,1}(x) = mean + S_1 x with S_1 = sqrt(0.25)
    assert truth.figures(Drawn(x0, exact))["map RMSE"] < 1e-6
    wrong = truth.figures(Drawn(x0, exact + torch.tensor([0.3, 0.4])))
    assert wrong["map RMSE"] == pytest.approx(0.5, abs=1e-5)
    assert wrong["sliced W2"] > 2 * truth.figures(Drawn(x0, exact))["sliced W2"]


def test_the_checkerboard_is_judged_on_its_own_scale() -> None:
    judge = checkerboard().system.judge()
    rng = Streams(1, index=torch.arange(judge.count))
    board = Checkerboard()(rng)
    exact = judge.figures(Drawn(board, SCALE * board))["KL"]
    assert exact < 0.03  # the floor of 64,000 samples on 1,300 filled cells
    assert judge.figures(Drawn(board, board))["KL"] > 1.0


def test_digits_are_judged_by_class_and_law() -> None:
    made = digits(training=Training(steps=1, batch=16))
    judge = made.system.judge()
    assert judge.labels is not None
    x = made.system.source.x  # type: ignore[attr-defined]
    same = judge.figures(Drawn(x, x, judge.labels))
    assert same[FRECHET] == pytest.approx(0.0, abs=1e-6) and same["nearest"] == 0.0 and same[AGREEMENT] > 99.0
    shifted = judge.figures(Drawn(x, x, (judge.labels + 1) % 10))
    assert shifted[AGREEMENT] < 1.0
    assert judge.figures(Drawn(x, -x, judge.labels))[FRECHET] > 1.0
    real = judge.real()
    assert 95.0 < real[AGREEMENT] < 100.0 and 0.1 < real[FRECHET] < 0.5 and real["nearest"] > 1.0


def test_the_jump_weight_leaves_the_diagonal_alone() -> None:
    student = AverageVelocity(MLP((2,)))
    (move,) = emphasised(as_game(lsd(student), student), 7.0).moves
    assert isinstance(move.objective, Sum)
    assert [p.weight for p in move.objective.parts] == [0.75, 1.75]
    with pytest.raises(ValueError, match="above 0"):
        digits(jump_weight=0.0)


@pytest.mark.parametrize(
    ("allowed", "shown"), [((2,), {2: True}), ((16,), {16: True}), ((1, 2), {1: True, 2: False})], ids=str
)
def test_a_method_of_any_step_counts_has_samples_and_a_picture(
    allowed: tuple[int, ...], shown: dict[int, bool]
) -> None:
    """Its usual counts, or else its fewest; of one of them there is a picture."""
    card = replace(load("pcm").card, steps=allowed)
    student, rng = AverageVelocity(MLP((2,), width=8, depth=1)), Streams(0, index=torch.arange(4))
    rows = samplers(student, card, rng.normal("x0", 2), None, rng, Linear())
    assert {row.steps: row.pictured for row in rows} == shown
    assert all(row.sample().shape == (4, 2) for row in rows)
