"""What can be trained: one file a system, found by a walk over this package.

A recipe is a typed function whose signature is its command line. It takes a method by name and groups
of options, and returns an :class:`saltus.recipes.assemble.Experiment`. A file here is a recipe when it
holds a function with the file's own name and a constant ``RECIPE`` with its one-line summary; the other
files are the parts that recipes share.

A run is named SYSTEM-METHOD: ``digits-lsd`` is the recipe ``digits`` with the method ``lsd``.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Recipe", "discover", "load"]

USUAL = "usual"
"""What a recipe may hold besides: a function (method, setting) -> its defaults for them, by option group."""
CONSTANT = "RECIPE"
"""What marks a file as a recipe, and holds its summary."""


@dataclass(frozen=True)
class Recipe:
    """A discovered recipe: its name and what it is, in a line."""

    name: str
    summary: str

    def function(self) -> Callable[..., Any]:
        """The recipe's function; importing it imports PyTorch."""
        return self._module()[self.name]  # type: ignore[no-any-return]

    def usual(self, method: Any, setting: str | None) -> dict[str, Any]:  # noqa: ANN401 - a Method
        """Defaults of the recipe's parameters for a method and a named setting, where they differ from the
        rest; the setting is None where none was named."""
        found = self._module().get(USUAL)
        return {} if found is None else dict(found(method, setting))

    def _module(self) -> dict[str, Any]:
        return vars(importlib.import_module(f"{__name__}.{self.name}"))


def _summary(path: Path) -> str | None:
    """The constant RECIPE of a file, read without importing it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [CONSTANT]:
            return str(ast.literal_eval(node.value))
    return None


def discover() -> dict[str, Recipe]:
    """Every recipe by name, in alphabetical order.

    >>> sorted(discover())
    ['checkerboard', 'cifar10', 'digits', 'gaussian', 'images', 'latents', 'mixture', 'pictures']
    """
    found = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda i: i.name):
        summary = _summary(Path(__path__[0]) / f"{info.name}.py")
        if summary is not None:
            found[info.name] = Recipe(info.name, summary)
    return found


def load(name: str) -> tuple[Recipe, str | None]:
    """The recipe and the method (None where it is not named) of ``SYSTEM`` or ``SYSTEM-METHOD``.

    The method is not looked up here. Raises a ValueError with near matches.

    >>> recipe, method = load("digits-mean_flow")
    >>> recipe.name, method
    ('digits', 'mean_flow')
    """
    found = discover()
    system, dash, method = name.partition("-")
    if system in found and dash and not method:
        raise ValueError(
            f"recipe {name!r}: expected a method after the dash, for instance {system}-lsd, or {system} alone"
        )
    if system in found:
        return found[system], method or None
    path = Path(name)
    place = path if path.is_dir() else path.parent
    if path.exists() and (place / "options.json").is_file():
        raise ValueError(
            f"recipe {name}: expected the name of a recipe, got a run; saltus run {place}/options.json --out "
            f"{place} goes on with it, and with another --out does the same again"
        )
    near = difflib.get_close_matches(system, found, n=3, cutoff=0.5) or sorted(found)
    tail = f"-{method}" if method else ""
    hint = ", ".join(n + tail for n in near)
    raise ValueError(f"unknown recipe {name!r}; near matches: {hint} (saltus recipes lists all)")
