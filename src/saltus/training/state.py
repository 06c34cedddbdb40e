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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
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
    counts = {name: int(ema.count) for name, ema in averages.items()}
    return State(tensors, {"step": fit.index, "averages": counts, "optimizers": kept})


def restore(fit: Fit, averages: Mapping[str, EMA], saved: Saved) -> None:
    """Put a run into a saved state: all of it, or a ValueError says what does not fit."""
    prefix = "artifacts/"
    artifacts = {name.removeprefix(prefix): saved.tensor(name) for name in saved.names(prefix)}
    fit.go_to(saved.step, artifacts)
    tensors = _artifacts(fit) | _modules(fit, averages)
    plain = saved.manifest.meta.get("state", {})
    kept: dict[str, Any] = plain.get("optimizers", {})
    for player in fit.players:
        _prepare(player, {*saved.names(f"players/{player.move.name}/optimizer/"), *kept})
        for name, value in _kept(player):
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                _put_plain(player, name, kept)
    saved.restore(tensors)
    for name, ema in averages.items():
        count = plain.get("averages", {}).get(name)
        if not isinstance(count, int):
            raise ValueError(f"{saved.folder}: expected the updates of average {name!r}, got {count!r}")
        ema.count.fill_(count)


def _artifacts(fit: Fit) -> dict[str, Tensor]:
    return {f"artifacts/{name}": value for name, value in artifact_tensors(fit.artifacts).items()}


def _modules(fit: Fit, averages: Mapping[str, EMA]) -> dict[str, Tensor]:
    """The tensors of all modules that a run changes, each once, under the first name that reaches it."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in _roots(fit, averages):
        for name, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{prefix}/{name}"] = tensor
    return found


def _roots(fit: Fit, averages: Mapping[str, EMA]) -> Iterator[tuple[str, nn.Module]]:
    for player in fit.players:
        yield f"players/{player.move.name}/module", player.move.module
    for player in fit.players:
        for k, after in enumerate(player.move.after):
            yield from _held(f"players/{player.move.name}/after/{k}", after)
    for name, ema in averages.items():
        yield f"averages/{name}", ema.module


def _held(prefix: str, value: object) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a value is made of."""
    if isinstance(value, nn.Module):
        yield prefix, value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _held(f"{prefix}/{field.name}", vars(value)[field.name])
    elif isinstance(value, tuple | list):
        for k, item in enumerate(value):
            yield from _held(f"{prefix}/{k}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _held(f"{prefix}/{key}", item)


def _kept(player: Player) -> Iterator[tuple[str, object]]:
    """What the optimiser keeps, by name; parameters are numbered as the player has them."""
    for i, parameter in enumerate(player.parameters):
        for key, value in player.optimizer.state.get(parameter, {}).items():
            yield f"players/{player.move.name}/optimizer/{i}/{key}", value


def _prepare(player: Player, names: set[str]) -> None:
    """Have the optimiser make its state for the parameters that have some among the names.

    An optimiser makes its state when it first steps: with gradients of zero and a rate of zero it does so
    and moves nothing; what it wrote into the state is overwritten, and so are the weights.
    """
    prefix = f"players/{player.move.name}/optimizer/"
    had = {int(n.removeprefix(prefix).split("/")[0]) for n in names if n.startswith(prefix)}
    if not had <= set(range(len(player.parameters))):
        raise ValueError(
            f"player {player.move.name!r}: expected {len(player.parameters)} parameters, the checkpoint has "
            f"{max(had) + 1}; go on with the options that the run was begun with"
        )
    for i, parameter in enumerate(player.parameters):
        parameter.grad = torch.zeros_like(parameter) if i in had else None
    player.scale_rates(0.0)
    player.optimizer.step()
    for parameter in player.parameters:
        parameter.grad = None


def _put_plain(player: Player, name: str, kept: Mapping[str, Any]) -> None:
    i, key = name.removeprefix(f"players/{player.move.name}/optimizer/").split("/", 1)
    if name not in kept:
        raise ValueError(f"{name}: expected its number in the checkpoint, got none; take an earlier one")
    player.optimizer.state[player.parameters[int(i)]][key] = kept[name]
