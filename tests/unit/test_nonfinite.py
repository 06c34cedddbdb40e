"""Numbers that are not finite: where, found by playing the steps again; and moves that are skipped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saltus.games import Game, Move
from saltus.objectives.sum import Part, Sum
from saltus.streams import Streams
from saltus.training import AdamW, Fit, NonFiniteLoss, World, fit
from saltus.training.replay import cause
from saltus.typing import Batch, Draws, Term


@dataclass(frozen=True, eq=False)
class Breaks:
    """The square of the network's output, which is not a number where t > last in one step."""

    student: nn.Module
    step: int
    last: float = 0.9
    value: float = float("nan")

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        t = rng.uniform("t")
        bad = (t > self.last) & (torch.tensor(rng.step) == self.step)
        return {"t": t, "bad": bad, "noise": rng.normal("z", 2)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        bad = draws["bad"]
        assert isinstance(bad, Tensor)
        broken = torch.where(bad, self.value, 0.0)
        return {"square": Term(self.student(batch.x0).squeeze(1) ** 2 + broken)}


@dataclass(frozen=True, eq=False)
class Root:
    """A finite loss whose gradient is infinite in one step."""

    student: nn.Linear
    step: int

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {"at": torch.tensor(float(rng.step == self.step))}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        at, w = draws["at"], self.student.weight.flatten()
        assert isinstance(at, Tensor)
        return {"root": Term(((w - w.detach()) * at + (1.0 - at)).sqrt() + w**2)}


def source(rng: Streams) -> Batch:
    return Batch(rng.normal("x0", 1), rng.normal("x1", 1))


def two(make: Callable[[nn.Linear], Any], **options: Any) -> tuple[Fit, nn.Linear, nn.Linear]:  # noqa: ANN401
    """A critic that is well and a student that breaks."""
    torch.manual_seed(0)
    critic, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    moves = (Move("critic", critic, Breaks(critic, -1)), Move("student", student, make(student)))
    run = fit(Game(moves), source, steps=9, seed=0, batch=32, optimizer=AdamW(0.01), **options)
    return run, critic, student


def fault_of(run: Fit) -> NonFiniteLoss:
    with pytest.raises(NonFiniteLoss) as caught:
        for _ in run:
            pass
    return caught.value


def late(rng_step: int) -> list[tuple[int, float]]:
    """The rows that break in a step and their times, drawn as the run draws them."""
    t = Streams(0, step=rng_step, index=torch.arange(32)).named("student").uniform("t")
    return [(k, float(t[k])) for k in range(32) if t[k] > 0.9]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_rows_and_times_are_those_that_broke(accumulate: int) -> None:
    def make(student: nn.Linear) -> Breaks:
        return Breaks(student, 5)

    fault = fault_of(two(make, accumulate=accumulate)[0])
    assert (fault.step, fault.player, fault.what) == (5, "student", "term 'square'")
    words = cause(two(make, accumulate=accumulate)[0], fault, World.alone()).words
    rows = late(5)
    assert 1 <= len(rows) <= 4
    indices, times = ", ".join(str(k) for k, _ in rows), ", ".join(f"{t:.6g}" for _, t in rows)
    ind = "index" if len(rows) == 1 else "indices"
    assert words == (
        f"step 5: term 'square' of move 'student' is NaN in {len(rows)} of its 32 values, "
        f"batch {ind} {indices} at t = {times}"
    )


def test_rows_of_a_part_are_told_by_their_index_in_the_whole_batch() -> None:
    def make(student: nn.Linear) -> Sum:
        return Sum((Part("well", Breaks(student, -1), 0.5), Part("ill", Breaks(student, 3), 0.5)))

    fault = fault_of(two(make)[0])
    assert fault.what == "term 'ill_square'"
    words = cause(two(make)[0], fault, World.alone()).words
    t = Streams(0, step=3, index=torch.arange(32)).named("student").named("ill").uniform("t")
    rows = [k for k in range(32) if k % 2 and t[k] > 0.9]  # the second half of the rows: every other one
    assert rows and f"NaN in {len(rows)} of its 16 values" in words
    assert f" {', '.join(map(str, rows[:4]))}" in words and f"{float(t[rows[0]]):.6g}" in words


def test_an_infinite_gradient_under_finite_terms_is_told_with_its_parameters() -> None:
    fault = fault_of(two(lambda student: Root(student, 4), clip=1.0)[0])
    assert (fault.step, fault.what) == (4, "the gradient")
    words = cause(two(lambda student: Root(student, 4), clip=1.0)[0], fault, World.alone()).words
    assert words.startswith("step 4: all values of the terms of move 'student' are finite, but its gradient")
    assert words.endswith("in 1 of 1 parameters: weight")


def test_what_does_not_happen_again_is_said_to_be_so() -> None:
    fault = NonFiniteLoss("", 3, "student", "the loss")
    words = cause(two(lambda student: Breaks(student, -1))[0], fault, World.alone()).words
    assert "played again" in words and "does not always compute the same numbers" in words


def test_a_skipped_move_changes_nothing() -> None:
    """Its weights, its optimiser and what follows it stay; the other player moves."""
    run, critic, student = two(lambda student: Breaks(student, 5), skip=1)
    for _ in range(5):
        next(run)
    state = copy.deepcopy(run.players[1].optimizer.state_dict()["state"])
    before, other = student.weight.clone(), critic.weight.clone()
    step = next(run)
    assert (step.skipped, step.complete, list(step.moved)) == (1, False, ["critic"])
    after = run.players[1].optimizer.state_dict()["state"]
    assert torch.equal(student.weight, before) and not torch.equal(critic.weight, other)
    assert all(torch.equal(state[k][name], after[k][name]) for k in state for name in state[k])
    for step in run:
        step.fetch()
    assert step.skipped == 1 and step.complete


def test_one_move_too_many_ends_the_run() -> None:
    def make(student: nn.Linear) -> Sum:
        return Sum((Part("a", Breaks(student, 2)), Part("b", Breaks(student, 6))))

    assert fault_of(two(make, skip=1)[0]).step == 6
    run = two(make, skip=2)[0]
    assert [step.skipped for step in run] == [0, 0, 1, 1, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="skip: expected"):
        two(make, skip=-1)


def test_the_earliest_fault_is_told_whoever_looks_last() -> None:
    """A critic that fails first spoils a student that is fetched before it."""

    def run() -> Fit:
        torch.manual_seed(0)
        critic, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        moves = (Move("student", student, Breaks(student, 6)), Move("critic", critic, Breaks(critic, 4)))
        return fit(Game(moves), source, steps=9, seed=0, batch=32)

    fault = fault_of(run())
    assert (fault.step, fault.player) == (4, "critic")
