"""The loop against arithmetic done by hand: gradient descent, games, averages, schedules, faults."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from saltus.games import Follow, Game, Move, Project, as_game
from saltus.nn import MLP
from saltus.streams import Streams
from saltus.tensors import like, per_row_norm2
from saltus.training import (
    EMA,
    AdamW,
    Constant,
    Cosine,
    Fit,
    InverseSqrt,
    Log,
    LossModule,
    NonFiniteLoss,
    Precision,
    RAdam,
    fit,
    initialised,
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


def test_schedules() -> None:
    def at(schedule: Callable[[Tensor], Tensor], p: float) -> float:
        return float(schedule(torch.tensor(p, dtype=torch.float64)))

    assert at(Constant(), 0.3) == 1.0
    assert [at(Constant(warmup=0.5), p) for p in (0.0, 0.125, 0.5, 0.9)] == [0.0, 0.25, 1.0, 1.0]
    cosine = Cosine(warmup=0.2, floor=0.1)
    assert at(cosine, 0.1) == pytest.approx(0.5, rel=1e-15)
    assert at(cosine, 0.2) == pytest.approx(1.0, rel=1e-15)
    assert at(cosine, 0.4) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, rel=1e-14)
    assert at(cosine, 1.0) == pytest.approx(0.1, rel=1e-14)
    root = InverseSqrt(hold=0.04, warmup=0.02)
    assert at(root, 0.01) == pytest.approx(0.5, rel=1e-15)
    assert [at(root, p) for p in (0.03, 0.04, 0.16, 0.64)] == pytest.approx([1.0, 1.0, 0.5, 0.25], rel=1e-14)
    for wrong in (lambda: Constant(warmup=1.0), lambda: Cosine(floor=2.0), lambda: InverseSqrt(hold=0.0)):
        with pytest.raises(ValueError, match="expected"):
            wrong()


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


def test_average_of_weights_in_closed_form() -> None:
    net = nn.BatchNorm1d(1, affine=True, dtype=torch.float64)
    decay, updates = 0.9, 30
    with torch.no_grad():
        net.weight.fill_(-3.0)
    ema, warm = EMA(net, decay, warmup=False), EMA(net, decay)
    rates, truth = [min(decay, (1 + k) / (10 + k)) for k in range(updates)], -3.0
    for k in range(updates):
        with torch.no_grad():
            net.weight.fill_(float(k))
            net.running_mean.fill_(float(k))  # type: ignore[union-attr]
        ema.update()
        warm.update()
        truth = rates[k] * truth + (1 - rates[k]) * k
    geometric = decay**updates * -3.0 + sum(
        (1 - decay) * decay ** (updates - 1 - k) * k for k in range(updates)
    )
    assert float(ema.module.weight) == pytest.approx(geometric, rel=1e-13)
    assert float(warm.module.weight) == pytest.approx(truth, rel=1e-13)
    assert float(warm.module.running_mean) == updates - 1  # type: ignore[arg-type]
    assert int(ema.count) == updates
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())
    with pytest.raises(ValueError, match="decay"):
        EMA(net, 1.0)


def test_a_step_never_waits_for_the_device() -> None:
    # A tensor of the meta device has no numbers: whoever reads one in a step raises.
    student, critic = linear().to("meta"), linear().to("meta")
    ema = EMA(student, 0.99)
    moves = (
        Move("critic", critic, LeastSquares(critic, 0.5), when=lambda step: 2),
        Move("student", student, LeastSquares(student, 0.5), after=(Follow(critic, student, 0.9),)),
    )
    log = Log(None, steps=9, batch=4, every=5, console=Console(file=StringIO()))
    for step in fit(Game(moves), source, steps=4, seed=0, batch=4, clip=1.0, schedule=Cosine(warmup=0.1)):
        ema.update()
        log(step)
        assert step.loss.device.type == step.terms["student/fit"].device.type == "meta"
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            step.fetch()


@dataclass(frozen=True, eq=False)
class Breaks:
    """Two terms; the second is NaN in one step."""

    student: nn.Module
    at: int

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {"bad": torch.full((4,), float("nan") if rng.step == self.at else 0.0, dtype=torch.float64)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        y = self.student(batch.x0).squeeze(1)
        bad = draws["bad"]
        assert isinstance(bad, Tensor)
        return {"good": Term(y**2), "fragile": Term(y.detach() * 0 + bad)}


@pytest.mark.parametrize("at", [0, 7])
def test_not_a_number_stops_with_the_term_and_the_step(at: int, tmp_path: Path) -> None:
    net = linear()
    log = Log(tmp_path, steps=20, batch=4, every=10, console=Console(file=StringIO()))
    with (
        log,
        pytest.raises(NonFiniteLoss, match=rf"step {at}: term 'fragile' of move 'student'.*lower") as caught,
    ):
        for step in fit(as_game(Breaks(net, at), net), source, steps=20, seed=0, batch=4):
            log(step)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_an_infinite_gradient_under_a_finite_loss_is_found() -> None:
    @dataclass(frozen=True, eq=False)
    class Root:
        student: Scalar

        def draw(self, batch: Batch, rng: Streams) -> Draws:
            return {}

        def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
            return {"root": Term(self.student.value.sqrt())}

    zero = Scalar(0.0)
    step = next(fit(as_game(Root(zero), zero), source, steps=1, seed=0, batch=2, optimizer=sgd(0.0)))
    with pytest.raises(NonFiniteLoss, match="step 0: the gradient of move 'student'"):
        step.fetch()


def test_loss_module_owns_the_mover_only() -> None:
    net, critic = linear(), linear()

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.critic = critic

        def draw(self, batch: Batch, rng: Streams) -> Draws:
            return {}

        def forward(self, batch: Batch, draws: Draws) -> dict[str, Term]:
            return {}

    module = LossModule(Move("student", net, Owner()))
    assert [id(p) for p in module.parameters()] == [id(net.weight)]
    assert list(module.state_dict()) == ["mover.weight"]
    with pytest.raises(ValueError, match="at least one term"):
        module(Batch(torch.zeros(1, 3)), {})


def test_terms_are_rows() -> None:
    @dataclass(frozen=True, eq=False)
    class Shaped:
        student: nn.Module
        rows: slice

        def draw(self, batch: Batch, rng: Streams) -> Draws:
            return {}

        def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
            value = self.student(batch.x0)
            return {"main": Term(value[:, 0] ** 2), "part": Term(value[self.rows].squeeze(1))}

    net = linear()
    step = next(fit(as_game(Shaped(net, slice(0, 0)), net), source, steps=1, seed=0, batch=4))
    assert float(step.terms["part"]) == 0.0 and math.isfinite(float(step.loss))  # no rows, no NaN
    matrix = nn.Linear(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"term 'part'.*\[n\].*\[4, 2\]"):
        next(fit(as_game(Shaped(matrix, slice(None)), matrix), source, steps=1, seed=0, batch=4))


def test_bf16_is_confined_to_the_products() -> None:
    seen: list[torch.dtype] = []

    @dataclass(frozen=True, eq=False)
    class Watched:
        student: nn.Module

        def draw(self, batch: Batch, rng: Streams) -> Draws:
            return {}

        def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
            with torch.no_grad():  # a cast weight remembered from here must not cut the gradient
                self.student(batch.x0)
            y = self.student(batch.x0)
            seen.append(y.dtype)
            return {"y": Term(y.squeeze(1))}

    for dtype, precision, expected in (
        (torch.float32, Precision.BF16, torch.bfloat16),
        (torch.float32, Precision.FLOAT32, torch.float32),
        (torch.float32, Precision.AUTO, torch.float32),  # too narrow to pay on a CPU
        (torch.float64, Precision.BF16, torch.float64),
    ):
        net = linear(dtype)
        options = {"optimizer": sgd(0.1), "precision": precision}
        before = net.weight.detach().clone()
        steps = fit(as_game(Watched(net), net), source, steps=1, seed=0, batch=4, **options)  # type: ignore[arg-type]
        step = next(steps)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert seen[-1] == expected and step.loss.dtype == net.weight.dtype == wide
        x = source(Streams(0, 0, torch.arange(4), dtype=wide).named("data")).x0
        error = (before - 0.1 * x.mean(0) - net.weight.detach()).abs().max()
        assert float(error) < (1e-3 if expected is torch.bfloat16 else 1e-6)


def test_auto_precision_looks_at_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = nn.Linear(128, 128), nn.Linear(128, 127)
    for native in (True, False):
        monkeypatch.setattr("saltus.training.precision.has_bf16", lambda device, native=native: native)
        assert Precision.AUTO.resolve(wide) is (Precision.BF16 if native else Precision.FLOAT32)
        assert Precision.AUTO.resolve(narrow) is Precision.FLOAT32
        assert Precision.BF16.resolve(narrow) is Precision.BF16
        assert Precision.AUTO.resolve(wide.double()) is Precision.FLOAT32
        wide.float()
    with pytest.raises(ValueError, match="resolve"):
        Precision.AUTO.context(torch.device("cpu"))


def test_compiled_loss_is_one_graph_and_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda m: compile_module(m, backend="aot_eager", fullgraph=True)
    )
    eager, compiled = linear(), linear()
    losses = run(eager, 5)[1]
    assert run(compiled, 5, compile=True)[1] == pytest.approx(losses, rel=1e-13)
    torch.testing.assert_close(eager.weight, compiled.weight, rtol=1e-12, atol=1e-13)


def test_initialised_leaves_the_generator_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = initialised(5, lambda: nn.Linear(4, 4))
    assert torch.equal(torch.rand(3), expected)
    second = initialised(5, lambda: nn.Linear(4, 4))
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, initialised(6, lambda: nn.Linear(4, 4)).weight)


def test_impossible_runs() -> None:
    net = linear()
    game = as_game(LeastSquares(net), net)
    move = game.moves[0]
    frozen = linear().requires_grad_(False)

    def short(rng: Streams) -> Batch:
        return source(rng).rows(torch.arange(2))

    wrong: list[tuple[str, Callable[[], object]]] = [
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


def test_log_writes_what_the_steps_were(tmp_path: Path) -> None:
    net, out = linear(), StringIO()
    steps = fit(
        as_game(LeastSquares(net, 0.3), net), source, steps=25, seed=0, batch=8, optimizer=AdamW(0.01)
    )
    kept = []
    with Log(
        tmp_path, steps=25, batch=8, every=10, terms=["fit"], console=Console(file=out, width=200)
    ) as log:
        for step in steps:
            log(step)
            kept.append(step)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 25]
    for row in rows:
        step = kept[row["step"] - 1]
        assert row["loss"] == float(step.loss) and row["lr"] == 0.01
        assert row["terms"] == {name: float(value) for name, value in step.terms.items()}
        assert row["grad_norm"] == pytest.approx(float(step.grad_norm), rel=1e-15)
        assert row["loss"] == pytest.approx(row["terms"]["fit"] + 0.3 * row["terms"]["noise"], rel=1e-13)
        assert row["samples_per_second"] == pytest.approx(8 * row["steps_per_second"], rel=1e-2)
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    (line,) = out.getvalue().splitlines()
    assert line.startswith("25/25 (100 %)") and "fit" in line and "noise" not in line and "0:00 left" in line


def test_log_of_several_players_and_a_terminal(tmp_path: Path) -> None:
    a, b, student, critic = players()
    game, out = Game((Move("critic", b, critic), Move("student", a, student))), StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    with Log(tmp_path, steps=4, batch=2, every=2, console=console) as log:
        for step in fit(game, source, steps=4, seed=0, batch=2):
            log(step)
            assert set(step.terms) == {"critic/gap", "student/gap"}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert list(rows[-1]["moves"]) == ["critic", "student"]
    assert rows[-1]["moves"]["student"]["terms"]["gap"] == float(step.terms["student/gap"])
    assert "4/4 (100 %)" in out.getvalue() and "student/gap" in out.getvalue()


def test_log_without_a_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(ValueError, match="expected to write here") as caught:
            Log(folder, steps=1, batch=1)
        assert "\n" not in str(caught.value)


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
