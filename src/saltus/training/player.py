"""One player of a game in motion: its loss, its optimiser, and what a move of it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saltus.autodiff import compiled
from saltus.games import Move
from saltus.streams import Streams
from saltus.tensors import upcast
from saltus.training.optimizers import Joint, OptimizerFactory
from saltus.training.parallel import World
from saltus.training.precision import Precision
from saltus.training.sharding import average_replicated, is_sharded, local, square_norm, synchronise
from saltus.training.step import Moved
from saltus.typing import Batch, Draws, Term

__all__ = ["Counts", "LossModule", "Player"]


class Counts(NamedTuple):
    """How many values each term has, by name.

    Attributes:
        here: in a micro-batch.
        whole: in the whole batch, of which the micro-batch is a part.
    """

    here: dict[str, int]
    whole: dict[str, int]


class LossModule(nn.Module):
    """The loss of one move, derivatives and reduction included: what is compiled and wrapped.

    Its only child is the mover, so its parameters are those that the move trains; the other
    networks that the objective holds are not its business.
    """

    def __init__(self, move: Move, precision: Precision = Precision.FLOAT32) -> None:
        super().__init__()
        self.mover = move.module
        self.precision = precision.resolve(move.module)
        self.device = next(move.module.parameters()).device
        self._objective = (move.objective,)  # in a tuple: an objective that is a Module is not a child

    def forward(
        self, batch: Batch, draws: Draws, counts: Counts | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """loss = sum of weight * mean(value) over the terms, 0-d, and each mean(value), detached.

        The terms are computed in the module's precision, the means in at least float32.

        Args:
            batch: the rows.
            draws: the objective's, for them.
            counts: how many values each term has; then the means are sum(value)/count of the whole batch,
                these rows' share of them. None if the rows are all.
        """
        terms = self.terms(batch, draws)
        means = {name: _mean(name, term, counts) for name, term in terms.items()}
        loss = torch.stack([terms[name].weight * mean for name, mean in means.items()]).sum()
        return loss, {name: mean.detach() for name, mean in means.items()}

    @torch.no_grad()
    def count(self, batch: Batch, draws: Draws) -> dict[str, int]:
        """How many values each term has."""
        return {name: term.value.numel() for name, term in self.terms(batch, draws).items()}

    def terms(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The objective's terms, in the module's precision."""
        with self.precision.context(self.device):
            terms = self._objective[0](batch, draws)
        if not terms:
            raise ValueError("objective: expected at least one term, got an empty dict; return a Term")
        return terms


def _mean(name: str, term: Term, counts: Counts | None) -> Tensor:
    if term.value.ndim != 1:
        raise ValueError(
            f"term {name!r}: expected one value a row, [n], got {list(term.value.shape)}; "
            "reduce over everything but the first axis"
        )
    if counts is not None:
        if term.value.numel() != counts.here.get(name):
            raise ValueError(
                f"term {name!r}: expected {counts.here.get(name)} values, as in the first step, got "
                f"{term.value.numel()}; let a row's part follow from its number, or use one process"
            )
        return upcast(term.value).sum() / max(counts.whole[name], 1)
    # A fraction of a small batch may have no rows: its mean counts as zero, not as NaN.
    return upcast(term.value).mean() if term.value.numel() else upcast(term.value).sum()


class Player:
    """A move in motion: its loss, its optimiser and the first faults it has shown.

    Attributes:
        move: who it is.
        loss: the :class:`LossModule`, compiled if asked for.
        precision: that its networks run in.
        parameters: those that it trains.
        optimizer: over these parameters; its rates are set from the schedule at every step.
    """

    def __init__(
        self,
        move: Move,
        optimizer: OptimizerFactory,
        precision: Precision,
        compile: bool,
        world: World | None = None,
    ) -> None:
        self.move = move
        self.parameters = [p for p in move.module.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError(
                f"move {move.name!r}: expected a module with trainable parameters, got none; "
                "leave a frozen module out of the game"
            )
        if compile and any(is_sharded(p) for p in self.parameters):
            raise ValueError(
                f"move {move.name!r}: expected whole weights for a compiled loss, got sharded ones; leave "
                "out compile, or sharding: without it every process holds the weights and averages gradients"
            )
        self._module = LossModule(move, precision)
        self.precision = self._module.precision
        self.loss: nn.Module = compiled(self._module) if compile else self._module
        self.optimizer = _of_kinds(move.optimizer or optimizer, self.parameters)
        self._world = world or World.alone()
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._groups = [_numbers_of(group) for group in self.optimizer.param_groups]
        self._first: dict[tuple[str, ...], Tensor] = {}
        self._counts: tuple[Counts, ...] = ()

    def scale_rates(self, factor: float) -> None:
        """Set the learning rates to ``factor`` times those that the optimiser was made with."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    def changed_groups(self) -> dict[int, dict[str, float]]:
        """For each parameter, by its id: the numbers of its group, but the rate, that are not those which the
        optimiser was made with. Some optimisers count steps there, or find their step size."""
        found: dict[int, dict[str, float]] = {}
        for group, before in zip(self.optimizer.param_groups, self._groups, strict=True):
            now = {key: value for key, value in _numbers_of(group).items() if before.get(key) != value}
            found |= {id(parameter): now for parameter in group["params"]}
        return found

    def reset_groups(self) -> None:
        """Give the groups the numbers that the optimiser was made with, and no others."""
        for group, before in zip(self.optimizer.param_groups, self._groups, strict=True):
            for key in _numbers_of(group).keys() - before.keys():
                del group[key]
            group.update(before)

    def set_group(self, parameter: nn.Parameter, key: str, value: float) -> None:
        """Set a number of the group that holds a parameter."""
        for group in self.optimizer.param_groups:
            if any(parameter is p for p in group["params"]):
                group[key] = value

    def __call__(
        self, parts: Sequence[tuple[Batch, Streams]], clip: float | None, spare: bool = False
    ) -> Moved | None:
        """One move: draw, differentiate, clip, step. Gradients are left to be cleared.

        Args:
            parts: this process's micro-batches and their random streams.
            clip: largest norm of the gradient.
            spare: whether to wait for the loss and the norm and leave everything as it is unless both are
                finite; all processes have the same two numbers.

        Returns:
            What it left behind; None if it was spared, with the gradients as they were found.
        """
        whole = self._world.size == 1 and len(parts) == 1
        loss, norm, terms = self._alone(*parts[0]) if whole else self._together(parts)
        if spare and not bool(torch.isfinite(torch.stack([loss, norm.to(loss.dtype)])).all()):
            return None
        _shrink([local(g) for g in self._gradients()], norm, clip)
        self.optimizer.step()
        names = tuple(terms)
        values = torch.stack([loss, norm.to(loss.dtype), *terms.values()])
        faults = self._faults(names, values, parts[0][1].step)
        return Moved(names, values, faults, self.optimizer.param_groups[0]["lr"])

    def look(self, batch: Batch, rng: Streams) -> tuple[Draws, dict[str, Term]]:
        """The draws and the terms of some rows, as the next move on them would have them, but neither
        differentiated nor compiled."""
        draws = self._draw(batch, rng)
        with torch.no_grad():
            return draws, self._module.terms(batch, draws)

    def _draw(self, batch: Batch, rng: Streams) -> Draws:
        with torch.no_grad():
            return self.move.objective.draw(batch, rng)

    def _alone(self, batch: Batch, rng: Streams) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss, norm of the gradient and terms where one micro-batch is all."""
        loss, terms = self.loss(batch, self._draw(batch, rng))
        loss.backward()
        return loss.detach(), torch.nn.utils.get_total_norm(self._gradients()), terms

    def _together(
        self, parts: Sequence[tuple[Batch, Streams]]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The same over all micro-batches of all processes, each of which adds its share.

        Gradients are averaged over the processes, so what is differentiated is the loss times their number.
        """
        counts = self._counted(parts)
        sums: list[Tensor] = []
        names: tuple[str, ...] = ()
        for k, (batch, rng) in enumerate(parts):
            synchronise(self.move.module, k == len(parts) - 1)
            loss, terms = self.loss(batch, self._draw(batch, rng), counts[k])
            (loss * self._world.size).backward()
            names = tuple(terms)
            sums.append(torch.stack([loss.detach(), *terms.values()]))
        average_replicated(self.parameters, self._world)
        square = square_norm(self._gradients(), self._world).to(sums[0].dtype)
        total = self._world.sum(torch.cat([torch.stack(sums).sum(0), square.reshape(1)]))
        loss, *means, square = total.unbind()
        return loss, square.sqrt(), dict(zip(names, means, strict=True))

    def _counted(self, parts: Sequence[tuple[Batch, Streams]]) -> tuple[Counts, ...]:
        """How many values each term has in each micro-batch and in all: found at the first move, by a pass
        without gradient, and the same at every other, since a row's part is a function of its number."""
        if not self._counts:
            here = [self._module.count(batch, self._draw(batch, rng)) for batch, rng in parts]
            of_all = [counts for process in self._world.collect(here) for counts in process]
            whole = {name: sum(counts[name] for counts in of_all) for name in of_all[0]}
            self._counts = tuple(Counts(counts, whole) for counts in here)
        return self._counts

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _faults(self, names: tuple[str, ...], values: Tensor, step: int) -> Tensor:
        """For each value the first step at which it was not finite, or -1; kept on the device."""
        first = self._first.get(names)
        if first is None:
            first = torch.full_like(values, -1, dtype=torch.int64)
        new = ~torch.isfinite(values) & (first < 0)
        self._first[names] = first.masked_fill(new, step)
        return self._first[names]


def _numbers_of(group: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in group.items() if isinstance(v, int | float) and k not in ("lr", "initial_lr")}


def _of_kinds(factory: OptimizerFactory, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of these parameters: one of the sharded and one of the others, if there are both, since
    no fused operation takes them together."""
    kinds = [[p for p in parameters if is_sharded(p) is kind] for kind in (True, False)]
    made = [factory(kind) for kind in kinds if kind]
    if len(made) == 1:
        return made[0]
    return Joint([part for one in made for part in (one.parts if isinstance(one, Joint) else (one,))])


def _shrink(gradients: list[Tensor], norm: Tensor, clip: float | None) -> None:
    """Scale gradients of this norm by min(1, clip/norm)."""
    if clip is not None and gradients:
        torch._foreach_mul_(gradients, clip / norm.clamp(min=clip))
