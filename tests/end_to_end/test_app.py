"""``saltus app``: the page shows what the library draws, in a browser too, and says what went wrong."""

from __future__ import annotations

import base64
import io
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import saltus
from saltus.cli import main
from saltus.plots import scatter, tiles
from saltus.recipes.app import answering, easel_of
from saltus.recipes.averages import Choice
from saltus.recipes.easel import Easel
from saltus.recipes.opened import Finished
from saltus.recipes.portraits import reach_of

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from chromium import Chromium, found  # noqa: E402

TINY = ["--steps", "4", "--batch", "16", "--size", "tiny", "--skip-evaluation", "--quiet"]
IN_TURN = -1
DATA = "data:image/png;base64,"
BROWSER = found()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits with a guided map, and one in the plane."""
    folder = tmp_path_factory.mktemp("runs")
    guided = ["--guidance", "3", "--lr", "0.02"]
    assert main(["run", "digits-lsd", *TINY, *guided, "--out", str(folder / "digits")]) == 0
    assert main(["run", "gaussian-lsd", *TINY, "--out", str(folder / "plane")]) == 0
    return folder


def opened(run: Path) -> Easel:
    return easel_of(run, "cpu", None, Choice())


@pytest.fixture
def digits(runs: Path) -> Easel:
    return opened(runs / "digits")


def pixels(data: str) -> np.ndarray:
    assert data.startswith(DATA)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.removeprefix(DATA)))).convert("RGB"))


def press(easel: Easel, **asked: object) -> str:
    """What is to be seen in the end."""
    return list(answering(easel, list(asked))(*asked.values()))[-1]


def shown(seen: str) -> dict[int, np.ndarray]:
    """The pictures of an answer by their numbers of steps."""
    figures = re.findall(r'<figure data-steps="(\d+)">.*?src="([^"]*)"', seen)
    return {int(k): pixels(data) for k, data in figures}


def seconds(seen: str) -> list[float]:
    """The times of an answer."""
    times = re.findall(r"<span>([\d.]+) (ms|s)</span>", seen)
    return [float(number) * {"ms": 1e-3, "s": 1.0}[unit] for number, unit in times]


def grid(x: Tensor) -> np.ndarray:
    """Nine samples in three rows."""
    return np.asarray(tiles(x, columns=3))


ASKED = {"steps": [4, 1], "label": IN_TURN, "w": 1.0, "n": 9, "seed": 5}


def test_the_pictures_are_those_of_the_library(runs: Path, digits: Easel) -> None:
    """From one noise at each number of steps; another seed, class or strength of guidance is heeded."""
    truth = saltus.load(runs / "digits")
    first = shown(press(digits, **ASKED))
    assert list(first) == [1, 4]
    for k, picture in first.items():
        np.testing.assert_array_equal(picture, grid(truth.sample(9, k, seed=5, w=1.0)))
    assert not np.array_equal(first[1], first[4])
    for changed, wanted in (
        ({"seed": 6}, truth.sample(9, 4, seed=6, w=1.0)),
        ({"label": 3}, truth.sample(9, 4, seed=5, label=3, w=1.0)),
        ({"w": 3.0}, truth.sample(9, 4, seed=5, w=3.0)),
    ):
        other = shown(press(digits, **(ASKED | changed)))[4]
        np.testing.assert_array_equal(other, grid(wanted))
        assert not np.array_equal(other, first[4]), changed


def test_pictures_come_one_after_another(digits: Easel) -> None:
    counts = [len(shown(seen)) for seen in answering(digits, list(ASKED))(*ASKED.values())]
    assert counts == [1, 2]


def test_times_are_of_the_sampler_without_what_a_first_call_costs(
    digits: Easel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, calls, clock = Finished.sample, [], [0.0]

    def slow(self: Finished, n: int, steps: int, *more: object) -> Tensor:
        calls.append(steps)
        clock[0] += 0.1 * steps if len(calls) > 1 else 5.0
        return sample(self, n, steps, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Finished, "sample", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert seconds(press(digits, **ASKED)) == [0.1, 0.4]
    assert calls == [1, 1, 4]
    assert seconds(press(digits, **ASKED)) == [0.1, 0.4]
    assert calls == [1, 1, 4, 1, 4]


def test_points_in_the_plane_share_a_scale(runs: Path) -> None:
    truth = saltus.load(runs / "plane")
    samples = [truth.sample(50, k, seed=2) for k in (1, 2)]
    reach = reach_of(torch.cat(samples))
    pictures = shown(press(opened(runs / "plane"), steps=[1, 2], n=50, seed=2))
    assert list(pictures) == [1, 2]
    for x, picture in zip(samples, pictures.values(), strict=True):
        file = io.BytesIO()
        scatter({"": x}, reach, file)
        np.testing.assert_array_equal(picture, np.asarray(Image.open(file).convert("RGB")))
    assert not np.array_equal(pictures[1], pictures[2])


def test_what_goes_wrong_is_said_beside_what_there_is(digits: Easel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected at least one number of steps" in press(digits, **(ASKED | {"steps": []}))
    sample = Finished.sample

    def broken(self: Finished, n: int, steps: int, *more: object) -> Tensor:
        if steps == 4:
            raise RuntimeError("out of <b>memory</b>\nat once")
        return sample(self, n, steps, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Finished, "sample", broken)
    seen = press(digits, **ASKED)
    assert "unexpected RuntimeError: out of &lt;b&gt;memory&lt;/b&gt; at once" in seen
    assert list(shown(seen)) == [1]
    monkeypatch.setattr(Finished, "sample", lambda *_: torch.full((9, 1, 8, 8), torch.nan))
    assert "expected finite ones" in press(digits, **ASKED)


# -- the command


def test_mistakes_are_told_in_one_line(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "options.json").write_bytes((runs / "digits" / "options.json").read_bytes())
    run = str(runs / "digits")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, said in (
            ([str(tmp_path / "none")], "expected a run folder, found nothing there"),
            ([str(tmp_path / "early")], "has not saved its weights yet"),
            ([run, "--port", port], f"port {port}: expected a free place of this machine, got: Addr"),
            ([run, "--host", "192.0.2.1"], "expected a free place of this machine"),
            ([run, "--port", "70000"], "expected a number from 1 to 65535"),
        ):
            assert main(["app", *words, "--no-browser"]) == 2
            told = capsys.readouterr().err
            assert said in told and told.count("\n") == 1
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", run, "--no-browser"]) == 2
    told = capsys.readouterr().err
    assert "pip install 'saltus[app]'" in told and told.count("\n") == 1


# -- in a browser


@pytest.fixture
def page(runs: Path) -> Iterator[str]:
    """The address of the command's page; an interruption ends it quietly, though a browser shows it."""
    command = [sys.executable, "-m", "saltus", "app", str(runs / "digits"), "--no-browser"]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True) as running:
        assert running.stdout is not None
        said = running.stdout.readline()
        told = re.fullmatch(r"digits-lsd is at (http://127.0.0.1:\d+/); Ctrl-C ends it\n", said)
        try:
            if told is None:
                raise AssertionError(said)
            yield told[1]
        finally:
            running.send_signal(signal.SIGINT)
            rest, wrong = running.communicate(timeout=30)
    assert (running.returncode, rest.strip(), wrong) == (0, "", "")


@pytest.fixture
def browser() -> Iterator[Chromium]:
    if BROWSER is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with Chromium(BROWSER) as opened:
        yield opened


FIGURES = "document.querySelectorAll('#samples figure')"
BOXES = "[...document.querySelectorAll('input[type=checkbox]')]"
DRAWN = """((figure) => {
  const img = figure.querySelector('img'), canvas = document.createElement('canvas');
  canvas.width = img.naturalWidth; canvas.height = img.naturalHeight;
  canvas.getContext('2d').drawImage(img, 0, 0);
  return [img.getBoundingClientRect().width, canvas.toDataURL('image/png'), figure.innerText];
})(%s)"""


def until(browser: Chromium, expression: str, limit: float = 20.0) -> None:
    end = time.monotonic() + limit
    while not browser.tell(expression):
        assert time.monotonic() < end, f"{expression}: {browser.tell('document.body.innerText')}"
        time.sleep(0.02)


def click(browser: Chromium, name: str) -> None:
    browser.tell(f"document.querySelector('#{name}').click()")


def test_in_a_browser(browser: Chromium, runs: Path, page: str) -> None:
    """Both buttons are pressed, the pixels are the library's, a mistake is read, nobody else is asked."""
    truth = saltus.load(runs / "digits")

    def look(seed: int, counts: tuple[int, ...]) -> None:
        said = f"document.body.innerText.includes('seed {seed}')"
        until(browser, f"{FIGURES}.length === {len(counts)} && {said}")
        for figure, k in enumerate(counts):
            until(browser, f"{FIGURES}[{figure}].querySelector('img').complete")
            width, data, words = browser.tell(DRAWN % f"{FIGURES}[{figure}]")
            wanted = np.asarray(tiles(truth.sample(16, k, seed, w=1.0), columns=4))
            np.testing.assert_array_equal(pixels(data), wanted)
            assert width == wanted.shape[1]
            assert re.search(rf"^{k} steps?\s+[\d.]+ m?s$", words.strip()), words

    browser.open(page, 1280)
    until(browser, "!!document.querySelector('#draw')")
    assert browser.tell("document.title") == "digits-lsd - saltus"
    assert browser.tell(f"{BOXES}.map((e) => e.checked)") == [True, True, True, True, False]  # 16 steps
    for word in ("Lagrangian", "Steps", "Class", "Guidance", "Samples", "Seed"):
        assert word in browser.tell("document.body.innerText")
    click(browser, "draw")
    look(0, (1, 2, 4, 8))
    browser.tell(f"{BOXES}.forEach((e, k) => k % 2 && e.click())")
    click(browser, "next")
    look(1, (1, 4))
    browser.tell(f"{BOXES}.forEach((e) => e.checked && e.click())")
    click(browser, "draw")
    until(browser, "!!document.querySelector('#samples .wrong')")
    assert "expected at least one number of steps" in browser.tell("document.body.innerText")
    browser.tell(f"{BOXES}[4].click()")
    click(browser, "draw")
    look(1, (16,))
    assert browser.complaints == []
    foreign = [url for url in browser.requests if not url.startswith((page, "data:", "blob:"))]
    assert len(browser.requests) > 5 and foreign == []
