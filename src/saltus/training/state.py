"""What the state of a run is: every number that the next step depends on, by name.

    players/student/module/...        weights and buffers of what a player trains
    players/student/optimizer/3/...   what the optimiser keeps for the player's parameter 3
    players/student/after/0/...       modules that only what is done after a move changes: targets, memories
    averages/ema/...                  moving averages of weights
    artifacts/...                     what finished stages have produced

Random numbers have no state here: they are a function of the seed and the step. Learning rates are a
function of the step, and a teacher is what it was when the run began.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from saltus.training.checkpoint import Saved
from saltus.training.ema import EMA
from saltus.training.loop import Fit
from saltus.training.player import Player
from saltus.training.stages import artifact_tensors

__all__ = ["State", "restore", "state_of"]

_PLAIN = (bool, int, float, str, type(None))
_CLOSED = (*_PLAIN, bytes, type, ModuleType)
_GROUP = "group "
_FIX = "go on with the options that the run was begun with"


@dataclass(frozen=True)
class State:
    """A run's state.

    Attributes:
        tensors: by name; they are the live ones.
        plain: numbers that are no tensors, as JSON values.
    """

    tensors: dict[str, Tensor]
    plain: dict[str, Any]


def state_of(fit: Fit, averages: Mapping[str, EMA]) -> State:
    """The state with which a run goes on at ``fit.index``.

    Raises:
        ValueError: if an optimiser keeps something that is neither a tensor nor a number.
    """
    fit.enter()
    tensors = _artifacts(fit) | _modules(fit, averages)
    kept: dict[str, Any] = {}
    for player in fit.players:
        for name, value in _kept(player):
            if isinstance(value, Tensor):
                tensors[name] = value
            elif isinstance(value, _PLAIN):
                kept[name] = value
            else:
                raise ValueError(
                    f"{name}: expected a tensor or a number in the optimiser's state, got "
                    f"{type(value).__name__}; a run with this optimiser cannot be saved"
                )
    return State(
        tensors,
        {
            "step": fit.index,
            "skipped": fit.skipped,
            "averages": {name: int(ema.count) for name, ema in averages.items()},
            "makes": {player.move.name: type(player.optimizer).__name__ for player in fit.players},
            "optimizers": kept,
        },
    )


def restore(fit: Fit, averages: Mapping[str, EMA], saved: Saved) -> None:
    """Put a run into a saved state: all of it, or a ValueError says what does not fit."""
    makes, kept, counts = _plain_of(saved)
    prefix = "artifacts/"
    artifacts = {name.removeprefix(prefix): saved.tensor(name) for name in saved.names(prefix)}
    fit.go_to(saved.step, artifacts)
    tensors = _artifacts(fit) | _modules(fit, averages)
    for player in fit.players:
        name, make = player.move.name, type(player.optimizer).__name__
        if makes.get(name) != make:
            raise ValueError(
                f"{saved.folder}: expected the state of optimiser {make} of player {name!r}, got that of "
                f"{makes.get(name)}; {_FIX}"
            )
        _prepare(player, saved, kept)
        tensors |= {name: value for name, value in _kept(player) if isinstance(value, Tensor)}
    saved.restore(tensors)
    fit.skipped = _count(saved, saved.manifest.meta["state"].get("skipped"), "skipped moves")
    for name, ema in averages.items():
        ema.count.fill_(_count(saved, counts.get(name), f"updates of average {name!r}"))


def _count(saved: Saved, value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{saved.folder}: expected the {what}, got {str(value)[:40]}; {_FIX}")
    return value


def _plain_of(saved: Saved) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The makes of the optimisers, their numbers that are no tensors, the updates of the averages."""
    state = saved.manifest.meta.get("state")
    parts = state if isinstance(state, dict) else {}
    found = (parts.get(key) for key in ("makes", "optimizers", "averages"))
    makes, kept, counts = (part if isinstance(part, dict) else None for part in found)
    fits = kept is not None and all(isinstance(value, _PLAIN) for value in kept.values())
    if makes is None or kept is None or counts is None or not fits:
        raise ValueError(
            f"{saved.folder}: expected the state of a run in its manifest, got none; take a run's own"
        )
    return makes, kept, counts


def _artifacts(fit: Fit) -> dict[str, Tensor]:
    return {f"artifacts/{name}": value for name, value in artifact_tensors(fit.artifacts).items()}


def _modules(fit: Fit, averages: Mapping[str, EMA]) -> dict[str, Tensor]:
    """The tensors of all modules that a run changes, each once, under the first name that reaches it."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, root in _roots(fit, averages):
        state = {prefix: root} if isinstance(root, Tensor) else _state_of(prefix, root)
        for name, tensor in state.items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[name] = tensor
    return found


def _state_of(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    state = {f"{prefix}/{name}": value for name, value in module.state_dict(keep_vars=True).items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name}: expected a tensor in the module's state, got {type(value).__name__}; "
                "keep it in a buffer"
            )
    return state


def _roots(fit: Fit, averages: Mapping[str, EMA]) -> Iterator[tuple[str, nn.Module | Tensor]]:
    for player in fit.players:
        yield f"players/{player.move.name}/module", player.move.module
    for player in fit.players:
        yield from _held(f"players/{player.move.name}/after", player.move.after, set())
    for name, ema in averages.items():
        yield f"averages/{name}", ema.module


def _held(prefix: str, value: object, seen: set[int]) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """The modules and tensors that a value is made of: fields and attributes, items, what a function closes
    over or is bound to."""
    if isinstance(value, nn.Module | Tensor):
        yield prefix, value
        return
    if id(value) in seen or isinstance(value, _CLOSED):
        return
    seen.add(id(value))
    for key, item in _inside(value):
        yield from _held(f"{prefix}/{key}", item, seen)


def _inside(value: object) -> Iterator[tuple[object, object]]:
    if isinstance(value, tuple | list):
        yield from enumerate(value)
    elif isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, FunctionType):
        cells = value.__closure__ or ()
        filled = [(name, cell) for name, cell in zip(value.__code__.co_freevars, cells, strict=True)]
        yield from ((name, cell.cell_contents) for name, cell in filled if cell != CellType())
    elif isinstance(value, MethodType):
        yield "self", value.__self__
    elif isinstance(value, partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    else:
        with suppress(TypeError):  # it has no attributes
            yield from vars(value).items()


def _kept(player: Player) -> Iterator[tuple[str, object]]:
    """What the optimiser keeps, by name: for each parameter, numbered as the player has them, its state and
    the numbers of its group that are not as they were at the beginning."""
    prefix, optimizer = f"players/{player.move.name}/optimizer", player.optimizer
    if set(map(id, optimizer.state)) - set(map(id, player.parameters)):
        raise ValueError(
            f"{prefix}: expected state of parameters alone, {type(optimizer).__name__} keeps more; a run "
            "with it cannot be saved"
        )
    changed = player.changed_groups()
    for i, parameter in enumerate(player.parameters):
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{prefix}/{i}/{key}", value
        for key, value in changed[id(parameter)].items():
            yield f"{prefix}/{i}/{_GROUP}{key}", value


def _prepare(player: Player, saved: Saved, kept: Mapping[str, Any]) -> None:
    """Give the optimiser the state whose tensors :meth:`Saved.restore` then fills.

    An optimiser makes its state when it first steps: with gradients of zero and a rate of zero it does so on
    the right device, sharded as its parameter is, and moves nothing. What it makes later in a run is made
    here; what it wrote is overwritten, and so are the weights.
    """
    prefix = f"players/{player.move.name}/optimizer/"
    wanted: dict[int, set[str]] = {}
    for name in (*saved.names(prefix), *(name for name in kept if name.startswith(prefix))):
        number, _, key = name.removeprefix(prefix).partition("/")
        if not re.fullmatch("0|[1-9][0-9]{0,8}", number) or int(number) >= len(player.parameters):
            raise ValueError(
                f"{saved.folder}: expected the state of {len(player.parameters)} parameters of player "
                f"{player.move.name!r}, got {name[:100]!r}; {_FIX}"
            )
        wanted.setdefault(int(number), set()).add(key)
    for i, parameter in enumerate(player.parameters):
        parameter.grad = torch.zeros_like(parameter) if i in wanted else None
    player.scale_rates(0.0)
    player.optimizer.step()
    player.reset_groups()
    for i, parameter in enumerate(player.parameters):
        parameter.grad = None
        if i not in wanted:  # it has made no move
            player.optimizer.state.pop(parameter, None)
            continue
        state = player.optimizer.state[parameter]
        for key in state.keys() - wanted[i]:
            del state[key]
        for key in sorted(wanted[i]):
            whole = saved.manifest.tensors.get(f"{prefix}{i}/{key}")
            if whole is None:
                value = kept[f"{prefix}{i}/{key}"]
                if key.startswith(_GROUP):
                    player.set_group(parameter, key.removeprefix(_GROUP), value)
                else:
                    state[key] = value
            elif not isinstance(state.get(key), Tensor):
                alike = whole.shape == tuple(parameter.shape)
                state[key] = torch.zeros_like(parameter) if alike else torch.zeros(whole.shape)
