"""What recipes read off a method's signature, and small changes of what it returns."""

from __future__ import annotations

import inspect
from dataclasses import replace

from saltus.games import Game, Stages
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Method, Need
from saltus.objectives import Sum

__all__ = ["dropout_role", "emphasised", "guides", "interpolant_of"]


def interpolant_of(method: Method, plain: bool) -> Interpolant:
    """The interpolant that a method trains on: its default, or that of its plain form."""
    parameter = inspect.signature(method.build).parameters.get("interpolant")
    usual: Interpolant = Linear() if parameter is None else parameter.default
    plainly: Interpolant = method.card.plain.get("interpolant", usual)
    return plainly if plain else usual


def dropout_role(method: Method) -> str | None:
    """The parameter of a method that takes label dropout, None where it takes none."""
    for name, parameter in inspect.signature(method.build).parameters.items():
        if name in ("dropout", "guidance") and str(parameter.annotation).startswith(LabelDropout.__name__):
            return name
    return None


def guides(method: Method) -> bool:
    """Whether a method can learn the map of a guided velocity, its strength an input of the network: that of
    its own velocity, which also needs label dropout, or that of a teacher."""
    taken = inspect.signature(method.build).parameters
    if "guidance" not in taken or dropout_role(method) == "guidance":
        return False
    return Need.TEACHER in method.card.needs or "dropout" in taken


def emphasised(game: Game | Stages, factor: float) -> Game | Stages:
    """The game with every term but the diagonal weighed ``factor`` times as much.

    Methods that learn jumps are sums of a diagonal part, which comes first, and the jumps' parts.
    Raises a ValueError for a factor other than 1 where there is no such sum.
    """
    if factor == 1.0:
        return game
    if isinstance(game, Stages):
        raise ValueError(f"jump weight {factor:g}: expected a method with a diagonal part; drop it")
    moves = []
    for move in game.moves:
        if not isinstance(move.objective, Sum):
            raise ValueError(f"jump weight {factor:g}: expected a method with a diagonal part; drop it")
        first, *rest = move.objective.parts
        parts = (first, *(replace(part, weight=factor * part.weight) for part in rest))
        moves.append(replace(move, objective=replace(move.objective, parts=parts)))
    return replace(game, moves=tuple(moves))
