"""An experiment: a system, a method, a model, perhaps a teacher, and how it is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from saltus import __version__
from saltus.autodiff import recomputed
from saltus.data import Noise
from saltus.games import Game, Stages, as_game, reprojecting
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import Interpolant
from saltus.maps import NetworkMap
from saltus.methods import Method, Need
from saltus.nn import Discriminator, heads_on
from saltus.recipes.averages import table
from saltus.recipes.judged_by_teacher import TeacherTruth
from saltus.recipes.machine import joined
from saltus.recipes.model import ModelSpec
from saltus.recipes.opened import Finished
from saltus.recipes.optimisation import optimizer_of, schedule_of
from saltus.recipes.options import Output, Training
from saltus.recipes.origins import prints
from saltus.recipes.parts import dropout_role, emphasised, interpolant_of
from saltus.recipes.system import Judge, System
from saltus.recipes.teacher import Interval, TeacherRun, open_teacher
from saltus.samplers import prior
from saltus.streams import Streams
from saltus.teachers import teacher as on_path
from saltus.training import Fit, Precision, World, built, fit, initialised
from saltus.typing import Batch, Velocity

__all__ = ["TEACHER", "Experiment"]

DROPOUT = 0.1
"""The rate at which labels are dropped where guidance needs it."""
TEACHER = "teacher"
"""The folder of a run's own teacher in its run folder, and the word for another one in its options."""
SHAPE = "shape"
"""The parameter of a method that keeps samples, such as pairs that its teacher made."""
CORRECTION = "correction_interval"
"""The parameter of a method that guides a part of it on an interval of its own."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a run needs.

    Attributes:
        system: what is learned.
        method: how.
        plain: whether the method's plain form is taken (see :class:`saltus.methods.Card`).
        guidance: the largest strength of guidance that the map learns; None learns none.
        dropout: the rate at which labels are dropped; None drops them where guidance needs it.
        jump_weight: see :func:`emphasised`.
        spec: the model.
        training: the options of the loop.
        output: where results go.
        network: the options of the network, by name, as plain data.
        own: the recipe's own options, by name, as plain data.
        interval: the times between which guidance applies; None is always.
        teacher: a finished run that teaches; None leaves it to the system's exact velocity.
        first: trains the teacher, in a folder of this run's, where neither is there.
        inherits: whether the student starts from the teacher's weights if it can.
        start: a finished run, no teacher, whose weights the student starts with.
        processes: that train; None joins those that torchrun started.
        arguments: of the method, where the recipe's are not its defaults.
    """

    system: System
    method: Method
    plain: bool
    guidance: float | None
    jump_weight: float
    spec: ModelSpec
    training: Training
    output: Output
    network: dict[str, object]
    own: dict[str, object]
    dropout: float | None = None
    interval: tuple[float, float] | None = None
    teacher: TeacherRun | None = None
    first: Experiment | None = None
    inherits: bool = True
    start: TeacherRun | None = None
    processes: World | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)

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

    @property
    def world(self) -> World:
        """The processes that train, and this one's device."""
        return self.processes or joined(self.training.machine)

    @property
    def data_free(self) -> bool:
        """Whether training reads no data."""
        return Need.DATA not in self.method.card.needs

    @property
    def source(self) -> Callable[[Streams], Batch]:
        """Where batches come from: the system's data, or noise alone."""
        free = Noise(self.system.shape, self.system.classes)
        source = free if self.data_free else self.system.source
        return source if self.interval is None else Interval(source, self.interval)

    def reference(self, rng: Streams) -> Batch:
        """A batch that pictures hold a map against: data, or in their place a teacher's samples."""
        if self.teacher is None:
            return self.system.source(rng)
        batch = Noise(self.system.shape, self.system.classes)(rng)
        x0 = prior(rng.named("reference"), self.system.shape, self.interpolant)
        return replace(batch, x1=self.teacher.sends(x0, self.interpolant, batch.cond))

    @property
    def dropped(self) -> float:
        """The rate at which labels are dropped in training."""
        guided = self.guidance is not None and dropout_role(self.method) is not None
        usual = DROPOUT if guided else 0.0
        return usual if self.dropout is None else self.dropout

    @property
    def starts_as_teacher(self) -> bool:
        """Whether the student's initial weights are the teacher's."""
        teacher = self.teacher
        return self.inherits and teacher is not None and teacher.suits(self.spec, self.interpolant)

    def taught(self, place: Path) -> Experiment:
        """The same with the run at ``place`` as its teacher."""
        return replace(self, teacher=open_teacher(place))

    def under(self, model: NetworkMap) -> Experiment:
        """The same with a map in memory, such as the untrained one of ``first``, as its teacher."""
        first = self.first
        assert first is not None
        rate = first.dropped
        run = Finished(model, first.spec, first.method, first.interpolant, first.system.name, rate, Path())
        return replace(self, teacher=TeacherRun(run, Path()))

    def model(self) -> NetworkMap:
        """The student: the teacher's weights, or initial ones that are a function of the seed.

        Like all networks that train, it is on the world's device and, with several processes, sharded; a copy
        for one of them alone is :func:`saltus.training.gathered`.
        """

        def student() -> NetworkMap:
            made = initialised(self.training.seed, self.spec.build)
            if self.starts_as_teacher:
                assert self.teacher is not None
                self.teacher.start(made)
            elif self.teacher is not None:
                self.teacher.tell(made)
            if self.start is not None:
                self.start.hand_on(made)
            return made

        if self.teacher is not None and self.spec.shares:  # before anything is made of its weights
            base = self.teacher.run.model
            if next(base.parameters()).device != self.world.device:
                base.to(self.world.device)
        return self._trained(built(student, self.world, outline=self.spec.build))

    def critic(self) -> NetworkMap:
        """The critic: the teacher's network with its weights where that can be, else the student's anew."""
        teacher = self.teacher
        spec = replace(self.spec, heads=())
        alike = spec
        if teacher is not None and spec.foreign is None:
            alike = replace(teacher.run.spec, guidance=spec.guidance, heads=())
        inherits = teacher is not None and teacher.suits(alike, self.interpolant)
        chosen = alike if inherits else spec

        def critic() -> NetworkMap:
            made = initialised(self.training.seed + 1, chosen.build)
            if inherits:
                assert teacher is not None
                teacher.start(made)
            elif teacher is not None:
                teacher.tell(made)
            return made

        return self._trained(built(critic, self.world, outline=chosen.build))

    def discriminator(self) -> Discriminator:
        """Heads on the frozen features of the teacher or, where no teacher of its kind is on the method's
        path, on those of a network like the student's, of the smallest size, which then learn with them."""
        teacher, pairs, seed = self.teacher, self.method.card.pairs, self.training.seed
        if teacher is not None and teacher.run.spec.foreign is None:
            if teacher.suits(teacher.run.spec, self.interpolant):
                twin, model = teacher.run.model, teacher.placed(self.world).run.model
                return initialised(  # small, and the same on every process, which all hold it whole
                    seed + 2, lambda: heads_on(model, self.spec.shape, pairs=pairs, twin=twin)
                )
        spec = replace(self.spec, heads=(), size=self.spec.size if self.spec.foreign else "tiny")

        def learned() -> Discriminator:
            return heads_on(spec.build(), spec.shape, pairs=pairs, learned=True)

        return built(lambda: initialised(seed + 2, learned), self.world, outline=learned)

    def _trained(self, network: NetworkMap) -> NetworkMap:
        """The same, as the machine's options want what trains."""
        if self.training.machine.recompute:
            recomputed(network.backbone)
        return network

    def velocity(self) -> Velocity | None:
        """The teacher on the method's path: a run, the exact velocity, or None."""
        if self.teacher is not None:
            return self.teacher.placed(self.world).velocity(self.interpolant)
        exact = self.system.velocity
        return None if exact is None else on_path(exact, onto=self.interpolant)

    def judge(self) -> Judge:
        """Who judges: the system, and before it the teacher if a run teaches."""
        own = self.system.judge()
        if self.teacher is None:
            return own
        return TeacherTruth(self.teacher, self.interpolant, own, self.interval).judge()

    @property
    def has_critic(self) -> bool:
        """Whether a critic plays too."""
        return Need.CRITIC in self.method.card.needs

    @property
    def has_discriminator(self) -> bool:
        """Whether a discriminator plays too."""
        return Need.DISCRIMINATOR in self.method.card.needs

    def game(self, student: NetworkMap, critic: NetworkMap | None = None) -> Game | Stages:
        """The method's players, in stages if it has any; the critic is :meth:`critic` unless given."""
        options = {**self.arguments, **(self.method.card.plain if self.plain else {})}
        if critic is None and self.has_critic:
            critic = self.critic()
        role = dropout_role(self.method)
        if role is not None and self.dropped > 0.0:
            options[role] = LabelDropout(self.dropped)
        if self.guidance is not None:
            options["guidance"] = GuidanceInput(self.guidance)
        taken = inspect.signature(self.method.build).parameters
        if SHAPE in taken:
            options[SHAPE] = self.system.shape
        if self.interval is not None and CORRECTION in taken:
            low, high = taken[CORRECTION].default
            options[CORRECTION] = (max(low, self.interval[0]), max(low, min(high, self.interval[1])))
        others = {"discriminator": self.discriminator()} if self.has_discriminator else {}
        made = self.method.wired(student, teacher=self.velocity(), critic=critic, **others, **options)
        return reprojecting(emphasised(as_game(made, student), self.jump_weight))

    def fit(self, student: NetworkMap, game: Game | Stages | None = None) -> Fit:
        """The loop over the game, which is :meth:`game` unless given."""
        t = self.training
        return fit(
            self.game(student) if game is None else game,
            self.source,
            steps=t.steps,
            seed=t.seed,
            batch=t.batch,
            optimizer=optimizer_of(t),
            schedule=schedule_of(t),
            clip=t.clip,
            precision=Precision(t.precision),
            compile=t.machine.compile,
            world=self.world,
            accumulate=t.machine.accumulate,
            skip=t.machine.skip_nonfinite,
        )

    def options(self) -> dict[str, object]:
        """What ``options.json`` holds: enough to run again, and what the files that it names held."""
        teacher = {} if self.teacher is None or self.first is not None else {TEACHER: str(self.teacher.place)}
        told = prints(self._files()) | (dict(self.teacher.marks) if self.teacher is not None else {})
        return {
            "recipe": self.system.name,
            "method": self.method.name,
            **teacher,
            **({"files": {**told, **self.system.digests}} if told or self.system.digests else {}),
            "options": {"recipe": self.own, "network": self.network, "training": asdict(self.training)},
            "saltus": __version__,
        }

    def _files(self) -> dict[str, Path]:
        """The files that it learns from, by what they are to it."""
        files: dict[str, Path] = (
            {} if self.start is None else {"weights to start with": self.start.run.weights}
        )
        if self.teacher is not None and self.first is None:
            files |= self.teacher.files
            said = {name: self.own.get(name) for name in ("data", "labels")}
            files |= {name: Path(p) for name, p in said.items() if isinstance(p, str) and p.endswith(".npy")}
        return files

    def meta(self) -> dict[str, object]:
        """What the weights file says of itself: enough to sample."""
        return {
            "model": self.spec.plain(),
            "method": self.method.name,
            "recipe": self.system.name,
            "plain": self.plain,
            "dropout": self.dropped,
            "guidance": self.guidance,
            "steps": self.training.steps,
            "weights": table(self.training),
            **self.system.meta,
            "saltus": __version__,
        }
