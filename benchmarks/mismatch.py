"""What a data set that does not match the teacher does to distillation, and what it cannot do without one.

The teacher is exact and never changes; the data that a method is given are increasingly not the
teacher's. Methods that learn at states I_s = alpha_s x0 + beta_s x1 of those data learn the flow map
where the teacher's trajectories do not go; methods that start at the prior never see the data, and
are trained here with the first and with the last data set and compared bit for bit.

    shift      the reference mixture moved by (1, 1)/sqrt(2) times the level
    cut        the reference mixture without its part beyond a line: the level is the share that is gone
    rotation   500 real digits as a mixture, the teacher's upright, the data turned by the level in degrees

The error is the root of the mean squared distance between one-step samples and where the teacher's
exact flow sends the same noise, over the spread of the teacher's data. The slope is that of a least-
squares line through all levels and seeds; a method suffers if it exceeds three standard errors.

    python benchmarks/mismatch.py --out runs/mismatch.jsonl --plot docs/mismatch.png

References:
    Tong et al., "Flow map distillation without data", 2025, arXiv 2511.19428 (there the data are
    augmented, and the Fréchet distance grows).
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from saltus import nn
from saltus.data import digits
from saltus.exact import ImageMixture, reference_mixture, warped_rk4
from saltus.games import as_game
from saltus.interpolants import Linear
from saltus.maps import AverageVelocity, NetworkMap
from saltus.methods import Method, Need, load
from saltus.plots import Series, lines
from saltus.recipes.sampling import draw
from saltus.report import Table, figure
from saltus.streams import Streams
from saltus.tensors import full_like_rows
from saltus.training import AdamW, Cosine, Precision, fit, initialised
from saltus.typing import Batch, Velocity

Sample = Callable[[Streams], Tensor]
JUDGED = 2**31
"""First index of the streams of the judgement, far from those of training."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A teacher, and data sets that match it less and less.

    Attributes:
        name: of the mismatch.
        levels: of it; the first is none.
        shape: of one sample.
        teacher: the exact velocity.
        truth: samples of the teacher's own data, which give the spread.
        data: level -> (streams -> x1).
        backbone: of the student.
        judged: how many samples are compared.
        batch: rows of a step.
    """

    name: str
    levels: tuple[float, ...]
    shape: tuple[int, ...]
    teacher: Velocity
    truth: Sample
    data: Callable[[float], Sample]
    backbone: str
    judged: int = 4096
    batch: int = 512

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor, float]:
        """Noise, where the teacher's flow sends it, and the spread sqrt(tr Cov) of the teacher's data."""
        rng = Streams(0, index=torch.arange(JUDGED, JUDGED + self.judged))
        x0 = rng.normal("x0", *self.shape)
        s, t = full_like_rows(0.0, x0), full_like_rows(1.0, x0)
        with torch.no_grad():
            x1 = warped_rk4(self.teacher, x0.double(), s, t).float()
        spread = self.truth(rng).flatten(1).double().var(dim=0).sum().sqrt()
        return x0, x1, float(spread)

    def error(self, model: NetworkMap, method: Method) -> float:
        """Of one-step samples, relative to the spread."""
        x0, x1, spread = self.ends
        rng = Streams(0, index=torch.arange(JUDGED, JUDGED + self.judged))
        x = draw(model, method.card, x0, 1, None, rng, Linear())
        return float((x - x1).double().flatten(1).square().sum(1).mean().sqrt()) / spread


def shift() -> Problem:
    """Moved data."""
    law = reference_mixture()

    def data(level: float) -> Sample:
        return lambda rng: law.sample(rng)[0] + level / math.sqrt(2.0)

    levels = (0.0, 1.0, 2.0, 3.0)
    return Problem("shift", levels, (2,), law, lambda rng: law.sample(rng)[0], data, "mlp")


def cut() -> Problem:
    """Data without the part beyond a line, which goes through the heaviest component first."""
    law = reference_mixture()
    many = law.sample(Streams(0, index=torch.arange(2**30, 2**30 + 200_000)))[0]
    normal = torch.tensor([1.0, 0.3], dtype=many.dtype)

    def data(level: float) -> Sample:
        kept = many[(many @ normal) <= torch.quantile(many @ normal, 1.0 - level)] if level else many
        return lambda rng: kept[rng.integers("row", len(kept))]

    levels = (0.0, 0.25, 0.5, 0.75)
    return Problem("cut", levels, (2,), law, lambda rng: law.sample(rng)[0], data, "mlp")


def rotation() -> Problem:
    """Digits turned about their centre, blank paper where nothing turns in."""
    images = digits()[0][:500]
    upright = ImageMixture(images, sigma=0.1)

    def data(level: float) -> Sample:
        angle = math.radians(level)
        turn = torch.tensor(
            [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
        )
        grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        turned = F.grid_sample(images + 1.0, grid, align_corners=False) - 1.0
        law = ImageMixture(turned if level else images, sigma=0.1)
        return lambda rng: law.sample(rng)[0]

    return Problem(
        "rotation",
        (0.0, 30.0, 60.0, 90.0),
        (1, 8, 8),
        upright,
        lambda rng: upright.sample(rng)[0],
        data,
        "residual-mlp",
        judged=1024,
        batch=256,
    )


PROBLEMS = {"shift": shift, "cut": cut, "rotation": rotation}


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        problems: kinds of mismatch.
        methods: names; those that need no data are held against the others.
        seeds: one training each.
        steps: of the optimiser.
        lr: learning rate at the start; it falls along a cosine.
        threads: of the CPU; 0 leaves PyTorch's choice.
        out: the results, a JSON line for each training; what is there is not trained again.
        plot: a .png picture of the errors, or None.
    """

    problems: tuple[str, ...] = tuple(PROBLEMS)
    methods: tuple[str, ...] = (
        "emd",
        "scd",
        "consistency_distillation",
        "freeflow_prediction",
        "boot",
        "tbcm",
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 600
    lr: float = 3e-3
    threads: int = 1
    out: Path = Path("runs/mismatch.jsonl")
    plot: Path | None = None


def train(problem: Problem, method: Method, level: float, seed: int, options: Options) -> NetworkMap:
    """The student after the whole budget."""

    def network() -> NetworkMap:
        return AverageVelocity(nn.build(problem.backbone, "small", problem.shape))

    student, critic = initialised(seed, network), initialised(seed + 1, network)
    sample = problem.data(level)

    def source(rng: Streams) -> Batch:
        return Batch(rng.normal("x0", *problem.shape), sample(rng).float())

    built = method.wired(student, teacher=problem.teacher, critic=critic, **method.card.plain)
    steps = fit(
        as_game(built, student),
        source,
        steps=options.steps,
        seed=seed,
        batch=problem.batch,
        optimizer=AdamW(options.lr),
        schedule=Cosine(),
        precision=Precision.FLOAT32,
    )
    for _ in steps:
        pass
    return student.eval().requires_grad_(False)


def same(a: NetworkMap, b: NetworkMap) -> bool:
    """Whether all weights are the same bits."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@dataclass
class Results:
    """The lines of the results file."""

    path: Path
    rows: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.rows[tuple(row["key"])] = row

    def add(self, key: tuple[Any, ...], **figures: object) -> None:
        """Keep a result, here and in the file."""
        self.rows[key] = {"key": list(key), **figures}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[key]) + "\n")


def measure(problem: Problem, method: Method, seed: int, options: Options, results: Results) -> None:
    """All levels of one method and seed. Without data only the first and the last, which must agree."""
    free = Need.DATA not in method.card.needs
    levels = (problem.levels[0], problem.levels[-1]) if free else problem.levels
    keys = [(problem.name, method.name, level, seed, options.steps, options.lr) for level in levels]
    if all(key in results.rows for key in keys):
        return
    models = []
    for key, level in zip(keys, levels, strict=True):
        begin = time.perf_counter()
        models.append(train(problem, method, level, seed, options))
        seconds = time.perf_counter() - begin
        error = problem.error(models[-1], method)
        alike = same(models[0], models[-1])
        results.add(key, error=error, alike=alike, seconds=seconds)
        print(
            f"{problem.name} {level:g}, {method.name}, seed {seed}: {figure(error)} ({seconds:.0f} s)",
            flush=True,
        )


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Of the least-squares line through (level, error), and its standard error."""
    x = torch.tensor([p[0] for p in points], dtype=torch.float64)
    y = torch.tensor([p[1] for p in points], dtype=torch.float64)
    x = x / x.max() - (x / x.max()).mean()
    rise = float((x * y).sum() / x.square().sum())
    left = y - y.mean() - rise * x
    return rise, math.sqrt(float(left.square().sum()) / (len(points) - 2) / float(x.square().sum()))


def report(
    problem: Problem, methods: list[Method], options: Options, results: Results
) -> tuple[Table, list[Series]]:
    """The table and the curves of one problem; without data a method's first error stands for all levels."""
    rows, curves = [], []
    for method in methods:
        free = Need.DATA not in method.card.needs
        points, alike = [], True
        for level in problem.levels:
            for seed in options.seeds:
                ends = (problem.levels[0], problem.levels[-1])
                seen = level if not free or level in ends else ends[0]
                row = results.rows[problem.name, method.name, seen, seed, options.steps, options.lr]
                alike &= bool(row["alike"])
                points.append((level, float(row["error"])))
        means = [statistics.fmean(e for x, e in points if x == level) for level in problem.levels]
        if free:
            verdict = "the same bits" if alike else "DIFFERENT"
        else:
            rise, error = slope(points)
            verdict = f"{figure(rise)} ± {figure(error)}" + (" *" if rise > 3.0 * error else "")
        rows.append([method.name, "none" if free else "read", *means, verdict])
        curves.append(Series(method.name, list(problem.levels), means))
    heads = ("method", "data", *(f"{problem.name} {level:g}" for level in problem.levels), "slope")
    return Table(heads, rows, left=frozenset({"data"})), curves


def main(options: Options) -> int:
    """Train what is missing, print the tables; the exit status is 1 if a claim fails."""
    if options.threads:
        torch.set_num_threads(options.threads)
    results, panels, failed = Results(options.out), {}, False
    methods = [load(name) for name in options.methods]
    for name in options.problems:
        problem = PROBLEMS[name]()
        for seed in options.seeds:
            for method in methods:
                measure(problem, method, seed, options, results)
        table, panels[name] = report(problem, methods, options, results)
        print(f"\n{name}: {options.steps:,} steps of batch {problem.batch}, {len(options.seeds)} seeds")
        print(table.markdown())
        failed |= "DIFFERENT" in table.markdown()
    if options.plot is not None:
        lines(panels, options.plot, "level of mismatch", "One-step error over the spread of the data")
        print(f"plot  {options.plot}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
