"""CIFAR-10: 50,000 pictures of 32 x 32 pixels in ten classes, in settings of three sizes.

A setting is a set of defaults: the network, how it is trained, whether classes are learned, and what of the
method differs from its own defaults. Any option that is given beside it wins. ``published`` is what a paper
trained; what could not be taken over is told when the run starts, so that nobody compares two things that
are not the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from saltus.data.cifar10 import open_cifar10
from saltus.methods import Method, Need
from saltus.recipes.assemble import assemble
from saltus.recipes.experiment import Experiment
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.pictured import Bringing, loading_of, pictures_system
from saltus.times import LogitNormal
from saltus.weights import AdaptivePower, LearnedLogVariance

__all__ = ["PUBLISHED", "RECIPE", "SETTINGS", "Setting", "cifar10"]

RECIPE = "CIFAR-10: --data FOLDER of its Parquet or binary files; --setting small, cpu or published"


@dataclass(frozen=True)
class Setting:
    """Defaults of this recipe.

    Attributes:
        network: its options.
        training: its options.
        labels: whether classes are learned.
        flip: whether pictures are mirrored.
        teacher_steps: of the teacher of a method that needs one.
        arguments: of the method, built anew for each run because weights may learn.
        unlike: what the source did that this does not.
    """

    network: Network
    training: Training
    labels: bool = True
    flip: bool = True
    teacher_steps: int = 20_000
    arguments: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    unlike: tuple[str, ...] = ()


SETTINGS = {
    "small": Setting(
        Network("unet", "base"),
        Training(steps=20_000, batch=512, lr=5e-4, warmup=500, clip=1.0, ema=(0.9995,)),
    ),
    "cpu": Setting(
        Network("unet", "small"),
        Training(steps=600, batch=64, lr=1e-3, warmup=50, clip=1.0, ema=(0.99,)),
        teacher_steps=600,
    ),
}
"""For any method: a GPU's minutes, and minutes of two CPU cores."""

_FLOW_MAP = Setting(  # Boffi et al. 2025, arXiv 2505.18825, table 2 and appendix G
    Network("edm2", "cifar10"),
    Training(
        steps=400_000,
        batch=512,
        lr=1e-2,
        optimizer="radam",
        schedule="inverse-sqrt",
        hold=35_000,
        clip=1.0,
        ema=(0.9999, 0.999),
        precision="float32",
    ),
    labels=False,
    flip=False,
    arguments={"weight": LearnedLogVariance},
    unlike=(
        "no dropout (0.13 on the diagonal)",
        "pixels in [-1, 1] with noise of deviation 1 (0.5, that of the pixels)",
    ),
)

PUBLISHED: Mapping[str, Setting] = {
    "lsd": _FLOW_MAP,
    "psd": _FLOW_MAP,
    "psd_midpoint": _FLOW_MAP,
    "esd": replace(_FLOW_MAP, unlike=(*_FLOW_MAP.unlike, "nothing is known to compare: theirs diverged")),
    "mean_flow": Setting(  # Geng et al. 2025, arXiv 2505.13447, appendix A
        Network("ddpmpp", "cifar10"),
        Training(
            steps=800_000,
            batch=1024,
            lr=6e-4,
            schedule="constant",
            warmup=10_000,
            ema=(0.99995,),
            precision="float32",
        ),
        labels=False,
        flip=False,
        arguments={
            "times": lambda: LogitNormal(2.0, 2.0),
            "diagonal": lambda: 0.25,
            "weight": lambda: AdaptivePower(p=0.75, c=1e-3),
        },
        unlike=("no dropout (0.2)", "no augmentation (EDM's, in their code)"),
    ),
    "ect": Setting(  # Geng et al. 2024, arXiv 2406.14548: batch 128 for 400,000 steps, its longest run
        Network("ddpmpp", "cifar10"),
        Training(
            steps=400_000,
            batch=128,
            lr=1e-4,
            optimizer="radam",
            schedule="constant",
            ema=(0.9999,),
            precision="float32",
        ),
        labels=False,
        flip=False,
        unlike=("no dropout (0.2)", "EDM's parametrisation and weights: give a trained map with --start RUN"),
    ),
}
"""What papers trained on CIFAR-10, by method."""


def _setting(method: Method, name: str) -> Setting:
    if name == "published":
        if method.name not in PUBLISHED:
            raise ValueError(
                f"setting published: expected a method with a published setting for CIFAR-10 "
                f"({', '.join(PUBLISHED)}), got {method.name}; take --setting small"
            )
        return PUBLISHED[method.name]
    return SETTINGS[name]


def usual(method: Method, setting: str | None) -> dict[str, object]:
    """The defaults of a setting; of an unknown one none, for the options tell which there are."""
    name = setting or "small"
    if name not in (*SETTINGS, "published"):
        return {}
    found = _setting(method, name)
    training = found.training
    if Need.TEACHER in method.card.needs:  # it starts with its teacher's weights
        training = replace(training, steps=training.steps // 2)
    return {
        "network": found.network,
        "training": training,
        "labels": found.labels,
        "flip": found.flip,
        "teacher_steps": found.teacher_steps,
    }


def cifar10(
    data: Annotated[Path, tyro.conf.arg(metavar="PATH")],
    method: str = "lsd",
    setting: Literal["small", "cpu", "published"] = "small",
    plain: bool = False,
    labels: bool = True,
    flip: bool = True,
    guidance: float | None = None,
    dropout: float | None = None,
    teacher_steps: int = 20_000,
    jump_weight: float = 1.0,
    loading: Bringing = Bringing(),
    network: Network = SETTINGS["small"].network,
    training: Training = SETTINGS["small"].training,
    output: Output = Output(),
) -> Experiment:
    """Learn to draw CIFAR-10's pictures, by class or not.

    The data are a folder with train.parquet and test.parquet, as the Hub has them, or with the files of the
    binary version (data_batch_1.bin, ...). A setting is a set of defaults, which this page shows: small takes
    minutes on a GPU, cpu minutes on two cores, published is what the method's paper trained.

    examples:
      saltus run cifar10-lsd --data cifar10
      saltus run cifar10-mean_flow --data cifar10 --setting cpu --out runs/mf
      saltus run cifar10-lsd --data cifar10 --setting published --compile --dry-run
      saltus run cifar10-freeflow --data cifar10 --setting cpu

    Args:
        data: Folder or file.
        method: Any method that saltus methods lists.
        setting: Defaults of everything else.
        plain: Take the method's squared-error form instead of its paper's weights.
        labels: Give the network the class of each picture.
        flip: Mirror half of the pictures left to right, drawn anew each time.
        guidance: Learn the map at every strength of guidance up to this one; 1 is none.
        dropout: Share of labels dropped in training; None drops some where guidance needs it.
        teacher_steps: For methods that need a teacher: steps that train it first.
        jump_weight: Factor on the terms of the loss that teach jumps; 1 is the method's own.
        loading: How pictures come from the disk.
        network: The network.
        training: How it is trained.
        output: Where results go.
    """
    images = open_cifar10(data)
    images = images if labels else replace(images, labels=None, classes=None)
    system = pictures_system("cifar10", images, training.batch, flip, loading_of(loading))
    folder = loading.cache_folder
    own: dict[str, object] = {
        "data": str(data.resolve()),
        "setting": setting,
        "labels": labels,
        "flip": flip,
        "guidance": guidance,
        "dropout": dropout,
        "teacher_steps": teacher_steps,
        "jump_weight": jump_weight,
        "loading": {**asdict(loading), "cache_folder": None if folder is None else str(folder.resolve())},
    }
    parts = (system, method, plain, network, training, output, own)
    lesson = replace(training, steps=teacher_steps)
    arguments: dict[str, object] = {}
    if setting == "published":
        source = PUBLISHED[method]  # usual() has refused methods without one
        arguments = {name: make() for name, make in source.arguments.items()}
        if not output.quiet:
            print(f"setting published, unlike the paper: {'; '.join(source.unlike)}", file=sys.stderr)
    return assemble(*parts, guidance, jump_weight, dropout, lesson, arguments)
