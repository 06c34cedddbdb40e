"""``saltus bench`` goes on where it was, holds methods against what they should reach, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from saltus.cli import main
from saltus.methods import discover
from saltus.recipes import bench, trials
from saltus.recipes.trials import DIGITS, FULL, IMAGES, MIXTURE, QUICK, Problem, code, computes
from saltus.recipes.yardsticks import MARGIN, YARDSTICKS, Yardstick

FEW = ["--seeds", "0", "--steps", "2", "--batch", "16"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(path: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.endswith("}")]


def test_bench_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """After an interruption while it wrote; the figures are those of an undisturbed one."""
    command = ["bench", "mixture", "--methods", "lsd", "ect", *FEW, "--out", "found.jsonl"]
    assert main(command) == 0
    whole = written("found.jsonl")
    lines = Path("found.jsonl").read_text().splitlines()
    Path("found.jsonl").write_text(lines[0] + "\n" + lines[1][:40])
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "ect, seed 0" in said and "lsd, seed 0" not in said and Path("found.png").is_file()
    rows = written("found.jsonl")
    assert [r["method"] for r in rows] == ["lsd", "ect"]
    for kind, counts in (("rmse", {"1", "2", "4"}), ("sw", {"1", "2", "4"}), ("energy", {"1", "2", "4"})):
        assert rows[0][kind] == whole[0][kind] and set(rows[0][kind]) == counts  # type: ignore[call-overload]
        assert rows[1][kind] == whole[1][kind]
    assert set(rows[1]["rmse"]) == {"1"}, "re-noised samples have no map to compare with"  # type: ignore[call-overload]


def result(name: str, seed: int, rmse: Mapping[str, float | None], **others: object) -> dict[str, object]:
    row = {"problem": "mixture", "method": name, "seed": seed, "steps": FULL[0], "lr": FULL[1], "batch": 512}
    far = {"rmse": rmse, "sw": {"1": 9.0}, "energy": {"1": 9.0}}
    return row | far | {"seconds": 1.0, "torch": torch.__version__, "code": code(name, MIXTURE)} | others


def held(rows: list[dict[str, object]], *options: str) -> int:
    """The exit status of a bench whose results are there already."""
    Path("b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = list(dict.fromkeys(str(row["method"]) for row in rows))
    seeds = sorted({str(row["seed"]) for row in rows})
    return main(["bench", "mixture", "--methods", *names, "--seeds", *seeds, "--out", "b.jsonl", *options])


def test_the_mean_of_the_seeds_is_held_against_the_yardstick(capsys: pytest.CaptureFixture[str]) -> None:
    """At every number of steps that has a figure; one seed may be above."""
    assert YARDSTICKS["ctm"].limits == pytest.approx(
        {k: MARGIN * v for k, v in YARDSTICKS["ctm"].rmse.items()}
    )
    good: dict[str, float | None] = {"1": 0.2, "2": 0.19, "4": 0.18}
    assert held([result("ctm", 0, good), result("ctm", 1, good | {"4": 0.19})]) == 0
    assert "holds" in capsys.readouterr().out
    assert held([result("ctm", 0, good), result("ctm", 1, good | {"4": 0.21})]) == 1
    assert "MISSED at 4" in capsys.readouterr().out
    assert held([result("ctm", 0, good | {"1": 0.29})]) == 1, "the card's bound is 0.28, the yardstick's 0.33"
    assert held([result("ctm", 0, good | {"1": 0.27})]) == 0
    assert held([result("flow_matching", 0, {"1": 2.0})]) == 0, "no bound, no yardstick"


def test_yardsticks_are_of_methods_and_say_why_they_are_loosened(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(YARDSTICKS) <= set(discover())
    for name, row in YARDSTICKS.items():
        for k, known in row.worse.items():
            assert MARGIN * row.rmse[k] < known.limit == row.limits[k] and len(known.why) > 80, name
    good: dict[str, float | None] = {"1": 0.3, "2": 0.3, "4": 0.28}
    assert held([result("mean_flow", 0, good)]) == 0
    assert "mean_flow: at 4 at most 0.29, for 2.7 to 3.4 %" in " ".join(capsys.readouterr().out.split())
    assert held([result("mean_flow", 0, good | {"4": 0.3})]) == 1


def test_what_diverged_has_no_figure_and_misses(capsys: pytest.CaptureFixture[str]) -> None:
    assert held([result("lsd", 0, {"1": 0.2, "2": 0.2, "4": 0.2}), result("lsd", 1, {"1": None})]) == 1
    said = capsys.readouterr().out
    assert "diverges" in said and "MISSED at 1 2 4" in said
    assert held([result("lsd", 0, {"1": 0.2, "2": 2e3, "4": 0.2})]) == 1
    assert "MISSED at 2" in capsys.readouterr().out


def test_methods_without_coupling_are_judged_by_their_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(YARDSTICKS, "endpoint", Yardstick({1: 3.0}, {1: 0.1}, coupled=False))
    assert held([result("endpoint", 0, {"1": 3.0}, sw={"1": 0.149})]) == 0
    assert held([result("endpoint", 0, {"1": 0.1}, sw={"1": 0.151})]) == 1


def test_results_of_other_code_are_marked_and_trained_again_if_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(
        name: str, seed: int, steps: int, lr: float, batch: int, problem: Problem
    ) -> dict[str, object]:
        asked.append((name, seed))
        return result(name, seed, {"1": 0.25})

    monkeypatch.setattr(bench, "measure", measure)
    old = [
        result("boot", 0, {"1": 0.26}, code="before"),
        result("ect", 0, {"1": 0.26}, torch="1.13.1+cu117"),
        result("tbcm", 0, {"1": 0.26}, torch=".".join(torch.__version__.split(".")[:2]) + ".99"),
    ]
    assert held(old) == 0 and not asked
    said = capsys.readouterr().out
    assert "boot *" in said and "ect *" in said and "tbcm *" not in said and "--fresh" in said
    assert held(old, "--fresh") == 0 and asked == [("boot", 0), ("ect", 0)]
    assert "*" not in capsys.readouterr().out


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], set[tuple[str, str]]]]:
    """Whose marks of the code differ where a module computes something else."""
    cases = [(p, name) for p in (MIXTURE, DIGITS) for name in ("lsd", "psd", "psd_midpoint")]
    marks = {case: code(case[1], case[0]) for case in cases}
    computed = trials._computed

    def changed(module: str) -> set[tuple[str, str]]:
        monkeypatch.setattr(trials, "_computed", lambda m: "other" if m == module else computed(m))
        code.cache_clear()
        return {(p.name, name) for (p, name), mark in marks.items() if code(name, p) != mark}

    yield changed
    code.cache_clear()


def test_the_mark_of_the_code_covers_what_a_figure_depends_on(
    moved: Callable[[str], set[tuple[str, str]]],
) -> None:
    """The algebra, what the recipes of a bench are made of, the own file; of digits that of the teacher."""
    everyone = {(p, name) for p in ("mixture", "digits") for name in ("lsd", "psd", "psd_midpoint")}
    algebra = ("times", "methods", "objectives.lagrangian", "nn.mlp", "training.loop", "data.digits")
    recipes = ("assemble", "digits", "images", "mixture", "experiment", "train", "optimisation", "trials")
    for module in (*algebra, *(f"recipes.{name}" for name in (*recipes, "judged_by_teacher", "model"))):
        assert moved(f"saltus.{module}") == everyone, module
    assert moved("saltus.methods.lsd") == {case for case in everyone if case[1] == "lsd"}
    assert moved("saltus.methods.psd") == {case for case in everyone if case[1] != "lsd"}
    assert moved("saltus.methods.flow_matching") == {case for case in everyone if case[0] == "digits"}


def test_pages_words_and_commands_are_no_part_of_the_mark(
    moved: Callable[[str], set[tuple[str, str]]],
) -> None:
    apart = ("page.chart", "report", "plots", "export", "cli", "teachers.diffusers", "methods.ctm", "pyramid")
    recipes = ("watch", "bench", "yardsticks", "axes", "show", "app", "distill", "cifar10")
    for module in (*apart, *(f"recipes.{name}" for name in recipes)):
        name = f"saltus.{module}"
        assert name in trials._files() and moved(name) == set(), module


def test_words_and_bounds_are_no_part_of_the_mark() -> None:
    """A figure stays a figure when a docstring or a card's bound is written anew, not when a number is."""
    text = "CARD = Card(threshold=0.3, steps=(1,))\n\ndef f(x):\n    return 2 * x\n"
    same = text.replace("threshold=0.3", "quick_threshold=None, bias=None").replace("x\n", "x  # twice\n")
    same = '"""Words."""\n' + same.replace("):\n", '):\n    """More."""\n')
    assert same != text
    assert computes(text) == computes(same)
    assert computes(text) != computes(text.replace("2 * x", "3 * x"))
    assert computes(text) != computes(text.replace("(1,)", "(1, 2)"))


def test_the_short_form_is_the_one_of_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 steps at 5e-3 and seed 0, held against the cards' quick bounds."""
    asked = []

    def measure(name: str, *rest: object) -> dict[str, object]:
        asked.append((name, *rest))
        limit = discover()[name].card.quick_threshold
        assert limit is not None
        value = 0.99 * limit if name == "lsd" else 1.01 * limit
        return result(name, 0, {"1": value}, steps=300, lr=5e-3)

    monkeypatch.setattr(bench, "measure", measure)
    assert main(["bench", "mixture", "--short", "--methods", "lsd", "--out", "s.jsonl"]) == 0
    assert asked == [("lsd", 0, 300, 5e-3, 512, MIXTURE)]
    assert main(["bench", "mixture", "--short", "--methods", "boot", "--out", "s.jsonl"]) == 1


def test_digits_are_judged_as_a_mixture_and_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Students of a trained teacher too; the teacher is trained once."""
    asked = ["--methods", "lsd", "lmd", *FEW, "--out", "d.jsonl"]
    assert main(["bench", "digits", *asked]) == 0
    said = capsys.readouterr().out
    assert IMAGES.title in said and "1,797 real digits" in said and "Fréchet 1" in said
    rows = {(row["problem"], row["method"]): row for row in written("d.jsonl")}
    assert set(rows) == {(p, m) for p in ("images", "digits") for m in ("lsd", "lmd")}
    assert "rmse" in rows["images", "lmd"] and "rmse" not in rows["digits", "lmd"]
    assert rows["digits", "lsd"]["frechet"] != rows["digits", "lmd"]["frechet"]


def short(name: str, value: float, **others: object) -> dict[str, object]:
    return result(name, 0, {"1": value}, steps=QUICK[0], lr=QUICK[1], **others)


@pytest.mark.parametrize("name", ["imm", "drifting", "diagonal"])
def test_short_bounds_are_of_the_cards_own_figure(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the reproduction is compared by samples: RMSE, unless the card asks for the law alone."""
    card = discover()[name].card
    limit = card.quick_threshold
    assert limit is not None
    for factor, status in ((0.99, 0), (1.01, 1)):
        row = short(name, 9.0, sw={"1": factor * limit}) if card.law_alone else short(name, factor * limit)
        assert held([row], "--short") == status, name
    said = capsys.readouterr().out
    assert ("by SW: diagonal" in said) == card.law_alone


def test_the_note_is_of_the_limits_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    held([short("mean_flow", 0.1)], "--short")
    said = " ".join(capsys.readouterr().out.split())
    assert "the card's bound for this budget" in said and "1.5 times" not in said and "at 4" not in said
    held([result("imm", 0, {"1": 1.0}, sw={"1": 0.1})])
    said = " ".join(capsys.readouterr().out.split())
    assert "1.5 times an independent" in said and "by SW: imm" in said and "for this budget" not in said


@pytest.mark.parametrize(
    ("budget", "judged"),
    [
        ((FULL[0], FULL[1], 512), True),
        ((2 * FULL[0], FULL[1], 512), True),
        ((FULL[0] - 1, FULL[1], 512), False),
        ((FULL[0], 5e-3, 512), False),
        ((FULL[0], FULL[1], 256), False),
        ((QUICK[0], QUICK[1], 512), True),
        ((QUICK[0] + 1, QUICK[1], 512), False),
        ((QUICK[0], QUICK[1], 256), False),
    ],
)
def test_limits_are_of_the_reference_budgets(budget: tuple[int, float, int], judged: bool) -> None:
    steps, lr, batch = budget
    far = result("ctm", 0, {"1": 5.0, "2": 5.0, "4": 5.0}, steps=steps, lr=lr, batch=batch)
    options = ("--steps", str(steps), "--lr", str(lr), "--batch", str(batch))
    assert held([far], *options) == judged


@pytest.mark.parametrize(
    ("option", "what"),
    [
        (("--steps", "0"), "at least 1 step .* steps=0"),
        (("--batch", "0"), "batch=0"),
        (("--lr", "0"), "rate above 0, .* lr=0"),
        (("--lr", "nan"), "lr=nan"),
        (("--seeds", "0", "1", "0"), "different ones, got 0 1 0"),
    ],
)
def test_a_budget_that_is_none_is_refused(option: tuple[str, ...], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        bench.bench(["mixture", "--methods", "lsd", *option])


def test_what_serves_is_asked_with_the_first_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is trained to see whether a method fits is then one of those that are needed."""
    seeds: set[int] = set()

    def experiment(name: str, seed: int, *_: object) -> None:
        seeds.add(seed)
        raise ValueError("none fits")

    monkeypatch.setattr(bench, "experiment", experiment)
    assert main(["bench", "digits", "--seeds", "-1", "2", "--out", "d.jsonl"]) == 0
    assert seeds == {-1}


def test_the_plot_says_of_which_budget_and_seeds_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[object] = []
    monkeypatch.setattr(bench, "dots", lambda panels, path, legend, title: titles.append(title))
    held([result(name, seed, {"1": 0.1}) for name in ("boot", "tbcm") for seed in (0, 2)])
    assert titles == ["2,500 steps of batch 512 at 0.001, seeds 0 2"]


@pytest.mark.parametrize("lacks", ["rmse", "sw", "energy", "seconds", "code", "torch"])
def test_a_row_that_lacks_something_is_measured_again(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(name: str, *_: object) -> dict[str, object]:
        asked.append(name)
        return result(name, 0, {"1": 0.1})

    monkeypatch.setattr(bench, "measure", measure)
    row = result("boot", 0, {"1": 0.1})
    assert held([row]) == 0 and not asked
    assert held([row | {lacks: None}]) == 0 and asked == ["boot"]
    del row[lacks]
    assert held([row]) == 0 and asked == ["boot", "boot"]
