"""What each method is on the axes of the algebra, read off the objective that its function builds.

A method's function is called with its paper's defaults and stand-ins for its players: a small network as the
student, and things that only have a name for teachers, critics and the like. What it returns (an objective,
a sum, a game, stages) is a tree of frozen values, so every cell of the table is a value that the method is
made of, by the name that it has in the package. Nothing here knows one method from another.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from saltus import legs
from saltus.games import Follow, Freeze, Game, Move, Stages
from saltus.maps import NetworkMap
from saltus.methods import Method, Need
from saltus.objectives import Sum
from saltus.recipes.model import ModelSpec
from saltus.typing import Objective

__all__ = ["AXES", "Row", "Stand", "axes", "described"]

AXES: dict[str, tuple[str, ...]] = {
    "path": ("interpolant", "coupling"),
    "states": ("states",),
    "times": ("times", "nodes"),
    "split": ("split", "near", "step", "warm_up"),
    "legs": ("leg", "onward", "push"),
    "velocities": ("tangent", "velocity", "end", "teacher", "critic"),
    "target": ("target",),
    "gradient": ("gradient",),
    "error": ("weight",),
}
"""The axes in the order of the table, and the fields of objectives that each of them shows."""
RARE = frozenset({"coupling", "onward", "push", "target"})
ALWAYS = frozenset(name for group in AXES.values() for name in group) - RARE
"""Fields that are shown also where they have their default."""
PATH = next(iter(AXES))
ALSO = "also"
"""The column for fields that are on no axis."""
BARE = frozenset({"interpolant", "states", "times", "nodes", "split", "leg", "target", "gradient", "weight"})
"""Fields whose value says what they are."""


class Stand(nn.Module):
    """A player that is only a name; it sends everything to itself.

    >>> Stand("teacher").role
    'teacher'
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """x as it is."""
        return x

    def velocity(self, x: Tensor, *_: object) -> Tensor:
        """x as it is, for methods that take a map's velocity."""
        return x


@dataclass(frozen=True)
class Row:
    """One term of a method's loss.

    Attributes:
        term: the objective's name, and where it is: the player that moves, if it is not the student, with how
            many times a step, and the stage with its share of the run, if there is more than one.
        share: of the rows and the weight, in words; empty where it has all of them at weight 1.
        cells: what it has on each of :data:`AXES`, and under :data:`ALSO` whatever else differs from the
            objective's own defaults.
    """

    term: str
    share: str
    cells: Mapping[str, str]


def axes(method: Method) -> list[Row]:
    """The rows of one method in the form of its paper."""
    spec = ModelSpec(shape=(2,), size="tiny", heads=("v",) if Need.HEAD in method.card.needs else ())
    student = spec.build()
    names: dict[int, str] = {id(student): "student"}
    built = method.build(student, **_players(method, names))
    found: list[Row] = []
    for stage, game in _games(built):
        for move in game.moves if isinstance(game, Game) else (Move("student", student, game),):
            known = names | _averages(move)
            where = [word for word in (stage, _player(move)) if word]
            found += [row for part in _parts(move.objective) for row in _rows(part, where, known)]
    return found


def _player(move: Move) -> str:
    """Who moves and how many times a step, if it is not the student once."""
    turns = move.when(0)
    often = "" if turns == 1 else f" × {turns}"
    return "" if move.name == "student" and not often else f"{move.name}{often}"


def _players(method: Method, names: dict[int, str]) -> dict[str, object]:
    """A stand-in for every player without a default; their names are added to ``names``."""
    made: dict[str, object] = {}
    taken = list(inspect.signature(method.build).parameters.values())
    for parameter in taken[1:]:
        if parameter.default is not inspect.Parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
            continue
        network = "Map" in str(parameter.annotation)
        player = ModelSpec(shape=(2,), size="tiny").build() if network else Stand(parameter.name)
        made[parameter.name] = player
        names[id(player)] = parameter.name
    return made


def _games(built: Objective | Game | Stages) -> Iterator[tuple[str, Objective | Game]]:
    """What is played, with the name of its stage and its share of the run where there are several."""
    if not isinstance(built, Stages):
        yield "", built
        return
    artifacts: dict[str, Any] = {}
    whole = sum(stage.share for stage in built.stages)
    for stage in built.stages:
        yield f"{stage.name} ({100.0 * stage.share / whole:.0f} %)", stage.build(artifacts)
        for name, produce in stage.produce.items():
            artifacts[name] = produce() if isinstance(produce, Freeze) else Stand(name)


def _averages(move: Move) -> dict[int, str]:
    """Names of the copies that follow a player, with their decay."""
    follows = [after for after in move.after if isinstance(after, Follow)]
    return {id(f.target): f"average {f.decay:.4g}" for f in follows}


@dataclass(frozen=True, eq=False)
class _Part:
    """An objective with its share of the rows and the weight of its terms."""

    objective: Objective
    share: float | None = None
    weight: float = 1.0
    balance: float | None = None

    def words(self) -> str:
        """The share and what differs from a weight of 1 for each row.

        >>> _Part(Sum(()), 0.75, 0.75).words(), _Part(Sum(()), None, 0.1).words()
        ('0.75', '× 0.1')
        """
        rows = "" if self.share is None else f"{self.share:g}"
        even = self.weight == (1.0 if self.share is None else self.share)
        scale = "" if even else f"× {self.weight:g}"
        balanced = "" if self.balance is None else f"balanced {self.balance:g}"
        return " ".join(word for word in (rows, scale, balanced) if word)


def _parts(objective: Objective) -> Iterator[_Part]:
    """The summands of an objective; anything else is its own only part."""
    if not isinstance(objective, Sum):
        yield _Part(objective)
        return
    for part in objective.parts:
        inner = list(_parts(part.objective))
        for own in inner:
            yield own if len(inner) > 1 else _Part(own.objective, part.share, part.weight, part.balance)


def _is_objective(value: object) -> bool:
    ours = is_dataclass(value) and type(value).__module__.startswith("saltus.objectives")
    return ours and "draw" in dir(type(value))


def _rows(part: _Part, where: Sequence[str], names: Mapping[int, str]) -> Iterator[Row]:
    """The row of an objective, and those of objectives that it holds."""
    objective: Any = part.objective
    inner = [value for value in vars(objective).values() if _is_objective(value)]
    cells, here = _cells(objective, names), [*where, type(objective).__name__]
    said = part.words()
    if not inner or any(cells[axis] for axis in cells if axis != PATH):  # else it only hands rows on
        yield Row(": ".join(here), said, cells)
        said = ""
    for each in (each for value in inner for each in _parts(value)):
        for row in _rows(each, here, names):
            yield replace(row, share=f"{said} {row.share}".strip())


def _cells(objective: Any, names: Mapping[int, str]) -> dict[str, str]:  # noqa: ANN401 - any of them
    axis = {name: column for column, group in AXES.items() for name in group}
    cells: dict[str, list[str]] = {column: [] for column in (*AXES, ALSO)}
    own = vars(objective)
    for field in fields(objective):
        name, value = field.name, own[field.name]
        learns = name == "student" and id(value) in names
        if learns or _is_objective(value) or value is None or _idle(name, own):
            continue
        if name not in ALWAYS and _usual(field, value, names):
            continue
        text = described(value, names)
        bare = name in BARE or text in (name, *names.values())
        cells[axis.get(name, ALSO)].append(text if bare else f"{name} {text}")
    return {column: ", ".join(words) for column, words in cells.items()}


def _idle(name: str, own: Mapping[str, object]) -> bool:
    """Whether a field is not read beside the others: a finite step takes no derivative, and its leg makes the
    velocities; where there is a derivative instead, no leg is taken; nodes stand in for times."""
    if name == "times":
        return own.get("nodes") is not None
    if "step" not in own:
        return False
    if own["step"] is None:
        return name == "leg"
    return name in ("near", "tangent", "velocity", "gradient") or (name == "end" and own["leg"] is not None)


def _default(field: Any) -> object:  # noqa: ANN401 - dataclasses.Field of anything
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING


def _usual(field: Any, value: object, names: Mapping[int, str]) -> bool:  # noqa: ANN401 - as above
    default = _default(field)
    return default is not MISSING and described(value, names) == described(default, names)


_TABLEAUS = {id(value): name for name, value in vars(legs).items() if isinstance(value, legs.Tableau)}


def described(value: Any, names: Mapping[int, str] | None = None) -> str:  # noqa: ANN401 - any value
    """A value of the algebra by its name, with the fields that differ from their defaults.

    Args:
        value: a frozen value, a function, a network, a number.
        names: what players are called, by identity.

    >>> from saltus.times import Ramp, ToEnd, Uniform
    >>> described(ToEnd()), described(ToEnd(Uniform(0.5))), described(Ramp(0.2))
    ('ToEnd', 'ToEnd(Uniform(0.5))', 'Ramp(0.2)')
    """
    known = names or {}
    if id(value) in known:
        return known[id(value)]
    if id(value) in _TABLEAUS:
        return _TABLEAUS[id(value)]
    if isinstance(value, Stand):
        return value.role
    if isinstance(value, MethodType):
        return described(value.__self__, known)
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return f"({', '.join(described(item, known) for item in value)})"
    if isinstance(value, partial):
        return described(value.func, known)
    if is_dataclass(value) and not isinstance(value, type):
        return _named(value, known)
    return _other(value, known)


def _named(value: Any, names: Mapping[int, str]) -> str:  # noqa: ANN401 - a dataclass
    """Name(arguments), those at the front without their names."""
    given, front = [], True
    own = vars(value)
    for field in fields(value):
        mine = own[field.name]
        if not field.init or _usual(field, mine, names):
            front = False
        elif isinstance(mine, bool):
            given.append(field.name if mine else f"not {field.name}")
        else:
            text = described(mine, names)
            given.append(text if front else f"{field.name} {text}")
    name = type(value).__name__
    return f"{name}({', '.join(given)})" if given else name


def _other(value: Any, names: Mapping[int, str]) -> str:  # noqa: ANN401 - anything
    """A module by its name and what it holds inside, a function by its name, anything else as it is."""
    if isinstance(value, NetworkMap):
        return "a frozen copy"
    if isinstance(value, nn.Module):
        inner = vars(value).get("inner", value._modules.get("inner"))
        name = type(value).__name__
        return name if inner is None else f"{name}({described(inner, names)})"
    if isinstance(value, FunctionType):
        return value.__qualname__.split(".<locals>")[0]
    return str(value)
