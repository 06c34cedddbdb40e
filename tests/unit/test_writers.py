"""Writers: what TensorBoard's own reader finds in the event files, and what Weights & Biases is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from io import StringIO
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from torch import nn

from saltus.games import Game, Move, as_game
from saltus.streams import Streams
from saltus.training import (
    Log,
    Reading,
    Step,
    TensorBoard,
    WeightsAndBiases,
    Writer,
    Writers,
    check_tensorboard,
    check_wandb,
    fit,
    initialised,
    numbers,
)
from saltus.typing import Batch, Draws, Term


class Square:
    """(w x)^2 and |w x|."""

    def __init__(self, student: nn.Module) -> None:
        self.student = student

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        y = self.student(batch.x0).squeeze(1)
        return {"square": Term(y**2), "size": Term(y.abs(), 0.1)}


def source(rng: Streams) -> Batch:
    return Batch(rng.normal("x0", 3))


def train(folder: Path, writer: Writer, several: bool = False, start: int = 0, steps: int = 25) -> None:
    """A run of 25 steps that logs every tenth, from ``start`` to ``steps``."""
    nets = [initialised(k, lambda: nn.Linear(3, 1)) for k in range(2)]
    moves = tuple(Move(f"player {k}", net, Square(net)) for k, net in enumerate(nets))
    game = Game(moves) if several else as_game(Square(nets[0]), nets[0])
    quiet = Console(file=StringIO())
    with Log(folder, steps=25, batch=8, every=10, start=start, console=quiet, writer=writer) as log:
        for step in fit(game, source, steps=25, seed=0, batch=8, start=start):
            log(step)
            if step.index + 1 == steps:
                return


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, bytes]]]]:
    """What TensorBoard shows: the scalars and the images of every tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    images = {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}
    return scalars, images


@pytest.mark.parametrize("several", [False, True])
def test_event_files_hold_what_the_log_holds(several: bool, tmp_path: Path) -> None:
    with Writers([TensorBoard(tmp_path)]) as writer:
        train(tmp_path, writer, several)
    assert "tensorflow" not in sys.modules
    scalars, _ = read(tmp_path)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 25]
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in numbers(row).items():
            expected.setdefault(name, []).append((row["step"], float(np.float32(value))))
    assert scalars == expected
    assert ("moves/player 1/terms/square" if several else "terms/square") in scalars


def test_an_event_is_on_disk_at_once(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path)
    writer.scalars(3, {"loss": 0.5})
    assert read(tmp_path)[0] == {"loss": [(3, 0.5)]}  # although nobody has closed the file
    writer.close()


@pytest.mark.parametrize("torn", [0, 7])
def test_a_resumed_run_hides_what_it_does_again(torn: int, tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    for step in (10, 20, 30, 40):
        first.scalars(step, {"loss": float(step)})
    first.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[: -torn or None])  # a kill within the last event
    second = TensorBoard(tmp_path, start=20)
    second.scalars(30, {"loss": 33.0})
    second.close()
    assert read(tmp_path)[0] == {"loss": [(10, 10.0), (20, 20.0), (30, 33.0)]}
    third = TensorBoard(tmp_path)  # killed before a first checkpoint: from the beginning
    third.scalars(10, {"loss": 11.0})
    third.close()
    assert read(tmp_path)[0] == {"loss": [(10, 11.0)]}
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


def test_pictures_arrive_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)).save(path)
    writer = TensorBoard(tmp_path)
    writer.images(5, {"grid": path})
    writer.close()
    assert read(tmp_path)[1] == {"grid": [(5, path.read_bytes())]}


def test_events_without_a_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(ValueError, match="expected to write here") as caught:
        TensorBoard(tmp_path)
    assert "\n" not in str(caught.value)


class FakeRun:
    """A run of Weights & Biases that keeps what it is told."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told, self.id = told, told["id"] or "abc123"
        self.rows: list[dict[str, Any]] = []
        self.axes: list[tuple[str, str | None]] = []
        self.finished = 0

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, row: dict[str, Any]) -> None:
        assert not self.finished
        self.rows.append(row)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that a stand-in for the package wandb was asked for."""
    made: list[FakeRun] = []

    def init(**told: object) -> FakeRun:
        made.append(FakeRun(told))
        return made[-1]

    module = ModuleType("wandb")
    vars(module).update(init=init, Image=lambda path: ("image", path))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return made


def test_weights_and_biases_is_told_what_the_log_holds(runs: list[FakeRun], tmp_path: Path) -> None:
    options = {"recipe": "digits"}
    with Writers([WeightsAndBiases(tmp_path, "maps", "digits-lsd", options)]) as writer:
        train(tmp_path, writer)
        writer.images(25, {"grid": tmp_path / "grid.png"})
    (run,) = runs
    told = {"project": "maps", "name": "digits-lsd", "id": None, "resume": "allow", "config": options}
    assert run.told == {**told, "dir": str(tmp_path)}
    logged, picture = run.rows[:-1], run.rows[-1]
    assert logged == [{"step": row["step"], **numbers(row)} for row in rows_of(tmp_path)]
    assert picture == {"step": 25, "grid": ("image", str(tmp_path / "grid.png"))}
    assert run.axes == [("step", None), ("*", "step")] and run.finished == 1


def test_a_resumed_run_is_the_same_one_there(runs: list[FakeRun], tmp_path: Path) -> None:
    WeightsAndBiases(tmp_path, "maps", "a", {}).close()
    WeightsAndBiases(tmp_path, "maps", "a", {}).close()
    assert [run.told["id"] for run in runs] == [None, "abc123"]
    assert all(run.told["resume"] == "allow" for run in runs)


def test_a_refusal_of_weights_and_biases_is_one_line(
    runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**told: object) -> None:
        raise RuntimeError("no key\nrun wandb login")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(ValueError, match="no key.*WANDB_MODE=offline") as caught:
        WeightsAndBiases(tmp_path, "maps", "a", {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package, check", [("tensorboard", check_tensorboard), ("wandb", check_wandb)])
def test_a_missing_package_is_named(
    package: str, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"pip install 'saltus\[{package}\]'") as caught:
        check()
    assert "\n" not in str(caught.value)


class Full:
    """A writer whose disk is full from some step on."""

    def __init__(self, at: int) -> None:
        self.at, self.steps, self.closed = at, list[int](), 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.at:
            raise OSError(28, "No space left on device")
        self.steps.append(step)

    def images(self, step: int, pictures: Mapping[str, Path]) -> None:
        raise AssertionError("nothing was drawn")

    def close(self) -> None:
        self.closed += 1


def test_a_writer_that_fails_is_dropped_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = Full(20), Full(99)
    with Writers([bad, good]) as writer:
        train(tmp_path, writer)
    assert bad.steps == [10] and good.steps == [10, 20, 25]
    assert [row["step"] for row in rows_of(tmp_path)] == [10, 20, 25]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("saltus: warning: Full gets nothing more") and "No space left" in line
    assert good.closed == 1


def test_rates_are_those_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("saltus.training.log.time.monotonic", lambda: now)
    net = initialised(0, lambda: nn.Linear(3, 1))
    quiet = Console(file=StringIO())
    with Log(tmp_path, steps=20, batch=8, every=10, console=quiet) as log:
        for step in fit(as_game(Square(net), net), source, steps=20, seed=0, batch=8):
            now += 0.5
            log(step)
            if step.index in (4, 9):
                with log.aside():
                    now += 100.0
    first, second = rows_of(tmp_path)
    assert first["steps_per_second"] == second["steps_per_second"] == 2.0
    assert (first["seconds"], second["seconds"]) == (105.0, 210.0)


def test_the_log_tells_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Full):
        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            nonlocal now
            now += 3.0

    def fetch(step: Step) -> dict[str, Reading]:
        nonlocal now
        now += 50.0
        return arrived(step)

    now, arrived = 0.0, Step.fetch
    monkeypatch.setattr("saltus.training.log.time.monotonic", lambda: now)
    monkeypatch.setattr(Step, "fetch", fetch)
    net = initialised(0, lambda: nn.Linear(3, 1))
    quiet = Console(file=StringIO())
    with Log(tmp_path, steps=20, batch=8, every=10, console=quiet, writer=Slow(99)) as log:
        for step in islice(fit(as_game(Square(net), net), source, steps=21, seed=0, batch=8), 20):
            now += 1.0
            log(step)
    assert log.seconds == 6.0 and log.waited == 100.0
