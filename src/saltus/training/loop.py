"""The loop: it yields a step at a time and calls nobody back.

    for step in fit(game, source, steps=10_000, seed=0, batch=256):
        ema.update()
        log(step)

A step draws a batch, lets every player of the game move, and hands out tensors that nobody has
waited for. All randomness is a function of (seed, step, name, row), so a step that failed or was
repeated gives the same numbers, and a run can begin at any step. A run of stages is one run: the loop
goes from one to the next, and hands on what they produce.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saltus.games import Artifact, Game, Stage, Stages
from saltus.streams import Streams
from saltus.training.optimizers import AdamW, OptimizerFactory
from saltus.training.parallel import World
from saltus.training.player import Player
from saltus.training.precision import Precision
from saltus.training.schedules import Constant
from saltus.training.stages import Span, at, earlier, restore_artifacts, spans
from saltus.training.step import Moved, Step
from saltus.typing import Batch, Schedule

__all__ = ["Arrested", "Fit", "Source", "Turn", "fit"]

Source = Callable[[Streams], Batch]
"""One row of data and noise for each row of the streams, a function of nothing else."""

_OPTIMIZER, _SCHEDULE, _ALONE = AdamW(), Constant(), World.alone()
_NOTHING: Mapping[str, Artifact] = {}


@dataclass(frozen=True, eq=False)
class Turn:
    """One move of one player in a step.

    Attributes:
        player: who moves.
        parts: this process's micro-batches, and the random streams of their rows.
    """

    player: Player
    parts: Sequence[tuple[Batch, Streams]]


class Arrested(Exception):
    """A turn was not finite; weights and optimisers are as they were before it, the gradient is there."""

    def __init__(self, turn: Turn) -> None:
        """In this turn."""
        super().__init__(turn.player.move.name)
        self.turn = turn


class Fit(Iterator[Step]):
    """A run of a game, or of stages of games: an iterator over its steps. Made by :func:`fit`.

    Attributes:
        players: one for each move of the stage in progress, with their optimisers.
        index: of the step that comes next.
        artifacts: what the finished stages have produced, by name; with the players' weights, all that a
            run needs to go on at the beginning of a stage.
        skipped: moves that were left out so far because their loss or gradient was not finite.
        prompt: whether each turn is waited for, and one that is not finite ends the run before it does harm.
            Without it a fault is told when somebody looks (:meth:`Step.fetch`), and a step waits for nothing.
    """

    players: tuple[Player, ...]
    _progress: Tensor

    def __init__(
        self,
        stages: Stages,
        enlist: Callable[[Game], tuple[Player, ...]],
        source: Source,
        *,
        seed: int,
        batch: int,
        steps: int,
        start: int,
        artifacts: Mapping[str, Artifact],
        schedule: Schedule,
        clip: float | None,
        world: World,
        accumulate: int,
        skip: int,
    ) -> None:
        self.index, self.skipped, self.prompt = start, 0, False
        self.artifacts = dict(artifacts)
        self._stages, self._spans, self._enlist = stages, spans(stages, steps), enlist
        self._source, self._seed = source, seed
        self._world, self._rows = world, world.rows(batch, accumulate)
        self._steps, self._schedule, self._clip, self._skip = steps, schedule, clip, skip
        self._enter(at(self._spans, start))

    def _enter(self, span: Span) -> None:
        """Build the game of a stage, with players of its own."""
        missing = sorted(set(earlier(span, self._stages)) - set(self.artifacts))
        if missing:
            raise ValueError(
                f"fit: stage {span.stage.name!r}, which holds step {self.index}, begins with artifacts of "
                f"earlier stages; expected {', '.join(missing)}, got {sorted(self.artifacts) or 'none'}; "
                "give artifacts=... as an earlier run left them, or begin at step 0"
            )
        game = span.stage.build(self.artifacts)
        if not isinstance(game, Game):
            raise ValueError(
                f"stage {span.stage.name!r}: expected to build a Game, got {type(game).__name__}; "
                "use saltus.games.as_game(stages, student)"
            )
        self._span, self._game, self.players = span, game, self._enlist(game)
        lead = self.players[0].parameters[0]
        dtype = torch.float64 if lead.dtype == torch.float64 else torch.float32
        self._rngs = [Streams(self._seed, index=i, device=lead.device, dtype=dtype) for i in self._rows]
        everyone = {id(p): p for move in game.moves for p in move.module.parameters()}
        self._everyone = tuple(everyone.values())

    @property
    def length(self) -> int:
        """How many steps the stage in progress has; those of the run where there are no stages."""
        return self._span.last - self._span.first

    def _leave(self, step: Step) -> None:
        """Make what the stage produces. The one look at its numbers that a run cannot do without: a loss that
        was not finite ends it here, if nobody has looked before."""
        step.fetch()
        with torch.no_grad():
            self.artifacts |= {name: make() for name, make in self._span.stage.produce.items()}

    def enter(self) -> None:
        """Be in the stage that holds the next step, if there is one; the players are then that stage's."""
        if self._span.last <= self.index < self._steps:
            self._enter(at(self._spans, self.index))

    def go_to(self, step: int, artifacts: Mapping[str, Tensor]) -> None:
        """Stand before a step, with players as they are when its stage begins.

        Args:
            step: the next one.
            artifacts: what the stages before have produced, as
                :func:`saltus.training.artifact_tensors` names it.

        Raises:
            ValueError: for a step outside the run, or artifacts that are missing or not whole.
        """
        if not 0 <= step <= self._steps:
            raise ValueError(f"step: expected one of the run's {self._steps}, got {step}; lengthen the run")
        self.artifacts = restore_artifacts(self._stages, self._steps, step, artifacts)
        self.index = step
        self._enter(at(self._spans, step))

    def __iter__(self) -> Fit:
        return self

    def __next__(self) -> Step:
        if self.index >= self._steps:
            raise StopIteration
        moved, before = {}, self.skipped
        for turn in self.turns():
            made = self.play(turn)
            if made is not None:
                moved[turn.player.move.name] = made
        complete = self.skipped == before
        step = Step(self.index, self._progress, moved, self._span.stage.name, self.skipped, complete)
        self.index += 1
        if self.index == self._span.last:
            self._leave(step)
        return step

    def turns(self) -> Iterator[Turn]:
        """The turns of the next step in order. Each is to be played before the next one is asked for, since
        what it draws may depend on the weights."""
        self.enter()
        rngs, span = [rng.at(self.index) for rng in self._rngs], self._span
        here, length = self.index - span.first, self.length
        progress = torch.full((), here / length, dtype=rngs[0].dtype, device=rngs[0].device)
        factor = float(self._schedule(torch.tensor(here / length, dtype=torch.float64)))
        self._progress = progress
        self._clear()  # what an evaluation left, or a step that was interrupted
        shared = [self._batch(rng.named("data"), progress) for rng in rngs]
        for player in self.players:
            move = player.move
            player.scale_rates(factor * move.rate)
            for count in range(move.when(here)):
                again = f"{move.name}.{count}" if count else move.name
                batches = shared
                if count:
                    batches = [self._batch(rng.named(f"data.{again}"), progress) for rng in rngs]
                parts = [(batch, rng.named(again)) for batch, rng in zip(batches, rngs, strict=True)]
                yield Turn(player, parts)

    def play(self, turn: Turn) -> Moved | None:
        """Play a turn from :meth:`turns`; None if it was left out, as ``skip`` allows.

        Raises:
            Arrested: if ``prompt`` is set and it is not finite, nor may be left out.
        """
        spared = self.skipped < self._skip
        moved = turn.player(turn.parts, self._clip, spared or self.prompt)
        if moved is None and not spared:
            raise Arrested(turn)
        self._clear()
        if moved is None:
            self.skipped += 1
            return None
        for after in turn.player.move.after:
            after()
        return moved

    def _clear(self) -> None:
        for parameter in self._everyone:
            parameter.grad = None

    def _batch(self, rng: Streams, progress: Tensor) -> Batch:
        batch = replace(self._source(rng), progress=progress)
        if self._world.size > 1:
            batch = replace(batch, mean=self._world.mean)
        if batch.x0.shape[0] != len(rng.index):
            raise ValueError(
                f"source: expected {len(rng.index)} rows, one for each of the streams, "
                f"got {batch.x0.shape[0]}; draw with the streams' own methods"
            )
        if self._game.prepare is None:
            return batch
        with torch.no_grad(), self.players[0].precision.context(rng.device):
            return self._game.prepare(batch)


def fit(
    game: Game | Stages,
    source: Source,
    *,
    steps: int,
    seed: int,
    batch: int,
    optimizer: OptimizerFactory = _OPTIMIZER,
    schedule: Schedule = _SCHEDULE,
    clip: float | None = None,
    precision: Precision = Precision.AUTO,
    compile: bool = False,
    start: int = 0,
    artifacts: Mapping[str, Artifact] = _NOTHING,
    world: World = _ALONE,
    accumulate: int = 1,
    skip: int = 0,
) -> Fit:
    """Play ``game`` for the steps start, ..., steps - 1, one at each iteration.

    In a step every move plays ``when(step)`` times, in order: it draws, differentiates its loss
    with a plain backward pass, clips and steps its own module; then the gradients of all players
    are cleared, since a loss may have run through another player's weights, and the move's
    ``after`` is done. Every turn of a move after its first gets a batch of its own; the others
    share the step's. ``game.prepare`` runs once for each batch drawn.

    :class:`saltus.games.Stages` are played one after another, each for its share of the steps. Progress,
    learning rates and ``when`` begin anew in each; the step's index, and with it all randomness, does not.

    Args:
        game: who moves (:func:`saltus.games.as_game` makes one of a bare objective), or stages of games.
        source: streams -> batch; its rows are those of the streams, its randomness theirs.
        steps: how many the whole run has; progress is step / steps, within a stage.
        seed: of all randomness in the steps.
        batch: rows.
        optimizer: for moves that bring none; :class:`AdamW` by default.
        schedule: progress -> factor on every optimiser's learning rates; constant by default.
        clip: largest norm of a move's gradient; None leaves it alone.
        precision: of the losses.
        compile: whether each move's loss goes through :func:`saltus.autodiff.compiled`, which takes half
            a minute before the first step.
        start: the first step to play.
        artifacts: what the stages before ``start`` have produced, as ``Fit.artifacts`` of the run that
            played them (:func:`saltus.training.restore_artifacts` reads them from disk).
        world: the processes of the run. Each calls this with its modules through
            :func:`saltus.training.shard`, and has a part of the batch's rows.
        accumulate: micro-batches of each process in a move; a move steps when they all are done.
        skip: so many moves of the run may have a loss or a gradient that is not finite. Such a move leaves
            weights, optimiser and what comes after it as they were. Until they are used up, every move waits
            for one answer of the device.

    Raises:
        ValueError: for an impossible count, a move without trainable parameters, or a start in a stage
            whose artifacts are missing.
        NonFiniteLoss: in the last step of a run or stage in which a number was not finite; a reader of the
            steps (:class:`saltus.training.Log`, ``step.fetch()``) tells it earlier.
    """
    if not isinstance(game, Game | Stages):
        raise ValueError(
            f"game: expected a Game, got {type(game).__name__}; use saltus.games.as_game(objective, student)"
        )
    if not 0 <= start <= steps or batch < 1:
        raise ValueError(
            f"fit: expected 0 <= start <= steps and batch >= 1, got start={start}, steps={steps}, "
            f"batch={batch}; ask for more steps or rows"
        )
    if skip < 0:
        raise ValueError(f"skip: expected a number of moves, or 0 to skip none, got {skip}")
    if clip is not None and not clip > 0.0:
        raise ValueError(f"clip: expected a norm above 0, got {clip}; None turns clipping off")

    def enlist(game: Game) -> tuple[Player, ...]:
        names = [move.name for move in game.moves]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"game: expected moves with different names, got {names}; rename them")
        return tuple(Player(move, optimizer, precision, compile, world) for move in game.moves)

    return Fit(
        Stages((Stage("", lambda _: game),)) if isinstance(game, Game) else game,
        enlist,
        source,
        seed=seed,
        batch=batch,
        steps=steps,
        start=start,
        artifacts=artifacts,
        schedule=schedule,
        clip=clip,
        world=world,
        accumulate=accumulate,
        skip=skip,
    )
