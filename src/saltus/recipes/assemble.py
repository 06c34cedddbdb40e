"""An experiment: a system, a method, a model and how it is trained; and the run that it makes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from saltus import __version__
from saltus.games import Game, Stages, as_game
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import Interpolant, Linear, Trigonometric
from saltus.maps import NetworkMap
from saltus.methods import Method, Need
from saltus.methods import load as load_method
from saltus.objectives import Sum
from saltus.recipes.folder import OPTIONS, WEIGHTS, write_json
from saltus.recipes.model import ModelSpec
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.system import System
from saltus.training import EMA, AdamW, Cosine, Fit, Log, Precision, fit, initialised, save_weights

__all__ = ["Experiment", "assemble", "interpolant_of", "train"]


GUIDED = ("guidance", "dropout")
"""What a method's function takes if it learns the map of a guided velocity."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a run needs.

    Attributes:
        system: what is learned.
        method: how.
        plain: whether the method's plain form is taken (see :class:`saltus.methods.Card`).
        guidance: the largest strength of guidance that the map learns; None learns none.
        jump_weight: see :func:`emphasised`.
        spec: the model.
        training: the options of the loop.
        output: where results go.
        own: the recipe's own options, by name, as plain data.
    """

    system: System
    method: Method
    plain: bool
    guidance: float | None
    jump_weight: float
    spec: ModelSpec
    training: Training
    output: Output
    own: dict[str, object]

    @property
    def name(self) -> str:
        """SYSTEM-METHOD."""
        return f"{self.system.name}-{self.method.name}"

    @property
    def folder(self) -> Path:
        """Where the run goes."""
        return self.output.out or Path("runs") / self.name

    @property
    def interpolant(self) -> Interpolant:
        """The path that the method trains on."""
        return interpolant_of(self.method, self.plain)

    def model(self) -> NetworkMap:
        """The student, its initial weights a function of the seed."""
        return initialised(self.training.seed, self.spec.build)

    def game(self, student: NetworkMap) -> Game | Stages:
        """The method's players, in stages if it has any."""
        options = dict(self.method.card.plain) if self.plain else {}
        needed = Need.CRITIC in self.method.card.needs
        critic = initialised(self.training.seed + 1, self.spec.build) if needed else None
        if self.guidance is not None:
            options |= {"guidance": GuidanceInput(self.guidance), "dropout": LabelDropout(0.1)}
        built = self.method.wired(student, teacher=self.system.velocity, critic=critic, **options)
        return emphasised(as_game(built, student), self.jump_weight)

    def fit(self, student: NetworkMap) -> Fit:
        """The loop over the game."""
        t = self.training
        return fit(
            self.game(student),
            self.system.source,
            steps=t.steps,
            seed=t.seed,
            batch=t.batch,
            optimizer=AdamW(t.lr),
            schedule=Cosine(warmup=min(0.99, t.warmup / t.steps)),
            clip=t.clip,
            precision=Precision(t.precision),
            compile=t.compile,
        )

    def options(self) -> dict[str, object]:
        """What ``options.json`` holds: enough to run again."""
        spec = self.spec
        network = {"backbone": spec.backbone, "size": spec.size, "parametrisation": spec.parametrisation}
        return {
            "recipe": self.system.name,
            "method": self.method.name,
            "options": {"recipe": self.own, "network": network, "training": asdict(self.training)},
            "saltus": __version__,
        }

    def meta(self) -> dict[str, object]:
        """What the weights file says of itself: enough to sample."""
        return {
            "model": self.spec.plain(),
            "method": self.method.name,
            "recipe": self.system.name,
            "plain": self.plain,
            "steps": self.training.steps,
            "saltus": __version__,
        }


def interpolant_of(method: Method, plain: bool) -> Interpolant:
    """The interpolant that a method trains on: its default, or that of its plain form."""
    parameter = inspect.signature(method.build).parameters.get("interpolant")
    usual: Interpolant = Linear() if parameter is None else parameter.default
    plainly: Interpolant = method.card.plain.get("interpolant", usual)
    return plainly if plain else usual


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


def _check(method: Method, system: System, training: Training, guidance: float | None) -> None:
    if Need.TEACHER in method.card.needs and system.velocity is None:
        raise ValueError(
            f"method {method.name}: it needs a teacher, and {system.name} has none of its own; "
            f"use saltus distill RUN --method {method.name}"
        )
    if training.steps < 1 or training.batch < 1 or training.warmup < 0:
        raise ValueError(
            f"training: expected steps and batch of at least 1 and warmup of at least 0, got "
            f"steps={training.steps}, batch={training.batch}, warmup={training.warmup}"
        )
    if not -(2**63) <= training.seed < 2**63:
        raise ValueError(f"seed: expected a number of at most 64 bits, got {training.seed}")
    if guidance is None:
        return
    if system.classes is None:
        raise ValueError(
            f"guidance {guidance:g}: it needs labels, but {system.name} has none here; "
            "keep the labels or drop --guidance"
        )
    if not 1.0 < guidance < math.inf:
        raise ValueError(f"guidance: expected a largest strength above 1 (1 is no guidance), got {guidance}")
    taken = inspect.signature(method.build).parameters
    if not all(name in taken for name in GUIDED):
        raise ValueError(f"guidance: {method.name} does not learn a guided map; lsd and esd do")


def assemble(
    system: System,
    method: str,
    plain: bool,
    network: Network,
    training: Training,
    output: Output,
    own: dict[str, object],
    guidance: float | None = None,
    jump_weight: float = 1.0,
) -> Experiment:
    """Put the parts together, or say which do not fit."""
    found = load_method(method)
    _check(found, system, training, guidance)
    rotating = isinstance(interpolant_of(found, plain), Trigonometric)
    parametrisation = network.parametrisation or ("trigonometric" if rotating else "average")
    spec = ModelSpec(
        shape=system.shape,
        backbone=network.backbone,
        size=network.size,
        parametrisation=parametrisation,
        sigma_data=system.sigma_data,
        classes=system.classes,
        heads=("v",) if Need.HEAD in found.card.needs else (),
        guidance=guidance is not None,
    )
    own = {**own, "plain": plain}
    if output.grid_every < 0:
        raise ValueError(f"grid every: expected a number of steps, or 0 for never, got {output.grid_every}")
    if not 0.0 < jump_weight < math.inf:
        raise ValueError(f"jump weight: expected a factor above 0, got {jump_weight}; 1 is the method's own")
    return Experiment(system, found, plain, guidance, jump_weight, spec, training, output, own)


def train(
    experiment: Experiment, folder: Path | None, grid: Callable[[NetworkMap, int], None] | None = None
) -> NetworkMap:
    """Train and return the averaged weights as a flow map.

    Args:
        experiment: what to train.
        folder: exists and is empty; gets the options, metrics and weights. None writes nothing.
        grid: called with the averaged map and the step, every ``grid_every`` steps but the last.
    """
    t, every = experiment.training, experiment.output.grid_every
    student = experiment.model()
    ema = EMA(student, t.ema)
    averaged = ema.module
    assert isinstance(averaged, NetworkMap)
    if folder is not None:
        write_json(folder / OPTIONS, experiment.options())
    console = Console(quiet=experiment.output.quiet, highlight=False)
    with Log(folder, steps=t.steps, batch=t.batch, every=min(50, t.steps), console=console) as log:
        for step in experiment.fit(student):
            ema.update()
            log(step)
            done = step.index + 1
            if grid is not None and every and done % every == 0 and done < t.steps:
                grid(averaged, done)
    if folder is not None:
        save_weights(folder / WEIGHTS, {"ema": averaged, "raw": student}, experiment.meta())
    return averaged
