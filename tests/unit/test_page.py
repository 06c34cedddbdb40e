"""The page of a run: its numbers are the files'."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import HOSTILE, options, rich, row
from page_reader import Reader, page, start

from saltus.page import write_comparison, write_page
from saltus.page.axes import Axis, linear, logarithmic, suited
from saltus.page.chart import Chart, Line, drawn
from saltus.page.curves import Curve, smoothed, thinned
from saltus.page.results import best

# -- numbers


def test_the_numbers_of_the_page_are_those_of_the_log(tmp_path: Path) -> None:
    rows = [row(s) for s in range(10, 410, 10)]
    lines = page(start(tmp_path, rows)).lines()
    for name in ("diagonal", "lagrangian"):
        x, y = lines[name]
        assert x == [r["step"] for r in rows]
        np.testing.assert_allclose(y, [r["terms"][name] for r in rows], rtol=5e-6)
    unnamed = {c["lines"][0]["y"][-1]: c for c in page(tmp_path).charts if c["lines"][0]["name"] == ""}
    for key in ("lr", "grad_norm", "samples_per_second"):
        assert any(math.isclose(last, rows[-1][key], rel_tol=5e-6) for last in unnamed), key


def test_every_player_has_its_terms_rates_and_norms(tmp_path: Path) -> None:
    read = page(rich(tmp_path))
    assert "Loss of student" in read.text and "Loss of critic" in read.text
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for key in ("lr", "grad_norm"):
        kept = [c for c in read.charts if [line["name"] for line in c["lines"]] == ["student", "critic"]]
        found = {tuple(line["y"][-1] for line in c["lines"]) for c in kept}
        wanted = tuple(float(f"{rows[-1]['moves'][who][key]:.6g}") for who in ("student", "critic"))
        assert wanted in found, key
    wave = [r["moves"]["critic"]["terms"]["diagonal"] for r in rows]
    np.testing.assert_allclose(
        read.lines()["diagonal"][1],
        [r["moves"]["student"]["terms"]["diagonal"] for r in rows],
        rtol=5e-6,
    )
    assert any(np.allclose(c["lines"][0]["y"], wave, rtol=5e-6) for c in read.charts if len(c["lines"]) == 1)


@pytest.mark.parametrize("values", [[1.0, 3.0, 2.0, -1.0], [1e-3, 1.0, 50.0, 2.0]])
def test_a_line_is_drawn_where_its_numbers_are(values: list[float]) -> None:
    """The path of the drawing, read back through the axis that the chart tells, gives the numbers."""
    chart = drawn(Chart("loss", [Line("a", Curve(np.array([0.0, 10.0, 50.0, 100.0]), np.array(values)))]))
    told = Reader(chart).charts[0]
    path = re.search(r'class="line c0" d="M([^"]+)"', chart)
    assert path is not None
    points = np.array([[float(v) for v in p.split()] for p in path[1].split("L")])

    def back(part: np.ndarray, axis: list[Any]) -> np.ndarray:
        low, high, log = axis
        return low * (high / low) ** part if log else low + part * (high - low)

    np.testing.assert_allclose(back(points[:, 0] / 1000, told["x"]), [0, 10, 50, 100], atol=0.02)
    tall = told["y"][1] - told["y"][0]
    got = back(1 - points[:, 1] / 1000, told["y"])
    if told["y"][2]:
        np.testing.assert_allclose(got, values, rtol=2e-3)
    else:
        np.testing.assert_allclose(got, values, atol=2e-4 * tall)
    assert told["y"][2] == (min(values) > 0)


def test_ticks_are_where_their_numbers_say() -> None:
    chart = drawn(Chart("loss", [Line("a", Curve(np.array([0.0, 400.0]), np.array([0.0, 8.0])))]))
    ticks = dict(re.findall(r'class="ytick" style="top:([\d.]+)%">([^<]+)<', chart))
    assert ticks == {"100.00": "0", "75.00": "2", "50.00": "4", "25.00": "6", "0.00": "8"}
    across = dict(re.findall(r'class="xtick" style="left:([\d.]+)%">([^<]+)<', chart))
    assert across == {"0.00": "0", "25.00": "100", "50.00": "200", "75.00": "300", "100.00": "400"}


finite = st.floats(-1e200, 1e200, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_every_axis_holds_its_values_and_its_ticks(values: list[float]) -> None:
    def check(axis: Axis) -> None:
        parts = axis.at(np.array(values))
        assert np.isfinite(parts).all() and parts.min() >= -1e-6 and parts.max() <= 1 + 1e-6
        assert len(axis.ticks) <= 12
        at = [v for v, _ in axis.ticks]
        assert at == sorted(set(at))

    check(suited(np.array(values)))
    check(linear(min(values), max(values)))
    if min(values) > 1e-250:
        check(logarithmic(min(values), max(values)))


def test_the_smooth_line_is_the_running_mean_twice() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=600)
    curve = Curve(np.arange(600.0), y)
    smooth = smoothed(curve, points=600)
    assert smooth is not None
    once = np.array([y[max(0, k - 10) : k + 11].mean() for k in range(600)])
    twice = np.array([once[max(0, k - 10) : k + 11].mean() for k in range(600)])
    np.testing.assert_allclose(smooth.y, twice, atol=1e-12)


# -- long logs


def long_log(folder: Path, n: int, spoilt: bool = False) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(n, 2)).tolist()
    rows = [
        {
            "step": 50 * k + 50,
            "seconds": 0.1 * k,
            "loss": 10 + a,
            "lr": 1e-3,
            "grad_norm": 5 + b,
            "terms": {"diagonal": 10 + a},
        }
        for k, (a, b) in enumerate(noise)
    ]
    rows[n // 3]["terms"]["diagonal"] = rows[n // 3]["loss"] = 777.0
    rows[n // 2 + 1]["grad_norm"] = 4321.0
    rows[n // 5]["terms"]["diagonal"] = rows[n // 5]["loss"] = 0.5
    start(folder, rows, steps=50 * n)
    if spoilt:
        with (folder / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 1, "loss\n')
    return rows


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_long_log_is_thinned_and_keeps_its_extremes(tmp_path: Path, spoilt: bool) -> None:
    n = 25_000
    rows = long_log(tmp_path, n, spoilt)
    read = page(tmp_path)
    x, y = read.lines()["diagonal"]
    assert len(x) < 1000 and x == sorted(x)
    assert y[x.index(rows[n // 3]["step"])] == 777.0 and y[x.index(rows[n // 5]["step"])] == 0.5
    known = {r["step"]: r["terms"]["diagonal"] for r in rows}
    assert all(math.isclose(v, known[s], rel_tol=5e-6) for s, v in zip(x, y, strict=True))
    assert 4321.0 in [v for c in read.charts for line in c["lines"] for v in line["y"]]
    assert (x[0], x[-1]) == (50, 50 * n)
    assert ("1 damaged line was skipped" in read.text) == spoilt


def test_a_log_of_100000_lines_is_quick(tmp_path: Path) -> None:
    long_log(tmp_path, 100_000)
    begin = time.process_time()
    write_page(tmp_path)
    # 0.15 s of a processor that nobody shares; the bound leaves room for one that others share
    assert time.process_time() - begin < 0.9
    assert (tmp_path / "report.html").stat().st_size < 400_000


def test_thinning_keeps_what_stands_out_everywhere() -> None:
    y = np.zeros(50_000)
    spikes = np.arange(77, 50_000, 997)
    y[spikes] = np.where(np.arange(len(spikes)) % 2, 1.0, -1.0) * (1 + np.arange(len(spikes)))
    thin = thinned(Curve(np.arange(50_000.0), y))
    assert len(thin) < 600 and set(spikes.tolist()) <= set(thin.x.tolist())


# -- figures, fields


def test_figures_over_training_are_those_of_the_evaluations(tmp_path: Path) -> None:
    read = page(rich(tmp_path))
    for k in (1, 2, 4, 8):
        name = f"{k} jump{'s' * (k > 1)}"
        x, y = read.lines()[name]
        assert x == [100, 200, 300]
        np.testing.assert_allclose(y, [1 / k, 1 / 2 / k, 1 / 3 / k], rtol=5e-6)
    marked = re.findall(r'<td class="best">([^<]+)<', (tmp_path / "report.html").read_text())
    assert marked == ["0.0417", "0.00521"] * 2  # 8 jumps, for both weights


def test_the_best_figure() -> None:
    assert best("energy", [0.3, 0.1, None, 0.2], 0.25) == 1
    assert best("agreement %", [99.9, 97.0, None, 80.0], 97.5) == 1
    assert best("agreement %", [99.9, 97.0], None) is None and best("energy", [None, 1.0], None) is None


def test_the_heat_map_shows_every_cell_once(tmp_path: Path) -> None:
    text = write_page(rich(tmp_path)).read_text()
    cells = re.findall(r'<rect x="(\d)" y="(\d)" [^>]*fill-opacity="([\d.]+)"><title>([^<]+)<', text)
    assert len(cells) == 6
    found = {said: (int(x), int(y), float(depth)) for x, y, depth, said in cells}
    assert found["s = 0, t = 1: 1"] == (2, 2, 1.0)  # s = 0 is the lowest row
    assert found["s = 0.5, t = 1: 0.25"] == (2, 1, 0.05 + 0.95 * 0.25 - 0.0005) or math.isclose(
        found["s = 0.5, t = 1: 0.25"][2], 0.2875, abs_tol=6e-4
    )
    assert found["s = 1, t = 1: 0"] == (2, 0, 0.05)


def test_points_and_ways_are_where_they_are(tmp_path: Path) -> None:
    text = write_page(rich(tmp_path)).read_text()
    assert 'class="cloud" d="M500 500h0M750 750h0M1000 0h0"' in text  # [-2, 2]^2, upwards is up
    assert 'class="way" d="M500 500L625 375L750 750"' in text
    assert 'class="end" d="M750 750h0"' in text


# -- comparison


def test_a_comparison_overlays_runs_and_tells_what_differs(tmp_path: Path) -> None:
    rich(tmp_path / "a", finished=True)
    rich(tmp_path / "b", finished=True)
    about = options(lr=0.5)
    (tmp_path / "b" / "options.json").write_text(json.dumps(about))
    better = [
        {
            "step": 300,
            "weights": "ema",
            "lines": [{"label": "1 jump", "group": "own", "steps": 1, "figures": {"energy": 1e-4}}],
        }
    ]
    (tmp_path / "b" / "evaluations.jsonl").write_text(json.dumps(better[0]) + "\n")
    where = write_comparison({"run a": tmp_path / "a", HOSTILE: tmp_path / "b"}, tmp_path / "both.html")
    text = where.read_text(encoding="utf-8")
    read = Reader(text)
    together = [c for c in read.charts if {line["name"] for line in c["lines"]} >= {"run a", HOSTILE}]
    assert len(together) >= 4  # two terms at least, the norm, the rate
    differing = text.partition("Options that differ")[2]
    rows = re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td><td>([^<]*)</td>', differing)
    assert ("lr", "0.001", "0.5") in rows and "seed" not in [r[0] for r in rows]
    assert re.findall(r'<td class="best">([^<]+)<', text)[0] == "0.000100"
    assert "window.hacked" not in "".join(str(a) for tag, a in read.elements if tag == "script")
    with pytest.raises(ValueError, match="expected run folders"):
        write_comparison({"x": tmp_path}, tmp_path / "no.html")
