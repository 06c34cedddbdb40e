"""FreeFlow: gradients of each player, the two losses and their balance, guidance. All three networks are
perturbed maps with parameters of their own, so nothing is at an optimum and no stop goes unseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from systems import Perturbed, gaussian, loss, means, mixture, noise, pairs, row_gradients, unfold
from test_where_gradients_flow import difference, directions, gradient
from torch import Tensor, nn

from saltus.autodiff import derivative
from saltus.exact import Mixture, reference_mixture
from saltus.games import Game
from saltus.guidance import CFG, GuidanceInput
from saltus.interpolants import Linear, path
from saltus.methods.freeflow import freeflow, freeflow_prediction
from saltus.objectives import Diagonal, Distribution, Lagrangian, OnSamples, Part, Sum
from saltus.streams import Streams
from saltus.tensors import full_like_rows, like
from saltus.times import Uniform
from saltus.typing import Batch, Condition, FlowMap, Output
from saltus.weights import AdaptivePower, Squared

P = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
SYSTEM = gaussian()


# Each player's gradient, away from the truth: every map has parameters, none of them at zero


def players() -> tuple[Perturbed, Perturbed, Perturbed]:
    return tuple(Perturbed(SYSTEM.exact, c) for c in (P, P.flip(0), 0.5 * P.roll(3)))  # type: ignore[return-value]


def average(c: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    with torch.no_grad():
        return Perturbed(SYSTEM.exact, c).average(x, s, t)


def same_slope(value: Tensor, moves: Perturbed, error: object, at: Tensor) -> None:
    """The gradient of value in moves' parameters is the finite difference of mean |error(c)|^2."""
    ways = directions(3)
    found = ways @ gradient(moves, value)
    head = torch.zeros(8, dtype=torch.float64)
    moved = difference(lambda p: error(p[:8]).square().sum(1).mean(), torch.cat([at, head]), ways)  # type: ignore[operator]
    assert float(found.abs().max()) > 1e-3
    assert float((found - moved).abs().max()) <= 1e-9, (found, moved)


def untouched(*others: Perturbed) -> None:
    assert all(p.grad is None for other in others for p in other.parameters())


def test_the_correction_moves_the_student_alone_and_through_u_alone() -> None:
    """Value |Delta|^2; gradient that of |Delta_S + u_L(x0) - u_S(x0)|^2 in L: not through X, v or b."""
    moving, critic, teacher = players()
    objective = Distribution(moving, teacher.velocity, critic, times=Uniform(0.1, 0.9))
    batch, rng = pairs(SYSTEM, 24)
    draws = objective.draw(batch, rng)
    r, n = draws["t"], draws["noise"]
    assert isinstance(r, Tensor) and isinstance(n, Tensor)
    zero, one = torch.zeros_like(r), torch.ones_like(r)
    x = (1.0 - like(r, n)) * n + like(r, n) * (batch.x0 + average(P, batch.x0, zero, one))
    delta = average(P.flip(0), x, r, r) - average(0.5 * P.roll(3), x, r, r)
    term = objective(batch, draws)["distribution"]
    assert torch.allclose(term.value, delta.square().sum(1), atol=1e-12)
    fixed = average(P, batch.x0, zero, one)
    same_slope(
        term.value.mean(), moving, lambda c: delta + average(c, batch.x0, zero, one) - fixed, at=P
    )
    loss(objective(batch, draws)).backward()
    untouched(critic, teacher)


def test_the_critic_learns_on_samples_and_nobody_else_moves() -> None:
    """Its loss is |v(I_t) - (X - n)|^2 with X = X_{0,1}(x0) held fixed and fresh noise n."""
    moving, critic, teacher = players()
    game = freeflow(moving, teacher=teacher.velocity, critic=critic)  # type: ignore[arg-type]
    assert [move.name for move in game.moves] == ["student", "critic"] and game.moves[1].module is critic
    objective = game.moves[1].objective
    batch, rng = pairs(SYSTEM, 24)
    batch = replace(batch, x1=None)
    draws = objective.draw(batch, rng)
    n, of = draws["noise"], draws["of"]
    assert isinstance(n, Tensor) and isinstance(of, dict) and isinstance(of["t"], Tensor)
    t, zero = of["t"], torch.zeros_like(of["t"])
    sample = batch.x0 + average(P, batch.x0, zero, torch.ones_like(t))
    x = (1.0 - like(t, n)) * n + like(t, n) * sample
    terms = objective(batch, draws)
    assert list(terms) == ["diagonal"]
    same_slope(loss(terms), critic, lambda c: average(c, x, t, t) - (sample - n), at=P.flip(0))
    loss(objective(batch, draws)).backward()
    untouched(moving, teacher)


def test_noise_of_the_pairs_is_not_the_noise_of_the_samples() -> None:
    """Uncorrelated with x0, in the student's loss and in the critic's, and not the same in both."""
    game = freeflow(players()[0], teacher=SYSTEM.velocity, critic=players()[1], share=0.0)  # type: ignore[arg-type]
    batch, rng = pairs(SYSTEM, 20_000)
    first, second = (m.objective.draw(batch, rng.named(m.name))["noise"] for m in game.moves)
    for a, b in ((batch.x0, first), (batch.x0, second), (first, second)):
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        product = a * b
        error = product.std(0) / math.sqrt(len(product))
        assert bool((product.mean(0).abs() <= 5.0 * error).all()) and float(error.max()) < 0.02


def test_the_critic_is_at_rest_where_it_knows_the_students_law() -> None:
    """An exact student's samples have the exact law: the expected gradient of an exact critic is zero within
    5 standard errors; on samples in which noise and x0 are the same it is not."""
    exact = Perturbed(SYSTEM.exact, torch.zeros(8, dtype=torch.float64))
    critic = Perturbed(SYSTEM.exact, torch.zeros(8, dtype=torch.float64))
    objective = OnSamples(exact, Diagonal(critic))
    batch, rng = pairs(SYSTEM, 6000)
    draws = objective.draw(batch, rng)
    of = draws["of"]
    assert isinstance(of, dict)
    for wrong in (False, True):
        drawn = {**draws, "noise": batch.x0} if wrong else draws
        (seen,) = unfold(objective, batch, drawn)
        seen = replace(seen, draws={**drawn, "t": of["t"]})
        n = drawn["noise"]
        assert isinstance(n, Tensor)
        s = full_like_rows(0.0, n)
        samples = replace(seen, batch=replace(batch, x0=n, x1=SYSTEM.exact(batch.x0, s, torch.ones_like(s))))
        controls = noise(SYSTEM, samples)
        values = row_gradients(critic, seen, 6000)["diagonal"]
        mean, error = means(values, 0.0 * controls if wrong else controls)
        assert bool((mean.abs() <= 5.0 * error + 1e-8).all()) is not wrong, mean / error


# The whole method


def test_prediction_is_the_papers_in_its_own_variables() -> None:
    """f(z, d) = z + d F(z, d): F regresses on u(f, 1 - d) - d dF/dd, u being asked in the paper's time; the
    weight is 1/(|D|^2/D + c)^k. It is the Lagrangian loss from the prior in target form, to the bit."""
    moving, _, _ = players()
    batch, rng = pairs(SYSTEM, 24)
    z, zero = batch.x0, torch.zeros(24, dtype=torch.float64)

    def theirs(z: Tensor, time: Tensor) -> Tensor:
        return SYSTEM.velocity(z, 1.0 - time)

    for k in (0.0, 0.5, 1.0):
        objective = freeflow_prediction(moving, teacher=SYSTEM.velocity, k=k)
        draws = objective.draw(replace(batch, x1=None), rng)
        d = draws["t"]
        assert isinstance(d, Tensor)
        of_f, slope = derivative(lambda e: moving.average(z, zero, e), (d,), (torch.ones_like(d),))
        f = z + like(d, z) * of_f
        error = of_f - (theirs(f, 1.0 - d) - like(d, z) * slope).detach()
        square = error.square().sum(1)
        wanted = square / (square.detach() / 2.0 + 1e-2) ** k
        value = objective(batch, draws)["lagrangian"].value
        assert torch.allclose(value, wanted, rtol=1e-12)
        found, by_hand = (gradient(moving, v.mean()) for v in (value, wanted))
        assert float(found.norm()) > 1e-3 and torch.allclose(found, by_hand, rtol=1e-10)
    assert isinstance(objective, Lagrangian)


@pytest.mark.parametrize("k", [0.0, 1.0])
def test_the_students_gradient_is_the_balanced_sum_of_the_two(k: float) -> None:
    """75 and 25 % of the rows; the correction's mean gradient in u is alpha times the prediction's."""
    alpha = 0.3
    moving, critic, teacher = players()
    given = {"teacher": teacher.velocity, "critic": critic, "k": k, "alpha": alpha}
    objective = freeflow(moving, **given).moves[0].objective  # type: ignore[arg-type]
    batch, rng = pairs(SYSTEM, 32)
    batch = replace(batch, x1=None)
    draws = objective.draw(batch, rng)
    prediction, correction = unfold(objective, batch, draws)
    assert (len(prediction.rows), len(correction.rows)) == (24, 8)

    values = [seen.objective(seen.batch, seen.draws) for seen in (prediction, correction)]
    plain = replace(prediction.objective, weight=Squared())  # type: ignore[type-var]
    size = plain(prediction.batch, prediction.draws)["lagrangian"].value.detach().sqrt()  # type: ignore[operator]
    of_first = (2.0 * size / (size**2 / 2.0 + 1e-2) ** k).mean()
    delta = values[1]["distribution"].value.detach().sqrt()
    factor = alpha * of_first / (2.0 * delta).mean()
    wanted = 0.75 * gradient(moving, loss(values[0])) + 0.25 * factor * gradient(moving, loss(values[1]))
    found = gradient(moving, loss(objective(batch, draws)))
    assert float(found.norm()) > 1e-2
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_the_balance_is_of_the_global_batch() -> None:
    """Each of the two sizes goes through batch.mean, which the loop supplies, and nothing else does."""
    moving, critic, teacher = players()
    objective = freeflow(moving, teacher=teacher.velocity, critic=critic).moves[0].objective  # type: ignore[arg-type]
    batch, rng = pairs(SYSTEM, 32)
    asked: list[int] = []

    def mean(x: Tensor) -> Tensor:
        asked.append(len(x))
        return torch.tensor(3.0 if len(x) == 24 else 0.5, dtype=torch.float64)

    everywhere = replace(batch, mean=mean)
    terms = objective(everywhere, objective.draw(everywhere, rng))
    assert asked == [24, 8]
    assert float(terms["distribution"].weight) == pytest.approx(0.25 * 3.0 / 0.5, abs=1e-12)
    assert float(terms["lagrangian"].weight) == 0.75


def test_levels_favour_noise_as_published() -> None:
    """Logit-normal with location 0.8 in the time in which 1 is noise, over the whole range."""
    game = freeflow(players()[0], teacher=SYSTEM.velocity, critic=players()[1], share=0.0)  # type: ignore[arg-type]
    batch, rng = pairs(SYSTEM, 4000)
    r = game.moves[0].objective.draw(batch, rng)["t"]
    assert isinstance(r, Tensor)
    theirs = torch.logit(1.0 - r)
    assert float(theirs.median()) == pytest.approx(0.8, abs=0.02)
    assert float(r.min()) < 0.02 and float(r.max()) > 0.9


# Guidance


class Strong(nn.Module):
    """A map that takes the strength as an input: u = c w + x."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(c, dtype=torch.float64))

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        assert cond is not None and cond.w is not None
        return x + self.c * like(cond.w, x)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.average(x, t, t, cond)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        return Output(self.average(x, s, t, cond), {})

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return x + like(t - s, x) * self.average(x, s, t, cond)


def guided() -> tuple[Game, Mixture, Batch, Callable[[str], Streams]]:
    law = reference_mixture()
    batch, rng = pairs(SYSTEM, 64)
    labels = Condition(label=torch.arange(64) % 4)
    game = freeflow(
        Strong(0.3),  # type: ignore[arg-type]
        teacher=law,
        critic=Strong(-0.2),  # type: ignore[arg-type]
        levels=Uniform(),
        guidance=GuidanceInput(4.0),
        prediction_interval=(0.1, 1.0),
        correction_interval=(0.3, 0.8),
    )
    return game, law, Batch(batch.x0, None, labels), rng.named


def test_guidance_of_the_teacher_is_for_its_interval() -> None:
    """And the strength is an input of the student and of the critic, in both of the student's losses."""
    game, law, batch, streams = guided()
    objective = game.moves[0].objective
    draws = objective.draw(batch, streams("student"))
    prediction, correction = unfold(objective, batch, draws)
    w, r, n = (correction.draws[key] for key in ("guidance", "t", "noise"))
    assert isinstance(w, Tensor) and isinstance(r, Tensor) and isinstance(n, Tensor)
    assert float(w.min()) >= 1.0 and float(w.max()) > 2.0
    sample = 2.0 * correction.batch.x0 + 0.3 * like(w, n)
    x = (1.0 - like(r, n)) * n + like(r, n) * sample
    cond = correction.batch.cond
    assert cond is not None
    free, full = law(x, r, cond.nulled()), law(x, r, cond)
    inside = (r >= 0.3) & (r <= 0.8)
    assert 0 < int(inside.sum()) < len(r)
    strength = torch.where(inside, w, torch.ones_like(w))
    delta = x - 0.2 * like(w, x) - (free + like(strength, x) * (full - free))
    found = correction.objective(correction.batch, correction.draws)["distribution"].value
    assert torch.allclose(found, delta.square().sum(1), atol=1e-10)

    w, t = prediction.draws["guidance"], prediction.draws["t"]
    assert isinstance(w, Tensor) and isinstance(t, Tensor)
    cond, x0 = prediction.batch.cond, prediction.batch.x0
    assert cond is not None
    u = x0 + 0.3 * like(w, x0)
    bounds = torch.tensor([0.1, 1.0], dtype=torch.float64).expand(len(t), 2)
    b = CFG(law)(x0 + like(t, x0) * u, t, replace(cond, w=w, interval=bounds))
    plain = replace(prediction.objective, weight=Squared())  # type: ignore[type-var]
    value = plain(prediction.batch, prediction.draws)["lagrangian"].value  # type: ignore[operator]
    assert torch.allclose(value, (u - b).square().sum(1), atol=1e-10)


def test_the_critic_sees_the_strength_that_made_its_sample() -> None:
    game, _, batch, streams = guided()
    objective = game.moves[1].objective
    draws = objective.draw(batch, streams("critic"))
    assert "guidance" in draws
    w, n, of = draws["guidance"], draws["noise"], draws["of"]
    assert isinstance(w, Tensor) and isinstance(n, Tensor) and isinstance(of, dict)
    t = of["t"]
    assert isinstance(t, Tensor)
    sample = 2.0 * batch.x0 + 0.3 * like(w, n)
    x, v = path(Linear(), n, sample, t)
    wanted = (x - 0.2 * like(w, x) - v).square().sum(1)
    assert torch.allclose(objective(batch, draws)["diagonal"].value, wanted, atol=1e-10)


# What cannot be


def test_a_share_of_one_names_the_method_that_it_is() -> None:
    with pytest.raises(ValueError, match="freeflow_prediction"):
        freeflow(players()[0], teacher=SYSTEM.velocity, critic=players()[1], share=1.0)  # type: ignore[arg-type]


def test_a_critic_that_teaches_is_told() -> None:
    """It would be trained, and the correction would vanish for ever."""
    net = Perturbed(gaussian().exact, torch.zeros(8, dtype=torch.float64))
    for teacher in (net, net.velocity):
        with pytest.raises(ValueError, match="critic apart from the teacher"):
            freeflow(Perturbed(gaussian().exact, net.c), teacher=teacher, critic=net)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="critic apart from the student"):
        freeflow(net, teacher=SYSTEM.velocity, critic=net)  # type: ignore[arg-type]


def test_a_balance_needs_two_sizes() -> None:
    moving, critic, _ = players()
    diagonal = Diagonal(moving)
    correction = Distribution(moving, SYSTEM.velocity, critic)
    with pytest.raises(ValueError, match="first part"):
        Sum((Part("a", correction, balance=1.0), Part("b", diagonal)))
    objective = Sum((Part("a", diagonal), Part("b", correction, balance=1.0)))
    batch, rng = pairs(SYSTEM, 8)
    with pytest.raises(ValueError, match="'diagonal' of part 'a'"):
        objective(batch, objective.draw(batch, rng))


def test_on_the_line_too_the_correction_vanishes_where_the_critic_is_the_teacher() -> None:
    """And the balance of nothing is nothing: no gradient, no NaN."""
    system = mixture()
    moving: FlowMap = Perturbed(system.exact, P)
    critic = Perturbed(system.exact, torch.zeros(8, dtype=torch.float64))
    objective = freeflow(moving, teacher=system.velocity, critic=critic).moves[0].objective  # type: ignore[arg-type]
    batch, rng = pairs(system, 32)
    terms = objective(batch, objective.draw(batch, rng))
    assert isinstance(moving, Perturbed)
    assert float(gradient(moving, loss(terms)).norm()) > 1e-2
    terms = objective(batch, objective.draw(batch, rng))
    of_correction = gradient(moving, loss({"distribution": terms["distribution"]}))
    assert float(of_correction.abs().max()) == 0.0


def test_the_default_weight_is_the_papers_exponent() -> None:
    assert freeflow_prediction(players()[0], teacher=SYSTEM.velocity).weight == AdaptivePower(  # type: ignore[attr-defined]
        1.0, per_dimension=True
    )
