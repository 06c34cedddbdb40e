"""``saltus sample`` and ``saltus evaluate``: what can be done with a run's weights."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from tyro import conf

from saltus.maps import NetworkMap
from saltus.plots import check_matplotlib
from saltus.recipes.averages import Choice
from saltus.recipes.decoded import decoder_of
from saltus.recipes.drawings import draw_all, logged
from saltus.recipes.evaluate import Exam
from saltus.recipes.evaluate import evaluate as measured
from saltus.recipes.execute import record, show
from saltus.recipes.experiment import TEACHER, Experiment
from saltus.recipes.folder import OPTIONS, check_file, whole
from saltus.recipes.opened import DEFAULT, open_run
from saltus.recipes.resolve import experiment
from saltus.recipes.scored import keep, scored
from saltus.recipes.scored import shown as tabled
from saltus.recipes.scoring import Scoring
from saltus.recipes.show import picture, said, shown
from saltus.recipes.watch import append
from saltus.recipes.wishes import Wish, answers

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
    prompt: str | None = None,
    w: float | None = None,
    autoencoder: Annotated[Path | None, conf.arg(metavar="DIR")] = None,
    out: Annotated[Path | None, conf.arg(metavar="FILE")] = None,
    weights: Choice = Choice(),
) -> None:
    """Draw samples from a run; it needs nothing but the weights.

    Of a run that still trains or was stopped they are those that it has saved last.

    examples:
      saltus sample runs/digits-lsd --steps 1 2 4
      saltus sample runs/digits-lsd --label 3 --n 20 --out threes.png
      saltus sample runs/mixture-lsd --n 10000 --out points.npy
      saltus sample runs/digits-lsd --raw
      saltus sample runs/stable-diffusion-v1-5-freeflow --prompt "a cat" --n 4

    Args:
        run: Run folder, or a weights file.
        steps: Network evaluations a sample; several draw from the same noise.
        n: Samples for each number of steps; a row of the picture by default.
        seed: Sample i is a function of the seed and i alone.
        label: The class of all samples, or the number of their prompt; by default one after another.
        prompt: The text of all samples, for students of diffusers models of texts.
        w: Strength of guidance, for maps that were trained with --guidance.
        autoencoder: What decodes latents for pictures; by default that of the run. Arrays hold latents.
        out: A .png picture, or a .npy array [steps, n, ...]; by default a picture in the run folder.
        weights: Which of the weights that the run kept.
    """
    done = open_run(run, weights, unfinished=True)
    count = shown(done.shape) if n is None else n
    wish = Wish(steps, count, seed, label, prompt, w)
    wish.check(done)
    guided = "" if w is None else f"-w{w:g}"
    path = out or (run if run.is_dir() else run.parent) / f"samples-seed{seed}{guided}.png"
    check_out(path, (PICTURE, ARRAY))
    if guess := wish.guess(done):
        print(guess, file=sys.stderr)
    parts = [(said(answer.steps), answer.x) for answer in answers(done, wish)]
    labels = None if prompt is not None else done.labels(count, label)
    decode = decoder_of(done.meta, autoencoder)

    def seen(x: Tensor) -> Tensor:
        return x if decode is None else decode(x)

    with whole(path) as draft:
        if path.suffix == ARRAY:
            np.save(draft, torch.stack([x for _, x in parts]).numpy())
        elif len(parts) == 1 and len(done.shape) == 3 and count > shown(done.shape):
            _sheet(seen(parts[0][1])).save(draft)
        else:
            title = f"{done.name}, seed {seed}" + ("" if w is None else f", w = {w:g}")
            picture(title, [(name, seen(x)) for name, x in parts], labels).save(draft)
    at = ", ".join(map(str, steps)) + (" step" if steps == (1,) else " steps")
    early = "" if done.after is None else f" after {done.after:,} steps of its training"
    print(f"{len(parts)} × {count} samples of {done.name}{early} at {at}: {path}")


def check_out(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise a ValueError unless a file with one of the suffixes may be written to the path."""
    check_file(path, suffixes)
    if not path.parent.is_dir():
        raise ValueError(f"out {path}: expected an existing folder {path.parent}, found none; make it first")


def _sheet(x: Tensor) -> Any:  # noqa: ANN401
    from saltus.plots import tiles

    return tiles(x, columns=max(10, round(len(x) ** 0.5)))


def again(run: Path, weights: Choice = DEFAULT) -> tuple[Experiment, NetworkMap]:
    """The experiment of a run folder, its data included, and its map with the chosen weights."""
    done = open_run(run, weights)
    made = experiment(str(run / OPTIONS), [])
    if made.first is not None:
        made = made.taught(run / TEACHER)
    return dataclasses.replace(made, output=dataclasses.replace(made.output, out=run)), done.model


def evaluate(
    run: conf.Positional[RunPath], weights: Choice = Choice(), scoring: Scoring = Scoring()
) -> None:
    """Measure a finished run against the truth, beside plain integration and fresh data, and draw it.

    The figures of other weights than the usual average go into evaluations.jsonl, and no picture changes.

    With options of scoring, samples of images are scored by the features of a network, with intervals and
    the protocol below the table; both go into scores.json. Statistics of the real images are kept in
    $SALTUS_CACHE, or else in ~/.cache/saltus.

    examples:
      saltus evaluate runs/digits-lsd
      saltus evaluate runs/digits-lsd --sigma-rel 0.13
      saltus evaluate runs/digits-lsd --features own --seeds 3 --steps 1 2 4 8
      saltus evaluate RUN --features inception --features-weights FILE.pth --count 50000

    Args:
        run: Run folder.
        weights: Which of the weights that the run kept.
        scoring: How images are scored.
    """
    if scoring != Scoring():
        made, model = again(run, weights)
        which = open_run(run, weights).which
        found = scored(made, model, scoring, which, run)
        keep(run, made.name, found)
        for table in tabled(found, f"{made.name} after {made.training.steps:,} steps ({which})"):
            table.show()
        return
    check_matplotlib()
    made, model = again(run, weights)
    logged(run)  # a damaged log is told before anything is measured
    if weights != DEFAULT:
        which = open_run(run, weights).which
        exam = Exam(made)
        lines = list(measured(made, model, exam))
        append(run, made.training.steps, which, lines)
        show(made, lines, which, exam.judge.note)
        return
    lines, protocol = record(made, model, run)
    show(made, lines, protocol=protocol)
    for path in draw_all(made, model, run):
        print(f"picture  {path}")
