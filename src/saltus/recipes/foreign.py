"""A folder of diffusers as a teacher, and what a student of it needs to know to be built, asked and seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from saltus.interpolants import Interpolant, Linear
from saltus.maps import AverageVelocity
from saltus.methods import Method, Need
from saltus.methods import load as load_method
from saltus.recipes.decoded import Decoder
from saltus.recipes.folder import OPTIONS
from saltus.recipes.model import FOREIGN, ModelSpec
from saltus.recipes.opened import Finished
from saltus.recipes.options import Training
from saltus.recipes.prompts import Prompts
from saltus.recipes.teacher import TeacherRun
from saltus.teachers.diffusers.lora import LoRA
from saltus.teachers.diffusers.plain import described, files_of, opened, prompts_of
from saltus.typing import Condition

__all__ = ["ForeignTeacher", "foreign_teacher", "is_foreign", "lesson", "said_to"]

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler"
VAE = "vae"
NULLED = 0.1
"""What is said of the dropout of a model that knows what no condition is."""


def is_foreign(place: Path) -> bool:
    """Whether a folder holds a model of diffusers rather than a run."""
    return (place / INDEX).is_file() or (
        (place / CONFIG).is_file() and not (place / OPTIONS).exists() and (place / SCHEDULER).is_dir()
    )


@dataclass(frozen=True, eq=False)
class ForeignTeacher(TeacherRun):
    """A model of diffusers that teaches.

    Attributes:
        prompts: the texts that its students learn, or None.
    """

    prompts: Prompts | None = None

    def student(self, method: Method, onto: Interpolant, guided: bool, lora: int | None) -> ModelSpec:
        """Its student's network.

        Args:
            method: that trains it.
            onto: the method's path.
            guided: whether a strength of guidance is an input.
            lora: the rank of adapters; None trains every weight.

        Raises:
            ValueError: for a method that needs what such a network has not.
        """
        if Need.HEAD in method.card.needs:
            raise ValueError(
                f"method {method.name}: it needs a network with a second output, which a diffusers model has "
                "not; choose another, such as freeflow or lmd"
            )
        size = None if lora is None else LoRA(rank=lora)
        foreign = described(opened(self.place).model, onto, size)
        return replace(self.run.spec, guidance=guided, foreign=foreign)

    @property
    def decode(self) -> Decoder | None:
        """Its samples to pictures: by the pipeline's autoencoder, or their first channels as they are; None
        where they are pictures."""
        if (self.place / VAE / CONFIG).is_file():
            return Decoder(str(self.place))
        return None if self.run.shape[0] in (1, 3) else Decoder("")

    @property
    def marks(self) -> Mapping[str, str]:
        """The texts, by their content."""
        return {} if self.prompts is None else {"prompts": self.prompts.digest}

    def keep(self, folder: Path) -> None:
        """Write the texts' embeddings into a run's folder."""
        if self.prompts is not None:
            self.prompts.save(folder)

    @property
    def files(self) -> Mapping[str, Path]:
        """What its answers depend on, by name."""
        return {f"teacher's {path.relative_to(self.place)}": path for path in files_of(self.place)}


def foreign_teacher(place: Path, prompts: Path | None = None, kept: Path | None = None) -> ForeignTeacher:
    """The teacher in a folder of diffusers.

    Args:
        place: the folder.
        prompts: a file of texts, one a line, for a model of texts; labels are then their numbers.
        kept: the folder of a run that may have these texts as embeddings already.

    Raises:
        ValueError: for a folder that cannot be opened, a consistency model, which has no velocity, or prompts
            that are missing or not wanted.
    """
    place = place.resolve()
    model, backbone = opened(place)
    if model.path.endpoint:
        raise ValueError(
            f"teacher {place}: expected a model whose answers are means or velocities, got a consistency "
            f"model by its scheduler, {model.path.config['_class_name']}, whose answers are ends of jumps; "
            "distil the model that it was made of, or put that model's own scheduler back if only the "
            "scheduler was exchanged"
        )
    foreign = described(model)
    textual = "tokens" in model.family.takes
    if textual is (prompts is None):
        got, fix = ("none", "give --prompts FILE.txt") if textual else (str(prompts), "drop --prompts")
        what = "texts, one a line, for a model of texts" if textual else "no texts for a model of classes"
        raise ValueError(f"prompts: expected {what}, got {got}; {fix}")
    texts = None if prompts is None else Prompts.read(prompts, place, kept)
    backbone.learn(None if texts is None else texts.cond)
    classes = model.classes if texts is None else len(texts.texts)
    spec = ModelSpec(
        shape=tuple(foreign["shape"]),
        backbone=FOREIGN,
        size=foreign["network"]["_class_name"],
        classes=classes,
        foreign=foreign,
    )
    run = Finished(
        model=AverageVelocity(backbone),
        spec=spec,
        method=load_method("flow_matching"),
        interpolant=Linear(),
        recipe=place.name,
        dropout=0.0 if not foreign["null"] else NULLED,
        weights=place,
    )
    return ForeignTeacher(run, place, texts)


def lesson(lora: bool) -> Training:
    """How students of diffusers are trained by default."""
    return Training(steps=2000, batch=16, lr=1e-4 if lora else 1e-5, clip=1.0)


def said_to(done: Finished, prompt: str, label: int | None = None) -> Condition:
    """The condition of a text, of one row, as the text encoders make it that a student's teacher came with.

    Raises:
        ValueError: for a run that takes no texts, a label besides, or a teacher that is no longer there.
    """
    base = (done.spec.foreign or {}).get("base")
    if base is None or label is not None:
        got = f"{done.name}, which is none" if base is None else f"label {label} besides"
        raise ValueError(
            f"prompt: expected a student of a diffusers model of texts, got {got}; drop --prompt"
        )
    folder = Path(base["folder"])
    if not folder.is_dir():
        raise ValueError(
            f"prompt: expected the text encoders of the teacher in {folder}, found nothing there; put it "
            "back, or ask for one of the run's own prompts with --label"
        )
    return prompts_of(folder, (prompt,))
