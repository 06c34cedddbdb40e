"""Learning from pairs that a flow made, against flows that are straight already, and against arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from systems import ON_DIAGONAL, Perturbed, gaussian, pairs
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saltus.exact import reference_mixture
from saltus.games import Artifact, Stage, Stages, as_game
from saltus.interpolants import Linear, Trigonometric, path
from saltus.legs import RK4
from saltus.lessons import FlowPairs, lessons_on_pairs
from saltus.maps import AverageVelocity, NetworkMap
from saltus.methods import discover
from saltus.methods.rectified_flow_pp import HuberPerDimension
from saltus.nn import MLP
from saltus.objectives import Continued, Diagonal, Endpoint, OnFlow, OnStored, Renewed
from saltus.samplers import integrate
from saltus.streams import Streams
from saltus.tensors import like
from saltus.training import AdamW, Checkpoints, Fit, fit, initialised
from saltus.training.state import restore, state_of
from saltus.trajectories import PairStore, carried
from saltus.typing import Batch, Condition, Objective
from saltus.weights import LearnedLogVariance, Span

SYSTEM = gaussian()
STRAIGHTENING = [name for name, method in discover().items() if method.card.rectifies]
FINE = {"tableau": RK4, "solver_steps": 64}
ZERO = torch.zeros(8, dtype=torch.float64)


class Straight:
    """The flow whose trajectories are the lines from x0 to the end of the Gaussian's flow: x1 = A x0 + m."""

    def __init__(self) -> None:
        zero, one = torch.zeros(3).double(), torch.ones(3).double()
        corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        ends = SYSTEM.exact(corners, zero, one)
        self.m, self.a = ends[0], (ends[1:] - ends[0]).T

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """x1 - x0 of the line through x at t."""
        eye = torch.eye(2, dtype=x.dtype)
        at = eye + t.reshape(-1, 1, 1) * (self.a - eye)
        x0: Tensor = torch.linalg.solve(at, x - like(t, x) * self.m)
        return x0 @ (self.a - eye).T + self.m

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The same, whatever t is."""
        return self.velocity(x, s)


STRAIGHT = Straight()


def lessons(name: str, student: nn.Module, **options: object) -> tuple[Objective, ...]:
    """The objectives of a method's stages; each frozen copy is of the student."""
    built = discover()[name].build(student, teacher=SYSTEM.velocity, **FINE, **options)
    assert isinstance(built, Stages)
    frozen = {key: make() for stage in built.stages for key, make in stage.produce.items()}
    found = [stage.build(frozen) for stage in built.stages]
    assert all(isinstance(one, Objective) for one in found)
    return tuple(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", STRAIGHTENING)
def test_a_straight_flow_of_the_same_ends_is_where_every_row_s_error_is_zero(name: str) -> None:
    """Not only its mean: the lines of a Gaussian's pairs do not cross. The teacher's own flow is another."""
    batch, rng = pairs(SYSTEM, 64, progress=1.0)
    for flow, still in ((STRAIGHT, True), (SYSTEM.exact, False)):
        for stage, loss in enumerate(lessons(name, Perturbed(flow, ZERO))):  # type: ignore[arg-type]
            values = torch.cat([term.value.detach() for term in loss(batch, loss.draw(batch, rng)).values()])
            assert float(values.abs().max()) < 1e-12 if still else stage or float(values.abs().max()) > 1e-3


@pytest.mark.parametrize("name", STRAIGHTENING)
def test_away_from_it_the_gradient_points_home(name: str) -> None:
    """Along every function that its stages can see: the reflow those that do not vanish at s = t, and the
    distillation, from s = 0 to t = 1, all of them."""
    batch, rng = pairs(SYSTEM, 256, progress=1.0)
    for stage, _ in enumerate(lessons(name, Perturbed(STRAIGHT, ZERO))):  # type: ignore[arg-type]
        for k in range(8):
            c = ZERO.clone()
            c[k] = 0.1
            student = Perturbed(STRAIGHT, c)  # type: ignore[arg-type]
            loss = lessons(name, student)[stage]
            terms = loss(batch, loss.draw(batch, rng)).values()
            total = sum((term.weight * term.value.mean() for term in terms), torch.zeros(()))
            (grad,) = torch.autograd.grad(total, student.c)
            seen = stage > 0 or ON_DIAGONAL[k]
            assert (float(grad[k]) > 1e-5) == seen, (stage, k, float(grad[k]))


def test_pairs_made_anew_are_the_teacher_s_and_lines_of_them_are_learned() -> None:
    """By hand: x1 by the library's integration, t and the noise drawn."""
    student = Perturbed(SYSTEM.exact, ZERO + 0.2)
    own = lessons("slimflow", student, renewal=lambda p: 1.0 - p)[0]
    assert isinstance(own, OnFlow) and isinstance(own.objective, Renewed)
    batch, rng = pairs(SYSTEM, 32, progress=0.4)
    draws = own.draw(batch, rng)
    of = draws["of"]
    assert isinstance(of, dict) and isinstance(of["of"], dict)
    n, t = of["noise"], of["of"]["t"]
    assert isinstance(n, Tensor) and isinstance(t, Tensor)
    x1 = integrate(SYSTEM.velocity, batch.x0, 64, RK4)
    z = 0.8 * batch.x0 + 0.6 * n
    x, v = path(Linear(), z, x1, t)
    wanted = (student.velocity(x, t, batch.cond) - v).square().sum(1)
    assert torch.allclose(own(batch, draws)["diagonal"].value, wanted, rtol=1e-12)
    big, stream = pairs(SYSTEM, 20_000)
    z_b = Renewed(Diagonal(student), lambda p: torch.full_like(p, 0.6)).inside(
        big, {"noise": stream.normal("renewed", 2), "of": {}}
    )[0].x0
    assert float((z_b.T @ z_b / 20_000 - torch.eye(2)).abs().max()) < 0.04  # 4 standard errors
    assert float((z_b * big.x0).mean()) == pytest.approx(0.8, abs=0.03)


def test_the_guided_step_of_the_distillation_begins_at_the_student_s_own_midpoint() -> None:
    """m u + (1 - m) b'(x0 + m u), stopped, u live; with the frozen reflow for b'."""
    student = Perturbed(SYSTEM.exact, ZERO + 0.2)
    last = lessons("slimflow", student)[-1]
    assert isinstance(last, OnFlow)
    batch, rng = pairs(SYSTEM, 32, progress=1.0)
    inner, draws = last.inside(batch, last.draw(batch, rng))
    flow = draws["flow"]
    assert isinstance(flow, dict) and isinstance(flow["of"], dict) and isinstance(flow["rows"], Tensor)
    m, seen = flow["of"]["gamma"], inner.rows(flow["rows"])
    assert isinstance(m, Tensor) and 0.2 < float(m.min()) and float(m.max()) < 0.8
    zero, x0 = torch.zeros_like(m), seen.x0
    u = student.average(x0, zero, torch.ones_like(m), seen.cond)
    y = like(m, x0) * u + like(1.0 - m, x0) * student.velocity(x0 + like(m, x0) * u, m, seen.cond)
    found = last(batch, last.draw(batch, rng))["composition"]
    assert torch.allclose(found.value, (u - y).square().sum(1), rtol=1e-12)
    (mine,) = torch.autograd.grad(found.value.sum(), student.c)
    (wanted,) = torch.autograd.grad(2.0 * ((u - y).detach() * u).sum(), student.c)
    assert torch.allclose(mine, wanted, rtol=1e-10)


def test_the_error_of_rectified_flow_pp() -> None:
    e, t = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).double(), torch.tensor([0.5, 0.9]).double()
    c = 0.00054 * 2
    wanted = t * ((e.square().sum(1) + c * c).sqrt() - c) / 2
    assert torch.allclose(HuberPerDimension()(e, Span(t, t)), wanted, rtol=1e-12)
    phi = torch.tensor([[1.0, 2.0], [0.0, 1.0]]).double()
    student = Perturbed(SYSTEM.exact, ZERO + 0.2)
    (loss,) = lessons("rectified_flow_pp", student, features=lambda x: x @ phi)
    assert isinstance(loss, OnFlow)
    batch, rng = pairs(SYSTEM, 16)
    seen, draws = loss.inside(batch, loss.draw(batch, rng))
    of = draws["features"]
    assert isinstance(of, dict) and isinstance(of["t"], Tensor)
    r, x1 = of["t"], seen.data()
    x, _ = path(Linear(), seen.x0, x1, r)
    end = x + like(1.0 - r, x) * student.velocity(x, r, seen.cond)
    wanted = ((end - x1) @ phi).square().sum(1) / (1.0 - r)
    found = loss(batch, loss.draw(batch, rng))
    assert torch.allclose(found["features_diagonal"].value, wanted, rtol=1e-8)


# Pairs that are kept

LAW = reference_mixture()
ROWS, STEPS = 16, 8


def source(rng: Streams) -> Batch:
    return Batch(rng.normal("x0", 2), None, Condition(label=rng.integers("label", 4)))


def begun(name: str = "slimflow", **options: object) -> tuple[NetworkMap, Fit, Stages]:
    student = initialised(0, lambda: AverageVelocity(MLP((2,), width=8, depth=1, classes=4)))
    given = {"shape": (2,), "pairs": 40, "making": 0.5, "solver_steps": 4} | options
    built = discover()[name].build(student, teacher=LAW, **given)
    assert isinstance(built, Stages)
    run = fit(as_game(built, student), source, steps=STEPS, seed=3, batch=ROWS, optimizer=AdamW(0.01))
    return student, run, built


def test_pairs_are_kept_as_they_were_made_and_drawn_from() -> None:
    """Three batches of 16 into a store of 40: the last 40 stay, each beside its own end and label."""
    student, run, built = begun("instaflow", distil=0.25)
    assert [stage.name for stage in built.stages] == ["reflow, pairs made", "reflow", "distil"]
    made = [step for step in run if step.stage == "reflow, pairs made"]
    assert len(made) == 3
    batches = [source(Streams(3, k, torch.arange(ROWS)).named("data")) for k in range(3)]
    noise, ends, labels = (run.artifacts[f"pairs_{n}"] for n in ("noise", "ends", "labels"))
    assert isinstance(noise, Tensor) and isinstance(ends, Tensor) and isinstance(labels, Tensor)
    x0 = torch.cat([batch.x0 for batch in batches])
    label = torch.cat([batch.cond.label for batch in batches])  # type: ignore[union-attr, misc]
    places = torch.arange(48) % 40
    for k in range(8, 48):
        assert torch.equal(noise[places[k]], x0[k]) and labels[places[k]] == label[k]
    wanted = carried(LAW, noise, Linear(), steps=4, cond=Condition(label=labels))
    assert torch.allclose(ends, wanted, atol=1e-6)
    second = built.stages[1].build(run.artifacts)
    assert isinstance(second, OnStored)
    rng = Streams(0, index=torch.arange(2000))
    batch = Batch(rng.normal("x0", 2))
    draws = second.draw(batch, rng)
    seen, _ = second.inside(batch, draws)
    rows = draws["pair"]
    assert isinstance(rows, Tensor) and len(set(rows.tolist())) == 40
    assert torch.equal(seen.x0, noise[rows]) and torch.equal(seen.data(), ends[rows])
    assert seen.cond is not None and torch.equal(seen.cond.label, labels[rows])  # type: ignore[arg-type]
    few = built.stages[1].build({name: value[:5] for name, value in run.artifacts.items()})  # type: ignore[index]
    assert isinstance(few, OnStored) and len(few.noise) == 5


def test_more_than_labels_is_no_condition_of_pairs_that_are_kept() -> None:
    """It would be lost, and what later stages learn would not depend on it."""
    store, x0 = PairStore(LAW, 40, (2,), Linear(), steps=1), torch.zeros(4, 2)
    for name, value in {
        "tokens": torch.zeros(4, 3, 5),
        "pooled": torch.zeros(4, 5),
        "w": torch.ones(4),
        "null": torch.ones(4, dtype=torch.bool),
    }.items():
        cond = replace(Condition(label=torch.arange(4)), **{name: value})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"labels alone, .* got {name}; without shape"):
            store.fill(Batch(x0, cond=cond))
    for known in (None, Condition(), Condition(label=torch.arange(4))):
        store.fill(Batch(x0, cond=known))


class EachOnce(TorchFunctionMode):
    """No place is written twice by one assignment, which has no order on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func is Tensor.__setitem__:
            assert len(set(args[1].tolist())) == len(args[1])
        return func(*args, **(kwargs or {}))


def test_of_a_batch_larger_than_the_store_the_last_pairs_stay() -> None:
    store = PairStore(LAW, 5, (2,), Linear(), steps=1)
    batches = [store.fill(source(Streams(3, k, torch.arange(ROWS)))) for k in range(2)]
    with EachOnce():
        store()
    for name, wanted in (
        ("noise", batches[1].x0),
        ("ends", batches[1].data()),
        ("labels", batches[1].cond.label),  # type: ignore[union-attr]
    ):
        assert wanted is not None
        found = store.kept(name)
        for k in range(27, 32):
            assert torch.equal(found[k % 5], wanted[k - 16])


def test_reflow_ends_on_the_velocity_that_its_card_integrates_and_instaflow_on_the_jump() -> None:
    """Whatever their options: u_{t,t} for one, X_{0,1} for the other."""
    with pytest.raises(TypeError, match="distil"):
        begun("reflow", distil=0.5)
    for name, last in (("reflow", Diagonal), ("instaflow", Endpoint)):
        loss = lessons(name, Perturbed(STRAIGHT, ZERO))[-1]  # type: ignore[arg-type]
        assert isinstance(loss, OnFlow) and isinstance(loss.objective, last)


def test_while_they_are_made_they_are_learned_from_as_if_made_anew() -> None:
    student, _, built = begun("reflow")
    game = as_game(built, student).stages[0].build({})
    assert not isinstance(game, Objective) and game.prepare is not None
    rng = Streams(3, index=torch.arange(ROWS)).named("data")
    batch = source(rng)
    own = game.moves[0].objective
    mine = own(game.prepare(batch), own.draw(batch, rng))  # type: ignore[arg-type]
    anew = discover()["reflow"].build(student, teacher=LAW, solver_steps=4).stages[0].build({})
    (theirs,) = anew(batch, anew.draw(batch, rng)).values()
    assert torch.equal(mine["diagonal"].value, theirs.value)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_a_run_with_pairs_goes_on_bit_for_bit(k: int, tmp_path: Path) -> None:
    """While they are made (2 steps), when they have been (then 2), and in the distillation (4)."""

    def numbers(run: Fit) -> list[float]:
        return [float(step.loss) for step in run]

    whole = numbers(begun()[1])
    _, run, built = begun()
    assert [stage.name for stage in built.stages] == ["reflow, pairs made", "reflow", "distil"]
    first = [float(next(run).loss) for _ in range(k)]
    state, checkpoints = state_of(run, {}), Checkpoints(tmp_path)
    assert ("players/student/after/0/made" in state.tensors) == (k < 2)
    checkpoints.save(k, state.tensors, {"state": state.plain})
    checkpoints.wait()
    saved, (_, again, _) = checkpoints.newest(), begun()
    assert saved is not None
    restore(again, {}, saved)
    assert first + numbers(again) == whole


def test_a_schedule_goes_on_when_pairs_have_been_made() -> None:
    """b falls once over both parts of the reflow, and what is learned on pairs is trained with its weight."""
    seen: list[float] = []

    def falling(progress: Tensor) -> Tensor:
        seen.append(float(progress))
        return 1.0 - progress

    learned = LearnedLogVariance()
    student, run, built = begun(renewal=falling, weight=learned, distil=0.25)
    list(run)
    halves = [k / 6 for k in range(6)]
    assert seen[1:] == pytest.approx(halves)  # the first is the method's own look at its end
    for stage in built.stages[1:]:
        game = as_game(Stages((stage,)), student).stages[0].build(run.artifacts)
        assert not isinstance(game, Objective)
        assert any(p is q for p in game.moves[0].module.parameters() for q in learned.parameters())


def test_lessons_say_what_does_not_fit() -> None:
    student = AverageVelocity(MLP((2,), width=8, depth=1))
    build = discover()
    for name, options, what in (
        ("instaflow", {"distil": 1.0}, "above 0 and below 1, got 1.0"),
        ("instaflow", {"distil": 0.0}, "above 0 and below 1, got 0.0; reflow does without"),
        ("slimflow", {"distil": 0.0}, "above 0 and below 1, got 0.0"),
        ("slimflow", {"renewal": torch.ones_like}, "ends at 0, got 1"),
        ("reflow", {"shape": (2,), "making": 0.0}, "above 0 and below 1, got 0.0"),
        ("reflow", {"shape": (2,), "pairs": 0}, "at least 1, got 0"),
        ("rectified_flow_pp", {"features": torch.tanh, "interpolant": Trigonometric()}, "linear interpolant"),
    ):
        with pytest.raises(ValueError, match=what):
            build[name].build(student, teacher=LAW, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        carried(LAW, torch.zeros(2, 2), Linear(), steps=0)

    def game(artifacts: Mapping[str, Artifact]) -> object:
        return as_game(Diagonal(student), student)

    made = FlowPairs(LAW, Linear(), RK4, 4)
    with pytest.raises(ValueError, match="got a game in 'a'"):
        lessons_on_pairs(student, made, Stage("a", game)).stages[0].build({})  # type: ignore[arg-type]


def test_wrapped_objectives_are_those_that_they_wrap() -> None:
    """Continued changes progress alone, and the endpoint on a flow's pairs is knowledge distillation."""
    student = Perturbed(SYSTEM.exact, ZERO + 0.2)
    batch, rng = pairs(SYSTEM, 16, progress=0.5)
    inner, _ = Continued(Diagonal(student), 0.25, 1.0).inside(batch, {"of": {}})
    assert float(inner.progress) == 0.625 and torch.equal(inner.x0, batch.x0)
    distil = OnFlow(SYSTEM.velocity, Endpoint(student), steps=8)
    kd = discover()["endpoint"].build(student, teacher=SYSTEM.velocity, solver_steps=8)
    blind = replace(batch, x1=None)
    (mine,) = distil(blind, distil.draw(blind, rng)).values()
    (theirs,) = kd(blind, kd.draw(blind, rng)).values()
    assert torch.allclose(mine.value, theirs.value, rtol=1e-12)
