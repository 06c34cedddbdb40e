"""Optimisers, schedules and averages from options: rates are the formula's, --dry-run says what a run does,
and what cannot be is told in a line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saltus.cli import main
from saltus.recipes.experiment import Experiment
from saltus.recipes.optimisation import OPTIMIZERS, SCHEDULES, optimizer_of, planned
from saltus.recipes.options import Training
from saltus.recipes.resolve import experiment
from saltus.training import EMA, Fit, Joint

N = 120
TINY = ["--steps", str(N), "--batch", "8", "--quiet", "--skip-evaluation", "--grid-every", "0"]

SHAPES: dict[str, tuple[list[str], Callable[[int], float]]] = {
    "the default": ([], lambda k: 0.5 * (1 + math.cos(math.pi * k / N))),
    "a rise and a floor": (
        ["--warmup", "20", "--floor", "0.1"],
        lambda k: min(1, k / 20) * (0.1 + 0.45 * (1 + math.cos(math.pi * max(0, k - 20) / (N - 20)))),
    ),
    "constant": (["--schedule", "constant"], lambda k: 1.0),
    "constant after a rise": (["--schedule", "constant", "--warmup", "30"], lambda k: min(1.0, k / 30)),
    "inverse square root": (["--schedule", "inverse-sqrt"], lambda k: 1 / math.sqrt(max(1, k / 12))),
    "held": (
        ["--schedule", "inverse-sqrt", "--hold", "40", "--warmup", "8"],
        lambda k: min(1, k / 8) / math.sqrt(max(1, k / 40)),
    ),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(*options: str, name: str = "gaussian-flow_matching") -> Experiment:
    return experiment(name, [*TINY, *options])


def rates(run: Fit) -> list[list[float]]:
    """The rate of every group in every step, each group's in a list."""
    found: list[list[float]] = []
    for _ in run:
        groups = [g["lr"] for player in run.players for g in player.optimizer.param_groups]
        found = found or [[] for _ in groups]
        for seen, lr in zip(found, groups, strict=True):
            seen.append(lr)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_rates_are_those_of_the_formula(shape: str) -> None:
    options, factor = SHAPES[shape]
    given = made("--lr", "0.004", *options)
    (seen,) = rates(given.fit(given.model()))
    assert len(seen) == N
    for k, lr in enumerate(seen):
        assert math.isclose(lr, 0.004 * factor(k), rel_tol=1e-9, abs_tol=1e-15), k


def test_the_log_has_the_rate_of_its_step() -> None:
    options, factor = SHAPES["held"]
    assert main(["run", "gaussian-lsd", *TINY, "--lr", "0.004", *options, "--out", "run"]) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100, 120]
    for row in rows:  # the row of step k + 1 tells the rate of the step with index k
        assert math.isclose(row["lr"], 0.004 * factor(row["step"] - 1), rel_tol=1e-9), row


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", [[], ["--warmup", "7"], ["--schedule", "inverse-sqrt", "--warmup", "5"]])
def test_the_plan_is_what_the_run_does(optimizer: str, options: list[str]) -> None:
    words = ["--optimizer", optimizer, "--weight-decay", "0.1", "--lr", "0.003", "--clip", "0.5"]
    given = made(*words, "--steps", "40", *options)
    student = given.model()
    run = given.fit(student)
    plan = planned(given.training, run)
    groups = run.players[0].optimizer.param_groups
    lines = [how for what, how in plan[: len(groups)]]
    counts = [int(re.findall(r"of ([\d,]+) numbers", line)[0].replace(",", "")) for line in lines]
    tensors = [int(re.findall(r"in (\d+) tensors", line)[0]) for line in lines]
    decays = [float(re.findall(r"weight_decay ([\d.]+)", line)[0]) for line in lines]
    assert counts == [sum(p.numel() for p in g["params"]) for g in groups]
    assert tensors == [len(g["params"]) for g in groups]
    assert sum(counts) == sum(p.numel() for p in student.parameters())
    assert decays == [0.0 if all(p.ndim < 2 for p in g["params"]) else 0.1 for g in groups]
    said = dict(plan)["rate"]
    (seen, *others) = rates(run)
    assert all(other == seen for other in others)
    numbers = [float(x.replace(",", "")) for x in re.findall(r"[\d.,]*\d(?:e-\d+)?", said)]
    first, peak, step, last = numbers
    assert math.isclose(first, seen[0], rel_tol=5e-3, abs_tol=1e-12)
    assert math.isclose(peak, max(seen), rel_tol=5e-3) and int(step) == seen.index(max(seen)) + 1
    assert math.isclose(last, seen[-1], rel_tol=5e-3)
    assert dict(plan)["gradient"] == "clipped to norm 0.5"


def test_rates_of_stages_begin_anew_and_are_planned_for_each() -> None:
    given = made("--warmup", "12", name="mixture-progressive")
    run = given.fit(given.model())
    plan = dict(planned(given.training, run))
    length, seen, stages = run.length, [], []
    for step in run:
        seen.append(step.lr)
        stages.append(step.stage)
    starts = [k for k in range(N) if k == 0 or stages[k] != stages[k - 1]]
    assert len(starts) > 1 and starts[1] == length < N
    assert plan["rate"].endswith(f"; anew in each stage, the first of {length} steps")
    peak, where = re.findall(r", ([\d.e-]+) in step (\d+)", plan["rate"])[0]
    assert math.isclose(float(peak), max(seen[:length]), rel_tol=5e-3)
    assert int(where) == seen.index(max(seen[:length])) + 1
    for begin in starts:
        assert seen[begin] == 0.0 and seen[begin + 1] > 0.0


def test_averages_reach_back_as_far_as_the_plan_says() -> None:
    given = made("--ema", "0.9", "0.9999", "--power-ema", "0.1", "--power-snapshots", "7")
    line = torch.nn.Linear(1, 1, bias=False).double()
    averages = [EMA(line, 0.9), EMA(line, 0.9999)]
    with torch.no_grad():
        for k in range(N + 1):  # step k leaves k, so the average of weights is one of steps
            line.weight.fill_(k)
            for average in averages:
                average.module.weight.fill_(0.0) if k == 0 else average.update()  # type: ignore[union-attr,operator]
    back = [1 + N - float(next(a.module.parameters())) for a in averages]
    said = [how for _, how in planned(given.training, given.fit(given.model()))[-3:]]
    told = [float(re.findall(r"about ([\d,]+) steps", how)[0].replace(",", "")) for how in said]
    back.append(0.5 + N / (6.9433 + 2))  # t / (gamma + 2) for the exponent of sigma_rel 0.1
    assert all(abs(a - b) <= 0.51 for a, b in zip(told, back, strict=True)), (told, back)
    assert said[0].endswith("this one is evaluated") and "evaluated" not in said[1]
    assert "12 wide" in said[2] and "stored 7 times" in said[2]


def test_dry_run_shows_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--optimizer", "muon", "--schedule", "inverse-sqrt", "--hold", "60", "--warmup", "9", "--clip"]
    assert main(["run", "mixture-freeflow", *words, "2", "--power-ema", "0.05", "0.1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for text in ("student: Muon of", "critic: AdamW of", "held to step 60, after a rise over 9 steps"):
        assert text in said, said
    assert "clipped to norm 2" in said and "power 0.05: over about" in said and "ema 0.999: over" in said
    assert not list(Path().iterdir())


def test_an_option_reaches_its_optimizer() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv1d(4, 2, 3))
    training = Training(lr=0.02, betas=(0.8, 0.95), weight_decay=0.3)
    for name, kind in (("adamw", torch.optim.AdamW), ("radam", torch.optim.RAdam)):
        made = optimizer_of(Training(**{**vars(training), "optimizer": name}))(net.parameters())
        assert type(made) is kind
        assert [(g["lr"], g["betas"], g["weight_decay"]) for g in made.param_groups] == [
            (0.02, (0.8, 0.95), 0.3),
            (0.02, (0.8, 0.95), 0.0),
        ]
    joint = optimizer_of(Training(**{**vars(training), "optimizer": "muon"}))(net.parameters())
    assert isinstance(joint, Joint) and [type(part) for part in joint.parts] == [
        torch.optim.Muon,
        torch.optim.AdamW,
    ]
    assert joint.parts[1].param_groups[0]["betas"] == (0.8, 0.95)
    assert [p.ndim for p in joint.parts[0].param_groups[0]["params"]] == [2]


def test_training_differs_by_optimizer_and_repeats_itself() -> None:
    ends = {}
    for name in (*OPTIMIZERS, "adamw"):
        given = made("--optimizer", name, "--steps", "3", "--weight-decay", "0.1")
        student = given.model()
        for _ in given.fit(student):
            pass
        end = torch.cat([p.detach().flatten() for p in student.parameters()])
        assert bool(torch.isfinite(end).all())
        if name in ends:
            assert torch.equal(ends[name], end)
        ends[name] = end
    assert len({float(end.norm()) for end in ends.values()}) == len(OPTIMIZERS)


def test_names_of_options_are_those_of_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "gaussian-lsd", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{{{','.join(OPTIMIZERS)}}}" in said and f"{{{','.join(SCHEDULES)}}}" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hold", "3"], "cosine does not hold"),
        (["--schedule", "constant", "--floor", "0.1"], "constant has none"),
        (["--floor", "1.5"], "floor: expected a factor in [0, 1]"),
        (["--schedule", "inverse-sqrt", "--hold", "5", "--warmup", "10"], "not before the warm-up's end"),
        (["--schedule", "inverse-sqrt", "--hold", "0"], "hold: expected a step above 0"),
        (["--warmup", str(N)], "fewer steps than the run's 120"),
        (["--warmup", "-1"], "warmup: expected at least 0"),
        (["--lr", "0"], "lr: expected a rate above 0"),
        (["--lr", "inf"], "finite"),
        (["--lr", "nan"], "finite"),
        (["--weight-decay", "-1"], "weight_decay"),
        (["--optimizer", "muon", "--weight-decay", "-1"], "weight_decay"),
        (["--betas", "1", "0.9"], "betas"),
        (["--clip", "0"], "clip"),
        (["--ema"], "at least one, got none"),
        (["--ema", "1"], "got 1"),
        (["--ema", "nan"], "got nan"),
        (["--ema", "0.9", "0.9"], "got 0.9 0.9"),
        (["--power-ema", "0.5"], "expected a width in (0, 0.2887], got 0.5"),
        (["--power-ema", "0.1", "0.1"], "different widths"),
        (["--power-ema", "0.1", "--power-snapshots", "0"], "power snapshots"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "gaussian-lsd", *TINY, *options]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1, told
    assert not list(Path().iterdir())


def test_options_of_a_run_repeat_it() -> None:
    words = ["--ema", "0.9", "0.5", "--power-ema", "0.1", "--betas", "0.8", "0.9", "--optimizer", "radam"]
    words += ["--schedule", "inverse-sqrt", "--hold", "2", "--steps", "4", "--weight-decay", "0.01"]
    assert main(["run", "gaussian-lsd", *TINY, *words, "--out", "first"]) == 0
    quiet = ["--quiet", "--skip-evaluation"]
    assert main(["run", "first/options.json", *quiet, "--out", "second"]) == 0
    assert Path("first/options.json").read_bytes() == Path("second/options.json").read_bytes()
    assert Path("first/model.safetensors").read_bytes() == Path("second/model.safetensors").read_bytes()
    older = json.loads(Path("first/options.json").read_text())
    training = older["options"]["training"]
    for name in ("optimizer", "betas", "schedule", "hold", "floor", "power_ema", "weight_decay"):
        del training[name]
    training["ema"] = 0.9  # as it was before there were several
    Path("older.json").write_text(json.dumps(older))
    assert experiment("older.json", quiet).training.ema == (0.9,)
