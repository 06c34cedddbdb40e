"""What each method's gradient restores, away from the truth: the law, the structure of the map, or both.

    python tests/conformance/restores.py        rewrites src/saltus/recipes/restores.json
    python tests/conformance/restores.py --check

The student is displaced from the exact map in directions of two kinds, and the expected gradient along the
displacement must be positive, by 5 standard errors, for a step against it to lead home.

Wrong law: the student is the exact flow map of other data. It satisfies every identity of a flow map,
so only a term that looks at the data can tell. Wrong map: the perturbation vanishes at s = t. The velocity
is the true one, so only a term that looks at jumps can tell.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from systems import (
    ON_DIAGONAL,
    Basis,
    Perturbed,
    System,
    Towards,
    gaussian,
    means,
    mixture,
    noise,
    objective_of,
    pairs,
    row_gradients,
    smooth,
    together,
    unfold,
    wired,
)

from saltus.methods import Method, discover
from saltus.typing import Objective

__all__ = ["Build", "Displacement", "displacements", "methods", "pull", "restores"]

FILE = Path(__file__).resolve().parents[2] / "src" / "saltus" / "recipes" / "restores.json"
ROWS = {2: 3008, 1: 2000}
"""By dimension; whole trajectories of 16 rows."""


@dataclass(frozen=True, eq=False)
class Displacement:
    """A direction away from the exact map: u* + size * function."""

    kind: str
    system: System
    function: Basis
    size: float


def one_of(i: int) -> Basis:
    """The function i of the eight."""
    return lambda x, s, t: smooth(x, s, t)[i : i + 1]


def displacements() -> list[Displacement]:
    """Other laws of data, with their exact flow maps; and functions that vanish at s = t."""
    plane, line = gaussian(), mixture(spread=0.5)
    laws = [
        (plane, gaussian(shift=0.5)),
        (plane, gaussian(scale=2.0)),
        (plane, gaussian(scale=0.5)),
        (line, mixture(spread=0.5, shift=0.5)),
    ]
    found = [Displacement("law", here, Towards(here.exact, other.exact), 1.0) for here, other in laws]
    vanishing = [i for i in range(8) if not ON_DIAGONAL[i]]
    found += [Displacement("map", plane, one_of(i), 0.3) for i in vanishing]
    return [*found, Displacement("map", line, one_of(vanishing[1]), 0.5)]


Build = Callable[[Perturbed, System], Objective]
"""A student and the system that its teacher knows -> what it minimises."""


def pull(build: Build, away: Displacement) -> tuple[float, float]:
    """The expected gradient along the displacement, and its standard error, of the whole loss."""
    student = Perturbed(away.system.exact, torch.full((1,), away.size).double(), basis=away.function)
    objective = build(student, away.system)
    rows = ROWS[away.system.dim]
    if together(objective) > 1 and away.system.dim == 1:
        rows *= 4  # few groups, and noise that rows share
    batch, rng = pairs(away.system, rows, progress=1.0)
    total, variance = 0.0, 0.0
    for seen in unfold(objective, batch, objective.draw(batch, rng)):
        controls = noise(away.system, seen)
        for values in row_gradients(student, seen, rows).values():
            mean, error = means(values[:, :1] * away.size, controls)
            total, variance = total + float(mean) * seen.weight, variance + (float(error) * seen.weight) ** 2
    return total, variance**0.5


def plain(method: Method) -> Build:
    """The method's plain form."""
    return lambda student, system: objective_of(wired(method, student, system, **method.card.plain))


def methods() -> dict[str, Build]:
    """The plain form of every method of the package."""
    return {name: plain(method) for name, method in discover().items()}


def restores(builds: dict[str, Build] | None = None) -> dict[str, dict[str, bool]]:
    """For every method: whether every wrong law, and every wrong map, is pulled home.

    A kind of displacement that is neither always pulled home nor always left alone raises ValueError.
    """
    table: dict[str, dict[str, bool]] = {}
    for name, build in (methods() if builds is None else builds).items():
        verdicts: dict[str, set[int]] = {"law": set(), "map": set()}
        for away in displacements():
            mean, error = pull(build, away)
            clear = abs(mean) > 5.0 * error + 1e-12
            verdicts[away.kind].add((1 if mean > 0 else -1) if clear else 0)
        if any(v not in ({0}, {1}) for v in verdicts.values()):
            raise ValueError(f"{name}: expected all directions of a kind to agree, got {verdicts}")
        table[name] = {kind: v == {1} for kind, v in verdicts.items()}
    return table


def main(args: list[str]) -> int:
    """Write the file, or check it."""
    text = json.dumps(restores(), indent=2) + "\n"
    if "--check" in args:
        return int(not FILE.exists() or FILE.read_text() != text)
    FILE.write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
