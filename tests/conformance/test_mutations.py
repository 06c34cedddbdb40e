"""The compact checks tell every wrong version of the package in :mod:`mutants` from the right one.

A mutant is the package imported afresh with one module's source changed, beside the original, with the
checks imported afresh on top of it; nothing on disk changes, and afterwards the original is back.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

import pytest
from mutants import MUTANTS, Mutant

import saltus

ROOT = Path(saltus.__file__).parent
HERE = Path(__file__).parent
OURS = frozenset(p.stem for p in HERE.glob("*.py") if p != Path(__file__))
SECONDS = 2.0


def source(module: str) -> str:
    return (ROOT / f"{module.replace('.', '/')}.py").read_text()


class Mutated(SourceFileLoader):
    """Loads a module from changed source."""

    def __init__(self, mutant: Mutant, spec: ModuleSpec) -> None:
        assert spec.origin is not None
        super().__init__(spec.name, spec.origin)
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        text = source(self.mutant.module).replace(self.mutant.right, self.mutant.wrong)
        return compile(text, self.path, "exec")


class Finder(MetaPathFinder):
    """Finds the mutated module; everything else is found as usual."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != f"saltus.{self.mutant.module}":
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None
        spec.loader = Mutated(self.mutant, spec)
        return spec


def ours(name: str) -> bool:
    return name.split(".")[0] == "saltus" or name in OURS


@contextmanager
def world(mutant: Mutant) -> Iterator[ModuleType]:
    """The compact checks in a world where the mutant is the package."""
    kept = {name: module for name, module in sys.modules.items() if ours(name)}
    finder = Finder(mutant)
    for name in kept:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module("compact")
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if ours(n)]:
            del sys.modules[name]
        sys.modules.update(kept)


def survives(mutant: Mutant) -> bool:
    """Whether every check of its module passes."""
    with world(mutant) as compact:
        for check in compact.CHECKS[mutant.module]:
            try:
                check()
            except AssertionError:
                return False
    return True


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.module}: {m.wrong.strip()[:60]}")
def test_every_mutant_is_killed(mutant: Mutant) -> None:
    count = source(mutant.module).count(mutant.right)
    assert count == 1, f"mutant out of date: {mutant.right!r} occurs {count} times in {mutant.module}"
    compile(source(mutant.module).replace(mutant.right, mutant.wrong), mutant.module, "exec")
    assert not survives(mutant)


def seconds(module: str) -> float:
    """That the checks of a module take with nothing changed; none may fail."""
    begin = time.process_time()
    assert survives(Mutant(module, "", "")), module
    return time.process_time() - begin


def test_the_original_survives_and_the_checks_are_quick() -> None:
    """The same machinery with nothing changed: no check fails, none takes long. The first pays for imports,
    and any may be held up by garbage collection: what seems slow is asked again."""
    for module in sorted({m.module for m in MUTANTS}):
        assert seconds(module) < SECONDS or seconds(module) < SECONDS, module


def test_there_are_enough_mutants_of_every_kind() -> None:
    wrong = " ".join(m.wrong for m in MUTANTS)
    assert len(MUTANTS) >= 25 and len(set(MUTANTS)) == len(MUTANTS)
    assert len({m.module for m in MUTANTS}) >= 20
    assert "(1.0 - g) * first + g * own" in wrong  # the weights of PSD's legs


def test_the_package_is_itself_again() -> None:
    before = sys.modules["saltus.identities"] if "saltus.identities" in sys.modules else None
    with world(MUTANTS[0]) as compact:
        inside = sys.modules["saltus.identities"]
        assert compact.identities is inside is not before
    assert sys.modules.get("saltus.identities") is before
