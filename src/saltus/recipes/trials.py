"""One training of one method on one problem, measured: what ``saltus bench`` repeats."""

from __future__ import annotations

import ast
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.maps import NetworkMap
from saltus.methods import Method, Sampler, load
from saltus.metrics import sliced_wasserstein
from saltus.recipes.assemble import assemble
from saltus.recipes.digits import FRECHET, digits
from saltus.recipes.experiment import Experiment
from saltus.recipes.images import system as digits_as_means
from saltus.recipes.mixture import system as reference_problem
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.sampling import draw
from saltus.recipes.system import MAP_ERROR, Drawn, Judge
from saltus.recipes.train import train
from saltus.samplers import prior
from saltus.streams import Streams
from saltus.training import NonFiniteLoss

__all__ = [
    "COUNTS",
    "DIGITS",
    "FULL",
    "IMAGES",
    "KINDS",
    "MIXTURE",
    "QUICK",
    "Problem",
    "code",
    "measure",
    "old",
]

COUNTS = (1, 2, 4)
FULL, QUICK = (2500, 1e-3), (300, 5e-3)
"""Steps and learning rates that the cards' two thresholds refer to."""
NOISE = 2**31
"""First index of the evaluation's streams."""
KINDS: dict[str, str] = {"rmse": MAP_ERROR, "sw": "sliced W2", "energy": "energy", "frechet": FRECHET}
"""The figures of a result, and what judges call them."""

CARDS = frozenset({"Card", "replace"})
ASKED = frozenset({"title", "paper", "cost", "bias", "second_hand", "threshold", "quick_threshold"})
"""Calls that make a card, and what it says, or asks of figures, that no figure depends on."""
BASE = "flow_matching"
"""A method that every problem can be put together with, and that trains a teacher."""
PACKAGE = "saltus"
APART = tuple(
    f"{PACKAGE}.{name}."
    for name in (
        "data.images",
        "data.loader",
        "export",
        "page",
        "plots",
        "recipes.folder",
        "recipes.nonfinite",
        "recipes.opened",
        "recipes.origins",
        "recipes.watch",
        "report",
        "teachers.diffusers",
    )
)
"""Modules that a training imports, but that no figure of it depends on: files, folders, pages, words."""

Assemble = Callable[[str, Training, Output], Experiment]


@dataclass(frozen=True)
class Problem:
    """What methods are held against.

    Attributes:
        name: in results.
        title: in words.
        make: (method, training, output) -> the experiment, in the method's plain form.
        batch: rows of a step.
        seeds: that are usual.
        kinds: the figures that it has, keys of :data:`KINDS`.
        bounded: whether the cards' thresholds and the yardsticks refer to it.
        taught: the method that trains the teacher of those that need one, None where the exact velocity is.
    """

    name: str
    title: str
    make: Assemble
    batch: int
    seeds: tuple[int, ...]
    kinds: tuple[str, ...]
    bounded: bool = False
    taught: str | None = None


def _mixture(method: str, training: Training, output: Output) -> Experiment:
    return assemble(reference_problem(), method, True, Network(), training, output, {})


def _images(method: str, training: Training, output: Output) -> Experiment:
    network = Network(backbone="residual-mlp")
    return assemble(digits_as_means(), method, True, network, training, output, {})


def _digits(method: str, training: Training, output: Output) -> Experiment:
    lesson = min(3000, 2 * training.steps)
    return digits(method, True, labels=False, teacher_steps=lesson, training=training, output=output)


MIXED = ("rmse", "sw", "energy")
MIXTURE = Problem("mixture", "Reference mixture", _mixture, 512, (0, 1, 2), MIXED, True)
IMAGES = Problem("images", "500 digits as a mixture", _images, 256, (0,), MIXED)
DIGITS = Problem("digits", "1,797 real digits", _digits, 256, (0,), ("frechet", "sw", "energy"), taught=BASE)


@cache
def _files() -> dict[str, str]:
    """The text of every module of the package, by its name."""
    root = Path(__file__).resolve().parents[2]
    found = {path.relative_to(root): path for path in (root / PACKAGE).rglob("*.py")}
    return {
        ".".join(name.with_suffix("").parts).removesuffix(".__init__"): path.read_text(encoding="utf-8")
        for name, path in found.items()
    }


@cache
def _computed(module: str) -> str:
    return computes(_files()[module])


@cache
def _imports(module: str) -> frozenset[str]:
    """The modules of the package that one names, anywhere in it, and the packages that they are in."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(_files()[module])):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in named]
    return frozenset({".".join(p[:k]) for p in parts for k in range(1, len(p) + 1)} & set(_files()))


def _reached(*begin: str) -> set[str]:
    """These modules and all that they import, directly or not, without what is :data:`APART`."""
    found, left = set[str](), list(begin)
    while left:
        module = left.pop()
        if module not in found and not f"{module}.".startswith(APART):
            found.add(module)
            left += _imports(module)
    return found


def computes(source: str) -> str:
    """A module without what no figure depends on: comments, docstrings, what a card says or asks."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CARDS:
            node.keywords = [k for k in node.keywords if k.arg not in ASKED]
    return ast.dump(tree)


def _is_text(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


@cache
def code(name: str, problem: Problem) -> str:
    """A mark of the code that a method's figures on a problem depend on.

    That is what this module, the method's own and that of the problem's teacher import, directly or not, as
    far as it computes: neither comments and docstrings, nor other methods, pages and commands.
    """
    build = load(name).build
    own = (build.func if isinstance(build, partial) else build).__module__
    taught = () if problem.taught is None else (f"{PACKAGE}.methods.{problem.taught}",)
    seen = hashlib.sha256()
    for module in sorted(_reached(__name__, own, *taught)):
        seen.update(f"{module}\0{_computed(module)}".encode())
    return seen.hexdigest()[:12]


def _release(version: str) -> list[str]:
    """The part of torch's version that figures may depend on: 2.13 of 2.13.0+cpu."""
    return version.split(".")[:2]


def old(row: Mapping[str, Any], problem: Problem) -> bool:
    """Whether other code, or another release of torch, than is here now measured a result."""
    return bool(
        row["code"] != code(row["method"], problem) or _release(row["torch"]) != _release(torch.__version__)
    )


def _training(steps: int, lr: float, batch: int, seed: int) -> Training:
    return Training(steps=steps, batch=batch, lr=lr, seed=seed, ema=(0.0,), precision="float32")


@cache
def _teacher(problem: Problem, steps: int, lr: float, batch: int, seed: int) -> NetworkMap:
    """The velocity that a problem without an exact one is taught by: one for all methods of a seed."""
    made = problem.make("lmd", _training(steps, lr, batch, seed), Output(quiet=True))
    assert made.first is not None, "only a problem without an exact velocity has a teacher of its own"
    model = train(made.first, None)
    assert model is not None, "a bench is one process"
    return model.requires_grad_(False)


def experiment(
    name: str, seed: int, steps: int, lr: float, batch: int, problem: Problem = MIXTURE
) -> Experiment:
    """What is trained; its teacher, if it needs one that must be trained, is."""
    made = problem.make(name, _training(steps, lr, batch, seed), Output(quiet=True))
    return made if made.first is None else made.under(_teacher(problem, steps, lr, batch, seed))


def measure(
    name: str, seed: int, steps: int, lr: float, batch: int, problem: Problem = MIXTURE
) -> dict[str, Any]:
    """Train one method with one seed and measure its map: a line of the results.

    Figures that are not finite are None; a training whose loss is not finite has none at all.
    """
    made = experiment(name, seed, steps, lr, batch, problem)
    begin = time.perf_counter()
    try:
        model = train(made, None)
    except NonFiniteLoss:
        model = None
    seconds = time.perf_counter() - begin
    found: dict[int, dict[str, float | None]] = {}
    if model is not None:
        found = {k: _figures(made, model, k, problem) for k in COUNTS if k in made.method.card.steps}
    return {
        "problem": problem.name,
        "method": name,
        "seed": seed,
        "steps": steps,
        "lr": lr,
        "batch": batch,
        **{kind: _by_steps(made.method, kind, found) for kind in problem.kinds},
        "seconds": seconds,
        "torch": torch.__version__,
        "code": code(name, problem),
    }


def _by_steps(
    method: Method, kind: str, found: Mapping[int, Mapping[str, float | None]]
) -> dict[str, float | None]:
    """One figure by number of steps. Fresh noise after a jump leaves no map to compare with."""
    fresh = method.card.sampler is Sampler.RENOISE and kind == "rmse"
    known = {str(k): figures.get(KINDS[kind]) for k, figures in found.items() if k == 1 or not fresh}
    return known if found else {str(min(method.card.steps)): None}


@dataclass(frozen=True, eq=False)
class Examination:
    """The noise that every map of a problem is asked about, who judges, and the real images, if there are."""

    judge: Judge
    rng: Streams
    x0: Tensor
    real: Tensor | None

    def figures(self, x: Tensor) -> dict[str, float]:
        """Of samples of that noise, by the judge's names."""
        found = self.judge.figures(Drawn(self.x0, x))
        if self.real is not None:  # and what the judge of images leaves out, pixel by pixel
            found["sliced W2"] = float(sliced_wasserstein(x, self.real))
        return found


_EXAMINATIONS: dict[tuple[Problem, str], Examination] = {}


def _examination(problem: Problem, interpolant: Interpolant) -> Examination:
    """One for all methods on an interpolant: the exact map is solved for once."""
    key = (problem, repr(interpolant))
    if key not in _EXAMINATIONS:
        _EXAMINATIONS[key] = _prepared(problem, interpolant)
    return _EXAMINATIONS[key]


def _prepared(problem: Problem, interpolant: Interpolant) -> Examination:
    system = problem.make(BASE, Training(), Output()).system
    judge = system.judge()
    rng = Streams(0, index=torch.arange(NOISE, NOISE + judge.count))
    gallery = system.gallery() if system.gallery is not None else None
    real = None if gallery is None else gallery.images(torch.arange(gallery.count))
    return Examination(judge, rng, prior(rng, system.shape, interpolant), real)


def _figures(made: Experiment, model: NetworkMap, k: int, problem: Problem) -> dict[str, float | None]:
    exam = _examination(problem, made.interpolant)
    x = draw(model, made.method.card, exam.x0, k, None, exam.rng, made.interpolant)
    if not bool(x.isfinite().all()):
        return {}
    return {name: v if math.isfinite(v) else None for name, v in exam.figures(x).items()}
