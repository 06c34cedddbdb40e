"""Pages in a browser: nothing is wider than the window, no script complains, no name lies on another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium, found
from made_runs import HOSTILE, options, rich

from saltus.page import write_comparison, write_page

PHONE, DESKTOP = 375, 1280
BROWSER = found()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    assert BROWSER is not None
    with Chromium(BROWSER) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that trains, one whose every name is hostile and long, an empty one, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {"plain": rich(folder / "plain"), "hostile": rich(folder / "hostile", HOSTILE + "x" * 90)}
    (folder / "empty").mkdir()
    (folder / "empty" / "options.json").write_text(json.dumps(options()))
    made = {name: write_page(run) for name, run in (runs | {"empty": folder / "empty"}).items()}
    compared = write_comparison(
        {"plain": runs["plain"], HOSTILE + "y" * 90: runs["hostile"]},
        folder / "comparison.html",
        runs["plain"] / "samples.png",
    )
    return made | {"comparison": compared}


OVERLAPPING = """[...document.querySelectorAll('.names')].flatMap((names) => {
  const boxes = [...names.children].map((e) => e.getBoundingClientRect()).sort((a, b) => a.top - b.top);
  return boxes.slice(1).map((b, k) => boxes[k].bottom - b.top).filter((d) => d > 0.6);
})"""
OUTSIDE = """[...document.querySelectorAll('.names > *, .plot > span, .tip, h1, h2, dd, figcaption')]
  .map((e) => [e.className + ' ' + e.textContent, e.getBoundingClientRect()])
  .filter(([, b]) => b.left < -0.5 || b.right > innerWidth + 0.5).map(([t]) => t)"""
WORDS = """[...document.querySelectorAll('main *')].filter((e) => e.childElementCount === 0
  && e.textContent.trim() && e.tagName !== 'SCRIPT' && e.tagName !== 'title')"""
SMALL = f"{WORDS}.filter((e) => parseFloat(getComputedStyle(e).fontSize) < 12).length"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", ["plain", "hostile", "empty", "comparison"])
def test_a_page_fits_and_is_quiet(
    browser: Chromium, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width, dark)
    assert browser.tell("innerWidth") == width
    assert browser.tell("document.documentElement.scrollWidth") <= width
    assert browser.tell("document.documentElement.clientWidth") == width
    assert browser.tell(OUTSIDE) == []
    assert browser.tell(OVERLAPPING) == []
    assert browser.tell(SMALL) == 0
    assert browser.tell("typeof window.hacked") == "undefined"
    bright = browser.tell("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert bright < 60 if dark else bright > 200
    assert browser.complaints == []


LUMINANCE = """(() => {
  const light = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return WORDS.map((e) => {
    const ink = light(getComputedStyle(e).color);
    return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  }).reduce((a, b) => Math.min(a, b));
})()""".replace("WORDS", WORDS)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_word_can_be_read(browser: Chromium, pages: dict[str, Path], dark: bool) -> None:
    """Contrast with the paper, as WCAG 2.2 defines it; it asks for 4.5 (3 for large words)."""
    browser.open(pages["plain"], DESKTOP, dark)
    assert browser.tell(LUMINANCE) >= 4.5


def test_the_pointer_is_told_the_numbers_under_it(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["plain"], DESKTOP, height=6000)
    box = "document.querySelectorAll('.chart .plot')[0].getBoundingClientRect()"
    left, width, top = (float(browser.tell(f"{box}.{side}")) for side in ("left", "width", "top"))
    assert browser.tell("document.querySelectorAll('.tip').length") == 0
    browser.point(left + 0.64 * width, top + 50)  # of steps from 0 to 300, 192 lies nearest to 200
    said = browser.tell("[...document.querySelectorAll('.tip div')].map((e) => e.textContent)")
    assert said == ["200 steps", "1 jump  0.5", "2 jumps  0.25", "4 jumps  0.125", "8 jumps  0.0625"]
    assert browser.tell(OUTSIDE) == []
    browser.point(1, 1)
    assert browser.tell("document.querySelectorAll('.tip').length") == 0


def test_the_slider_shows_one_grid_at_a_time(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["plain"], PHONE)
    shown = "[...document.querySelectorAll('.frame')].map((e) => e.getBoundingClientRect().height > 0)"
    assert browser.tell(shown) == [False, False, True]
    move = (
        "(s => { s.value = 0; s.dispatchEvent(new Event('input')); })(document.querySelector('.slide input'))"
    )
    browser.tell(move)
    assert browser.tell(shown) == [True, False, False]
    assert browser.tell("document.querySelector('output').textContent") == "after 100 steps"
