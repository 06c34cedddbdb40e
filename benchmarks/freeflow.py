"""FreeFlow on the reference mixture: what prediction, correction and both together reach without data.

The teacher is the exact velocity. Student and critic start as a network of the student's size that was
fitted to the teacher (500 steps of flow matching on its data), as the paper starts them from the teacher's
weights; from there on nothing sees data. Every arm has the same budget, and every setting below was
fixed before the first run: 2,500 steps of batch 512, AdamW at 1e-3 falling along a cosine, the paper's
weights and levels, an average of the student's weights of decay 0.995. Judged are 8,192 one-step samples.

    parts       joint, prediction alone and correction alone at widths 16, 32 and 64 (three layers)
    plain       joint and prediction alone at width 16 with k = 0, the squared error (added when the others
                were known)
    long        joint and correction alone at width 16, three times the steps
    exponent    k = 0, 0.5, 1 of the prediction's weight, alone and joint
    range       the levels of the correction: noise up to 0.6 only (t >= 0.4 here), all, and the default's
    guidance    the times in which the correction's teacher is guided, on the labelled mixture, w in [1, 4]
                an input of the student; the truth is the guided teacher's own flow

energy is the energy distance to the teacher's samples; critic/teacher the ratio of their flow-matching losses
on the student's samples, 1 where the student's law is the teacher's and the critic knows it, below 1 where
the teacher does not know the samples; modes how many of the four hold at least a quarter of their share
of samples; spread the standard deviation within modes over the true one; off the share of samples
further than four standard deviations from any mode.

    python benchmarks/freeflow.py --out runs/freeflow.jsonl
    python benchmarks/freeflow.py --quick --parts range

References:
    Tong et al., "Flow map distillation without data", 2025, arXiv 2511.19428, Table 1, figures 4 and 7.
"""

from __future__ import annotations

import json
import statistics
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from saltus.exact import reference_mixture, warped_rk4
from saltus.games import Game, as_game
from saltus.guidance import CFG, GuidanceInput
from saltus.interpolants import Linear, path
from saltus.maps import AverageVelocity, NetworkMap
from saltus.methods import load
from saltus.metrics import energy_distance, rmse
from saltus.nn import MLP
from saltus.report import Table
from saltus.streams import Streams
from saltus.tensors import full_like_rows, per_row_norm2
from saltus.times import Law, LogitNormal, Uniform
from saltus.training import EMA, AdamW, Cosine, fit, initialised
from saltus.typing import Batch, Condition, FlowMap

LAW = reference_mixture()
DEVIATION = 0.35
JUDGED = 2**31
"""First index of the streams of the judgement, far from those of training."""
LEVELS: dict[str, Law] = {
    "logit-normal": LogitNormal(-0.8),
    "noise up to 0.6": Uniform(0.4, 1.0),
    "all": Uniform(),
}
STRENGTHS = (1.0, 2.0, 4.0)
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training: everything that tells it from the others.

    Attributes:
        arm: joint, prediction or correction.
        width: of the student's layers.
        seed: of the weights and of the training.
        k: exponent of the prediction's weight.
        levels: a name of LEVELS.
        interval: of the guidance of the correction, in our time; None trains without labels.
        steps: of the training.
    """

    arm: str
    width: int
    seed: int
    k: float = 1.0
    levels: str = "logit-normal"
    interval: tuple[float, float] | None = None
    steps: int = 2500

    @property
    def key(self) -> str:
        """As text."""
        return json.dumps(asdict(self), sort_keys=True)


def source(rng: Streams) -> Batch:
    """Noise, and labels in the teacher's proportions; no data."""
    label = LAW.sample(rng)[1]
    return Batch(rng.normal("x0", 2), None, Condition(label=label))


def unlabelled(rng: Streams) -> Batch:
    """Noise alone."""
    return Batch(rng.normal("x0", 2))


@cache
def started(width: int, seed: int, guided: bool, steps: int) -> NetworkMap:
    """A network fitted to the teacher's velocity on its own data."""
    classes = 4 if guided else None

    def data(rng: Streams) -> Batch:
        x1, label = LAW.sample(rng)
        assert label is not None
        cond = Condition(label=label, null=rng.uniform("null") < 0.25) if guided else None
        return Batch(rng.normal("x0", 2), x1, cond)

    network = initialised(seed, lambda: MLP((2,), width=width, classes=classes, guidance=guided))
    made = AverageVelocity(network)
    game = as_game(load("flow_matching").build(made), made)
    for _ in fit(game, data, steps=steps, seed=seed, batch=512, optimizer=AdamW(2e-3), schedule=Cosine()):
        pass
    return made


def student_of(teacher: NetworkMap, run: Run) -> NetworkMap:
    """The same network with u_{s,t} = b_s for every t."""
    guided = run.interval is not None
    network = MLP((2,), width=run.width, classes=4 if guided else None, guidance=guided)
    inner = teacher.backbone
    assert isinstance(inner, MLP)
    network.inherit(inner)
    return AverageVelocity(network)


def game_of(run: Run, student: NetworkMap, critic: NetworkMap) -> Game:
    """The players."""
    guidance = None if run.interval is None else GuidanceInput(4.0)
    if run.arm == "prediction":
        alone = load("freeflow_prediction").build(student, teacher=LAW, k=run.k, guidance=guidance)
        return as_game(alone, student)
    options = {} if run.interval is None else {"correction_interval": run.interval}
    game: Game = load("freeflow").build(
        student,
        teacher=LAW,
        critic=critic,
        share=0.75 if run.arm == "joint" else 0.0,
        k=run.k,
        levels=LEVELS[run.levels],
        guidance=guidance,
        **options,
    )
    return game


def streams(count: int) -> Streams:
    """Of the judgement."""
    return Streams(0, index=torch.arange(JUDGED, JUDGED + count))


def jumped(model: FlowMap, x0: Tensor, cond: Condition | None) -> Tensor:
    """X_{0,1}(x0)."""
    s = full_like_rows(0.0, x0)
    return model(x0, s, torch.ones_like(s), cond)


@cache
def truth(count: int, w: float | None) -> tuple[Tensor, Tensor, Condition | None, Tensor]:
    """Noise x0, where the teacher's flow (guided with strength w) sends it, its condition, and samples of the
    law that this makes, independent of x0."""
    half = []
    for part in (0, 1):
        rng = streams(2 * count).rows(torch.arange(part * count, (part + 1) * count))
        x0 = rng.normal("x0", 2)
        cond = None if w is None else Condition(label=LAW.sample(rng)[1], w=torch.full((count,), w))
        teacher = LAW if w is None else CFG(LAW)
        s = full_like_rows(0.0, x0, torch.float64)
        x1 = warped_rk4(teacher, x0.double(), s, s + 1.0, cond).float()
        half.append((x0, x1, cond))
    (x0, x1, cond), (_, other, _) = half
    return x0, x1, cond, other


def modes(x: Tensor) -> dict[str, float]:
    """Modes found, the spread within them, the share of samples outside all."""
    distance, nearest = torch.cdist(x.double(), LAW.means).min(dim=1)
    near = distance < 4.0 * DEVIATION
    share = torch.bincount(nearest[near], minlength=4) / len(x)
    spread = (distance[near].square().mean() / 2.0).sqrt() / DEVIATION
    return {
        "modes": float((share > 0.25 * LAW.weights).sum()),
        "spread": float(spread),
        "off": float(1.0 - near.double().mean()),
    }


@torch.no_grad()
def judged(model: NetworkMap, critic: NetworkMap | None, run: Run, count: int) -> Row:
    """The figures of one moment."""
    if run.interval is not None:
        found: Row = {}
        for w in STRENGTHS:
            x0, x1, cond, other = truth(count, w)
            x = jumped(model, x0, cond)
            found[f"energy {w:g}"] = float(energy_distance(x, other))
            found[f"error {w:g}"] = float(rmse(x, x1))
        return found
    x0, x1, _, other = truth(count, None)
    x = jumped(model, x0, None)
    found = {"energy": float(energy_distance(x, other)), "error": float(rmse(x, x1)), **modes(x)}
    if critic is not None:
        rng = streams(count)
        t = rng.uniform("t")
        state, v = path(Linear(), rng.normal("n", 2), x, t)
        losses = [per_row_norm2(b(state, t) - v).mean() for b in (critic.velocity, LAW)]
        found["ratio"] = float(losses[0] / losses[1])
    return found


def trained(run: Run, count: int) -> Row:
    """Train and judge; also at each quarter of the way, with fewer samples."""
    begin = time.perf_counter()
    base = started(run.width, run.seed, run.interval is not None, min(500, run.steps))
    student, critic = student_of(base, run), deepcopy(base)
    ema = EMA(student, 0.995)
    model = ema.module
    assert isinstance(model, NetworkMap)
    plays = critic if run.arm != "prediction" else None
    data = unlabelled if run.interval is None else source
    begin_at = {"step": 0, **judged(model, plays, run, 2048)}
    way = [begin_at]
    steps = fit(
        game_of(run, student, critic),
        data,
        steps=run.steps,
        seed=run.seed,
        batch=512,
        optimizer=AdamW(1e-3),
        schedule=Cosine(),
    )
    for step in steps:
        ema.update()
        done = step.index + 1
        if done % max(1, run.steps // 4) == 0 and done < run.steps:
            way.append({"step": done, **judged(model, plays, run, 2048)})
    final = judged(model, plays, run, count)
    way.append({"step": run.steps, **final})
    return {**asdict(run), **final, "way": way, "seconds": time.perf_counter() - begin}


def runs(part: str, seeds: tuple[int, ...], steps: int) -> list[Run]:
    """The trainings of one part."""
    found = []
    for seed in seeds:
        if part == "parts":
            arms = [(a, w) for w in (16, 32, 64) for a in ("joint", "prediction", "correction")]
            found += [Run(arm, width, seed, steps=steps) for arm, width in arms]
        elif part == "plain":
            found += [Run(arm, 16, seed, 0.0, steps=steps) for arm in ("joint", "prediction")]
        elif part == "long":
            found += [Run(arm, 16, seed, steps=3 * steps) for arm in ("joint", "correction")]
        elif part == "exponent":
            each = [(a, k) for a in ("prediction", "joint") for k in (0.0, 0.5, 1.0)]
            found += [Run(arm, 32, seed, k, steps=steps) for arm, k in each]
        elif part == "range":
            each_law = [(a, law) for a in ("joint", "correction") for law in LEVELS]
            found += [Run(arm, 32, seed, levels=law, steps=steps) for arm, law in each_law]
        else:
            ends = [("prediction", 0.0), *(("joint", low) for low in (0.4, 0.3, 0.0))]
            found += [Run(arm, 64, seed, interval=(low, 1.0), steps=steps) for arm, low in ends]
    return found


PARTS = ("parts", "plain", "long", "exponent", "range", "guidance")


def spread(rows: list[Row], name: str) -> str | None:
    """Mean over seeds and all of them."""
    values = [row[name] for row in rows if name in row]
    if not values:
        return None
    each = " ".join(f"{v:.4f}" for v in values)
    return f"{statistics.fmean(values):.4f} ({each})"


def mean(rows: list[Row], name: str) -> float | None:
    """Over seeds."""
    values = [row[name] for row in rows if name in row]
    return statistics.fmean(values) if values else None


def tables(part: str, rows: list[Row]) -> list[Table]:
    """What a part found."""
    names = dict.fromkeys(("parts", "plain", "long"), "width")
    names |= {"exponent": "k", "range": "levels", "guidance": "interval"}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row[names[part]]), row["arm"]), []).append(row)
    head = [names[part], "arm"]
    if part == "guidance":
        each = [f"energy {w:g}" for w in STRENGTHS], [f"error {w:g}" for w in STRENGTHS]
        cells = [
            [*key, *(spread(g, name) for name in each[0]), *(mean(g, name) for name in each[1])]
            for key, g in groups.items()
        ]
        marks = [*(f"energy at w = {w:g}" for w in STRENGTHS), *(f"map RMSE {w:g}" for w in STRENGTHS)]
        return [Table([*head, *marks], cells, "Part: guidance")]
    figures = ("error", "ratio", "modes", "spread", "off", "seconds")
    cells = [[*key, spread(g, "energy"), *(mean(g, name) for name in figures)] for key, g in groups.items()]
    shown = [*head, "energy (each seed)", "map RMSE", "critic/teacher", "modes", "spread", "off", "seconds"]
    made = [Table(shown, cells, f"Part: {part}")]
    if part == "parts":
        made.append(_ways(groups))
    return made


def _ways(groups: dict[tuple[str, str], list[Row]]) -> Table:
    """Over the steps, means over the seeds."""
    cells: list[list[str | float | None]] = []
    for key, group in groups.items():
        for moments in zip(*(row["way"] for row in group), strict=True):
            of = list(moments)
            figures = [mean(of, name) for name in ("energy", "ratio", "modes", "spread", "off")]
            cells.append([*key, str(of[0]["step"]), *figures])
    head = ["width", "arm", "step", "energy", "critic/teacher", "modes", "spread", "off"]
    return Table(head, cells, "Over the steps, means over the seeds")


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        parts: which of the six; all by default.
        seeds: one training each.
        out: results, one JSON line each; read first, so an interrupted run goes on.
        quick: 100 steps of one seed, to see that it runs.
        markdown: print the tables as Markdown.
    """

    parts: tuple[str, ...] = PARTS
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = Path("runs/freeflow.jsonl")
    quick: bool = False
    markdown: bool = False


def _read(path: Path) -> dict[str, Row]:
    """By run."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        given = {f.name: row[f.name] for f in fields(Run)}
        found[Run(**given).key] = row
    return found


def main(options: Options) -> int:
    """Train what is missing and print the tables."""
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        raise SystemExit(f"parts: expected some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    seeds, steps = (options.seeds[:1], 100) if options.quick else (options.seeds, 2500)
    known = {} if options.quick else _read(options.out)
    for part in options.parts:
        wanted = runs(part, seeds, steps)
        for run in wanted:
            if run.key in known:
                continue
            row = trained(run, 1024 if options.quick else 8192)
            known[run.key] = json.loads(json.dumps(row))
            print(f"{part}: {run} in {row['seconds']:.0f} s", flush=True)
            if not options.quick:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        for table in tables(part, [known[run.key] for run in wanted]):
            print(f"\n### {table.title}\n\n{table.markdown()}\n") if options.markdown else table.show()
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
