"""The log and the check for finite numbers: what a run says, and when it stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from saltus.games import Game, Move, as_game
from saltus.streams import Streams
from saltus.training import AdamW, Log, NonFiniteLoss, cut_back, fit, initialised
from saltus.typing import Batch, Draws, Term


def sgd(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def source(rng: Streams) -> Batch:
    return Batch(rng.normal("x0", 3))


def linear() -> nn.Linear:
    return initialised(3, lambda: nn.Linear(3, 1, bias=False, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Regression:
    """mean (w x - 1)^2 + 0.3 mean (w x + noise)^2."""

    student: nn.Module

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {"noise": rng.normal("noise")}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        y, noise = self.student(batch.x0).squeeze(1), draws["noise"]
        assert isinstance(noise, Tensor)
        return {"fit": Term((y - 1.0) ** 2), "noise": Term((y + noise) ** 2, 0.3)}


@dataclass(frozen=True, eq=False)
class Breaks:
    """Two terms; the second is NaN in some steps."""

    student: nn.Module
    at: range

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {"bad": torch.full((4,), float("nan") if rng.step in self.at else 0.0, dtype=torch.float64)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        y = self.student(batch.x0).squeeze(1)
        bad = draws["bad"]
        assert isinstance(bad, Tensor)
        return {"good": Term(y**2), "fragile": Term(y.detach() * 0 + bad)}


@pytest.mark.parametrize("at", [range(1), range(7, 8), range(7, 20)])
def test_not_a_number_stops_with_the_term_and_the_step(at: range, tmp_path: Path) -> None:
    net = linear()
    log = Log(tmp_path, steps=20, batch=4, every=10, console=Console(file=StringIO()))
    with (
        log,
        pytest.raises(
            NonFiniteLoss, match=rf"step {at[0]}: term 'fragile' of move 'student'.*lower"
        ) as caught,
    ):
        for step in fit(as_game(Breaks(net, at), net), source, steps=20, seed=0, batch=4):
            log(step)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_an_infinite_gradient_under_a_finite_loss_is_found() -> None:
    @dataclass(frozen=True, eq=False)
    class Root:
        student: nn.Linear

        def draw(self, batch: Batch, rng: Streams) -> Draws:
            return {}

        def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
            return {"root": Term(self.student.weight.flatten().sqrt())}

    zero = linear()
    nn.init.zeros_(zero.weight)
    step = next(fit(as_game(Root(zero), zero), source, steps=2, seed=0, batch=2, optimizer=sgd(0.0)))
    with pytest.raises(NonFiniteLoss, match="step 0: the gradient of move 'student'"):
        step.fetch()


def test_log_writes_what_the_steps_were(tmp_path: Path) -> None:
    net, out = linear(), StringIO()
    steps = fit(as_game(Regression(net), net), source, steps=25, seed=0, batch=8, optimizer=AdamW(0.01))
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
    a, b = linear(), linear()
    game = Game((Move("critic", b, Regression(b)), Move("student", a, Regression(a))))
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    with Log(tmp_path, steps=4, batch=2, every=2, console=console) as log:
        for step in fit(game, source, steps=4, seed=0, batch=2):
            log(step)
            assert set(step.terms) == {"critic/fit", "critic/noise", "student/fit", "student/noise"}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert list(rows[-1]["moves"]) == ["critic", "student"]
    assert rows[-1]["moves"]["student"]["terms"]["fit"] == float(step.terms["student/fit"])
    assert "4/4 (100 %)" in out.getvalue() and "student/fit" in out.getvalue()


def test_log_without_a_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(ValueError, match="expected to write here") as caught:
            Log(folder, steps=1, batch=1)
        assert "\n" not in str(caught.value)


def test_a_log_is_cut_after_the_step_and_at_the_first_line_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "seconds": 0.5 * step}) for step in (1, 2, 3)]
    for step, left in ((0, 0), (1, 1), (2, 2), (5, 3)):
        path.write_text("\n".join(lines))
        assert cut_back(path, step) == 0.5 * left
        assert path.read_text() == "".join(f"{line}\n" for line in lines[:left])
    for damage in ('{"st', "[1]", "{}", "[" * 200_000, f'{{"step": 2, "seconds": {10**400}}}', "1" * 5000):
        path.write_text("\n".join([lines[0], damage, lines[2]]))
        assert cut_back(path, 5) == 0.5 and path.read_text() == f"{lines[0]}\n", damage[:20]
