"""From words to an experiment: a recipe's name, a teacher, or the options file of an earlier run."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from tyro import conf

from saltus.data import ImageData, Noise
from saltus.data.latents import Latents
from saltus.interpolants import Trigonometric
from saltus.methods import Method, Need
from saltus.methods import discover as discover_methods
from saltus.methods import load as load_method
from saltus.recipes import Recipe, load
from saltus.recipes.assemble import check
from saltus.recipes.data import data_source, names_place
from saltus.recipes.decoded import decoder_of
from saltus.recipes.experiment import TEACHER, Experiment
from saltus.recipes.folder import OPTIONS, read_json
from saltus.recipes.foreign import ForeignTeacher, foreign_teacher, is_foreign, lesson
from saltus.recipes.gallery import Gallery
from saltus.recipes.judged_by_teacher import alone
from saltus.recipes.model import HEADS, ModelSpec
from saltus.recipes.named import carried
from saltus.recipes.options import Output, Student, Training, as_arguments, parse
from saltus.recipes.parts import interpolant_of
from saltus.recipes.system import Judge, System
from saltus.recipes.teacher import TeacherRun, open_teacher
from saltus.streams import Streams
from saltus.typing import Batch

__all__ = ["distilled", "experiment"]

FLOW = "flow_matching"
ALONE = 2048
"""Samples that a judgement takes where the teacher is all that is known."""
FEW = 32
"""The same where it is a network of diffusers, which may be a large one."""


def experiment(name: str, args: Sequence[str]) -> Experiment:
    """The experiment of a recipe's name, or of a saved options file, with command-line options."""
    if not name.endswith(".json"):
        recipe, method = load(name)
        return _recipe(name, recipe, method, args)
    saved = read_json(Path(name), "saved options")
    groups = saved.get("options")
    texts = [saved.get("recipe"), saved.get("method")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(groups, dict):
        raise ValueError(f"saved options: expected the keys recipe, method and options in {name}")
    words = [*as_arguments(groups), *args]
    if isinstance(saved.get(TEACHER), str):
        teacher = _found(Path(saved[TEACHER]), Path(name))
        return distilled(teacher, ["--method", str(saved["method"]), *words], name, Path(name).parent)
    recipe, _ = load(saved["recipe"])
    return _recipe(name, recipe, saved["method"], words)


def _found(teacher: Path, options: Path) -> Path:
    if not teacher.exists():
        raise ValueError(
            f"teacher {teacher}: named in {options}, but found nothing there; put it back, or distil again "
            "with saltus distill TEACHER"
        )
    return teacher


def _recipe(name: str, recipe: Recipe, method: str | None, args: Sequence[str]) -> Experiment:
    defaults: dict[str, Any] = {} if method is None else {"method": method}
    function = recipe.function()
    method = method or _said(args, "--method") or inspect.signature(function).parameters["method"].default
    # a mistyped method is told before any option is
    defaults |= recipe.usual(load_method(method), _said(args, "--setting"))
    named = partial(function, **defaults) if defaults else function
    made = parse(named, f"saltus run {name}", args)
    assert isinstance(made, Experiment)
    return made


def _said(args: Sequence[str], option: str) -> str | None:
    """What follows an option, before it is known which defaults the others have."""
    return args[args.index(option) + 1] if option in args[:-1] else None


def distilled(
    teacher: Path, args: Sequence[str], name: str = "", kept: Path | None = None
) -> Experiment:
    """The distillation of the teacher at a path, with command-line options.

    Args:
        teacher: a run, its weights file, or a folder of diffusers.
        args: of the command line.
        name: of the command, for its help page.
        kept: the folder of a run whose options these are.
    """
    made_for: dict[str, Any] = {"training": lesson("--lora" in args)} if is_foreign(teacher) else {}
    function = partial(distillation, teacher, kept, **made_for)
    made = parse(function, f"saltus distill {name or teacher}", args)
    assert isinstance(made, Experiment)
    return made


def distillation(
    teacher: conf.Suppress[Path],
    kept: conf.Suppress[Path | None],
    /,
    *,
    method: str = "freeflow",
    data: str | None = None,
    labels: Annotated[Path | None, conf.arg(metavar="FILE")] = None,
    prompts: Annotated[Path | None, conf.arg(metavar="FILE.txt")] = None,
    lora: Annotated[int | None, conf.arg(metavar="RANK")] = None,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    plain: bool = False,
    scratch: bool = False,
    network: Student = Student(),
    training: Training = Training(),
    output: Output = Output(),
) -> Experiment:
    """Learn a teacher's flow map in one or a few steps: from the teacher alone, or from data too.

    examples:
      saltus distill runs/digits-flow_matching
      saltus distill runs/digits-flow_matching --method lmd --data digits
      saltus distill runs/digits-flow_matching --method emd --data x.npy --labels y.npy
      saltus distill runs/digits-flow_matching --guidance 3 --guidance-interval 0.2 0.9
      saltus distill stable-diffusion-v1-5/ --prompts prompts.txt --lora 64 --guidance 8

    Args:
        method: Any method that saltus methods lists with a teacher among its needs.
        data: A recipe's name, pictures (folder, .zip, .parquet, .npz) or a .npy array [N, ...]; methods
            without data do not read it.
        labels: A .npy array of N classes for an array of data, if the teacher has classes.
        prompts: Texts, one a line, for a diffusers model of texts; labels are then their numbers.
        lora: Train adapters of this rank beside a diffusers model, instead of all its weights.
        guidance: Learn the map at every strength of guidance up to this one; 1 is none.
        guidance_interval: The times between which guidance applies; 0 is noise, 1 is data.
        plain: Take the method's squared-error form instead of its paper's weights.
        scratch: Start at random instead of from the teacher's weights.
        network: The student's network; the teacher's by default.
        training: How it is trained.
        output: Where results go.
    """
    found = _taught(method)
    kept = kept or output.out or Path("runs") / f"{teacher.resolve().name}-{method}"
    run = _opened(teacher, kept, prompts, lora, network)
    if Need.DATA not in found.card.needs:
        if (data is not None or labels is not None) and not output.quiet:
            print(f"{method} learns without data: {data or labels} is not used and not read", file=sys.stderr)
        data, labels = None, None
        source: Callable[[Streams], Batch] = Noise(run.run.spec.shape, run.run.spec.classes)
    elif data is None:
        raise ValueError(
            f"method {method}: it needs data beside the teacher, got none; give a recipe's name or an array: "
            f"saltus distill {teacher} --method {method} --data {run.run.recipe}"
        )
    else:
        source = data_source(data, labels, run, training)
    _check_guidance(run, guidance)
    run.check(guided=guidance is not None)
    own: dict[str, object] = {
        "data": str(Path(data).resolve()) if data is not None and names_place(data) else data,
        "labels": None if labels is None else str(labels.resolve()),
        "guidance": guidance,
        "guidance_interval": guidance_interval,
        "plain": plain,
        "scratch": scratch,
    }
    if isinstance(run, ForeignTeacher):
        own |= {"prompts": None if prompts is None else str(prompts.resolve()), "lora": lora}
    return check(
        Experiment(
            system=_system(run, source),
            method=found,
            plain=plain,
            guidance=guidance,
            jump_weight=1.0,
            spec=_spec(run, found, plain, network, guidance, lora),
            training=training,
            output=output,
            network=asdict(network),
            own=own,
            interval=guidance_interval,
            teacher=run,
            inherits=not scratch,
        )
    )


def _taught(method: str) -> Method:
    """The method of that name, if it learns from a teacher."""
    found = load_method(method)
    if Need.TEACHER in found.card.needs:
        return found
    taught = ", ".join(n for n, m in discover_methods().items() if Need.TEACHER in m.card.needs)
    raise ValueError(
        f"method {method}: expected one that learns from a teacher ({taught}); "
        f"{method} learns from data alone: saltus run RECIPE-{method}"
    )


def _opened(
    place: Path, kept: Path | None, prompts: Path | None, lora: int | None, network: Student
) -> TeacherRun:
    """The teacher at a path: a run, or a model of diffusers."""
    if is_foreign(place):
        if network != Student():
            raise ValueError(
                f"teacher {place}: a student of a diffusers model is that network with a second time, got "
                "options of another network; drop --backbone, --size, --patch, --positions, --parametrisation"
            )
        return foreign_teacher(place, prompts, kept)
    for name, value in (("prompts", prompts), ("lora", lora)):
        if value is not None:
            raise ValueError(
                f"{name} {value}: expected a folder of diffusers as teacher, got {place}; drop --{name}"
            )
    return open_teacher(place)


def _spec(
    teacher: TeacherRun,
    method: Method,
    plain: bool,
    network: Student,
    guidance: float | None,
    lora: int | None,
) -> ModelSpec:
    """The student's network: the teacher's, but for what was asked for and what the method needs."""
    if isinstance(teacher, ForeignTeacher):
        return teacher.student(method, interpolant_of(method, plain), guidance is not None, lora)
    mine = teacher.run.spec
    rotating = isinstance(interpolant_of(method, plain), Trigonometric)
    usual = method.card.parametrisation or ("trigonometric" if rotating else mine.parametrisation)
    parametrisation = network.parametrisation or usual
    alike = network.backbone in (None, mine.backbone)  # another network has other options
    return replace(
        mine,
        backbone=network.backbone or mine.backbone,
        patch=network.patch or (mine.patch if alike else None),
        positions=network.positions or (mine.positions if alike else None),
        size=network.size or mine.size,
        parametrisation=parametrisation,
        heads=("v",) if Need.HEAD in method.card.needs else HEADS.get(parametrisation, ()),
        guidance=guidance is not None,
    )


def _check_guidance(teacher: TeacherRun, guidance: float | None) -> None:
    """Raise a ValueError if the teacher cannot be guided."""
    run = teacher.run
    if guidance is None:
        return
    if run.spec.classes is None:
        raise ValueError(
            f"guidance {guidance:g}: expected a teacher with labels, got {run.name} without; drop --guidance"
        )
    if run.dropout == 0.0:
        raise ValueError(
            f"guidance {guidance:g}: expected a teacher that also learned without labels, but {run.name} was "
            f"trained without label dropout; train one with saltus run {run.recipe}-{FLOW} --dropout 0.1"
        )


def _system(teacher: TeacherRun, source: Callable[[Streams], Batch]) -> System:
    """What the student learns: the teacher's flow, judged by its own recipe too where that is known."""
    spec, options = teacher.run.spec, teacher.place / OPTIONS
    known = options.is_file() and spec.foreign is None

    @cache
    def origin() -> System:
        return experiment(str(options), []).system

    def judge() -> Judge:
        if known:
            return origin().judge()
        return alone(ALONE if spec.foreign is None else FEW, spec.classes)()

    def gallery() -> Gallery | None:
        found = origin().gallery if known else None
        return None if found is None else found()

    digests = {"data": source.images.digest} if isinstance(source, ImageData) else {}
    digests |= {"data": source.digest} if isinstance(source, Latents) else {}
    names = carried(teacher.run.meta)
    known_as = teacher.run.recipe
    system = System(
        known_as,
        spec.shape,
        spec.sigma_data,
        spec.classes,
        source,
        judge,
        gallery=gallery,
        meta=names,
        digests=digests,
    )
    decode = teacher.decode if isinstance(teacher, ForeignTeacher) else decoder_of(teacher.run.meta)
    return system if decode is None else replace(system, decode=decode, meta={**names, **decode.meta})
