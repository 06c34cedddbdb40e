"""The command line as a user meets it: every command on a tiny budget, every mistake in one line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from saltus.cli import COMMANDS, main
from saltus.recipes import discover as discover_recipes
from saltus.recipes.demo import criteria
from saltus.recipes.evaluate import EULERS, ODE_STEPS, OWN, SOLVER, Measured
from saltus.training import Checkpoints, load_weights, save_weights

TINY = ["--steps", "4", "--batch", "16", "--size", "tiny", "--skip-evaluation"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two finished runs of the Gaussian and one of the digits, with a guided map."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["run", "gaussian-lsd", *TINY, "--out", str(folder / "lsd"), "--quiet"]) == 0
    assert main(["run", "gaussian", "--method", "ect", *TINY, "--out", str(folder / "ect"), "--quiet"]) == 0
    assert (
        main(["run", "digits-lsd", *TINY, "--guidance", "3", "--out", str(folder / "digits"), "--quiet"]) == 0
    )
    yield folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder of its own, without the debug switch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SALTUS_DEBUG", raising=False)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its contents."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- what a newcomer types first


@pytest.mark.parametrize("command", [c.name for c in COMMANDS])
def test_every_command_has_a_help_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"saltus {command}" in said and "usage" in said


@pytest.mark.parametrize("recipe", sorted(discover_recipes()))
def test_every_recipe_explains_every_option(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", f"{recipe}-psd", "--help"]) == 0
    said = capsys.readouterr().out
    for word in ("examples:", "network options", "training options", "output options", "--dry-run", "--seed"):
        assert word in said
    assert "(default: psd)" in said


def test_the_first_page_needs_no_torch() -> None:
    code = "import sys; from saltus.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(c.name in done.stdout for c in COMMANDS)


def test_lists(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["methods"]) == 0 and main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert "2505.18825" in said and "lsd" in said and "checkerboard-METHOD" in said


def test_doctor_finds_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "all is well" in said and "torch" in said and "Lagrangian" in said


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "mixture-mean_flow", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "parameters" in said and "network evaluations a row" in said and "ms a step" in said
    assert not list(tmp_path.iterdir())


# -- a run and what is done with it


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    run = finished / "lsd"
    names = {"options.json", "metrics.jsonl", "model.safetensors", "samples.png"}
    assert {p.name for p in run.iterdir()} >= names
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4 and {"diagonal", "lagrangian"} <= set(rows[-1]["terms"])
    tensors, meta = load_weights(run / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"ema", "raw"} and meta["method"] == "lsd"
    assert not list(finished.glob(".*")), "a working folder was left behind"


def test_saved_options_repeat_the_run(finished: Path, tmp_path: Path) -> None:
    options = finished / "digits" / "options.json"
    assert main(["run", str(options), "--out", "again", "--quiet"]) == 0
    first, _ = load_weights(finished / "digits" / "model.safetensors")
    second, _ = load_weights(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "again" / "options.json").read_text()) == json.loads(options.read_text())


def test_the_method_of_the_name_and_of_the_option_are_one(finished: Path) -> None:
    assert json.loads((finished / "ect" / "options.json").read_text())["method"] == "ect"


def test_overwrite_replaces(tmp_path: Path) -> None:
    command = ["run", "gaussian-psd", *TINY, "--out", "here", "--quiet"]
    assert main(command) == 0
    before = snapshot(tmp_path)
    assert main(command) == 2
    assert snapshot(tmp_path) == before
    assert main([*command, "--overwrite", "--seed", "1"]) == 0
    assert snapshot(tmp_path)["here/model.safetensors"] != before["here/model.safetensors"]


def test_pictures_along_the_way(tmp_path: Path) -> None:
    assert main(["run", "gaussian-lsd", *TINY, "--grid-every", "2", "--out", "here", "--quiet"]) == 0
    assert {p.name for p in (tmp_path / "here" / "grids").iterdir()} >= {"000002.png", "000004.png"}


def test_samples_do_not_depend_on_their_number(finished: Path) -> None:
    run = str(finished / "lsd")
    assert main(["sample", run, "--n", "5", "--steps", "1", "2", "--seed", "3", "--out", "few.npy"]) == 0
    assert main(["sample", run, "--n", "9", "--steps", "1", "2", "--seed", "3", "--out", "many.npy"]) == 0
    few, many = np.load("few.npy"), np.load("many.npy")
    assert few.shape == (2, 5, 2) and np.isfinite(many).all()
    np.testing.assert_allclose(few, many[:, :5], atol=1e-6)


def test_sampling_needs_the_weights_alone(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.safetensors").write_bytes((finished / "digits" / "model.safetensors").read_bytes())
    arguments = ["--label", "3", "--w", "2", "--n", "30", "--out", "threes.png"]
    assert main(["sample", "alone.safetensors", *arguments]) == 0
    assert main(["sample", "alone.safetensors", "--steps", "1", "4", "--raw"]) == 0
    assert (tmp_path / "threes.png").is_file() and (tmp_path / "samples-seed0.png").is_file()


def test_evaluate_draws(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished / "lsd")]) == 0
    said = capsys.readouterr().out
    assert "map RMSE" in said and "1 Euler step" in said and "real data" in said
    drawn = {"losses.png", "points.png", "residuals.png"}
    assert drawn | {"evaluation.json"} <= {p.name for p in (finished / "lsd").iterdir()}


def test_re_noised_samples_have_no_map_error(finished: Path) -> None:
    """After a second noise a sample is no function of the first, so there is no map to compare with."""
    assert main(["evaluate", str(finished / "ect")]) == 0
    found = json.loads((finished / "ect" / "evaluation.json").read_text())["lines"]
    assert [m["steps"] for m in found if "map RMSE" in m["figures"]] == [1]
    assert [m["steps"] for m in found if "energy" in m["figures"]] == [1, 2, 4, 0]


def test_first_pages_fit_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert main(["methods"]) == 0
    table, _, note = capsys.readouterr().out.partition("calls:")
    assert "jumps: 1 2 4 8 16" in table and "terminal of" in note
    assert all(len(line) <= 80 for line in (*said.splitlines(), *map(str.rstrip, table.splitlines())))


def test_compare(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(finished / "lsd"), str(finished / "ect"), "--out", "both.png"]) == 0
    said = capsys.readouterr().out
    assert "1 jump" in said and "1 re-noised jump" in said and (tmp_path / "both.png").is_file()


def test_demo_judges_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seconds", "0.1"]) == 1, "ten steps cannot have taught it"
    said = capsys.readouterr().out
    assert said.count("MISSED") >= 1 and "ODE, 64 steps" in said and Path("runs/demo/samples.png").is_file()


def test_criteria_of_the_demo() -> None:
    def lines(one: float, ode: float, euler: float, agree: float) -> list[Measured]:
        parts = ((OWN, 1, one), (EULERS, 1, euler), (SOLVER, ODE_STEPS, ode))
        return [Measured("", g, k, {"Fréchet": d, "agreement %": agree}) for g, k, d in parts]

    assert [c.holds for c in criteria(lines(0.14, 0.12, 4.6, 98.0))] == [True, True, True]
    assert [c.holds for c in criteria(lines(0.18, 0.12, 4.6, 98.0))] == [False, True, True]
    assert [c.holds for c in criteria(lines(0.14, 0.12, 2.0, 96.9))] == [True, False, False]


# -- mistakes


def mistakes(finished: Path) -> dict[str, list[str]]:
    """Command lines that cannot work, each with words that its one line must hold."""
    lsd, digits, ect = (str(finished / name) for name in ("lsd", "digits", "ect"))
    return {
        "near matches: methods": ["mehtods"],
        "when its saltus run command is given again": ["resume", lsd],
        "/options.json --out": ["run", lsd],
        "got a run; saltus run": ["run", f"{lsd}/report.html"],
        "a size such as 24GiB, got '24'": ["estimate", "gaussian-lsd", "--memory", "24"],
        "near matches: digits-lsd": ["run", "digts-lsd"],
        "did you mean lsd": ["run", "digits-lds"],
        "did you mean shortcut": ["run", "mixture", "--method", "shortcuts"],
        "use a smaller batch": ["run", "digits-lsd", "--batch", "4000"],
        "keep the labels": ["run", "digits-lsd", "--no-labels", "--guidance", "3"],
        "lsd and esd do": ["run", "digits-psd", "--guidance", "3"],
        "above 1": ["run", "digits-lsd", "--guidance", "0.5"],
        "at least 1": ["run", "gaussian-lsd", "--steps", "0"],
        "lr: expected": ["run", "gaussian-lsd", "--lr", "-1"],
        "ema: expected": ["run", "gaussian-lsd", "--ema", "1.5"],
        "got a file": ["run", "gaussian-lsd", *TINY, "--out", "file"],
        "expected folders above it": ["run", "gaussian-lsd", *TINY, "--out", "file/below/run"],
        "0 for never": ["run", "gaussian-lsd", *TINY, "--grid-every", "-1"],
        "64 bits": ["run", "gaussian-lsd", *TINY, "--seed", str(2**70)],
        "got inf": ["run", "digits-lsd", *TINY, "--guidance", "inf"],
        "expected options by name": ["run", "odd.json"],
        "the keys recipe": ["run", "unnamed.json"],
        "other files": ["run", "gaussian-lsd", *TINY, "--out", str(finished)],
        "add --overwrite": ["run", "gaussian-lsd", *TINY, "--out", lsd],
        "saved options": ["run", "nowhere/options.json"],
        "expected JSON": ["run", "broken.json"],
        "found nothing there": ["sample", "nowhere"],
        "whole safetensors file": ["sample", "truncated"],
        "found none; is this": ["sample", "empty"],
        "meaningful samples at 1, 2, 4": ["sample", ect, "--steps", "8"],
        "expected 0 to 9": ["sample", digits, "--label", "11"],
        "without labels": ["sample", lsd, "--label", "1"],
        "not trained with --guidance": ["sample", lsd, "--w", "2"],
        "at least one sample": ["sample", lsd, "--n", "0"],
        "expected at least one number of steps": ["sample", lsd, "--steps"],
        "--debug shows where": ["sample", lsd, "--n", str(10**14)],
        "shape cannot be": ["sample", "odd.safetensors"],
        "got a folder": ["sample", lsd, "--out", "folder.npy"],
        "ends in .png or .npy": ["sample", lsd, "--out", "x.gif"],
        "make it first": ["sample", lsd, "--out", "nowhere/x.png"],
        "expected a file": ["evaluate", "truncated-options"],
        "at least two": ["compare", lsd],
        "all different": ["compare", lsd, lsd],
        "ends in .png": ["compare", lsd, ect, "--out", "plot.xyz"],
        "no lines": ["compare", "unmeasured", ect],
        "log of a finished run": ["evaluate", "unlogged"],
        "expected a time above 0": ["demo", "--seconds", "nan"],
        "seeds: expected at least one": ["bench", "mixture", "--methods", "lsd", "--seeds"],
        "one system": ["compare", lsd, digits],
        "unknown bench": ["bench", "mixtur"],
    }


WORDS = sorted(mistakes(Path()))


@pytest.mark.parametrize("words", WORDS)
def test_a_mistake_is_one_line_and_leaves_no_trace(
    words: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("a file")
    Path("broken.json").write_text("{")
    Path("odd.json").write_text('{"recipe": "mixture", "method": "lsd", "options": {"training": 5}}')
    Path("unnamed.json").write_text('{"recipe": "mixture", "options": {}}')
    for name in ("empty", "folder.npy"):
        Path(name).mkdir()
    shutil.copytree(finished / "lsd", "unmeasured")
    Path("unmeasured/evaluation.json").write_text('{"lines": []}')
    shutil.copytree(finished / "lsd", "unlogged")
    Path("unlogged/metrics.jsonl").write_text("cut sh")
    model = {"model": {"shape": ["a"]}, "method": "lsd", "recipe": "gaussian", "plain": False}
    save_weights("odd.safetensors", {"ema": torch.nn.Linear(1, 1)}, model)
    whole = (finished / "lsd" / "model.safetensors").read_bytes()
    for name in ("truncated", "truncated-options"):
        Path(name).mkdir()
    Path("truncated/model.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("truncated-options/model.safetensors").write_bytes(whole)
    before = snapshot(tmp_path), snapshot(finished)
    assert main(mistakes(finished)[words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("saltus: error: ") and said.err.count("\n") == 1
    assert words in said.err
    assert (snapshot(tmp_path), snapshot(finished)) == before


@pytest.mark.parametrize(
    ("arguments", "word"), [(["--stpes", "3"], "--steps"), (["--steps", "many"], "--steps")]
)
def test_a_wrong_option_names_the_right_one(
    arguments: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "gaussian-lsd", *arguments]) == 2
    assert word in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_permission_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "gaussian-lsd", *TINY, "--out", "/proc/saltus/run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("saltus: error: ") and said.count("\n") == 1


def test_an_interruption_before_anything_is_saved_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saltus.training.run.Run.after", interrupted)
    assert main(["run", "gaussian-lsd", *TINY, "--out", "deep/run", "--quiet"]) == 130
    assert capsys.readouterr().err == "\nsaltus: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_overwriting_keeps_the_old_run_until_the_new_one_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", "gaussian-lsd", *TINY, "--out", "run", "--quiet"]
    assert main(command) == 0
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("saltus.training.run.Run.after", lambda *_: 1 / 0)
        assert main([*command, "--overwrite", "--seed", "1"]) == 2
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert main([*command, "--overwrite", "--seed", "1"]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_and_leaves(name: str, status: int, tmp_path: Path) -> None:
    # a job in the background of a shell ignores SIGINT, and so would its children
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    arguments = ["run", "gaussian-lsd", "--steps", "100000", "--out", "run"]
    code += f"from saltus.cli import main; sys.argv[1:] = {arguments}; sys.exit(main())"
    run = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE)
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(0.05)
    run.send_signal(signal.Signals[name])
    _, said = run.communicate(timeout=60)
    assert run.returncode == status and b"Traceback" not in said
    steps = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert f"stopped after step {steps[-1]:,}, which is saved".encode() in said
    assert not list(tmp_path.rglob(".draft*")) and not list(tmp_path.rglob("model.safetensors"))


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="near matches"):
        main(["run", "digts", "--debug"])
    monkeypatch.setenv("SALTUS_DEBUG", "1")
    with pytest.raises(ValueError, match="near matches"):
        main(["run", "digts"])
