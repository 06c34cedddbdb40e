"""Time and memory of one training step of every method, relative to plain flow matching.

Everything happens in one process and in turns: a block of flow matching, a block of the method, a block
of flow matching again (A B A), over all methods and then anew. Each round gives a method one ratio, B
over the mean of its two neighbours, so slow drifts of the machine cancel; the table shows the median
and the quartiles of the rounds. A step is what a run does: draw, loss, backward pass, AdamW, and what
follows the move. Data come from memory, so they cost neither side anything.

``predicted`` follows from the card's calls of the network: one with gradient costs three forward calls,
one without costs one, and a derivative makes a call half as dear again (arXiv 2505.18825, F.3).
``evaluations`` are the card's forward calls a row, ``counted`` those that a hook on the networks saw: of
the student, of a critic and of a teacher, a network of the same size. So the ratio is also that to the
training step of the teacher. Methods without data get none.

Memory is the largest sum of live tensors during a step beyond those alive before it (parameters,
optimiser), from the profiler's record of every allocation; on CUDA, from the allocator.

    python benchmarks/step_time.py --width 256 --batch 1024 --threads 1
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import median, quantiles

import torch
import tyro
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile

from saltus.games import Stages, as_game
from saltus.maps import AverageVelocity
from saltus.methods import Cost, Method, Need, discover
from saltus.nn import MLP, GuidanceAdapters
from saltus.report import Table
from saltus.streams import Streams
from saltus.training import Fit, Precision, fit, initialised
from saltus.typing import Batch, Condition

BASE = "flow_matching"
LSD_BOUND = 1.25
CLASSES = 10
ADAPTERS = "guidance_adapters"
"""The method whose student is a network in adapters."""


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        width: of the network's hidden layers.
        depth: number of them.
        dimension: of a sample.
        batch: rows of a step.
        rounds: ratios a method; the table shows their median.
        block: least time of a block in seconds; its steps are counted once and then kept.
        threads: of the CPU; 0 leaves PyTorch's choice.
        precision: of the loss.
        device: where to run.
        methods: names; none means all.
        check: fail unless lsd takes at most 1.25 times what its card predicts.
    """

    width: int = 256
    depth: int = 4
    dimension: int = 64
    batch: int = 1024
    rounds: int = 9
    block: float = 0.1
    threads: int = 1
    precision: Precision = Precision.FLOAT32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    methods: tuple[str, ...] = ()
    check: bool = True


class Counter:
    """Counts the rows that pass through any network while it is open, a pass with a derivative as 1.5."""

    def __init__(self) -> None:
        self.rows = 0.0

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Called before every pass of every module; dual numbers among (x, s, t) mean a derivative."""
        if isinstance(module, MLP):
            tangents = [forward_ad.unpack_dual(a).tangent for a in inputs[:3]]  # type: ignore[no-untyped-call]
            dual = any(v is not None for v in tangents)
            self.rows += inputs[0].shape[0] * (1.5 if dual else 1.0)

    def __enter__(self) -> Counter:
        self._hook = register_module_forward_pre_hook(self.see)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


@dataclass
class Subject:
    """A method in training.

    Attributes:
        name: of the method.
        cost: its card's.
        steps: its endless run.
        counted: evaluations a row of one step.
        memory: bytes of one step.
        staged: whether the run has stages, of which the first is measured.
        ratios: times relative to flow matching, one a round.
    """

    name: str
    cost: Cost
    steps: Fit
    counted: float = math.nan
    memory: int = 0
    staged: bool = False
    ratios: list[float] = field(default_factory=list)

    def run(self, count: int, device: torch.device) -> float:
        """Seconds of ``count`` steps."""
        begin = time.perf_counter()
        for _ in range(count):
            next(self.steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin


def prepare(name: str, method: Method, options: Options) -> Subject:
    """The method on a network of its own, warmed up, its calls counted and its memory measured."""
    second = ("v",) if Need.HEAD in method.card.needs else ()
    labelled = Need.LABELS in method.card.needs
    shape, size = (options.dimension,), {"width": options.width, "depth": options.depth}
    classes = CLASSES if labelled else None
    network = initialised(0, lambda: MLP(shape, **size, classes=classes, heads=second, guidance=labelled))
    student = AverageVelocity(network.to(options.device))
    teacher = deepcopy(student).requires_grad_(False)
    if name == ADAPTERS:
        student = AverageVelocity(GuidanceAdapters(network).to(options.device))
    game = as_game(method.wired(student, teacher=teacher.velocity, critic=deepcopy(student)), student)
    data = Streams(seed=1, index=torch.arange(options.batch), device=options.device)
    cond = Condition(label=data.integers("label", CLASSES)) if labelled else None
    x1 = data.normal("x1", *shape) if Need.DATA in method.card.needs else None
    batch = Batch(data.normal("x0", *shape), x1, cond)
    run = fit(game, lambda rng: batch, steps=10**9, seed=0, batch=options.batch, precision=options.precision)
    subject = Subject(name, method.card.cost, run, staged=isinstance(game, Stages))
    subject.run(3, options.device)
    subject.memory = peak(subject, options.device)
    with Counter() as counter:
        subject.run(1, options.device)
    subject.counted = counter.rows / options.batch
    return subject


def peak(subject: Subject, device: torch.device) -> int:
    """The most bytes alive at once during a step beyond those alive before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        subject.run(1, device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own start and stop otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        subject.run(1, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    events.sort(key=lambda e: int(e["args"]["Ev Idx"]))
    return max(accumulate(int(e["args"]["Bytes"]) for e in events))


def compare(base: Subject, subjects: list[Subject], options: Options) -> float:
    """Fill the subjects' ratios in turns with the base; the median seconds of a step of the base."""
    once = base.run(10, options.device) / 10
    count = max(1, math.ceil(options.block / once))
    seconds = []
    for _ in range(options.rounds):
        before = base.run(count, options.device)
        for subject in subjects:
            here = subject.run(count, options.device)
            after = base.run(count, options.device)
            subject.ratios.append(2.0 * here / (before + after))
            seconds.append(after / count)
            before = after
    return median(seconds)


def table(base: Subject, subjects: list[Subject]) -> Table:
    """One line a method, the cheapest first."""
    rows: list[list[str | float]] = []
    for s in sorted(subjects, key=lambda s: median(s.ratios)):
        low, middle, high = quantiles(s.ratios, n=4, method="inclusive")
        predicted = s.cost.predicted
        shown = [f"{v:g}" for v in (s.cost.evaluations, s.counted)]
        spread = f"{low:.2f} to {high:.2f}"
        rows.append([s.name, *shown, predicted, middle, spread, middle / predicted, s.memory / base.memory])
    head = ["method", "evaluations", "counted", "predicted", "time", "quartiles", "time/predicted", "memory"]
    return Table(head, rows)


def main(options: Options) -> int:
    """Measure and print; the exit status is 1 if lsd is dearer than allowed."""
    if options.threads:
        torch.set_num_threads(options.threads)
    known = discover()
    unknown = sorted(set(options.methods) - set(known))
    if unknown:
        raise SystemExit(f"methods: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    names = [n for n in known if n in options.methods or not options.methods]
    base = prepare(BASE, known[BASE], options)
    subjects = [prepare(n, known[n], options) for n in names]
    seconds = compare(base, subjects, options)
    network = f"MLP {options.depth} x {options.width}, batch {options.batch} x {options.dimension}"
    where = f"{options.precision.value}, {options.device}, {torch.get_num_threads()} threads"
    print(f"{network}, {where}, {options.rounds} rounds; relative to flow matching, one step of which takes")
    print(f"{1e3 * seconds:.2f} ms and {base.memory / 2**20:.1f} MiB")
    table(base, subjects).show()
    staged = ", ".join(s.name for s in subjects if s.staged)
    if staged:
        print(f"of {staged}: the first stage")
    lsd = [s for s in subjects if s.name == "lsd"]
    for s in lsd:
        share, strict = (median(s.ratios) / n for n in (s.cost.evaluations, s.cost.predicted))
        print(f"lsd: {share:.2f} of its evaluation count, at most {LSD_BOUND} wanted")
        print(f"     {strict:.2f} of its prediction")
        if options.check and share > LSD_BOUND:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
