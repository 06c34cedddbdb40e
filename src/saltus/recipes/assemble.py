"""From parts to an experiment, and from an experiment to a trained map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace

from saltus.interpolants import Trigonometric
from saltus.methods import Method, Need
from saltus.methods import load as load_method
from saltus.recipes.experiment import DROPOUT, Experiment
from saltus.recipes.model import HEADS, ModelSpec
from saltus.recipes.optimisation import check_training
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.parts import dropout_role, guides, interpolant_of
from saltus.recipes.system import System
from saltus.recipes.teacher import open_start
from saltus.recipes.watch import check_output

__all__ = ["assemble", "check"]

FLOW = "flow_matching"
"""The method that trains a teacher where a run needs one of its own."""
DATA = ("data", "labels", "pictures", "latents", "loading")
"""A recipe's own options that say what is learned: those that a run's own teacher has too."""
ADAPTERS = "guidance_adapters"
"""The method whose student is no network of a recipe's."""


def check(made: Experiment) -> Experiment:
    """The experiment, or a ValueError that says what in it does not fit."""
    _check_numbers(made)
    method, system, guidance = made.method, made.system, made.guidance
    rate = made.dropout or 0.0
    if rate > 0.0 and dropout_role(method) is None:
        raise ValueError(f"dropout {rate:g}: {method.name} does not drop labels; flow_matching does")
    if rate > 0.0 and system.classes is None:
        raise ValueError(f"dropout {rate:g}: it needs labels, but {system.name} has none here")
    if method.name == ADAPTERS:
        raise ValueError(
            f"method {method.name}: it trains adapters beside a network, which saltus.nn.GuidanceAdapters "
            "makes in Python; guidance_input learns the same with the network itself"
        )
    if guidance is None:
        if Need.LABELS in method.card.needs:
            raise ValueError(
                f"method {method.name}: it learns guidance, so expected labels and a largest strength, got "
                "none; give --guidance 4, say"
            )
        if made.interval is not None:
            raise ValueError("guidance interval: expected --guidance with it, got none; give a strength")
        return made
    if system.classes is None:
        raise ValueError(
            f"guidance {guidance:g}: it needs labels, but {system.name} has none here; "
            "keep the labels or drop --guidance"
        )
    if not 1.0 < guidance < math.inf:
        raise ValueError(f"guidance: expected a largest strength above 1 (1 is no guidance), got {guidance}")
    if not guides(method):
        raise ValueError(f"guidance: {method.name} does not learn a guided map; lsd and esd do")
    if made.dropout == 0.0 and Need.TEACHER not in method.card.needs:
        raise ValueError("dropout 0: guidance needs the velocity without labels; drop --dropout")
    low, high = made.interval or (0.0, 1.0)
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(
            f"guidance interval: expected two times from 0 (noise) to 1 (data), the smaller first, got "
            f"{low:g} {high:g}; 0.2 0.9, for example"
        )
    return made


def _check_numbers(made: Experiment) -> None:
    check_training(made.training)
    check_output(made.output)
    made.world.rows(made.training.batch, made.training.machine.accumulate)  # or it says why not
    rate = made.dropout
    if not 0.0 < made.jump_weight < math.inf:
        raise ValueError(
            f"jump weight: expected a factor above 0, got {made.jump_weight}; 1 is the method's own"
        )
    if rate is not None and not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout: expected a rate of at least 0 and below 1, got {rate}; 0.1 is usual")


def _spec(
    system: System, method: Method, plain: bool, network: Network, guidance: float | None
) -> ModelSpec:
    """The network that learns: what was asked for, and what the method needs."""
    rotating = isinstance(interpolant_of(method, plain), Trigonometric)
    usual = method.card.parametrisation or ("trigonometric" if rotating else "average")
    parametrisation = network.parametrisation or usual
    return ModelSpec(
        shape=system.shape,
        backbone=network.backbone,
        size=network.size,
        parametrisation=parametrisation,
        sigma_data=system.sigma_data,
        classes=system.classes,
        heads=("v",) if Need.HEAD in method.card.needs else HEADS.get(parametrisation, ()),
        guidance=guidance is not None,
        patch=network.patch,
        positions=network.positions,
    )


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
    dropout: float | None = None,
    lesson: Training | None = None,
    arguments: Mapping[str, object] | None = None,
) -> Experiment:
    """Put the parts together, or say which do not fit.

    A method that needs a teacher, where the system has no exact velocity, gets one that is trained first as
    ``lesson`` says. ``arguments`` are those of the method that differ from its defaults.
    """
    found = load_method(method)
    exact = Need.TEACHER not in found.card.needs or system.velocity is not None
    if not exact and lesson is None:
        raise ValueError(
            f"method {found.name}: it needs a teacher, and {system.name} has none of its own; "
            f"use saltus distill RUN --method {found.name}"
        )
    spec = _spec(system, found, plain, network, guidance)
    if network.start is not None and not exact:
        raise ValueError(
            f"start {network.start}: {found.name} starts with its teacher's weights; drop --start, or "
            f"make it the teacher: saltus distill {network.start} --method {found.name}"
        )
    start = open_start(network.start, spec, interpolant_of(found, plain))
    begun = None if start is None else str(start.place)
    resolved = {**asdict(network), "parametrisation": spec.parametrisation, "start": begun}
    own = {**own, "plain": plain}
    first = None
    if not exact and lesson is not None:
        rate = DROPOUT if system.classes is not None else None
        alone = {key: value for key, value in own.items() if key in DATA}
        alone |= {"dropout": rate} if rate is not None else {}
        lesson = replace(lesson, machine=training.machine)
        first = assemble(system, FLOW, plain, network, lesson, output, alone, dropout=rate)
    return check(
        Experiment(
            system=system,
            method=found,
            plain=plain,
            guidance=guidance,
            jump_weight=jump_weight,
            spec=spec,
            training=training,
            output=output,
            network=resolved,
            own=own,
            dropout=dropout,
            first=first,
            start=start,
            arguments=arguments or {},
        )
    )
