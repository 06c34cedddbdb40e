"""The page of a run whose files are damaged, absent, hostile or still being written."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_runs import HOSTILE, options, rich, row, write_log
from page_reader import SECTIONS, Reader, page, start

from saltus.cli import main
from saltus.page import write_page
from saltus.page.curves import lines_of, read_history

# -- what is damaged, absent or hostile


def test_damaged_lines_are_counted_and_the_rest_is_drawn(tmp_path: Path) -> None:
    good = [row(s) for s in range(10, 210, 10)]
    lines = [json.dumps(r).encode() for r in good]
    lines.insert(3, b'{"step": 35, "loss": 1.')
    lines.insert(5, b"\xff\xfe\x00")
    lines.insert(7, b"[1, 2]")
    lines.insert(9, b'{"step": "x"}')
    lines.insert(11, b"[" * 100_000)
    lines.insert(13, json.dumps(row(85) | {"terms": {"diagonal": math.nan, "lagrangian": 0.5}}).encode())
    lines.insert(15, json.dumps(row(95) | {"grad_norm": math.inf, "lr": 10**400, "terms": 3}).encode())
    (start(tmp_path, []) / "metrics.jsonl").write_bytes(b"\n".join(lines) + b'\n{"step": 9')
    (tmp_path / "evaluations.jsonl").write_bytes(
        b'{"step": 5, "lines": [{"figures": {"a": 1}}]}\n{"lines": 3}\n\x00\n'
    )
    (tmp_path / "environment.json").write_text("[1")
    read = page(tmp_path)
    assert "metrics.jsonl: 5 damaged lines were skipped" in read.text
    assert "evaluations.jsonl: 2 damaged lines were skipped" in read.text
    assert "environment.json cannot be read" in read.text
    x, y = read.lines()["diagonal"]
    assert x == [r["step"] for r in good] and len(y) == len(x)
    assert 85 in read.lines()["lagrangian"][0]
    raw = (tmp_path / "report.html").read_text()
    assert not re.search(r"\b(nan|NaN|inf|Infinity)\b", re.sub(r"<script>.*?</script>", "", raw, flags=re.S))


@pytest.mark.parametrize(
    "values",
    [[1e199, -1e199], [1e-199, 1e199], [0.0, 0.0], [-5.0, -5.0], [1e-300, 1e300], [7.0], [1e15, 1e15 + 1]],
)
def test_extreme_numbers_make_a_page(tmp_path: Path, values: list[float]) -> None:
    rows = [row(s + 1, loss=values[s % len(values)], terms={}) for s in range(40)]
    read = page(start(tmp_path, rows))
    x, y = read.lines()["loss"]
    drawable = [r for r in rows if abs(r["loss"]) < 1e200]
    assert x == [r["step"] for r in drawable] and len(y) == len(x)


def test_a_page_without_anything_but_options(tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text(json.dumps(options()))
    read = page(tmp_path, training=False)
    assert read.headings() == ["Options"] and not read.charts and "not begun" in read.text


def test_nothing_is_drawn_for_what_is_not_there(tmp_path: Path) -> None:
    read = page(start(tmp_path, [row(10)]))
    assert read.headings() == ["Training", "Options"]
    everything = page(rich(tmp_path / "rich"))
    assert everything.headings() == [s for s in SECTIONS if s != "Teacher"]


@pytest.mark.parametrize(
    "what", [b"", b"null", b"[]", b'{"options": 3}', b"\xff", b'{"options": {"training": {"steps": -1}}}']
)
def test_any_options_make_a_page(tmp_path: Path, what: bytes) -> None:
    start(tmp_path, [row(10)])
    for name in ("options.json", "residuals.json", "trajectories.json", "evaluation.json"):
        (tmp_path / name).write_bytes(what)
    assert "Training" in page(tmp_path).headings()


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="expected a run folder"):
            write_page(folder)
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    read = page(rich(tmp_path / "plain"))
    hostile = page(rich(tmp_path / "hostile", HOSTILE))
    kinds = [tag for tag, _ in hostile.elements]
    assert sorted(kinds) == sorted(tag for tag, _ in read.elements), "a name added or removed an element"
    for tag, given_ in hostile.elements:
        assert not any(name.startswith("on") for name in given_), (tag, given_)
        assert tag != "img" or str(given_["src"]).startswith("data:image/png;base64,")
    assert "</script><script>window.hacked=1</script>" in hostile.text, "the name itself is shown"
    assert any(line["name"].startswith("correction</script>") for c in hostile.charts for line in c["lines"])


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    rich(tmp_path)
    text = write_page(tmp_path).read_text(encoding="utf-8")
    read = Reader(text)
    assert not re.search(r"https?://|@import|url\(", text)
    for tag, given_ in read.elements:
        assert tag not in ("link", "iframe", "object", "base")
        assert all(str(v).startswith("data:") for k, v in given_.items() if k in ("src", "href"))
    assert any("default-src 'none'" in str(given_.get("content")) for _, given_ in read.elements)


def test_damaged_pictures_are_told_and_left_out(tmp_path: Path) -> None:
    rich(tmp_path)
    whole = (tmp_path / "grids" / "000200.png").read_bytes()
    (tmp_path / "grids" / "000100.png").write_bytes(whole[:-20])
    (tmp_path / "samples.png").write_bytes(b"<svg onload=alert(1)>")
    (tmp_path / "grids" / "secret.png").write_bytes(whole)
    read = page(tmp_path)
    sources = [str(g["src"]) for tag, g in read.elements if tag == "img"]
    assert base64.b64decode(sources[0].partition(",")[2]) == whole and len(sources) == 2
    assert "000100.png is not a whole PNG" in read.text and "samples.png is not a whole PNG" in read.text


# -- status


def test_status_refresh_and_time_left(tmp_path: Path) -> None:
    start(tmp_path, [row(s) for s in range(10, 110, 10)])

    def refreshed(read: Reader) -> bool:
        return any(g.get("http-equiv") == "refresh" for _, g in read.elements)

    lock = tmp_path / ".lock"
    assert "stopped at 25 %" in page(tmp_path).words, "nobody holds the folder"
    lock.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    live = page(tmp_path)
    assert (
        refreshed(live) and "training" in live.words and "2 min 30 s" in live.words
    )  # 300 steps at 2 a second
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock.write_text(f"process {ended.pid} on {socket.gethostname()}\n")
    stopped = page(tmp_path)
    assert not refreshed(stopped) and "stopped at 25 %" in stopped.words and "left" not in stopped.words
    assert refreshed(page(tmp_path, training=True))
    lock.write_text(f"process {ended.pid} on elsewhere\n")  # a machine of which only the log is seen
    assert refreshed(page(tmp_path))
    os.utime(tmp_path / "metrics.jsonl", (0, time.time() - 3600))
    assert not refreshed(page(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    done = page(tmp_path)
    assert not refreshed(done) and "finished" in done.words


def test_a_resumed_run_counts_its_time_and_its_later_lines(tmp_path: Path) -> None:
    first = [row(s, seconds=float(s)) for s in (10, 20, 30, 40)]
    again = [row(s, seconds=float(s - 30), terms={"diagonal": 99.0 + s}) for s in (40, 50)]
    start(tmp_path, first + again)
    history = read_history(tmp_path / "metrics.jsonl")
    curve = history.terms[""]["diagonal"]
    assert curve.x.tolist() == [10, 20, 30, 40, 50] and curve.y[-2:].tolist() == [139.0, 149.0]
    assert history.seconds == 40.0 + 20.0 and history.step == 50


def test_a_line_that_is_being_written_is_not_damage(tmp_path: Path) -> None:
    write_log(tmp_path, [row(10), row(20)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')
    assert len(lines_of(tmp_path / "metrics.jsonl")) == 2
    assert read_history(tmp_path / "metrics.jsonl").skipped == 0


def test_stages_stand_where_they_begin(tmp_path: Path) -> None:
    text = write_page(rich(tmp_path)).read_text()
    assert read_history(tmp_path / "metrics.jsonl").stages == (("warm", 2), ("distil", 100))
    assert re.search(r'class="mark" style="left:33\.33%">distil<', text)


def test_the_teachers_run_is_told_and_linked(tmp_path: Path) -> None:
    start(tmp_path, [row(10)])
    start(tmp_path / "teacher", [row(20)])
    assert "20 steps so far" in page(tmp_path).text
    write_page(tmp_path / "teacher")
    links = [g["href"] for tag, g in page(tmp_path).elements if tag == "a"]
    assert links == ["teacher/report.html"]


# -- writing


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    start(tmp_path, [row(10)])
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError):
        write_page(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"options.json", "metrics.jsonl", "report.html"}


def test_pages_need_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    start(tmp_path, [row(10)])
    code = (
        "import sys; from saltus.cli import main; status = main(['report', sys.argv[1]]);"
        "sys.exit(status or bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["page", str(tmp_path / "report.html")]
