"""One Python file that needs no saltus, made of the package's own source.

A shipped file is written as if saltus were installed. :func:`bundle` replaces what it imports from the
package by the definitions themselves, and those that they need in turn, word for word; only a name that two
files define differently gets the file's name behind it. So an exported folder runs the code that trained it,
and no second copy is kept by hand.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from saltus.export.source import Definition, Module, Symbol, imports_of, is_words, read_module, resolve

__all__ = ["bundle"]

ENTRY = "entry"
NOTICE = "# {module} (MIT License, the Saltus authors)"


@dataclass(frozen=True)
class Edit:
    """Bytes of a line, or of several, to be replaced."""

    line: int
    start: int
    end_line: int
    end: int
    text: str


class References(ast.NodeVisitor):
    """What a definition refers to outside itself, and where: its names, one after another.

    Attributes:
        found: (symbol, node) for every mention.
        dropped: imports from the package inside functions, which must go.
    """

    def __init__(self, module: Module, without: tuple[str, ...] = ()) -> None:
        self.module, self.without = module, without
        self.found: list[tuple[Symbol, ast.expr]] = []
        self.dropped: list[ast.ImportFrom] = []
        self._scopes: list[dict[str, Symbol | str | None]] = []

    def _meaning(self, name: str) -> Symbol | str | None:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        if self.module.definition(name) is not None:
            return Symbol(self.module.name, name)
        if name in self.module.imported:
            return resolve(*self.module.imported[name])
        if name in self.module.foreign:
            return Symbol("", f"{name}\n{self.module.foreign[name]}")
        return None

    def visit_Name(self, node: ast.Name) -> None:
        meaning = self._meaning(node.id)
        if isinstance(meaning, Symbol):
            self.found.append((meaning, node))
        elif isinstance(meaning, str):
            raise ValueError(f"bundle: expected a name of module {meaning}, got the module itself")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and isinstance(m := self._meaning(node.value.id), str):
            meaning = resolve(m, node.attr)
            assert isinstance(meaning, Symbol)
            self.found.append((meaning, node))
        else:
            self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if self._scopes:
            for local, target, _ in imports_of(node):
                outside = target is None or target[0].startswith(self.without or " ")
                self._scopes[-1][local] = None if outside or target is None else resolve(*target)
                if target is not None and node not in self.dropped:
                    self.dropped.append(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._function(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._function(node)

    def _function(self, node: ast.FunctionDef | ast.Lambda) -> None:
        a = node.args
        given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
        outside = [*a.defaults, *a.kw_defaults, *(g.annotation for g in given)]
        body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
        if isinstance(node, ast.FunctionDef):
            outside += [*node.decorator_list, node.returns]
        for outer in outside:
            if outer is not None:
                self.visit(outer)
        local: dict[str, Symbol | str | None] = dict.fromkeys(g.arg for g in given)
        for part in body:
            local |= dict.fromkeys(_stored(part))
        self._scopes.append(local)
        for part in body:
            self.visit(part)
        self._scopes.pop()

    def visit_comprehension_like(self, node: ast.AST) -> None:
        self._scopes.append(dict.fromkeys(_stored(node)))
        self.generic_visit(node)
        self._scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_comprehension_like


def _stored(node: ast.AST) -> Iterator[str]:
    """Names that a part of a function binds, those of inner functions and classes left out."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
        yield node.id
    if isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name
    for child in ast.iter_child_nodes(node):
        yield from _stored(child)


class Bundle:
    """The definitions that an entry needs, each once, with names that do not collide."""

    def __init__(self, entry: Module, without: tuple[str, ...] = ()) -> None:
        self.entry, self.without = entry, without
        self.needed: dict[Symbol, References] = {}
        self.modules: list[str] = []
        self.names: dict[Symbol, str] = {}
        taken = {n for d in entry.definitions for n in d.names}
        for d in entry.definitions:
            self.names |= {Symbol(entry.name, n): n for n in d.names}
        roots = [self._references(entry, d) for d in entry.definitions]
        for references in roots:
            self._follow(references)
        self.foreign = dict(entry.foreign)
        self._order(entry, set())
        for symbol in (*(s for r in roots for s, _ in r.found), *self.needed):
            self._name(symbol, taken)
        for references in self.needed.values():
            for symbol, _ in references.found:
                self._name(symbol, taken)

    def _references(self, module: Module, definition: Definition) -> References:
        references = References(module, self.without)
        references.visit(definition.node)
        return references

    def _follow(self, references: References) -> None:
        for symbol, _ in references.found:
            if not symbol.module or symbol.module == ENTRY or symbol in self.needed:
                continue
            module = read_module(symbol.module)
            assert module is not None
            definition = module.definition(symbol.name)
            assert definition is not None
            inner = self._references(module, definition)
            self.needed |= {Symbol(symbol.module, n): inner for n in definition.names}
            self._follow(inner)

    def _order(self, module: Module, seen: set[str]) -> None:
        """Modules after those that they import."""
        for name in module.order:
            inner = read_module(name)
            if inner is not None and name not in seen:
                seen.add(name)
                self._order(inner, seen)
                self.modules.append(name)

    def _name(self, symbol: Symbol, taken: set[str]) -> None:
        if symbol in self.names:
            return
        local, _, statement = symbol.name.partition("\n")
        name = local
        if name in taken and symbol.module:
            name = f"{local}_{symbol.module.rpartition('.')[2]}"
        while name in taken:
            name += "_"
        taken.add(name)
        self.names[symbol] = name
        if not symbol.module:
            self.foreign[name] = statement if name == local else f"{statement.partition(' as ')[0]} as {name}"

    def _text(self, module: Module, definition: Definition, references: References) -> str:
        """The definition's own lines, with other names where they are others."""
        edits = [
            Edit(n.lineno, n.col_offset, n.end_lineno or 0, n.end_col_offset or 0, self.names[s])
            for s, n in references.found
            if isinstance(n, ast.Attribute) or (isinstance(n, ast.Name) and n.id != self.names[s])
        ]
        edits += [
            Edit(n.lineno, n.col_offset, n.end_lineno or 0, n.end_col_offset or 0, self._instead(n))
            for n in references.dropped
        ]
        lines = [line.encode() for line in module.text.splitlines()]
        node = definition.node
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            new = self.names[Symbol(module.name, node.name)]
            line = lines[node.lineno - 1].decode()
            lines[node.lineno - 1] = re.sub(rf"\b{node.name}\b", new, line, count=1).encode()
        for e in sorted(set(edits), key=lambda e: (e.line, e.start), reverse=True):
            head, tail = lines[e.line - 1][: e.start], lines[e.end_line - 1][e.end :]
            lines[e.line - 1 : e.end_line] = [head + e.text.encode() + tail] + [b""] * (e.end_line - e.line)
        first = definition.first
        while first > 1 and lines[first - 2].startswith(b"#"):
            first -= 1
        return b"\n".join(lines[first - 1 : definition.last]).decode()

    def _instead(self, node: ast.ImportFrom) -> str:
        """What stands in place of an import inside a function."""
        left_out = self.without and (node.module or "").startswith(self.without)
        return f'raise ImportError("{node.module} is not in this file")' if left_out else "pass"

    def sections(self) -> Iterator[str]:
        """The text of each module's share, those that others build on first."""
        for name in self.modules:
            module = read_module(name)
            assert module is not None
            parts = []
            for d in module.definitions:
                symbol = Symbol(name, d.names[0])
                if symbol in self.needed:
                    apart = isinstance(d.node, ast.FunctionDef | ast.ClassDef)
                    parts.append((apart, self._text(module, d, self.needed[symbol])))
            if parts:
                yield NOTICE.format(module=name) + "\n\n" + _joined(parts)

    def imports(self) -> str:
        """The foreign imports, one line for each module, sorted."""
        plain, grouped = set(), dict[str, set[str]]()
        for statement in self.foreign.values():
            start, found, name = statement.partition(" import ")
            if found:
                grouped.setdefault(start, set()).add(name)
            else:
                plain.add(statement)
        grouped.pop("from __future__", None)
        lines = [*plain, *(f"{start} import {', '.join(sorted(names))}" for start, names in grouped.items())]
        return "\n".join(["from __future__ import annotations", "", *sorted(lines)])


def _joined(parts: list[tuple[bool, str]]) -> str:
    """Definitions with two lines between those of functions and classes, as is usual."""
    text = ""
    for k, (apart, part) in enumerate(parts):
        gap = "" if k == 0 else "\n\n\n" if apart or parts[k - 1][0] else "\n"
        text += gap + part
    return text


def bundle(text: str, without: tuple[str, ...] = ()) -> str:
    """The source of a module with everything that it imports from saltus put into it.

    Args:
        text: a module that begins with a docstring and imports from the package by ``from ... import``
            alone, at its top or inside functions.
        without: beginnings of modules that functions import and that are left out: where the import stood,
            an ImportError is raised.

    Raises:
        ValueError: for an import that cannot be followed.

    >>> made = bundle('\"\"\"One.\"\"\"\\nfrom saltus.tensors import sg\\n\\ndef f(x):\\n    return sg(x)\\n')
    >>> "saltus import" in made, "def sg(x: Tensor) -> Tensor:" in made
    (False, True)
    """
    entry = Module(ENTRY, text)
    body = ast.parse(text).body
    made = Bundle(entry, without)
    lines = text.splitlines()
    words = "\n".join(lines[: body[0].end_lineno]) if is_words(body[0]) else ""
    rest = []
    for d in entry.definitions:
        references = made._references(entry, d)
        rest.append((isinstance(d.node, ast.FunctionDef | ast.ClassDef), made._text(entry, d, references)))
    return "\n\n\n".join([f"{words}\n\n{made.imports()}", *made.sections(), _joined(rest)]).strip() + "\n"
