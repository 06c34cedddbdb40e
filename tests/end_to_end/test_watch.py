"""What a run measures and draws while it trains: figures of a separate evaluation, samples of the saved
weights, and the same again after a resumption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saltus.cli import main
from saltus.interpolants import path
from saltus.maps import NetworkMap
from saltus.metrics import residuals
from saltus.recipes.averages import EVALUATED, averages
from saltus.recipes.evaluate import OWN, Measured, evaluate, score
from saltus.recipes.experiment import Experiment
from saltus.recipes.portraits import reach_of
from saltus.recipes.resolve import experiment
from saltus.recipes.sampling import draw
from saltus.recipes.show import picture, shown
from saltus.recipes.watch import EVALUATIONS, append, cut
from saltus.samplers import prior
from saltus.streams import Streams
from saltus.training import Checkpoints, numbers
from saltus.training.state import restore

STEPS, EVERY = 12, 4
OPTIONS = ["--steps", str(STEPS), "--batch", "16", "--size", "tiny", "--quiet"]
WATCHED = ["--evaluate-every", str(EVERY), "--grid-every", str(EVERY)]
SAVED = ["--save-every", str(EVERY), "--keep-last", "9"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run in the plane that was watched, and saved whenever it was."""
    folder = tmp_path_factory.mktemp("watched") / "run"
    assert (
        main(["run", "gaussian-lsd", *OPTIONS, *WATCHED, *SAVED, "--tensorboard", "--out", str(folder)]) == 0
    )
    yield folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EVALUATIONS).read_text().splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Evaluations without what clocks say."""
    kept = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return [{**row, "lines": [{**line, "ms": None} for line in row["lines"]]} for row in kept]


def averaged_at(folder: Path, step: int) -> tuple[Experiment, NetworkMap]:
    """The experiment of a run folder and its averaged map as a checkpoint holds it."""
    made = experiment(str(folder / "options.json"), [])
    student = made.model()
    kept = averages(made.training, student)
    restore(made.fit(student), kept, Checkpoints(folder / "checkpoints").open(step))
    model = kept[EVALUATED].module
    assert isinstance(model, NetworkMap)
    return made, model


@pytest.mark.parametrize("step", [EVERY, 2 * EVERY])
def test_figures_are_those_of_a_separate_evaluation(run: Path, step: int) -> None:
    made, model = averaged_at(run, step)
    apart = {m.label: m.figures for m in evaluate(made, model) if m.group == OWN}
    (row,) = [row for row in lines_of(run) if row["step"] == step]
    assert row["weights"] == "ema 0.999" and row["seconds"] > 0.0
    assert {line["label"]: line["figures"] for line in row["lines"]} == apart
    assert len({figures["map RMSE"] for figures in apart.values()}) > 1


def test_the_last_line_is_the_whole_evaluation(run: Path) -> None:
    rows = lines_of(run)
    assert [row["step"] for row in rows] == [EVERY, 2 * EVERY, STEPS]
    assert rows[-1]["lines"] == json.loads((run / "evaluation.json").read_text())["lines"]
    assert {line["group"] for line in rows[-1]["lines"]} > {line["group"] for line in rows[0]["lines"]}


@pytest.mark.parametrize("step", [EVERY, 2 * EVERY])
def test_grids_show_samples_of_the_saved_weights_from_one_noise(run: Path, step: int) -> None:
    assert [p.name for p in sorted((run / "grids").iterdir())] == ["000004.png", "000008.png", "000012.png"]
    made, model = averaged_at(run, step)
    n = shown((2,))
    rng = Streams(made.training.seed, index=torch.arange(n))
    x0, card = prior(rng, (2,), made.interpolant), made.method.card
    names = {1: "1 jump", 2: "2 jumps", 4: "4 jumps", 8: "8 jumps"}
    parts = [(name, draw(model, card, x0, k, None, rng, made.interpolant)) for k, name in names.items()]
    reach = reach_of(made.reference(rng.rows(torch.arange(1000)).named("picture")).data())
    expected = np.asarray(picture(f"gaussian-lsd after {step} steps", parts, None, reach))
    with Image.open(run / "grids" / f"{step:06d}.png") as drawn:
        assert np.array_equal(np.asarray(drawn), expected)


def test_trajectories_end_where_the_samples_are(run: Path) -> None:
    found = json.loads((run / "trajectories.json").read_text())
    assert found["step"] == STEPS and found["weights"] == "ema 0.999" and found["reach"] > 1.0
    assert [p["name"] for p in found["panels"]] == [
        "1 jump",
        "2 jumps",
        "4 jumps",
        "8 jumps",
        "X from 0 to t",
        "data",
    ]
    made, model = averaged_at(run, STEPS)
    x0 = prior(Streams(0, index=torch.arange(1000)), (2,), made.interpolant)
    for panel, k in zip(found["panels"], (1, 2, 4, 8, 16), strict=False):
        ways, points = torch.tensor(panel["ways"]), torch.tensor(panel["points"])
        assert ways.shape == (40, k + 1, 2)
        assert torch.equal(ways[:, -1], points[:40])
        assert torch.allclose(ways[:, 0], x0[:40], atol=6e-4)
    one, along = found["panels"][0], found["panels"][4]
    assert one["points"] == along["points"]
    half = torch.full((40,), 0.5)
    with torch.no_grad():
        middle = model(x0[:40], torch.zeros(40), half)
    assert torch.allclose(torch.tensor(along["ways"])[:, 8], middle, atol=6e-4)


def test_residuals_are_those_of_the_metric(run: Path) -> None:
    found = json.loads((run / "residuals.json").read_text())
    assert found["step"] == STEPS and found["rows"] == 16 and len(found["times"]) == 11
    made, model = averaged_at(run, STEPS)
    batch = made.reference(Streams(0, index=torch.arange(16)))
    times = torch.linspace(0.0, 1.0, 11)
    states = torch.stack(
        [path(made.interpolant, batch.x0, batch.data(), torch.full((16,), float(t)))[0] for t in times]
    )
    expected = residuals(model, times, states)
    for name, values in {"Lagrangian": expected.lagrangian, "semigroup": expected.semigroup}.items():
        panel = found["panels"][name]
        assert panel[3][1] is None and panel[1][3] == pytest.approx(float(values[1, 3]), abs=6e-6)
        assert panel[0][10] == pytest.approx(float(values[0, 10]), abs=6e-6)


def test_measuring_changes_no_weight(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    assert (
        main(["run", "gaussian-lsd", *OPTIONS, "--grid-every", "0", "--skip-evaluation", "--out", str(bare)])
        == 0
    )
    assert (bare / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert not (bare / "grids").exists() and not (bare / EVALUATIONS).exists()


@pytest.mark.parametrize("step", [EVERY, 2 * EVERY])
def test_a_resumed_run_measures_the_same_again(run: Path, step: int, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(run, half)
    before = {p.name: p.read_bytes() for p in (run / "grids").iterdir()}
    for later in Checkpoints(half / "checkpoints").steps():
        if later > step:
            shutil.rmtree(half / "checkpoints" / f"step-{later:08d}")
    (half / "model.safetensors").unlink()
    assert main(["run", "gaussian-lsd", *OPTIONS, *WATCHED, *SAVED, "--tensorboard", "--out", str(half)]) == 0
    assert timeless(lines_of(half)) == timeless(lines_of(run))
    assert {p.name: p.read_bytes() for p in (half / "grids").iterdir()} == before
    assert (half / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert shown_by_tensorboard(half) == shown_by_tensorboard(run)
    assert len(list((half / "tensorboard").iterdir())) == 2


def shown_by_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every figure in the event files but what clocks say."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "second" not in tag]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_tensorboard_has_the_run(run: Path) -> None:
    found = shown_by_tensorboard(run)
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for name, value in numbers(row).items():
            if "second" not in name:
                assert (row["step"], float(np.float32(value))) in found[name]
    figure = [(row["step"], row["lines"][0]["figures"]["map RMSE"]) for row in lines_of(run)]
    assert found["evaluation/map RMSE/1 jump"] == [(k, float(np.float32(v))) for k, v in figure]


def test_lines_and_grids_after_a_step_are_taken_back(tmp_path: Path) -> None:
    line = Measured("1 jump", OWN, 1, {"energy": 0.5}, 0.1)
    for step in (10, 20, 30):
        append(tmp_path, step, "ema 0.9", [line])
        append(tmp_path, step, "raw", [line])
        (tmp_path / "grids").mkdir(exist_ok=True)
        (tmp_path / "grids" / f"{step:06d}.png").write_bytes(b"")
    with (tmp_path / EVALUATIONS).open("a") as file:
        file.write('{"step": 15, "li')
    cut(tmp_path, 20)
    assert [(row["step"], row["weights"]) for row in lines_of(tmp_path)] == [
        (10, "ema 0.9"),
        (10, "raw"),
        (20, "ema 0.9"),
        (20, "raw"),
    ]
    assert [p.name for p in sorted((tmp_path / "grids").iterdir())] == ["000010.png", "000020.png"]


def test_an_evaluation_takes_the_place_of_the_same_one(tmp_path: Path) -> None:
    for energy in (0.5, 0.25):
        append(tmp_path, 10, "ema 0.9", [Measured("1 jump", OWN, 1, {"energy": energy})])
        append(tmp_path, 100, "ema 0.9", [])
        append(tmp_path, 10, "ema 0.99", [])
    rows = lines_of(tmp_path)
    assert [(row["step"], row["weights"]) for row in rows] == [
        (10, "ema 0.9"),
        (100, "ema 0.9"),
        (10, "ema 0.99"),
    ]
    assert rows[0]["lines"][0]["figures"] == {"energy": 0.25}
    append(tmp_path, 10, "ema 0.9", [])
    assert [row["weights"] for row in lines_of(tmp_path)] == ["ema 0.9", "ema 0.99", "ema 0.9"]


def test_the_score_is_the_first_figure_at_the_fewest_steps() -> None:
    one, two = (
        Measured("1 jump", OWN, 1, {"map RMSE": 0.5, "energy": 0.1}),
        Measured("2 jumps", OWN, 2, {"x": 0.0}),
    )
    other = Measured("1 Euler step", "euler", 1, {"map RMSE": 0.01})
    assert score([other, two, one]) == ("map RMSE at 1 jump", 0.5)
    assert score([other]) is None and score([]) is None


def test_the_best_checkpoint_is_that_of_the_best_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backwards(lines: list[Measured]) -> tuple[str, float]:
        found = score(lines)
        assert found is not None
        return found[0], -found[1]

    monkeypatch.setattr("saltus.recipes.watch.score", backwards)
    out = tmp_path / "run"
    save = ["--save-every", str(EVERY), "--keep-last", "1", "--keep-best", "1", "--skip-evaluation"]
    assert main(["run", "gaussian-lsd", *OPTIONS, *WATCHED, *save, "--out", str(out)]) == 0
    figure = {row["step"]: row["lines"][0]["figures"]["map RMSE"] for row in lines_of(out)}
    worst = max(figure, key=lambda step: figure[step])
    assert set(figure) == {EVERY, 2 * EVERY, STEPS} and worst != STEPS
    assert Checkpoints(out / "checkpoints").steps() == [worst, STEPS]


@pytest.mark.parametrize("what", ["grid", "Exam"])
def test_a_measurement_that_fails_is_told_and_training_goes_on(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("the judge\nis ill")

    monkeypatch.setattr(f"saltus.recipes.watch.{what}", fail)
    out = tmp_path / "run"
    assert main(["run", "gaussian-lsd", *OPTIONS, *WATCHED, "--skip-evaluation", "--out", str(out)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 3 and all("RuntimeError: the judge is ill; training goes on" in line for line in said)
    rows = lines_of(out)
    assert [row["step"] for row in rows] == [EVERY, 2 * EVERY, STEPS]
    if what == "Exam":
        assert all(row["lines"] == [] and row["error"] == "RuntimeError: the judge is ill" for row in rows)
    else:
        assert all(row["lines"] and "error" not in row for row in rows)
    assert (out / "model.safetensors").is_file()


def test_a_line_that_cannot_be_written_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / EVALUATIONS).mkdir()
    with pytest.raises(ValueError, match="expected to append a line") as caught:
        append(tmp_path, 1, "ema", [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [["--tensorboard"], ["--wandb", "maps"]])
def test_a_missing_writer_is_told_before_anything_is_made(
    option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    package = option[0].removeprefix("--")
    for name in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["run", "gaussian-lsd", *OPTIONS, *option, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"pip install 'saltus[{package}]'" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--grid-every", "--evaluate-every"])
def test_a_schedule_below_zero_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "gaussian-lsd", *OPTIONS, option, "-1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option[2:].replace('-', ' ')}: expected a number of steps" in line
