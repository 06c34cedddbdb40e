"""A run that is saved, built anew and restored goes on as if nothing had been: every method, every optimiser.

What is compared are all numbers of every later step, and at the end everything that a checkpoint holds:
weights, averages, targets, artifacts of stages, the states of the optimisers; bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from kinds import each
from systems import Undecided, few
from torch import Tensor, nn

from saltus.games import Artifact, Follow, Freeze, Game, Move, Stage, Stages, as_game
from saltus.maps import AverageVelocity
from saltus.methods import Method, Need, discover
from saltus.nn import MLP
from saltus.streams import Streams
from saltus.training import (
    EMA,
    AdamW,
    Checkpoints,
    Cosine,
    Fit,
    Muon,
    OptimizerFactory,
    PowerProfile,
    RAdam,
    fit,
    initialised,
)
from saltus.training.stages import spans
from saltus.training.state import State, restore, state_of
from saltus.typing import Batch, Condition, Draws, Objective, Term
from saltus.weights import LearnedLogVariance

METHODS = discover()
STEPS, ROWS = 8, 16
Built = Objective | Game | Stages


def network(seed: int, heads: tuple[str, ...] = (), guidance: bool = False) -> AverageVelocity:
    """A small network whose output is not zero, as it would be at the start of a training."""

    def build() -> AverageVelocity:
        made = AverageVelocity(MLP((2,), width=6, depth=1, classes=3, heads=heads, guidance=guidance))
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.3 * torch.randn(p.shape))
        return made

    return initialised(seed, build)


def source(rng: Streams) -> Batch:
    label = Condition(label=rng.integers("label", 3), null=rng.uniform("null") < 0.2)
    return Batch(rng.normal("x0", 2), 1.0 + 0.5 * rng.normal("x1", 2), label)


def velocity(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    shift = 0.0 if cond is None or cond.label is None else 0.1 * cond.label[:, None]
    return torch.sin(x) * (1.0 - t[:, None]) + shift


@dataclass
class Run:
    """A run, everything that belongs to its state, and the numbers of its steps."""

    fit: Fit
    averages: dict[str, EMA]
    seen: dict[str, Tensor] = field(default_factory=dict)

    def play(self, until: int = STEPS) -> Run:
        while self.fit.index < until:
            step = next(self.fit)
            for average in self.averages.values():
                average.update()
            for name, moved in step.moved.items():
                self.seen[f"{step.index}/{name}"] = torch.cat(
                    [moved.values.double(), torch.tensor([moved.lr])]
                )
        return self

    def state(self) -> State:
        return state_of(self.fit, self.averages)


def begun(build: Callable[[], tuple[nn.Module, Built]], optimizer: OptimizerFactory | None = None) -> Run:
    """The run from new objects."""
    student, built = build()
    kept = {"ema": EMA(student, 0.9), "power": EMA(student, PowerProfile(0.1))}
    made = fit(
        as_game(built, student),
        source,
        steps=STEPS,
        seed=5,
        batch=ROWS,
        optimizer=optimizer or AdamW(0.01, weight_decay=0.1),
        schedule=Cosine(),
        clip=1.0,
    )
    return Run(made, kept)


def interrupted(run: Callable[[], Run], k: int, folder: Path) -> Run:
    """The same run, ended after k steps and taken up from the disk by objects that never saw those steps."""
    checkpoints = Checkpoints(folder / str(k))
    first = run().play(k)
    state = first.state()
    checkpoints.save(k, state.tensors, {"state": state.plain})
    checkpoints.wait()
    again, saved = run(), checkpoints.newest()
    assert saved is not None
    restore(again.fit, again.averages, saved)
    assert again.fit.index == k and again.seen == {}
    same(again.state(), state)
    return again.play()


def same(a: State, b: State) -> None:
    assert a.plain == b.plain
    assert a.tensors.keys() == b.tensors.keys()
    for name, value in a.tensors.items():
        other = b.tensors[name]
        assert value.dtype == other.dtype and torch.equal(value, other), name


def check(run: Callable[[], Run], ks: Iterable[int], folder: Path) -> Run:
    """An undisturbed run against one that is interrupted after each of ks steps."""
    straight = run().play()
    for k in ks:
        again = interrupted(run, k, folder)
        later = {name for name in straight.seen if int(name.partition("/")[0]) >= k}
        assert again.seen.keys() == later
        for name in later:
            assert torch.equal(again.seen[name], straight.seen[name]), f"step {name} after resuming at {k}"
        same(again.state(), straight.state())
    return straight


def of_method(method: Method, learned: bool) -> tuple[nn.Module, Built]:
    needs, taken = method.card.needs, inspect.signature(method.build).parameters
    student = network(0, ("v",) if Need.HEAD in needs else (), Need.LABELS in needs)
    options: dict[str, object] = ({"cells": 4} if "cells" in taken else {}) | few(method)
    if learned and "weight" in taken:
        options["weight"] = LearnedLogVariance(features=3)
    others = {"critic": network(1), "discriminator": Undecided()}
    return student, method.wired(student, teacher=velocity, **others, **options)


def boundaries(built: Built) -> set[int]:
    return {span.first for span in spans(built, STEPS)[1:]} if isinstance(built, Stages) else set()


@pytest.mark.parametrize("name", each(METHODS))
def test_every_method_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """In the middle, at the last step, and where a stage ends and the next begins."""
    method = METHODS[name]
    ks = {3, STEPS} | boundaries(of_method(method, False)[1])
    straight = check(lambda: begun(partial(of_method, method, False)), ks, tmp_path / "plain")
    assert len({value[0].item() for value in straight.seen.values()}) > 1, "the run changes"


@pytest.mark.parametrize("name", each(METHODS))
def test_learned_weights_go_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    straight = check(lambda: begun(partial(of_method, method, True)), {5}, tmp_path)
    if "weight" in inspect.signature(method.build).parameters:
        assert any("/module/1." in name for name in straight.state().tensors), "the weight is in the state"


def test_a_frozen_copy_of_a_stage_is_what_the_stage_began_with(tmp_path: Path) -> None:
    """Its teacher is the student as the stage before left it, wherever the run was interrupted."""
    method = METHODS["progressive"]

    def build() -> tuple[nn.Module, Built]:
        student = network(0)
        return student, method.build(student, teacher=velocity, cells=8)

    ks = boundaries(build()[1])
    assert len(ks) == 2
    check(lambda: begun(build), {k + d for k in ks for d in (0, 1)}, tmp_path)


class Counting(torch.optim.SGD):
    """Keeps numbers that are no tensors: of each parameter, and in its group, where it finds its rate."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            group["turns"] = group.get("turns", 0) + 1
            group["found"] = group["found"] * 1.1
            group["total"] += sum(float(p.grad.square().sum()) for p in group["params"] if p.grad is not None)
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                if state["count"] == 3:  # later than its first step
                    state["slow"] = p.detach().clone()
                p.data.sub_(1e-3 * group["found"] * group["turns"] * torch.ones_like(p))
                p.data.sub_(state.get("slow", torch.zeros_like(p)), alpha=0.01)


def counting(parameters: Iterable[nn.Parameter]) -> Counting:
    ours = list(parameters)
    options = {"found": 1.0, "total": torch.zeros(())}
    return Counting([{"params": ours[:1], **options}, {"params": ours[1:], **options}], lr=0.01, momentum=0.5)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "AdamW": AdamW(0.01, weight_decay=0.1, decay_vectors=False),
    "RAdam": RAdam(0.01, weight_decay=0.1),
    "Muon and AdamW": Muon(0.01, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, 0.01),
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01, decoupled_weight_decay=True, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01, lr_decay=0.1, weight_decay=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True, momentum=0.5),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01, t0=3.0),
    "numbers that are no tensors": counting,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    check(lambda: begun(partial(of_method, METHODS["lsd"], True), OPTIMIZERS[name]), {1, 2, 5}, tmp_path)


@dataclass(eq=False)
class Hidden:
    """A target that nobody but this follower holds, beside numbers that it counts in a tensor."""

    target: nn.Module
    source: nn.Module
    seen: Tensor = field(default_factory=lambda: torch.zeros(2))

    def __call__(self) -> None:
        Follow(self.target, self.source, 0.5)()
        with torch.no_grad():
            self.seen += 1.0


class Plain:
    """The same without a dataclass."""

    def __init__(self, inner: Callable[[], None]) -> None:
        self.parts = {"inner": inner}

    def __call__(self) -> None:
        self.parts["inner"]()


def closed(inner: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        inner()

    return call


WRAPS = {"bare": lambda a: a, "object": Plain, "closure": closed, "partial": lambda a: partial(closed(a))}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_what_only_an_after_holds_belongs_to_the_state(
    wrap: Callable[[Callable[[], None]], Callable[[], None]], tmp_path: Path
) -> None:
    def build() -> tuple[nn.Module, Built]:
        student = network(0)
        target = deepcopy(student).requires_grad_(False)
        loss = METHODS["flow_matching"].build(student)
        return student, Game((Move("student", student, loss, after=(wrap(Hidden(target, student)),)),))

    straight = check(lambda: begun(build), {3}, tmp_path)
    counts = [v for k, v in straight.state().tensors.items() if "/after/" in k and v.shape == (2,)]
    assert any(torch.equal(v, torch.full((2,), float(STEPS))) for v in counts)


def test_the_optimiser_of_a_player_that_has_not_moved_is_as_new(tmp_path: Path) -> None:
    """Though it counts in its groups, where making its state leaves a trace."""

    def build() -> tuple[nn.Module, Built]:
        student, other = network(0), network(1)
        losses = [METHODS["flow_matching"].build(net) for net in (student, other)]
        late = Move("late", other, losses[1], optimizer=counting, when=lambda step: int(step > 4))
        return student, Game((Move("student", student, losses[0]), late))

    check(lambda: begun(build), {3, 6}, tmp_path)


def test_players_that_move_rarely_and_often(tmp_path: Path) -> None:
    """An optimiser that has made no step yet has no state, and gets none; when() counts within the stage."""

    def build() -> tuple[nn.Module, Built]:
        student, other = network(0), network(1)
        losses = [METHODS["flow_matching"].build(net) for net in (student, other)]
        late = Move("late", other, losses[1], when=lambda step: 0 if step < 3 else 1 + step % 2)
        game = Game((Move("student", student, losses[0]), late))

        def played(artifacts: Mapping[str, Artifact]) -> Game:
            return game

        return student, Stages(
            (
                Stage("one", played, 5.0, {"copy": Freeze(other), "mean": numbers(student)}),
                Stage("two", played, 3.0),
            )
        )

    def numbers(module: nn.Module) -> Callable[[], Tensor]:
        return lambda: torch.stack([p.detach().mean() for p in module.parameters()])

    check(lambda: begun(build), range(STEPS + 1), tmp_path)


@dataclass(frozen=True, eq=False)
class Times:
    """A loss times a number."""

    inner: Objective
    factor: float

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return self.inner.draw(batch, rng)

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        return {k: Term(v.value * self.factor, v.weight) for k, v in self.inner(batch, draws).items()}


def test_a_stage_that_looks_at_an_artifact_when_it_begins(tmp_path: Path) -> None:
    """It sees the numbers of the artifact, and not those that its network was made with."""

    def build() -> tuple[nn.Module, Built]:
        student = network(0)
        loss = METHODS["flow_matching"].build(student)

        def second(artifacts: Mapping[str, Artifact]) -> Objective:
            frozen = artifacts["copy"]
            assert isinstance(frozen, nn.Module)
            return Times(loss, float(sum(p.abs().mean() for p in frozen.parameters())))

        stages = (Stage("one", lambda _: loss, 1.0, {"copy": Freeze(student)}), Stage("two", second))
        return student, Stages(stages)

    check(lambda: begun(build), {4, 5}, tmp_path)


def test_tied_weights_are_saved_once() -> None:
    student = network(0)
    student.alias = student.backbone  # type: ignore[assignment]
    run = begun(lambda: (student, METHODS["flow_matching"].build(student))).play(2)
    names = [name for name in run.state().tensors if name.startswith("players/student/module/")]
    assert len(names) == len(list(student.parameters()))


def test_another_run_is_told(tmp_path: Path) -> None:
    """Another optimiser, network or average than the one saved is one line, and not a silent mixture."""
    run = begun(partial(of_method, METHODS["lsd"], False)).play(2)
    checkpoints, state = Checkpoints(tmp_path), run.state()
    checkpoints.save(2, state.tensors, {"state": state.plain})
    checkpoints.wait()
    saved = checkpoints.newest()
    assert saved is not None
    others = {
        "optimiser RAdam": begun(partial(of_method, METHODS["lsd"], False), RAdam(0.01)),
        "unknown": begun(partial(of_method, METHODS["flow_matching"], False)),
        "missing": begun(partial(of_method, METHODS["ctm"], False)),
        "critic": begun(partial(of_method, METHODS["freeflow"], False)),
    }
    del others["unknown"].averages["power"]
    for why, other in others.items():
        with pytest.raises(ValueError, match=why) as told:
            restore(other.fit, other.averages, saved)
        assert "\n" not in str(told.value)


class Shared(torch.optim.SGD):
    """Keeps state that belongs to no parameter."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step()
        self.state["all"] = {"turns": 1}  # type: ignore[index]


def test_an_optimiser_that_cannot_be_saved_is_told() -> None:
    run = begun(partial(of_method, METHODS["lsd"], False), lambda p: Shared(p, 0.01)).play(1)
    with pytest.raises(ValueError, match="Shared keeps more"):
        run.state()
