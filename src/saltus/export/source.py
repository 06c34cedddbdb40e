"""Python files of the package read for bundling: what they define, and where a name comes from."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

__all__ = ["Definition", "Module", "Symbol", "imports_of", "is_words", "read_module", "resolve"]

PACKAGE = "saltus"


@dataclass(frozen=True)
class Symbol:
    """A definition: the module it stands in and its name; or, with an empty module, a foreign import."""

    module: str
    name: str


@dataclass(eq=False)
class Definition:
    """A statement at the top of a module that binds names."""

    node: ast.stmt
    names: tuple[str, ...]
    first: int
    last: int


@dataclass(eq=False)
class Module:
    """A source file read for bundling.

    Attributes:
        name: dotted.
        text: the source.
        definitions: in order.
        imported: local name -> (module, name) of what it was imported from; the name is empty for a module.
        order: the modules of the package that it imports, in order; those of functions come last.
    """

    name: str
    text: str
    definitions: list[Definition] = field(default_factory=list)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        tree = ast.parse(self.text)
        body = tree.body
        for k, node in enumerate(body):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
            elif names := tuple(_bound(node)):
                after = body[k + 1] if k + 1 < len(body) else None
                last = node.end_lineno or node.lineno
                if isinstance(node, ast.Assign | ast.AnnAssign) and after is not None and is_words(after):
                    last = after.end_lineno or after.lineno
                self.definitions.append(Definition(node, names, _first_line(node), last))
        for inner in ast.walk(tree):
            if isinstance(inner, ast.ImportFrom) and inner not in body:
                targets = [target for _, target, _ in imports_of(inner) if target is not None]
                self.order += [name for t in targets for name in (t[0], f"{t[0]}.{t[1]}")]

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for local, target, statement in imports_of(node):
            if target is None:
                self.foreign[local] = statement
            else:
                self.imported[local] = target
                self.order += [target[0], f"{target[0]}.{target[1]}"]

    def definition(self, name: str) -> Definition | None:
        """The one that binds a name."""
        return next((d for d in self.definitions if name in d.names), None)


def imports_of(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, tuple[str, str] | None, str]]:
    """Local name, where it comes from in the package (None if it does not), and the statement alone."""
    if isinstance(node, ast.ImportFrom):
        if node.level or node.module is None:
            raise ValueError(f"bundle: expected absolute imports, got {ast.unparse(node)!r}")
        own = node.module.split(".")[0] == PACKAGE
        for a in node.names:
            statement = ast.unparse(ast.ImportFrom(node.module, [a], 0))
            yield a.asname or a.name, (node.module, a.name) if own else None, statement
        return
    for a in node.names:
        if a.name.split(".")[0] == PACKAGE:
            raise ValueError(f"bundle: expected from {a.name} import ..., got {ast.unparse(node)!r}")
        yield a.asname or a.name.split(".")[0], None, ast.unparse(ast.Import([a]))


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    for target in targets:
        for inner in ast.walk(target):
            if isinstance(inner, ast.Name) and inner.id != "__all__":
                yield inner.id


def is_words(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
    return min([node.lineno, *(d.lineno for d in decorators)])


@cache
def read_module(name: str) -> Module | None:
    """A module of the package, read but not imported; None if there is none of that name."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations is not None
    place = Path(spec.submodule_search_locations[0], *name.split(".")[1:])
    for path in (place / "__init__.py", place.with_suffix(".py")):
        if path.is_file():
            return Module(name, path.read_text(encoding="utf-8"))
    return None


def resolve(module: str, name: str) -> Symbol | str:
    """Where a name of a module of the package is defined, re-exports followed; a string is a module."""
    found = read_module(module)
    if found is None:
        raise ValueError(f"bundle: expected a module {module}, found none")
    if found.definition(name) is not None:
        return Symbol(module, name)
    if name in found.imported:
        return resolve(*found.imported[name])
    if name in found.foreign:
        return Symbol("", f"{name}\n{found.foreign[name]}")
    if read_module(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    raise ValueError(f"bundle: expected {name} in {module}, found none")
