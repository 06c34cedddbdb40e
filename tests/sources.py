"""The project's Python files as syntax trees: what ``ratchets.py`` reads."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Source:
    """One file: its dotted module name, whether it is a package's ``__init__``, and its text."""

    module: str
    text: str
    package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def part(self) -> str:
        """The name under ``saltus`` that the file belongs to; empty for the package itself."""
        return (self.module.split(".") + [""])[1]


@dataclass(frozen=True)
class Import:
    """One imported module or name: where, the dotted target, and how far in it stands."""

    line: int
    target: str
    in_function: bool
    for_types: bool


def read(folder: Path, prefix: str) -> list[Source]:
    """Every Python file under a folder as a source."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = [prefix, *path.relative_to(folder).with_suffix("").parts]
        package = parts[-1] == "__init__"
        found.append(Source(".".join(parts[:-1] if package else parts), path.read_text(), package))
    return found


def imports(source: Source) -> list[Import]:
    """Every import of a file with relative ones resolved; ``from a import b`` gives ``a.b``."""
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool, for_types: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(node.lineno, a.name, in_function, for_types) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = source.module.split(".")
            above = above[: len(above) - node.level + source.package] if node.level else []
            stem = ".".join([*above, *([node.module] if node.module else [])])
            found.extend(Import(node.lineno, f"{stem}.{a.name}", in_function, for_types) for a in node.names)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typed = for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            visit(child, inside, typed)

    visit(source.tree, False, False)
    return found


def public_names(sources: Sequence[Source]) -> list[str]:
    """Dotted public names: what ``__all__`` lists and every top-level function and class.

    The files of methods/ are left out, so that a new method is one file.
    """
    found: set[str] = set()
    for source in sources:
        stem = source.module.split(".")
        if (source.part == "methods" and not source.package) or any(n.startswith("_") for n in stem):
            continue
        for node in source.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                found.add(f"{source.module}.{node.name}")
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found |= {f"{source.module}.{n}" for n in ast.literal_eval(node.value)}
    return sorted(found)


@cache
def package() -> list[Source]:
    """The files of src/saltus."""
    return read(ROOT / "src" / "saltus", "saltus")


@cache
def outside() -> list[Source]:
    """The files of tests, benchmarks and docs."""
    return [s for name in ("tests", "benchmarks", "docs") for s in read(ROOT / name, name)]
