"""Distillation's defaults against the constants in print, converted here by hand, and where options go."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from systems import Perturbed, Undecided, gaussian, objective_of, pairs, streams, unfold
from test_published_constants import U, Z, default
from torch import Tensor

from saltus.games import Game, Stages, as_game
from saltus.guidance import LabelDropout
from saltus.maps import EulerMap
from saltus.methods import Need, discover, load
from saltus.nn import MLP, GuidanceAdapters
from saltus.objectives import Diagonal, Part, Sum
from saltus.training import initialised
from saltus.typing import Batch, Condition, Draws, Term
from saltus.weights import PseudoHuber, Scaled, Squared

SYSTEM = gaussian()
C = torch.linspace(-0.2, 0.3, 8, dtype=torch.float64)


def built(name: str, **options: object) -> Any:  # noqa: ANN401 - what the method returns
    """A method with its defaults on a perturbed map."""
    student = Perturbed(SYSTEM.exact, C)
    others = {"critic": Perturbed(SYSTEM.exact, -C), "discriminator": Undecided()}
    return load(name).wired(student, teacher=SYSTEM.velocity, **others, **options)


def objective(name: str, **options: object) -> Any:  # noqa: ANN401 - of some class
    """What the student minimises."""
    found = built(name, **options)
    return found.moves[0].objective if isinstance(found, Game) else found


def test_scd_draws_the_angle_of_scm() -> None:
    """a = atan(e^tau / 0.5), tau ~ N(-1, 1.4^2)."""
    s = objective("scd", weight=Squared()).times.law(U)
    angle = torch.atan(torch.exp(-1.0 + 1.4 * Z) / 0.5)
    assert torch.allclose((math.pi / 2.0) * (1.0 - s), angle, atol=1e-12)


def test_ctm_keeps_the_constants_of_its_paper() -> None:
    """Both times on the grid's clock from 80 to 0.002; score matching at EDM's noise levels; decay 0.999."""
    game = built("ctm")
    match, jump = game.moves[0].objective.parts
    high, low = 80.0 ** (1.0 / 7.0), 0.002 ** (1.0 / 7.0)
    t = jump.objective.times.law(U)
    assert torch.allclose(((1.0 - t) / t) ** (1.0 / 7.0), high + U * (low - high), atol=1e-9)
    t = match.objective.times(U)
    assert torch.allclose(torch.log((1.0 - t) / t), -1.2 + 1.2 * Z, atol=1e-9)
    assert game.moves[0].after[0].decay == 0.999
    assert (match.weight, jump.weight) == (0.1, 1.0)


def test_tbcm_visits_sixteen_nodes_shifted_to_the_noise_by_two_and_a_half() -> None:
    """Node j between the middles of its neighbours on the clock sigma = 2.5 w/(1 + 1.5 w), w = 1 - j/16."""
    rng = streams(16 * 200)
    s, t = objective("tbcm", weight=Squared()).times(rng)
    assert bool((t == 1.0).all())
    s = s.reshape(200, 16)
    assert bool((s[:, 0] == 0.0).all())
    for j in range(1, 16):
        late, early = (1.0 - (j + e) / 16.0 for e in (0.5, -0.5))
        first, last = (1.0 - 2.5 * w / (1.0 + 1.5 * w) for w in (early, late))
        assert first <= float(s[:, j].min()) and float(s[:, j].max()) <= last
        assert float(s[:, j].max() - s[:, j].min()) > 0.9 * (last - first)


def test_boot_begins_a_step_from_the_prior() -> None:
    """t in [d, 1]: below d the signal's weight 1/beta_t has no bound; an eighth of the rows at t = 0."""
    loss = objective("boot")
    start, jump = loss.parts
    t = jump.objective.times.law(U)
    d = jump.objective.step(torch.zeros_like(t), t, torch.zeros(()))
    assert float(t.min()) >= 0.04 and float(t.max()) > 0.99 and torch.allclose(d, torch.full_like(d, 0.04))
    assert (start.share, start.weight, jump.share, jump.weight) == (0.125, 0.125, 0.875, 0.875)
    assert float(start.objective.times(U).abs().max()) == 0.0


def test_a_quarter_of_on_policy_rows_starts_at_the_prior() -> None:
    s, t = objective("on_policy").times(streams(8000))
    assert float((s == 0.0).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(t[s == 0.0].min()) < 0.1 and float(t[s == 0.0].max()) > 0.9


def test_stages_of_progressive_distillation_last_as_published() -> None:
    """Twice as long for two steps and for one; the first is longer because the student need not be the
    teacher."""
    stages = built("progressive").stages
    assert [stage.name for stage in stages] == ["8 steps", "4 steps", "2 steps", "1 steps"]
    shares = [stage.share for stage in stages]
    assert shares[1:] == [1.0, 2.0, 2.0] and shares[0] >= 1.0


def test_pfmm_with_its_own_map_is_held_by_the_first_stage_s_loss() -> None:
    """Half of the rows stay with jumps of two cells, each an Euler step of the teacher, in every stage."""
    student = Perturbed(SYSTEM.exact, C)
    stages = load("pfmm").wired(student, teacher=SYSTEM.velocity, cells=8, own=True)
    assert isinstance(stages, Stages)
    batch, rng = pairs(SYSTEM, 2000)
    for k, stage in enumerate(stages.stages[1:], start=2):
        loss = stage.build({})
        assert isinstance(loss, Sum)
        held, grown = unfold(loss, batch, loss.draw(batch, rng))
        for seen, span in ((held, 2 / 8), (grown, 2**k / 8)):
            s, t = seen.times()
            assert float((t - s).max()) == pytest.approx(span, rel=0.05) and len(seen.rows) == 1000
        assert isinstance(held.objective.target, EulerMap)  # type: ignore[attr-defined]
        assert [part.weight for part in loss.parts] == [0.5, 0.5]


def test_freeflow_s_weight_is_that_of_both_parts_and_its_critic_moves_as_often_as_told() -> None:
    mine = PseudoHuber(0.1)
    game = built("freeflow", weight=mine, critic_moves=3)
    prediction, correction = game.moves[0].objective.parts
    assert prediction.objective.weight is mine and correction.objective.weight is mine
    assert [move.when(7) for move in game.moves] == [1, 3]
    for moves in (0, -1):
        with pytest.raises(ValueError, match=f"at least one move of the critic, got {moves}"):
            built("freeflow", critic_moves=moves)


def test_decay_of_consistency_distillation() -> None:
    game = as_game(built("consistency_distillation"), Perturbed(SYSTEM.exact, C))
    assert isinstance(game, Game)
    (follow,) = game.moves[0].after
    assert vars(follow)["decay"] == default("consistency_distillation", "decay") == 0.95


class _Sloped(Diagonal):
    """A diagonal that tells its slope, as parts that are balanced must."""

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """Its term with the slope 2 |e|."""
        value = super().__call__(batch, draws)["diagonal"].value
        return {"diagonal": Term(value, slope=lambda: 2.0 * value.detach().sqrt())}


@pytest.mark.parametrize("inside", [1.0, 3.0])
def test_balance_counts_the_weights_inside_a_part(inside: float) -> None:
    """The second part's mean gradient is that of the first, whatever the weight of the terms in it."""
    student = Perturbed(SYSTEM.exact, C)
    one = _Sloped(student)
    loss = Sum((Part("a", one), Part("b", Sum((Part("c", one, weight=inside),)), balance=1.0)))
    batch, rng = pairs(SYSTEM, 64)
    terms = loss(batch, loss.draw(batch, rng))

    def size(term: Term) -> Tensor:
        return torch.as_tensor(term.weight) * 2.0 * term.value.detach().sqrt().mean()

    first, second = terms.values()
    assert float(size(second)) == pytest.approx(float(size(first)), rel=1e-12)


def test_adapters_leave_no_strength_to_a_network_that_takes_one_itself() -> None:
    """They are the only way in for w: beside it the network would be guided twice."""
    net = initialised(0, lambda: MLP((2,), width=16, depth=2, classes=4, guidance=True)).double()
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype))
    rng = streams(8)
    x, t, label = rng.normal("x", 2), rng.uniform("t"), rng.integers("label", 4)
    plain, strong = Condition(label=label), Condition(label=label, w=1.0 + 3.0 * rng.uniform("w"))
    assert not torch.allclose(net(x, t, t, strong).u, net(x, t, t, plain).u)
    adapted = initialised(1, lambda: GuidanceAdapters(net, rank=2)).double()
    assert torch.equal(adapted(x, t, t, strong).u, net(x, t, t, plain).u)


def test_labels_are_dropped_in_ctm_s_score_matching_alone() -> None:
    """The jumps learn from the teacher, which knows both branches."""
    match, jump = objective("ctm", dropout=LabelDropout(0.2)).parts
    assert match.objective.guidance == LabelDropout(0.2) and jump.objective.guidance is None


def test_a_weight_of_the_correction_knows_the_noise_level() -> None:
    """Its rows' times are (t, t), t the level, in the loss and in the size that is balanced."""
    by_level = Scaled(Squared(), factor=lambda span: span.s * span.t**2)
    weighed, plain = (objective("freeflow", share=0.0, weight=w) for w in (by_level, Squared()))
    batch, rng = pairs(SYSTEM, 64)
    draws = plain.draw(batch, rng)
    t = draws["t"]
    one, other = (loss(batch, draws)["distribution"] for loss in (weighed, plain))
    assert torch.allclose(one.value, t**3 * other.value, rtol=1e-12)
    assert torch.allclose(one.slope(), t**3 * other.slope(), rtol=1e-12)


@pytest.mark.parametrize("name", [n for n, m in discover().items() if Need.TEACHER in m.card.needs])
@pytest.mark.parametrize("shape", [(), (1,), (32, 1), (32,)])
def test_a_teacher_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    """Each of these would be broadcast in a difference, and train something else. Of stages, in the first
    that asks the teacher."""

    def wrong(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return torch.zeros(shape if shape[:1] != (32,) else (len(x), *shape[1:]), dtype=x.dtype)

    system = gaussian()
    student = Perturbed(system.exact, C)
    others = {"critic": deepcopy(student), "discriminator": Undecided()}
    built = load(name).wired(student, teacher=wrong, **others)
    batch, rng = pairs(system, 32)
    batch = replace(batch, cond=Condition(label=torch.zeros(32, dtype=torch.int64)))
    with pytest.raises(ValueError, match="expected a velocity of shape"):
        for stage in built.stages if isinstance(built, Stages) else (None,):
            game = built if stage is None else stage.build({})
            seen = batch
            if isinstance(game, Game) and game.prepare is not None:
                seen = game.prepare(batch)
            objective = objective_of(game)
            objective(seen, objective.draw(seen, rng))


def test_counts_and_shares_that_say_nothing_are_refused() -> None:
    for name, options, what in (
        ("endpoint", {"solver_steps": 0}, "steps along a velocity: expected at least 1, got 0"),
        ("ctm", {"solver_steps": 0}, "steps along a velocity: expected at least 1, got 0"),
        ("ctm", {"decay": 2.0}, "decay of a moving average"),
        ("on_policy", {"jumps": 0}, "jumps: expected at least 1, got 0"),
        ("boot", {"boundary": 0.0}, "share of rows at the boundary"),
        ("boot", {"boundary": 1.0}, "share of rows at the boundary"),
    ):
        with pytest.raises(ValueError, match=what):
            objective(name, **options)
