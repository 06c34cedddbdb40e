"""The loop against arithmetic done by hand: gradient descent, games, averages, schedules, faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from itertools import islice

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from saltus import autodiff
from saltus.games import Follow, Game, Move, Project, as_game
from saltus.nn import MLP
from saltus.streams import Streams
from saltus.tensors import like, per_row_norm2
from saltus.training import (
    EMA,
    AdamW,
    Cosine,
    Fit,
    Log,
    NonFiniteLoss,
    RAdam,
    fit,
    initialised,
    player,
)
from saltus.typing import Batch, Draws, Term

WEIGHTS = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)


def sgd(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def source(rng: Streams) -> Batch:
    return Batch(rng.normal("x0", 3))


def linear(dtype: torch.dtype = torch.float64) -> nn.Linear:
    return initialised(3, lambda: nn.Linear(3, 1, bias=False, dtype=dtype))


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """mean (w x - w* x)^2 + noise_weight * mean (w x + noise)^2."""

    student: nn.Module
    noise_weight: float = 0.0

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {"noise": rng.normal("noise")}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        y = self.student(batch.x0).squeeze(1)
        noise = draws["noise"]
        assert isinstance(noise, Tensor)
        truth = (batch.x0 @ WEIGHTS.to(batch.x0).T).squeeze(1)
        return {"fit": Term((y - truth) ** 2), "noise": Term((y + noise) ** 2, self.noise_weight)}


@dataclass(eq=False)
class Scalar(nn.Module):
    """One number."""

    start: float

    def __post_init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([self.start], dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Quadratic:
    """(mine - slope * other - offset)^2, whose graph runs through the other player too."""

    mine: Scalar
    other: Scalar
    slope: float
    offset: float
    seen: list[tuple[int, float]] = field(default_factory=list)

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        self.seen.append((rng.step, float(batch.x0[0, 0])))
        return {}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        return {"gap": Term((self.mine.value - self.slope * self.other.value - self.offset) ** 2)}


def players() -> tuple[Scalar, Scalar, Quadratic, Quadratic]:
    a, b = Scalar(2.0), Scalar(-1.0)
    return a, b, Quadratic(a, b, 1.0, 1.0), Quadratic(b, a, -0.5, 0.0)


def run(student: nn.Module, steps: int, **options: object) -> tuple[Fit, list[float]]:
    game = as_game(LeastSquares(student, noise_weight=0.3), student)
    options = {"optimizer": AdamW(1e-2), "seed": 1, "batch": 16} | options
    game_run = fit(game, source, steps=steps, **options)  # type: ignore[arg-type]
    return game_run, [float(step.loss) for step in game_run]


def test_a_step_is_gradient_descent_by_hand() -> None:
    net = linear()
    w = net.weight.detach().clone()
    objective = LeastSquares(net, noise_weight=0.3)
    steps = fit(as_game(objective, net), source, steps=3, seed=5, batch=8, optimizer=sgd(0.1))
    for index, step in enumerate(steps):
        rng = Streams(5, index, torch.arange(8), dtype=torch.float64)
        x = source(rng.named("data")).x0
        noise = rng.named("student").normal("noise")
        fit_error, noise_error = (x @ (w - WEIGHTS).T).squeeze(1), (x @ w.T).squeeze(1) + noise
        gradient = 2 * (fit_error[:, None] * x).mean(0) + 0.6 * (noise_error[:, None] * x).mean(0)
        assert float(step.terms["fit"]) == pytest.approx(float((fit_error**2).mean()), rel=1e-13)
        assert float(step.terms["noise"]) == pytest.approx(float((noise_error**2).mean()), rel=1e-13)
        loss = (fit_error**2).mean() + 0.3 * (noise_error**2).mean()
        assert float(step.loss) == pytest.approx(float(loss), rel=1e-13)
        assert float(step.grad_norm) == pytest.approx(float(gradient.norm()), rel=1e-13)
        w = w - 0.1 * gradient
        torch.testing.assert_close(net.weight.detach(), w, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("optimizer", [AdamW(0.05), RAdam(0.05), sgd(0.2)])
def test_least_squares_reaches_its_optimum(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    net = linear()
    game = as_game(LeastSquares(net), net)
    for _ in fit(game, source, steps=1200, seed=0, batch=16, optimizer=optimizer, schedule=Cosine()):
        pass
    assert float((net.weight.detach() - WEIGHTS).abs().max()) < 1e-9


def test_two_players_five_to_one_by_hand() -> None:
    a, b, student, critic = players()
    moves = (
        Move("critic", b, critic, optimizer=sgd(0.05), when=lambda step: 5),
        Move("student", a, student, optimizer=sgd(0.1), when=lambda step: int(step % 2 == 0)),
    )
    x, y = 2.0, -1.0
    for step in fit(Game(moves), source, steps=40, seed=0, batch=2):
        for _ in range(5):
            y -= 0.05 * 2 * (y + 0.5 * x)
        if step.index % 2 == 0:
            x -= 0.1 * 2 * (x - y - 1.0)
        # a gradient left over from the other's loss, or a wrong count, breaks the recursion
        assert float(b.value.detach()) == pytest.approx(y, abs=1e-14)
        assert float(a.value.detach()) == pytest.approx(x, abs=1e-14)
        assert a.value.grad is None and b.value.grad is None
        assert set(step.moved) == ({"critic", "student"} if step.index % 2 == 0 else {"critic"})
    assert len(critic.seen) == 200 and len(student.seen) == 20
    assert len(set(critic.seen)) == 200  # every turn had its own batch
    assert student.seen == critic.seen[::10]  # the first turns share the step's batch


def test_two_players_reach_their_equilibrium() -> None:
    a, b, student, critic = players()
    game = Game((Move("critic", b, critic, when=lambda step: 5), Move("student", a, student)))
    for _ in fit(game, source, steps=200, seed=0, batch=2, optimizer=sgd(0.1)):
        pass
    assert float(a.value.detach()) == pytest.approx(2 / 3, abs=1e-9)
    assert float(b.value.detach()) == pytest.approx(-1 / 3, abs=1e-9)


def test_after_a_move_in_order() -> None:
    net, target = linear(), linear()
    average = net.weight.detach().clone()
    after = (Follow(target, net, decay=0.75), Project(net, lambda p: p / p.norm()))
    move = Move("student", net, LeastSquares(net), optimizer=sgd(0.1), after=after)
    current = net.weight.detach().clone()
    for step in fit(Game((move,)), source, steps=4, seed=0, batch=8):
        x = source(Streams(0, step.index, torch.arange(8), dtype=torch.float64).named("data")).x0
        stepped = current - 0.2 * ((x @ (current - WEIGHTS).T) * x).mean(0)
        average = 0.75 * average + 0.25 * stepped  # of the weights before their projection
        current = stepped / stepped.norm()
        torch.testing.assert_close(target.weight.detach(), average, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(net.weight.detach(), current, rtol=1e-12, atol=1e-13)


def test_prepare_and_progress() -> None:
    seen: list[tuple[bool, float]] = []
    shift = torch.tensor(100.0, dtype=torch.float64)

    def prepare(batch: Batch) -> Batch:
        seen.append((torch.is_grad_enabled(), float(batch.progress)))
        return Batch(batch.x0 + shift, progress=batch.progress)

    a, _, student, _ = players()
    game = Game((Move("student", a, student, when=lambda step: 2),), prepare)
    for _ in fit(game, source, steps=4, seed=0, batch=2, optimizer=sgd(0.1)):
        pass
    assert seen == [(False, k / 4) for k in range(4) for _ in range(2)]  # once for each batch drawn
    assert all(x > 50.0 for _, x in student.seen)


def test_identical_seeds_identical_runs() -> None:
    first, second, other = linear(torch.float32), linear(torch.float32), linear(torch.float32)
    losses = run(first, 20)[1]
    assert run(second, 20)[1] == losses
    assert torch.equal(first.weight, second.weight)
    assert run(other, 20, seed=2)[1] != losses


def test_a_run_can_begin_at_any_step() -> None:
    whole, parts = linear(), linear()
    losses = run(whole, 10, optimizer=sgd(0.1))[1]
    begun = fit(
        as_game(LeastSquares(parts, 0.3), parts), source, steps=10, seed=1, batch=16, optimizer=sgd(0.1)
    )
    early = [float(next(begun).loss) for _ in range(6)]
    assert early + run(parts, 10, optimizer=sgd(0.1), start=6)[1] == losses
    assert torch.equal(whole.weight, parts.weight)


def test_a_failed_step_replays() -> None:
    failures = [4]

    def flaky(rng: Streams) -> Batch:
        if rng.step in failures:
            failures.remove(rng.step)
            raise OSError("the disk is away")
        return source(rng)

    calm, disturbed = linear(), linear()
    losses = run(calm, 8)[1]
    steps = fit(
        as_game(LeastSquares(disturbed, 0.3), disturbed),
        flaky,
        steps=8,
        seed=1,
        batch=16,
        optimizer=AdamW(1e-2),
    )
    early = [float(next(steps).loss) for _ in range(4)]
    with pytest.raises(OSError, match="away"):
        next(steps)
    assert early + [float(step.loss) for step in steps] == losses
    assert torch.equal(calm.weight, disturbed.weight)


def test_clipping_is_exact() -> None:
    for clip, expected in ((0.25, 0.25), (1e6, None)):
        net, free = linear(), linear()
        before = net.weight.detach().clone()
        step = next(
            fit(
                as_game(LeastSquares(net), net),
                source,
                steps=1,
                seed=0,
                batch=8,
                optimizer=sgd(1.0),
                clip=clip,
            )
        )
        next(fit(as_game(LeastSquares(free), free), source, steps=1, seed=0, batch=8, optimizer=sgd(1.0)))
        full = free.weight.detach() - before
        assert float(step.grad_norm) == pytest.approx(float(full.norm()), rel=1e-13)
        moved = net.weight.detach() - before
        if expected is None:
            assert torch.equal(net.weight, free.weight)
        else:
            assert float(moved.norm()) == pytest.approx(expected, rel=1e-13)
            torch.testing.assert_close(moved / moved.norm(), full / full.norm(), rtol=1e-12, atol=1e-13)


def test_rates_follow_the_schedule_in_every_group() -> None:
    net = nn.Linear(3, 1, dtype=torch.float64)

    def groups(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [net.weight], "lr": 0.1}, {"params": [net.bias], "lr": 0.4}])

    steps = fit(
        as_game(LeastSquares(net), net), source, steps=8, seed=0, batch=4, optimizer=groups, schedule=Cosine()
    )
    for step in steps:
        factor = 0.5 * (1 + math.cos(math.pi * step.index / 8))
        rates = [group["lr"] for group in steps.players[0].optimizer.param_groups]
        assert rates == pytest.approx([0.1 * factor, 0.4 * factor], rel=1e-14)
        assert step.lr == rates[0]


def test_a_step_never_waits_for_the_device() -> None:
    # A tensor of the meta device has no numbers: whoever reads one in a step raises.
    student, critic = linear().to("meta"), linear().to("meta")
    ema = EMA(student, 0.99)
    moves = (
        Move("critic", critic, LeastSquares(critic, 0.5), when=lambda step: 2),
        Move("student", student, LeastSquares(student, 0.5), after=(Follow(critic, student, 0.9),)),
    )
    log = Log(None, steps=9, batch=4, every=5, console=Console(file=StringIO()))
    run = fit(Game(moves), source, steps=5, seed=0, batch=4, clip=1.0, schedule=Cosine(warmup=0.1))
    for step in islice(run, 4):  # the last one looks whether all was finite
        ema.update()
        log(step)
        assert step.loss.device.type == step.terms["student/fit"].device.type == "meta"
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            step.fetch()


def test_compiled_loss_is_one_graph_and_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(player, "compiled", lambda module: autodiff.compiled(module, backend="aot_eager"))
    eager, compiled = linear(), linear()
    losses = run(eager, 5)[1]
    assert run(compiled, 5, compile=True)[1] == pytest.approx(losses, rel=1e-13)
    torch.testing.assert_close(eager.weight, compiled.weight, rtol=1e-12, atol=1e-13)


def test_impossible_runs() -> None:
    net = linear()
    game = as_game(LeastSquares(net), net)
    move = game.moves[0]
    frozen = linear().requires_grad_(False)

    def short(rng: Streams) -> Batch:
        return source(rng).rows(torch.arange(2))

    wrong: list[tuple[str, Callable[[], object]]] = [
        (
            "Game, got LeastSquares; use .*as_game",
            lambda: fit(LeastSquares(net), source, steps=1, seed=0, batch=4),  # type: ignore[arg-type]
        ),
        ("start", lambda: fit(game, source, steps=3, seed=0, batch=4, start=5)),
        ("batch", lambda: fit(game, source, steps=3, seed=0, batch=0)),
        ("clip", lambda: fit(game, source, steps=3, seed=0, batch=4, clip=0.0)),
        ("different names", lambda: fit(Game((move, move)), source, steps=3, seed=0, batch=4)),
        ("different names", lambda: fit(Game(()), source, steps=3, seed=0, batch=4)),
        ("trainable", lambda: fit(as_game(LeastSquares(frozen), frozen), source, steps=3, seed=0, batch=4)),
        ("4 rows.*got 2", lambda: next(fit(game, short, steps=1, seed=0, batch=4))),
        ("lr", lambda: AdamW(lr=0.0)),
        ("weight_decay", lambda: RAdam(weight_decay=-1.0)),
        ("every", lambda: Log(None, steps=1, batch=1, every=0)),
    ]
    for words, call in wrong:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_the_loop_trains_a_network() -> None:
    @dataclass(frozen=True, eq=False)
    class FlowMatching:
        student: MLP

        def draw(self, batch: Batch, rng: Streams) -> Draws:
            return {"t": rng.uniform("t")}

        def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
            t, x1 = draws["t"], batch.data()
            assert isinstance(t, Tensor)
            x = (1 - like(t, x1)) * batch.x0 + like(t, x1) * x1
            return {"velocity": Term(per_row_norm2(self.student(x, t, t).u - (x1 - batch.x0)))}

    def shifted(rng: Streams) -> Batch:
        return Batch(rng.normal("x0", 2), 0.5 * rng.normal("x1", 2) + 3.0)

    net = initialised(0, lambda: MLP((2,), width=64))
    game, options = as_game(FlowMatching(net), net), {"optimizer": AdamW(3e-3), "schedule": Cosine()}
    losses = [step.loss for step in fit(game, shifted, steps=1000, seed=0, batch=128, **options)]  # type: ignore[arg-type]
    # At u = 0 the loss is E|x1 - x0|^2 = 2 (3^2 + 1 + 1/4). The best is the variance of x1 - x0 given the
    # state, 2 * integral of 0.25 / ((1-t)^2 + 0.25 t^2) = pi/2, here the mean of 25,600 rows.
    assert float(losses[0]) == pytest.approx(20.5, rel=0.1)
    assert 0.95 < float(torch.stack(losses[-200:]).mean()) / (math.pi / 2) < 1.1


def test_a_run_that_nobody_watched_ends_with_its_fault() -> None:
    """A teacher of NaN, say: without a log the weights would be NaN and nobody told."""
    student = linear()
    broken = LeastSquares(student, float("nan"))
    with pytest.raises(NonFiniteLoss, match="step 0"):
        for _ in fit(as_game(broken, student), source, steps=3, seed=0, batch=4):
            pass
