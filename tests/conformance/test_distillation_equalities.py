"""Distillation from a teacher with data: methods against the formulas of their papers, in the papers' own
time and variables, value and gradient; the facts that connect them; and what the teacher is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from systems import Perturbed, Seen, objective_of
from test_method_equalities import (
    SYSTEM,
    Net,
    assert_same,
    assert_same_gradient,
    drawn,
    meanflow_of,
    parts,
    sq,
    student_of,
)
from torch import Tensor, nn

from saltus.autodiff import derivative
from saltus.games import Follow, Game
from saltus.interpolants import Trigonometric, path
from saltus.legs import EULER, HEUN, Along, Jump
from saltus.maps import EDM
from saltus.maps import Trigonometric as TrigonometricMap
from saltus.methods import load
from saltus.methods.align_your_flow import align_your_flow
from saltus.methods.consistency_distillation import consistency_distillation
from saltus.methods.ctm import ctm
from saltus.methods.emd import emd
from saltus.methods.lmd import lmd
from saltus.methods.scd import scd
from saltus.objectives import Composition, Endpoint, Lagrangian
from saltus.slots import Teacher
from saltus.states import PriorStates
from saltus.streams import Streams
from saltus.tensors import like
from saltus.times import FromStart, Karras, ToEnd, Uniform
from saltus.typing import Gradient, Objective, Velocity
from saltus.weights import InStates, Squared

ROWS = 40
NAMES = ("lmd", "emd", "align_your_flow", "consistency_distillation", "scd", "ctm")
B = SYSTEM.velocity


def moving(target: Perturbed) -> Perturbed:
    """A moving average that is not the student any more."""
    target.c.data += 0.3
    return target


def followed(game: Game, student: nn.Module, part: str) -> Seen:
    """A part whose target is the copy of the student that the game moves."""
    (move,) = game.moves
    (follow,) = move.after
    assert isinstance(follow, Follow) and follow.source is student and follow.target is not student
    seen = parts(game)[part]
    assert vars(seen.objective)["target"] is follow.target
    assert not any(p.requires_grad for p in follow.target.parameters())
    return seen


def on(seen: Seen, other: Objective, of: str) -> Tensor:
    """A term of another objective on the same draws."""
    return other(seen.batch, seen.draws)[of].value


def same(seen: Seen, other: Objective, of: str, student: nn.Module, term: str | None = None) -> None:
    """Two objectives have the same values and gradients on the same draws."""
    assert_same(seen, on(seen, other, of), student, term or of)


def heun(b: Velocity, x: Tensor, s: Tensor, m: Tensor) -> Tensor:
    first = b(x, s)
    return x + like(m - s, x) * 0.5 * (first + b(x + like(m - s, x) * first, m))


# Map distillation: Lagrangian, Eulerian, Align Your Flow


def test_lmd_is_its_equation() -> None:
    """| d_t X - b_t(X) |^2 with the derivative of X itself, and the gradient of (26) or (27)."""
    for gradient in (Gradient.FULL, Gradient.TIME):
        student = student_of()
        seen = parts(lmd(student, teacher=B, gradient=gradient))["all"]
        x, _, s, t = drawn(seen)
        end, slope = derivative(lambda t, x=x, s=s, net=student: net(x, s, t), (t,), (torch.ones_like(t),))
        b = B(end, t)
        wanted = slope - (b if gradient is Gradient.FULL else b.detach())
        assert_same(seen, sq(wanted), student, "lagrangian")


def test_lmd_takes_the_stopped_teacher_by_default() -> None:
    student = student_of()
    seen = parts(lmd(student, teacher=B))["all"]
    stopped = replace(seen.objective, gradient=Gradient.TIME)  # type: ignore[type-var]
    same(seen, stopped, "lagrangian", student)
    through = parts(lmd(student, teacher=B, gradient=Gradient.FULL))["all"]
    grads = [
        torch.autograd.grad(on(seen, p.objective, "lagrangian").mean(), student.c)[0] for p in (seen, through)
    ]
    assert float((grads[0] - grads[1]).norm()) > 1e-2


def test_lmd_from_the_prior_in_target_form_is_the_prediction_of_free_flow() -> None:
    """At s = 0 the data's path is the prior: | u_{0,t} - sg( b_t(X) - t d_t u ) |^2 on x0 alone."""
    student = student_of()
    times = FromStart(Uniform(0.1, 1.0))
    seen = parts(lmd(student, teacher=B, times=times, gradient=Gradient.TARGET))["all"]
    free = Lagrangian(student, states=PriorStates(), times=times, end=Teacher(B), gradient=Gradient.TARGET)
    without = replace(seen.batch, x1=None)
    assert_same(seen, free(without, seen.draws)["lagrangian"].value, student, "lagrangian")
    x0, t = seen.batch.x0, seen.times()[1]
    zero = torch.zeros_like(t)
    u, du = derivative(lambda t: student.average(x0, zero, t), (t,), (torch.ones_like(t),))
    target = B(x0 + like(t, x0) * u, t) - like(t, x0) * du
    assert_same(seen, sq(u - target.detach()), student, "lagrangian")


def test_emd_is_its_equation() -> None:
    """| d_s X + grad X b_s |^2 with the derivative of X itself: (28), and with grad X b stopped (29)."""
    for gradient in (Gradient.DERIVATIVE, Gradient.TIME):
        student = student_of()
        seen = parts(emd(student, teacher=B, gradient=gradient))["all"]
        x, _, s, t = drawn(seen)
        _, in_s = derivative(lambda s, x=x, t=t, net=student: net(x, s, t), (s,), (torch.ones_like(s),))
        _, carried = derivative(lambda x, s=s, t=t, net=student: net(x, s, t), (x,), (B(x, s),))
        wanted = in_s + (carried if gradient is Gradient.DERIVATIVE else carried.detach())
        value = seen.objective(seen.batch, seen.draws)["eulerian"].value
        assert torch.allclose(value, sq(wanted), rtol=1e-9)
        if gradient is Gradient.DERIVATIVE:
            assert_same_gradient(value.mean(), sq(wanted).mean(), student)


def test_align_your_flow_is_the_paper_s_loss() -> None:
    """f(x, t, s) = x + (s - t) F, g = (F - v) + r (t - s) dF/dt, | F - sg(F - g/(|g|/sqrt(D) + c)) |^2, with
    noise at t = 1 and r = min(0.99, k/H)."""
    for progress, r in ((0.0, 0.0), (0.05, 0.5), (0.5, 0.99)):
        student = student_of()
        seen = parts(align_your_flow(student, teacher=B), progress)["all"]
        x, _, s, t = drawn(seen)
        now, then, v = 1.0 - s, 1.0 - t, -B(x, s)
        f_of = meanflow_of(student)
        f, df = derivative(f_of, (x, then, now), (v, torch.zeros_like(s), torch.ones_like(s)))
        g = (f - v + r * like(now - then, x) * df).detach()
        g = g / (torch.sqrt(sq(g) / 2.0) + 0.1).unsqueeze(1)
        assert_same(seen, sq(f - f.detach() + g), student, "eulerian")


def test_align_your_flow_draws_its_own_gaps() -> None:
    """t - s = sigmoid(N(-0.8, 1)), s uniform on [0, 1 - (t - s)]."""
    objective = align_your_flow(student_of(), teacher=B)
    s, t = objective.times(Streams(0, index=torch.arange(20_000), dtype=torch.float64))  # type: ignore[attr-defined]
    z = torch.logit(t - s)
    assert float(z.mean()) == pytest.approx(-0.8, abs=0.03) and float(z.std()) == pytest.approx(1.0, abs=0.03)
    place = s / (1.0 - (t - s))
    assert float(place.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(place.std()) == pytest.approx(12**-0.5, abs=0.01)


def test_align_your_flow_without_its_weight_and_warm_up_is_emd_in_target_form() -> None:
    student = student_of()
    plain = load("align_your_flow").card.plain
    seen = parts(align_your_flow(student, teacher=B, **plain))["all"]
    times = seen.objective.times  # type: ignore[attr-defined]
    same(seen, emd(student, teacher=B, times=times, gradient=Gradient.TARGET), "eulerian", student)


# Consistency distillation


def test_consistency_distillation_is_the_distance_of_two_jumps() -> None:
    """| f(x_s) - sg f'(Heun step to the next level) |^2 on 39 cells of sigma^(1/7) from 80 to 0.002."""
    student = EDM(Net(), sigma_data=0.7)
    game = consistency_distillation(student, teacher=B)
    seen = followed(game, student, "all")
    x, _, s, _ = drawn(seen)
    (high, low), sigma = (80 ** (1 / 7), 0.002 ** (1 / 7)), (1.0 - s) / s
    place = (sigma ** (1 / 7) - high) / (low - high) + 1 / 39
    m = torch.where(place < 1.0, 1.0 / (1.0 + (high + place * (low - high)) ** 7), 1.0)
    assert bool((m == 1.0).any()) and bool((m < 1.0).any())
    target = seen.objective.target  # type: ignore[attr-defined]
    for p in target.parameters():
        p.data += 0.1
    one = torch.ones_like(s)
    wanted = sq(student(x, s, one) - target(heun(B, x, s, m), m, one).detach())
    assert_same(seen, wanted, student, "eulerian")


def test_consistency_distillation_with_a_derivative_is_emd_to_the_end() -> None:
    student = student_of()
    game = consistency_distillation(student, teacher=B, step=None)  # type: ignore[arg-type]
    moving(objective_of(game).target)  # type: ignore[attr-defined]
    seen = parts(game)["all"]
    ended = emd(student, teacher=B, times=ToEnd(Karras(), stratified=True), gradient=Gradient.TARGET)
    same(seen, ended, "eulerian", student)
    again = ended.draw(seen.batch, Streams(0, index=torch.arange(ROWS), dtype=torch.float64))
    assert torch.equal(again["s"], seen.draws["s"])  # type: ignore[arg-type]


@pytest.mark.parametrize("d", [1e-3, 1e-4])
def test_consistency_distillation_shrinks_to_emd(d: float) -> None:
    """Over d, the gradient of the distance of two jumps is that of h |e|^2, e the error of emd: to O(d)."""
    student = student_of()
    game = consistency_distillation(
        student,  # type: ignore[arg-type]
        teacher=B,
        times=Uniform(0.0, 0.9),
        step=lambda s, t, progress: torch.full_like(s, d),
    )
    seen = parts(game)["all"]
    ours = seen.objective(seen.batch, seen.draws)["eulerian"].value.mean() / d
    s, t = seen.times()
    limit = emd(student, teacher=B, gradient=Gradient.TARGET)
    theirs = ((t - s) * on(seen, limit, "eulerian")).mean()
    a, b = (torch.autograd.grad(v, student.c)[0] for v in (ours, theirs))
    assert 0.01 * d < float((a - b).norm() / b.norm()) < 20.0 * d


def test_scd_has_the_gradient_of_the_official_loss() -> None:
    """F - sg(F) - g/(|g|/sqrt(D) + c), weight 1/tan(a), g = -cos(a)^2 (F - F_T) - r (cos(a) sin(a) x + dF/da)
    at r = 1, with the teacher's output F_T in the tangent and in the target."""
    student = TrigonometricMap(Net(), sigma_data=1.0)
    torch.manual_seed(1)
    taught = Net()
    with torch.no_grad():
        for p in taught.parameters():
            p.add_(0.3 * torch.randn_like(p))
    teacher = TrigonometricMap(taught, sigma_data=1.0).requires_grad_(False)
    seen = parts(scd(student, teacher=teacher.velocity, warm_up=None))["all"]
    s, _ = seen.times()
    a = (math.pi / 2.0) * (1.0 - s)
    x, _ = path(Trigonometric(), seen.batch.x0, seen.batch.data(), s)
    cos, sin = like(torch.cos(a), x), like(torch.sin(a), x)

    def f_of(x: Tensor, a: Tensor) -> Tensor:
        """The paper's network, whose output points from data to noise."""
        start = 1.0 - a * (2.0 / math.pi)
        return -student.backbone(x, start, torch.ones_like(start)).u

    dx = -taught(x, s, s).u
    f, df = derivative(f_of, (x, a), (cos * sin * dx, torch.cos(a) * torch.sin(a)))
    g = -(cos**2) * (f - dx) - (cos * sin * x + df)
    g = (g / (like(torch.sqrt(sq(g) / 2), g) + 0.1)).detach()
    wanted = sq(f - f.detach() - g) / torch.tan(a)
    value = seen.objective(seen.batch, seen.draws)["eulerian"].value  # at its start the log-variance is 0
    assert_same_gradient(value.mean(), wanted.mean(), student)


def test_scd_in_its_plain_form_is_emd_to_the_end() -> None:
    student = student_of()
    seen = parts(scd(student, teacher=B, **load("scd").card.plain))["all"]  # type: ignore[arg-type]
    same(seen, emd(student, teacher=B, gradient=Gradient.TARGET), "eulerian", student)
    warm = parts(scd(student, teacher=B, weight=Squared()), 0.05)["all"]  # type: ignore[arg-type]
    cold = replace(warm.objective, warm_up=lambda progress: torch.full_like(progress, 0.5))  # type: ignore[type-var]
    same(warm, cold, "eulerian", student)


# Consistency trajectory models


def always(gamma: float) -> Callable[[Streams, Tensor], Tensor]:
    """A split that is always the same."""
    return lambda rng, like: torch.full_like(like, gamma)


def test_ctm_is_the_paper_s_loss() -> None:
    """| G'(G(x, s -> t), t -> 1) - G'(G'(solver(x, s -> m), m -> t), t -> 1) |^2, its gradient through the
    first G'."""
    student = EDM(Net(), sigma_data=0.7)
    game = ctm(student, teacher=B, solver_steps=3, matching=0.7)
    seen, match = followed(game, student, "composition"), parts(game)["diagonal"]
    x, _, s, t = drawn(seen)
    target = seen.objective.target  # type: ignore[attr-defined]
    for p in target.parameters():
        p.data += 0.1
    gamma, one = seen.draws["gamma"], torch.ones_like(s)
    assert isinstance(gamma, Tensor) and float(gamma.std()) > 0.1
    m, led = s + gamma * (t - s), x
    for k in range(3):
        led = heun(B, led, s + (m - s) * k / 3, s + (m - s) * (k + 1) / 3)
    end, wanted = student(x, s, t), target(led, m, t)
    error = target(end, t, one) - target(wanted, t, one).detach()
    assert_same(seen, sq(error), student, "composition")
    assert (match.weight, seen.weight) == (0.7, 1.0)
    x, v, t, _ = drawn(match)
    assert_same(match, sq(student.velocity(x, t) - v), student, "diagonal")


def test_ctm_split_at_its_end_is_the_endpoint_loss() -> None:
    """No second jump is left: regression on where the teacher leads."""
    student = student_of()
    seen = parts(ctm(student, teacher=B, split=always(1.0), push=None))["composition"]  # type: ignore[arg-type]
    moving(seen.objective.target)  # type: ignore[attr-defined]
    whole = Endpoint(student, leg=Along(Teacher(B), HEUN, 4))
    same(seen, whole, "endpoint", student, "composition")


def test_ctm_split_at_its_start_is_the_identity() -> None:
    """No leg of the teacher is left: the target is the moving average's own jump, also one of no length."""
    for push in (None, Jump()):
        student = student_of()
        seen = parts(ctm(student, teacher=B, split=always(0.0), push=push))["composition"]  # type: ignore[arg-type]
        own = seen.objective(seen.batch, seen.draws)["composition"].value.detach()
        assert float(own.abs().max()) <= 1e-24
        target = moving(seen.objective.target)  # type: ignore[attr-defined]
        s = seen.draws["s"]
        for draws in (seen.draws, seen.draws | {"t": s}):
            x, _, _, t = drawn(replace(seen, draws=draws))
            assert isinstance(s, Tensor)
            if push is None:
                wanted = student.average(x, s, t) - target.average(x, s, t)
            else:
                one = torch.ones_like(t)
                wanted = target(student(x, s, t), t, one) - target(target(x, s, t), t, one)
            value = seen.objective(seen.batch, draws)["composition"].value
            assert torch.allclose(value, sq(wanted), rtol=1e-9, atol=1e-20)


def test_ctm_near_its_start_is_consistency_distillation() -> None:
    """One solver step of length d to t = 1, unpushed: the same target but for the rescaling by h/d."""
    student = student_of()
    d = 0.05
    game = consistency_distillation(
        student,  # type: ignore[arg-type]
        teacher=B,
        times=Uniform(0.0, 0.9),
        step=lambda s, t, progress: torch.full_like(s, d),
        weight=Squared(),
    )
    seen = parts(game)["all"]
    s, t = seen.times()
    composed = Composition(student, leg=Along(Teacher(B), HEUN))
    value = composed(seen.batch, seen.draws | {"gamma": d / (t - s)})["composition"].value
    ours = seen.objective(seen.batch, seen.draws)["eulerian"].value
    assert torch.allclose(ours * (d / (t - s)) ** 2, value, rtol=1e-9)


def test_a_push_needs_a_target_that_is_frozen_and_the_target_form() -> None:
    student = student_of()
    for options in ({}, {"target": student_of(), "gradient": Gradient.FULL}):
        with pytest.raises(ValueError, match="a push"):
            Composition(student, push=Jump(), **options)  # type: ignore[arg-type]


def test_defaults_are_those_in_print() -> None:
    """One Heun step of the teacher; squares of the distance of jumps, or of the error without a step."""
    student = student_of()
    cd = objective_of(consistency_distillation(student, teacher=B))  # type: ignore[arg-type]
    assert isinstance(cd.weight, InStates) and cd.leg.tableau is HEUN and cd.leg.steps == 1  # type: ignore[attr-defined]
    derived = objective_of(consistency_distillation(student, teacher=B, step=None))  # type: ignore[arg-type]
    assert isinstance(derived.weight, Squared)  # type: ignore[attr-defined]
    euler = objective_of(consistency_distillation(student, teacher=B, tableau=EULER))  # type: ignore[arg-type]
    assert euler.leg.tableau is EULER  # type: ignore[attr-defined]
