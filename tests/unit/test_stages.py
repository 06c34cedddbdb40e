"""Stages against arithmetic by hand: which steps each plays, what begins anew, what is handed on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from saltus.games import Artifact, Freeze, Game, Move, Stage, Stages, as_game
from saltus.streams import Streams
from saltus.training import (
    AdamW,
    Cosine,
    Fit,
    Log,
    NonFiniteLoss,
    artifact_tensors,
    fit,
    restore_artifacts,
)
from saltus.training.stages import spans
from saltus.typing import Batch, Draws, Term


def source(rng: Streams) -> Batch:
    return Batch(rng.normal("x0", 1))


class Number(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value], dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Double:
    """(student - 2 goal - noise)^2, with the noise drawn and what was seen written down."""

    student: Number
    goal: Tensor
    scale: float = 0.0
    seen: list[tuple[int, float, float]] = field(default_factory=list)

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        self.seen.append((rng.step, float(batch.progress), float(batch.x0[0, 0])))
        return {"noise": rng.normal("noise")}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        noise = draws["noise"]
        assert isinstance(noise, Tensor)
        return {"gap": Term((self.student.value - 2.0 * self.goal - self.scale * noise) ** 2)}


def doubling(student: Number, goal: float = 1.5, seen: list[list[object]] | None = None) -> Stages:
    """Three stages of shares 1, 2, 1; each learns twice the number that the one before has reached."""

    def build(artifacts: Mapping[str, Artifact]) -> Double:
        teacher = artifacts.get("teacher")
        at = torch.tensor([goal]).double() if teacher is None else teacher.value.detach()  # type: ignore[union-attr]
        loss = Double(student, at, 0.1)
        if seen is not None:
            seen.append(loss.seen)  # type: ignore[arg-type]
        return loss

    names, shares = ("first", "second", "third"), (1.0, 2.0, 1.0)
    hand = {"teacher": Freeze(student)}
    return Stages(tuple(Stage(n, build, share, hand) for n, share in zip(names, shares, strict=True)))


def start(student: Number, stages: Stages, steps: int = 240, **options: object) -> Fit:
    options = {"optimizer": AdamW(0.3), "schedule": Cosine(), "seed": 4, "batch": 8} | options
    return fit(as_game(stages, student), source, steps=steps, **options)  # type: ignore[arg-type]


def test_each_stage_starts_from_what_the_one_before_has_reached() -> None:
    """From 1.5: 3, then 6, then 12; the goal of a stage does not move with the student."""
    student = Number(0.0)
    run, reached = start(student, doubling(student)), []
    for step in run:
        if step.index + 1 in (60, 180, 240):
            reached.append(student.value.item())
    assert reached == pytest.approx([3.0, 6.0, 12.0], rel=0.02)
    teacher = run.artifacts["teacher"]
    assert isinstance(teacher, Number) and teacher.value.item() == reached[-1]
    assert not teacher.value.requires_grad and teacher is not student


def test_no_step_is_lost_or_doubled_and_progress_begins_anew() -> None:
    student, seen = Number(0.0), []  # type: ignore[var-annotated]
    steps = list(start(student, doubling(student, seen=seen), 13))
    assert [step.index for step in steps] == list(range(13))
    assert [step.stage for step in steps] == ["first"] * 3 + ["second"] * 7 + ["third"] * 3
    flat = [entry for stage in seen for entry in stage]
    assert [index for index, _, _ in flat] == list(range(13)), "the streams' step is the run's"
    progress = [k / n for n in (3, 7, 3) for k in range(n)]
    assert [p for _, p, _ in flat] == pytest.approx(progress, abs=1e-15)
    assert [float(step.progress) for step in steps] == pytest.approx(progress, abs=1e-15)
    lead = [source(Streams(4, k, torch.arange(8), dtype=torch.float64).named("data")) for k in range(13)]
    assert [x for _, _, x in flat] == [float(batch.x0[0, 0]) for batch in lead]


def test_optimisers_rates_and_counts_of_moves_begin_anew() -> None:
    student, asked = Number(0.0), []  # type: ignore[var-annotated]

    def build(artifacts: Mapping[str, Artifact]) -> Game:
        loss = Double(student, torch.ones(1).double())
        return Game((Move("student", student, loss, when=lambda k: asked.append(k) or 1),))  # type: ignore[func-returns-value]

    stages = Stages((Stage("a", build), Stage("b", build, 2.0)))
    run, rates, states = start(student, stages, 12), [], []
    for step in run:
        rates.append(step.lr)
        optimizer = run.players[0].optimizer
        states.append((optimizer, int(optimizer.state[student.value]["step"])))
    assert asked == [*range(4), *range(8)]
    want = [0.3 * float(Cosine()(torch.tensor(k / n).double())) for n in (4, 8) for k in range(n)]
    assert rates == pytest.approx(want, rel=1e-6)
    assert [count for _, count in states] == [*range(1, 5), *range(1, 9)]
    assert len({id(which) for which, _ in states}) == 2


def test_a_run_of_one_stage_is_the_run_of_its_game() -> None:
    results = []
    for staged in (False, True):
        student = Number(0.7)
        loss = Double(student, torch.ones(1).double(), 0.5)
        game = Stages((Stage("only", lambda _, loss=loss: loss),)) if staged else loss  # type: ignore[misc]
        run = fit(as_game(game, student), source, steps=20, seed=2, batch=4, schedule=Cosine())
        results.append([float(step.loss) for step in run] + [student.value.item()])
    assert results[0] == results[1]


@pytest.mark.parametrize("boundary", [3, 10, 13])
def test_a_run_goes_on_at_a_stage_from_what_was_saved_bit_for_bit(boundary: int, tmp_path: Path) -> None:
    """Weights and artifacts on disk are all that it takes; the optimiser of a stage is new anyway."""
    whole = Number(0.0)
    losses: list[float] = []
    run = start(whole, doubling(whole), 13)
    for step in run:
        losses.append(float(step.loss))
        if step.index + 1 == boundary:
            kept = {"student": whole.value.detach().clone(), **artifact_tensors(run.artifacts)}
            save_file(kept, tmp_path / "kept.safetensors")
    saved = load_file(tmp_path / "kept.safetensors")
    assert sorted(saved) == ["student", "teacher.value"]
    again = Number(0.0)
    with torch.no_grad():
        again.value.copy_(saved.pop("student"))
    stages = doubling(again)
    artifacts = restore_artifacts(stages, 13, boundary, saved)
    rest = start(again, stages, 13, start=boundary, artifacts=artifacts)
    assert [float(step.loss) for step in rest] == losses[boundary:]
    assert torch.equal(again.value, whole.value)


def test_a_start_without_artifacts_says_which_are_missing() -> None:
    student = Number(0.0)
    with pytest.raises(ValueError, match="stage 'second', which holds step 5.*expected teacher, got none"):
        start(student, doubling(student), 13, start=5)
    next(start(student, doubling(student), 13, start=2))
    with pytest.raises(ValueError, match="artifact 'teacher' of stage 'first'.*got none"):
        restore_artifacts(doubling(student), 13, 5, {"teachers.value": torch.zeros(1)})
    with pytest.raises(ValueError, match="expected its tensors"):
        restore_artifacts(doubling(student), 13, 5, {"teacher.other": torch.zeros(1)})


def test_tensors_are_artifacts_too() -> None:
    student = Number(0.0)
    pairs = torch.arange(3.0)
    make: Callable[[], Artifact] = lambda: pairs  # noqa: E731
    stages = Stages(
        (
            Stage("make", lambda _: Double(student, torch.ones(1).double()), produce={"pairs": make}),
            Stage("use", lambda artifacts: Double(student, artifacts["pairs"][2:].double())),  # type: ignore[index]
        )
    )
    run = start(student, stages, 400)
    for _ in run:
        pass
    assert student.value.item() == pytest.approx(4.0, rel=1e-3)
    assert artifact_tensors(run.artifacts)["pairs"] is pairs
    assert restore_artifacts(stages, 400, 200, {"pairs": pairs})["pairs"] is pairs


def test_a_stage_does_not_hand_on_what_is_not_finite() -> None:
    student = Number(0.0)
    stages = doubling(student, goal=float("nan"))
    with pytest.raises(NonFiniteLoss, match="step 0: term 'gap'"):
        for _ in start(student, stages, 13):
            pass


def test_the_division_of_steps() -> None:
    stages = doubling(Number(0.0))
    for steps in range(6, 40):
        found = spans(stages, steps)
        assert [found[0].first, found[-1].last] == [0, steps]
        assert all(a.last == b.first for a, b in zip(found, found[1:], strict=False))
        assert all(abs((s.last - s.first) - steps * s.stage.share / 4.0) <= 1.0 for s in found)
    with pytest.raises(ValueError, match="at least one step in each of 3, got none for first"):
        spans(stages, 2)


def test_mistakes_in_the_making_of_stages() -> None:
    stage = Stage("a", lambda _: Double(Number(0.0), torch.ones(1)))
    with pytest.raises(ValueError, match=r"different names, got \['a', 'a'\]"):
        Stages((stage, stage))
    with pytest.raises(ValueError, match="expected some"):
        Stages(())
    with pytest.raises(ValueError, match="share above 0, got 0.0"):
        Stages((replace(stage, share=0.0),))
    with pytest.raises(ValueError, match="expected to build a Game, got Double"):
        fit(Stages((stage,)), source, steps=4, seed=0, batch=2)


def test_the_log_names_the_stage(tmp_path: Path) -> None:
    student, screen = Number(0.0), StringIO()
    console = Console(file=screen, force_terminal=False, width=200)
    with Log(tmp_path, steps=13, batch=8, every=4, console=console) as log:
        for step in start(student, doubling(student), 13):
            log(step)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["second", "second", "third", "third"]
    assert "third  gap" in screen.getvalue()
