"""The README and the documents are true: generated parts are current, the example runs, links lead on."""

from __future__ import annotations

import doctest
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from saltus.methods import Card, Cost, Method, Need, Sampler

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_documents_are_current(generate: ModuleType) -> None:
    assert generate.stale() == [], "run: make docs"


def test_table_follows_the_card(generate: ModuleType) -> None:
    card = Card(
        title="A Method",
        paper="A. Author, 2025, arXiv 2501.00000",
        needs=frozenset({Need.JVP, Need.DATA}),
        sampler=Sampler.RENOISE,
        steps=(1, 2),
        two_times=False,
        cost=Cost(live=1.0, stopped_jvp=1.0),
        threshold=0.65,
        quick_threshold=None,
        bias="halves with d",
        second_hand=("c = 0.03",),
    )
    methods = {"one": Method("one", lambda student: student, card)}
    line = generate.overview(methods).splitlines()[2]
    assert line.split(" | ")[2:] == ["$X_{s,1}$", "data, JVP", "renoise", "1 2", "–", "2.5 |"]
    assert line.startswith("| [`one`](#one) † |")
    page = generate.page(methods)
    for fact in (
        "below 0.65",
        "Bias: halves with d",
        "Not from a primary source: c = 0.03",
        "2.5 evaluations",
    ):
        assert fact in page


def test_readme_markers(generate: ModuleType) -> None:
    begin, end = generate.markers("sizes")
    text = f"a\n{begin}\nold\n{end}\nb"
    assert generate.with_table(text, r"new \d", "sizes") == f"a\n{begin}\n\nnew \\d\n\n{end}\nb"
    with pytest.raises(ValueError, match="markers"):
        generate.with_table(text, "new", "methods")


def test_readme_example_runs() -> None:
    failed, tried = doctest.testfile(
        str(ROOT / "README.md"),
        module_relative=False,
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert tried >= 10
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_commands_of_the_readme_exist() -> None:
    from saltus.cli import COMMANDS

    known = {c.name for c in COMMANDS}
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^(?:\$ )?saltus ([a-z]+)", text, flags=re.MULTILINE)) <= known
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^(?:\$ )?make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets
