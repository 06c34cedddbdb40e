"""``saltus evaluate RUN`` with options of its own: samplers of a run scored by features, with intervals.

Samples are drawn a batch at a time and only their features are kept, so fifty thousand need no more memory
than a few. Sample i of seed k is a function of the run's seed, k and i alone: neither batches nor the
order of rows change it. What is done is written after every set of samples, and the same command goes on
from there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saltus.maps import NetworkMap
from saltus.metrics import from_seeds
from saltus.metrics.features import digest_of
from saltus.recipes.evaluate import JUDGED, REAL, Row, all_samplers
from saltus.recipes.experiment import Experiment
from saltus.recipes.folder import SCORES, read_json, write_json
from saltus.recipes.judged_images import ImageTruth, Scores, image_truth
from saltus.recipes.progress import Progress
from saltus.recipes.scoring import Figure, Scoring
from saltus.report import Cell, Table, figure
from saltus.samplers import prior
from saltus.streams import Streams

__all__ = ["Line", "Pass", "keep", "scored", "shown", "side_by_side"]

LEAST = 20
"""Fewer images than these are not scored."""
OF_A_RUN = ("weights", "sampler")
"""Parts of a protocol in which runs that are compared differ."""
AGREES: Figure = "agreement"
FEW = 20
"""More classes than these are told by their mean and the worst."""


@dataclass(frozen=True)
class Line:
    """One sampler's figures.

    Attributes:
        label: of the sampler, in words.
        group: see :class:`saltus.recipes.evaluate.Measured`.
        steps: of the sampler.
        figures: by name, means over seeds.
        intervals: low and high, where they are known.
        per_class: the Fréchet distance of each class.
        seeds: the figures of each seed.
        ms: milliseconds a sample.
    """

    label: str
    group: str
    steps: int
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    per_class: dict[int, float] = field(default_factory=dict)
    seeds: list[dict[str, float]] = field(default_factory=list)
    ms: float | None = None


class Pass:
    """Every sampler that was asked for, for every seed, in batches.

    Args:
        made: what trained the map.
        model: the map, on its device.
        truth: what scores.
    """

    def __init__(self, made: Experiment, model: NetworkMap, truth: ImageTruth) -> None:
        self.made, self.model, self.truth = made, model, truth
        self.device = next(model.parameters()).device
        self.labels = None if made.system.classes is None else truth.labels()

    def rows(self, places: Tensor, seed: int = 0) -> list[Row]:
        """The samplers for some of a seed's samples, int64 [n]; they differ in their samples alone."""
        made, scoring = self.made, self.truth.scoring
        rng = Streams(made.training.seed + seed, index=JUDGED + places, device=self.device)
        labels = None if self.labels is None else self.labels[places].to(self.device)
        x0 = prior(rng, made.system.shape, made.interpolant)
        every = all_samplers(made, self.model, x0, labels, rng, scoring.steps)
        return [row for row in every if row.group in scoring.samplers]

    def batches(self, which: int, seed: int = 0) -> Iterator[Tensor]:
        """The samples of one sampler, a batch at a time."""
        for places in torch.split(torch.arange(self.truth.count), self.truth.scoring.batch):
            yield self.rows(places, seed)[which].sample()

    def score(self, which: int, seed: int, progress: Progress) -> tuple[Scores, float]:
        """Of one sampler and seed; and milliseconds a sample, features left out."""
        features, seconds = [], 0.0
        batches = self.batches(which, seed)
        while True:
            begin = time.perf_counter()
            x = next(batches, None)
            if x is None:
                break
            if x.is_cuda:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - begin
            features.append(self.truth.features(self.made.system.seen(x)))
            progress.more(len(x))
        found = self.truth.scores(torch.cat(features), self.labels, intervals=self.truth.scoring.seeds == 1)
        return found, 1e3 * seconds / self.truth.count


@torch.no_grad()
def scored(
    made: Experiment, model: NetworkMap, scoring: Scoring, which: str, folder: Path | None = None
) -> dict[str, Any]:
    """Score samplers of a map; what ``scores.json`` keeps of it.

    Args:
        made: what trained the map.
        model: the map; it is moved to the run's device.
        scoring: what to measure.
        which: of the run's weights these are, in words.
        folder: of the run, where unfinished work is kept; None keeps none.

    Raises:
        ValueError: for a system without images, or a choice that no sampler of the map fits.
    """
    gallery = None if made.system.gallery is None else made.system.gallery()
    if gallery is None:
        raise ValueError(
            f"evaluate: {made.system.name} is no set of images, and its own judge looks at no features; "
            "leave out the options of scoring"
        )
    _check(scoring)
    device = made.world.device
    model = model.to(device)
    if made.teacher is not None:
        made = replace(made, teacher=made.teacher.placed(made.world))
    truth = image_truth(gallery, scoring, device)
    run = Pass(made, model, truth)
    rows = run.rows(torch.arange(1))
    if not rows:
        raise ValueError(
            f"evaluate: {made.method.name} has no sampler {' or '.join(scoring.samplers)} at steps "
            f"{', '.join(map(str, scoring.steps))}; choose others with --steps and --samplers"
        )
    known = truth.network.head is not None and run.labels is not None
    if not truth.metrics - (set() if known else {AGREES}):
        raise ValueError(
            "evaluate: expected figures that can be measured, got none: agreement needs labels and the small "
            "classifier; choose others with --metrics"
        )
    left = [k for k in scoring.steps if k not in made.method.card.steps]
    if left and scoring.steps != Scoring.steps:
        some = ", ".join(map(str, left))
        print(f"steps {some}: {made.method.name} is not sampled so, left out", file=sys.stderr)
    facts = _protocol(run, which)
    key = json.dumps([facts, digest_of(model.state_dict()), made.options(), asdict(scoring)], default=str)
    name = f".scored-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
    kept = None if folder is None else folder / name
    lines = [*_lines(run, rows, kept, made.output.quiet), *_perfection(truth)]
    if kept is not None:
        kept.unlink(missing_ok=True)
    return {"protocol": facts, "lines": [asdict(line) for line in lines]}


def _check(scoring: Scoring) -> None:
    """Raise a ValueError for numbers that mean nothing, before anything is drawn."""
    asked = (
        ("seeds", scoring.seeds, 1),
        ("batch", scoring.batch, 1),
        ("count", scoring.count, LEAST),
        ("reference", scoring.reference, LEAST),
    )
    for name, value, least in asked:
        if value is not None and value < least:
            raise ValueError(f"evaluate: expected {name} of at least {least}, got {value}")
    if scoring.resamples < 0 or scoring.resamples == 1:
        raise ValueError(
            f"evaluate: expected resamples of at least 2, or 0 for no intervals, got {scoring.resamples}"
        )
    if not 0.0 < scoring.level < 1.0:
        raise ValueError(f"evaluate: expected a level between 0 and 1, got {scoring.level:g}; 0.95 is usual")


def _protocol(run: Pass, which: str) -> dict[str, str]:
    """What two figures must have in common to be compared."""
    made, scoring = run.made, run.truth.scoring
    if scoring.seeds > 1:
        sure = f"{scoring.level:.0%} by Student's t over {scoring.seeds} seeds"
    elif scoring.resamples:
        sure = f"{scoring.level:.0%} by {scoring.resamples} resamples of the bootstrap"
    else:
        sure = "none"
    return run.truth.facts | {
        "seeds": str(scoring.seeds),
        "intervals": sure,
        "weights": f"{which} of {made.name} after {made.training.steps:,} steps",
        "sampler": made.method.card.sampler.name.lower(),
        "precision": f"float32 on {run.device.type}",
    }


def _perfection(truth: ImageTruth) -> list[Line]:
    """What real images score against other real ones; nothing where they are too few to tell."""
    count = truth.real_count
    if count < LEAST:
        return []
    return [Line(f"{count:,} real images", REAL, 0, truth.real())]


def _lines(run: Pass, rows: Sequence[Row], kept: Path | None, quiet: bool) -> list[Line]:
    scoring = run.truth.scoring
    done = _unfinished(kept)
    progress = Progress(len(rows) * scoring.seeds * run.truth.count, "samples", quiet)
    lines = []
    for k, row in enumerate(rows):
        parts: list[dict[str, Any]] = []
        for seed in range(scoring.seeds):
            unit = f"{row.label}, seed {seed}"
            if unit in done:
                progress.skip(run.truth.count)
            else:
                scores, ms = run.score(k, seed, progress)
                said = {"figures": scores.figures, "intervals": scores.intervals, "ms": ms}
                done[unit] = json.loads(json.dumps({**said, "per_class": scores.per_class}))
                if kept is not None:
                    write_json(kept, done)
            parts.append(done[unit])
        lines.append(_joined(row, parts, scoring.level))
    progress.end()
    return lines


def _unfinished(kept: Path | None) -> dict[str, Any]:
    """What an interrupted command has done; nothing if that cannot be read."""
    try:
        return {} if kept is None or not kept.is_file() else read_json(kept, "unfinished evaluation")
    except ValueError as wrong:
        print(f"{wrong}; it begins anew", file=sys.stderr)
        return {}


def _joined(row: Row, parts: Sequence[dict[str, Any]], level: float) -> Line:
    """The line of a sampler from those of its seeds."""
    each = [part["figures"] for part in parts]
    names, classes = list(each[0]), list(parts[0]["per_class"])
    by_class = {int(c): sum(p["per_class"][c] for p in parts) / len(parts) for c in classes}
    ms = sum(p["ms"] for p in parts) / len(parts)
    if len(parts) == 1:
        spans = {n: (low, high) for n, (low, high) in parts[0]["intervals"].items()}
        return Line(row.label, row.group, row.steps, each[0], spans, by_class, each, ms)
    means = {n: from_seeds([figures[n] for figures in each], level) for n in names}
    figures = {n: m.value for n, m in means.items()}
    spans = {n: (m.low, m.high) for n, m in means.items()}
    return Line(row.label, row.group, row.steps, figures, spans, by_class, each, ms)


def keep(folder: Path, run: str, found: dict[str, Any]) -> None:
    """Write scores into a run's folder beside those of other protocols; earlier ones of this make way."""
    path = folder / SCORES
    before = read_json(path, "scores").get("scores", []) if path.is_file() else []
    others = [s for s in before if isinstance(s, dict) and s.get("protocol") != found["protocol"]]
    write_json(path, {"run": run, "scores": [*others, found]})


def _cell(line: Line, name: str) -> Cell:
    value = line.figures.get(name)
    if value is None or name not in line.intervals:
        return value
    low, high = line.intervals[name]
    return f"{figure(value)} ± {figure((high - low) / 2)}"


def shown(found: dict[str, Any], title: str) -> list[Table]:
    """The scores as a table with their protocol below it, and one by class if there are any."""
    lines = [Line(**line) for line in found["lines"]]
    names = list(dict.fromkeys(n for line in lines for n in line.figures))
    rows: list[list[Cell]] = [[m.label, *(_cell(m, n) for n in names), m.ms] for m in lines]
    rules = frozenset(k for k in range(1, len(lines)) if lines[k].group != lines[k - 1].group)
    note = "\n".join(f"{name}: {text}" for name, text in found["protocol"].items())
    made = [Table(("sampler", *names, "ms a sample"), rows, title, note, rules)]
    if any(line.per_class for line in lines):
        made.append(_by_class(lines))
    return made


def side_by_side(runs: Mapping[str, Path]) -> list[Table]:
    """What ``scores.json`` holds of several runs: a table for each protocol that two of them share.

    Args:
        runs: folders, by the names to show.
    """
    shared: dict[str, list[tuple[str, str, list[Line]]]] = {}
    for label, run in runs.items():
        path = run / SCORES
        for one in read_json(path, "scores").get("scores", []) if path.is_file() else []:
            try:
                common = {name: text for name, text in one["protocol"].items() if name not in OF_A_RUN}
                lines = [Line(**line) for line in one["lines"]]
                kept = shared.setdefault(json.dumps(common), [])
                kept.append((label, one["protocol"]["weights"], lines))
            except (KeyError, TypeError, AttributeError) as wrong:
                told = f"{path}: expected what saltus evaluate writes, got {wrong}; delete it"
                raise ValueError(told) from wrong
    tables = []
    for protocol, kept in shared.items():
        if len({label for label, _, _ in kept}) < 2:
            continue
        names = list(dict.fromkeys(n for *_, lines in kept for line in lines for n in line.figures))
        entries = [(label, line) for label, _, lines in kept for line in lines if line.group != REAL]
        entries += [("", line) for line in kept[0][2] if line.group == REAL]
        rows: list[list[Cell]] = [
            [label, m.label, *(_cell(m, n) for n in names), m.ms] for label, m in entries
        ]
        rules = frozenset(k for k in range(1, len(entries)) if entries[k][0] != entries[k - 1][0])
        said = [f"{name}: {text}" for name, text in json.loads(protocol).items()]
        note = "\n".join([*said, *(f"{label}: {weights}" for label, weights, _ in kept)])
        heads = ("run", "sampler", *names, "ms a sample")
        tables.append(Table(heads, rows, "scores", note, rules, frozenset({"sampler"})))
    return tables


def _by_class(lines: Sequence[Line]) -> Table:
    classes = sorted({c for line in lines for c in line.per_class})
    title = "Fréchet distance of each class"
    each = [line.per_class for line in lines]
    means: list[Cell] = [sum(e.values()) / len(e) if e else None for e in each]
    if len(classes) <= FEW:
        heads = ("sampler", *map(str, classes), "mean")
        rows = [
            [m.label, *(e.get(c) for c in classes), mean]
            for m, e, mean in zip(lines, each, means, strict=True)
        ]
        return Table(heads, rows, title)
    worst = [", ".join(f"{c} ({figure(e[c])})" for c in sorted(e, key=lambda c: -e[c])[:3]) for e in each]
    rows = [[m.label, mean, w] for m, mean, w in zip(lines, means, worst, strict=True)]
    return Table(("sampler", "mean", "worst"), rows, title, left=frozenset({"worst"}))
