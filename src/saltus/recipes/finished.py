"""``saltus sample`` and ``saltus evaluate``: what can be done with a finished run."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from tyro import conf

from saltus.maps import NetworkMap
from saltus.plots import check_matplotlib
from saltus.recipes.experiment import TEACHER, Experiment
from saltus.recipes.folder import OPTIONS, check_file, whole
from saltus.recipes.opened import Finished, open_run
from saltus.recipes.options import Flag
from saltus.recipes.pictures import draw_all, logged
from saltus.recipes.resolve import experiment
from saltus.recipes.run import record, show
from saltus.recipes.sampling import check_steps, draw
from saltus.recipes.show import picture, said, shown
from saltus.recipes.system import asked
from saltus.samplers import batched, prior
from saltus.streams import Streams
from saltus.tensors import full_like_rows

__all__ = ["RunPath", "again", "check_out", "evaluate", "sample"]

PICTURE, ARRAY = ".png", ".npy"
RunPath = Annotated[Path, conf.arg(metavar="RUN")]


def sample(
    run: conf.Positional[RunPath],
    *,
    steps: tuple[int, ...] = (1,),
    n: int | None = None,
    seed: int = 0,
    label: int | None = None,
    w: float | None = None,
    out: Annotated[Path | None, conf.arg(metavar="FILE")] = None,
    raw: Flag = False,
) -> None:
    """Draw samples from a finished run; it needs nothing but the weights.

    examples:
      saltus sample runs/digits-lsd --steps 1 2 4
      saltus sample runs/digits-lsd --label 3 --n 20 --out threes.png
      saltus sample runs/mixture-lsd --n 10000 --out points.npy

    Args:
        run: Run folder, or a weights file.
        steps: Network evaluations a sample; several draw from the same noise.
        n: Samples for each number of steps; a row of the picture by default.
        seed: Sample i is a function of the seed and i alone.
        label: The class of all samples; by default one after another.
        w: Strength of guidance, for maps that were trained with --guidance.
        out: A .png picture, or a .npy array [steps, n, ...]; by default a picture in the run folder.
        raw: Take the last weights instead of their moving average.
    """
    done = open_run(run, raw)
    if not steps:
        raise ValueError("steps: expected at least one number of steps, got none; --steps 1 4, for example")
    for k in steps:
        check_steps(done.method.card, done.method.name, k)
    count = shown(done.spec.shape) if n is None else n
    if count < 1:
        raise ValueError(f"n: expected at least one sample, got {count}")
    guided = "" if w is None else f"-w{w:g}"
    path = out or (run if run.is_dir() else run.parent) / f"samples-seed{seed}{guided}.png"
    check_out(path, (PICTURE, ARRAY))
    labels = _labels(done, label, count)
    _check_strength(done, w)
    parts = [(said(k), _draw(done, k, count, seed, labels, w)) for k in steps]
    with whole(path) as draft:
        if path.suffix == ARRAY:
            np.save(draft, torch.stack([x for _, x in parts]).numpy())
        elif len(parts) == 1 and len(done.spec.shape) == 3 and count > shown(done.spec.shape):
            _sheet(parts[0][1]).save(draft)
        else:
            title = f"{done.name}, seed {seed}" + ("" if w is None else f", w = {w:g}")
            picture(title, parts, labels).save(draft)
    at = ", ".join(map(str, steps)) + (" step" if steps == (1,) else " steps")
    print(f"{len(parts)} × {count} samples of {done.name} at {at}: {path}")


def check_out(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise a ValueError unless a file with one of the suffixes may be written to the path."""
    check_file(path, suffixes)
    if not path.parent.is_dir():
        raise ValueError(f"out {path}: expected an existing folder {path.parent}, found none; make it first")


def _sheet(x: Tensor) -> Any:  # noqa: ANN401
    from saltus.plots import tiles

    return tiles(x, columns=max(10, round(len(x) ** 0.5)))


def _labels(done: Finished, label: int | None, count: int) -> Tensor | None:
    classes = done.spec.classes
    if classes is None:
        if label is not None:
            raise ValueError(f"label {label}: {done.name} was trained without labels; drop --label")
        return None
    if label is None:
        return torch.arange(count) % classes
    if not 0 <= label < classes:
        raise ValueError(f"label: expected 0 to {classes - 1}, got {label}")
    return torch.full((count,), label)


def _check_strength(done: Finished, w: float | None) -> None:
    """Raise a ValueError for a strength that means nothing; say so if it was not learned."""
    if w is None:
        return
    if not done.spec.guidance:
        raise ValueError(f"w {w:g}: {done.name} was not trained with --guidance; drop --w")
    if not math.isfinite(w):
        raise ValueError(f"w: expected a finite strength of guidance, got {w}; 1 is none")
    high = math.inf if done.guidance is None else done.guidance
    if not 1.0 <= w <= high:
        learned = "from 1 on" if math.isinf(high) else f"from 1 to {high:g}"
        print(f"w {w:g}: {done.name} learned strengths {learned}; this is a guess", file=sys.stderr)


def _draw(done: Finished, k: int, count: int, seed: int, labels: Tensor | None, w: float | None) -> Tensor:
    def some(rng: Streams, places: Tensor) -> Tensor:
        x0 = prior(rng, done.spec.shape, done.interpolant)
        label = None if labels is None else labels[places]
        cond = asked(label, None if w is None else full_like_rows(w, x0))
        return draw(done.model, done.method.card, x0, k, cond, rng, done.interpolant)

    return torch.cat(list(batched(some, Streams(seed, index=torch.arange(count)), 4096)))


def again(run: Path) -> tuple[Experiment, NetworkMap]:
    """The experiment of a run folder, its data included, and the averaged map."""
    done = open_run(run)
    made = experiment(str(run / OPTIONS), [])
    if made.first is not None:
        made = made.taught(run / TEACHER)
    return dataclasses.replace(made, output=dataclasses.replace(made.output, out=run)), done.model


def evaluate(run: conf.Positional[RunPath]) -> None:
    """Measure a finished run against the truth, beside plain integration and fresh data, and draw it.

    Args:
        run: Run folder.
    """
    check_matplotlib()
    made, model = again(run)
    logged(run)  # a damaged log is told before anything is measured
    show(made, record(made, model, run))
    for path in draw_all(made, model, run):
        print(f"picture  {path}")
