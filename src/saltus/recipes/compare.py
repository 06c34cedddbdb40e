"""``saltus compare``: several finished runs of one system in one table, one plot and one picture."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from tyro import conf

from saltus.methods import Sampler
from saltus.page import write_comparison
from saltus.plots import Row, Series, check_matplotlib, density, lines, rows
from saltus.recipes.decoded import decoder_of
from saltus.recipes.evaluate import OWN, SOLVER, Measured, samplers
from saltus.recipes.execute import record
from saltus.recipes.finished import again, check_out
from saltus.recipes.folder import EVALUATION, OPTIONS, read_json, weights_of, whole
from saltus.recipes.judged_by_teacher import NEAR
from saltus.recipes.opened import open_run
from saltus.recipes.scored import side_by_side
from saltus.recipes.show import shown
from saltus.recipes.system import asked
from saltus.report import Cell, Table, figure
from saltus.samplers import prior
from saltus.streams import Streams

__all__ = ["compare"]

RunPaths = Annotated[tuple[Path, ...], conf.arg(metavar="RUN RUN [RUN ...]", help_behavior_hint="(required)")]
PICTURE, PAGE = ".png", ".html"
FEW = (1, 2, 4)
"""Steps at which a picture shows a map."""
GAP = 3
"""Blanks between the columns of a table, of which one is at its right end."""
OUTER = (NEAR, "nearest", "ms a sample", "energy")
"""Columns that a narrow terminal does without, in this order."""


def _system(run: Path) -> str:
    """The name of the recipe of a finished run."""
    weights_of(run)
    return str(read_json(run / OPTIONS, "run options").get("recipe"))


def _lines(run: Path) -> list[Measured]:
    """The evaluation of a run, measured now if it is not there."""
    if not (run / EVALUATION).is_file():
        record(*again(run), run)
    saved = read_json(run / EVALUATION, "evaluation")
    try:
        if not saved["lines"]:
            raise KeyError("no lines")
        return [Measured(**line) for line in saved["lines"]]
    except (KeyError, TypeError) as wrong:
        where = run / EVALUATION
        raise ValueError(f"{where}: expected what saltus evaluate writes, got {wrong}; delete it") from wrong


def compare(
    runs: conf.Positional[RunPaths],
    *,
    out: Annotated[Path, conf.arg(metavar="FILE")] = Path("comparison.png"),
    page: Annotated[Path | None, conf.arg(metavar="FILE")] = None,
) -> None:
    """One table, one plot, one picture and one page for several finished runs, by the sampler of each method.

    A run that learned a velocity alone, such as a teacher, is there with its ODE of 64 steps too. The picture
    shows what all of them make of the same noise. Scores by features (saltus evaluate RUN --features own) are
    a table for each protocol that two of the runs share. The page has their curves one over the other and the
    options in which they differ, too.

    examples:
      saltus compare runs/mixture-lsd runs/mixture-mean_flow
      saltus compare runs/digits-freeflow/teacher runs/digits-freeflow
      saltus compare runs/digits-lsd runs/digits-ect --out digits.png

    Args:
        runs: Run folders, at least two, of one system.
        out: The plot, a .png picture; the samples are beside it, in a file whose name ends in -samples.
        page: The page, an .html file; by default beside the plot, under its name.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        got = " ".join(map(str, runs)) or "none"
        raise ValueError(f"compare: expected at least two run folders, all different, got {got}")
    check_out(out, (PICTURE,))
    page = page or out.with_suffix(PAGE)
    check_out(page, (PAGE,))
    check_matplotlib()
    systems = sorted({_system(run) for run in runs})  # before anything is measured
    if len(systems) > 1:
        raise ValueError(f"compare: expected runs of one system, got {' and '.join(systems)}")
    labels = _labels(runs)
    by_name = dict(zip(labels, runs, strict=True))
    scores = side_by_side(by_name)
    found = {label: _kept(run) for label, run in by_name.items()}
    for table in (_table(found), *scores):
        table.show()
    with whole(out) as draft:
        lines(_panels(found), draft, "steps", systems[0], doubling=True)
    print(f"plot     {out}")
    beside = out.with_name(f"{out.stem}-samples{PICTURE}")
    drawn = _draw(runs, labels, beside)
    if drawn:
        print(f"samples  {beside}")
    write_comparison(by_name, page, beside if drawn else None)
    print(f"page     {page}")


def _labels(runs: Sequence[Path]) -> list[str]:
    """The folders' own names where they differ, else the paths.

    >>> _labels([Path("runs/a"), Path("runs/b")]), _labels([Path("x/a"), Path("y/a")])
    (['a', 'b'], ['x/a', 'y/a'])
    """
    short = [run.resolve().name for run in runs]
    return short if len(set(short)) == len(runs) else [str(run) for run in runs]


def _kept(run: Path) -> list[Measured]:
    """The lines of a run that are compared: its own sampler's, and the ODE of one that has no other."""
    card = open_run(run).method.card
    solved = card.sampler is Sampler.ODE
    return [m for m in _lines(run) if m.group == OWN or (solved and m.group == SOLVER)]


def _table(found: Mapping[str, Sequence[Measured]]) -> Table:
    """All runs, without some columns where the terminal is too narrow."""
    names = list(dict.fromkeys(n for measured in found.values() for m in measured for n in m.figures))
    figures: list[list[Cell]] = []
    words, rules = [], set()
    for label, measured in found.items():
        rules.add(len(figures))
        for k, m in enumerate(measured):
            words.append((label if k == 0 else "", m.label))
            figures.append([*(m.figures.get(n) for n in names), m.ms])
    names.append("ms a sample")
    wide = [max(len(n), *(len(figure(row[k])) for row in figures)) for k, n in enumerate(names)]
    kept = list(range(len(names)))
    room = shutil.get_terminal_size((140, 24)).columns
    used = sum(max(len(h), *(len(w[k]) for w in words)) + GAP for k, h in enumerate(("run", "sampler")))
    for name in OUTER:
        if used + sum(wide[k] + GAP for k in kept) > room + 1 and name in names:
            kept.remove(names.index(name))
    left_out = [n for k, n in enumerate(names) if k not in kept]
    note = f"A wider terminal shows {', '.join(left_out)} too." if left_out else ""
    cells: list[list[Cell]] = [[*w, *(row[k] for k in kept)] for w, row in zip(words, figures, strict=True)]
    heads = ("run", "sampler", *(names[k] for k in kept))
    return Table(heads, cells, note=note, rules=frozenset(rules - {0}), left=frozenset({"sampler"}))


def _panels(found: Mapping[str, Sequence[Measured]]) -> dict[str, list[Series]]:
    """Every figure that two runs have, over the steps, a line for each of them."""
    names = list(dict.fromkeys(n for measured in found.values() for m in measured for n in m.figures))
    panels: dict[str, list[Series]] = {}
    for name in names:
        series = []
        for label, measured in found.items():
            points = [(m.steps, m.figures[name]) for m in measured if name in m.figures]
            series += [Series(label, [x for x, _ in points], [y for _, y in points])] if points else []
        if len(series) > 1:
            panels[name] = series
    return panels


@dataclass(frozen=True, eq=False)
class Shown:
    """What a run makes of the noise: its name, and for each sampler its name, its steps and the samples."""

    label: str
    parts: list[tuple[str, int, Tensor]]


@torch.no_grad()
def _samples(run: Path, label: str) -> Shown:
    """Samples of a run by its own sampler, and by the ODE of one that has no other; latents are decoded."""
    done = open_run(run)
    n, classes, sampler = shown(done.spec.shape), done.spec.classes, done.method.card.sampler
    cond = asked(None if classes is None else torch.arange(n) % classes)
    rng = Streams(0, index=torch.arange(n))
    x0 = prior(rng, done.spec.shape, done.interpolant)
    ways = samplers(done.model, done.method.card, x0, cond, rng, done.interpolant, FEW)
    kept = [way for way in ways if way.group == OWN or (sampler is Sampler.ODE and way.group == SOLVER)]
    decode = decoder_of(done.meta)
    drawn = ((way.label, way.steps, way.sample()) for way in kept)
    return Shown(label, [(words, k, x if decode is None else decode(x)) for words, k, x in drawn])


def _draw(runs: Sequence[Path], labels: Sequence[str], path: Path) -> bool:
    """Draw what every run makes of the same noise: images in a row for each run and number of steps, points
    in a row for each run. False for samples that are neither."""
    shape, classes = open_run(runs[0]).spec.shape, open_run(runs[0]).spec.classes
    if len(shape) != 3 and shape != (2,):
        return False
    drawn = [_samples(run, label) for run, label in zip(runs, labels, strict=True)]
    title = "the same noise by every run"
    if len(shape) == 3:
        heads = [] if classes is None else [str(k % classes) for k in range(shown(shape))]
        parts = [Row(f"{d.label}, {words}", x) for d in drawn for words, _, x in d.parts]
        sheet = rows(parts, title, heads)
    else:
        x = torch.cat([x for d in drawn for _, _, x in d.parts]).abs()
        reach = 1.1 * float(x[:: 1 + len(x) // 100_000].quantile(0.999))
        parts = [
            Row(f"{d.label}: {', '.join(str(k) for _, k, _ in d.parts)}", _densities(d, reach)) for d in drawn
        ]
        sheet = rows(parts, f"{title}, after as many steps as stand beside it", scale=2, gap=12)
    with whole(path) as draft:
        sheet.save(draft)
    return True


def _densities(drawn: Shown, reach: float) -> Tensor:
    return torch.stack([density(x, reach) for _, _, x in drawn.parts])
