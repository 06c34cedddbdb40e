"""At the exact map the expected gradient of every objective and method is zero; a finite step
moves it by the order that its card declares; away from the truth it points home.

The student is u* + c . phi at c = 0. Each term's gradient in c is averaged over rows, less its regression
on products of noise that have mean zero (:func:`systems.noise`), and compared with its standard error.
A term is zero when it is within 5 standard errors, and these are small beside the gradient at another c.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kinds import each
from restores import FILE, plain, restores
from systems import (
    Perturbed,
    System,
    gaussian,
    means,
    mixture,
    noise,
    objective_of,
    pairs,
    row_gradients,
    together,
    unfold,
    wired,
)
from torch import Tensor

from saltus.autodiff import FiniteDifference, TwoPass
from saltus.interpolants import Trigonometric
from saltus.legs import HEUN, RK4, Along, Jump
from saltus.maps import EulerMap
from saltus.methods import Sampler, discover
from saltus.methods.scm import scm
from saltus.objectives import Composition, Diagonal, Endpoint, Eulerian, Lagrangian
from saltus.pyramid import Climb
from saltus.slots import Data, Head, Own, Teacher
from saltus.times import Fraction, FromStart, Gaps, Midpoint, Restricted, ToEnd, Uniform, trigonometric_time
from saltus.typing import FlowMap, Gradient, Objective
from saltus.weights import Squared

METHODS = discover()
STEPS = ("step", "solver_steps", "cells", "eps")
"""Options that say how finely a finite step, a teacher's solver or the first of several stages goes."""
STRAIGHTENING = {name for name, method in METHODS.items() if method.card.rectifies}
"""Their stationary point is another flow: test_pairs.py holds them against it."""
TOGETHER = {"imm"}
"""Where rows of a group pull at each other across a finite step: test_moments.py holds it against consistency
training, and at the exact map along the flow itself."""
FINITE = sorted(
    n
    for n, m in METHODS.items()
    if set(STEPS) & set(inspect.signature(m.build).parameters) and n not in STRAIGHTENING | TOGETHER
)
LAWS = pytest.mark.parametrize("system", [gaussian(), mixture()], ids=["gaussian", "mixture"])
ZERO = torch.zeros(8, dtype=torch.float64)
AWAY = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
ROUNDING = 1e-8
ROWS = {2: 10_240, 1: 2_560}
"""By dimension: the mixture's map costs more, its errors are as small. Whole trajectories of 16 rows, also
in a quarter of them."""


def expected(
    build: Callable[[Perturbed], Objective], system: System, c: Tensor, rows: int, seed: int = 0
) -> dict[str, tuple[Tensor, Tensor]]:
    """By part and term: the expected gradient and its standard error, [2K] each."""
    student = Perturbed(system.exact, c)
    objective = build(student)
    batch, rng = pairs(system, rows, seed, progress=1.0)
    found = {}
    for seen in unfold(objective, batch, objective.draw(batch, rng)):
        controls = noise(system, seen)
        for name, values in row_gradients(student, seen, rows).items():
            found[f"{seen.name}/{name}"] = means(values, controls)
    return found


def assert_stationary(build: Callable[[Perturbed], Objective], system: System) -> None:
    """Every term: zero within 5 standard errors at the exact map, and these at most 2 % of the gradient
    at another."""
    rows = ROWS[system.dim]
    if together(build(Perturbed(system.exact, ZERO))) > 1:
        rows *= 4  # few groups
    here = expected(build, system, ZERO, rows)
    there = expected(build, system, AWAY, rows // 4)
    for name, (mean, error) in here.items():
        assert bool((mean.abs() <= 5.0 * error + ROUNDING).all()), (name, mean / error, mean)
        size = float(there[name][0].norm())
        if name.endswith("/v"):  # a head has parameters of its own, at zero in both students
            size = 1.0
        assert float(error.norm()) <= 0.02 * size, (name, float(error.norm()), size)


@LAWS
@pytest.mark.parametrize("name", sorted(set(METHODS) - set(FINITE) - STRAIGHTENING - TOGETHER))
def test_methods_are_stationary_at_the_exact_map(name: str, system: System) -> None:
    build = plain(METHODS[name])
    assert_stationary(lambda student: build(student, system), system)


def limit_of(objective: Objective) -> Objective | None:
    """A part without its finite step: with the derivative, or with jumps of the map for a teacher's steps."""
    if isinstance(objective, Eulerian | Lagrangian) and objective.step is not None:
        return replace(objective, step=None)
    if isinstance(objective, Eulerian) and isinstance(objective.near, FiniteDifference):
        return replace(objective, near=TwoPass())
    if isinstance(objective, Composition) and objective.leg is not None:
        return replace(objective, leg=None)
    if isinstance(objective, Composition) and isinstance(objective.target, EulerMap):
        return replace(objective, target=None)
    if isinstance(objective, Endpoint) and isinstance(objective.leg, Along | Climb):
        return replace(objective, leg=Jump())
    return None


def rate(build: Callable[[Perturbed], Objective], system: System, rows: int) -> tuple[Tensor, Tensor]:
    """Expected gradient of the finite step less that of its limit on the same draws."""
    student = Perturbed(system.exact, ZERO)
    objective = build(student)
    batch, rng = pairs(system, rows, progress=1.0)
    draws = objective.draw(batch, rng)
    for seen in unfold(objective, batch, draws):
        limit = limit_of(seen.objective)
        if limit is not None:
            finite, *_ = row_gradients(student, seen, rows).values()  # an adversary's term comes after it
            exact, *_ = row_gradients(student, replace(seen, objective=limit), rows).values()
            return means((finite - exact)[:, :8], noise(system, seen))
    raise AssertionError("no part with a finite step")


def order_of(bias: str | None) -> int:
    """p of the O(d^p), or O(alpha^p), that a card declares."""
    declared = re.search(r"O\((?:d|alpha)(?:\^(\d))?\)", bias or "")
    assert declared, bias
    return int(declared[1] or 1)


def finer(name: str, halvings: int) -> dict[str, object]:
    """The option for a step 0.08/2^halvings of the way, or for 16 2^halvings steps of a solver or cells."""
    if "step" in inspect.signature(METHODS[name].build).parameters:
        d = 0.08 / 2**halvings
        return {"step": Fraction(lambda progress: torch.full_like(progress, d))}
    if "eps" in inspect.signature(METHODS[name].build).parameters:
        return {"eps": 0.08 / 2**halvings}
    option = "cells" if "cells" in inspect.signature(METHODS[name].build).parameters else "solver_steps"
    return {option: 16 * 2**halvings}


@pytest.mark.parametrize(
    "system",
    [
        pytest.param(gaussian(), id="gaussian"),
        pytest.param(mixture(spread=0.5), id="mixture", marks=pytest.mark.all),
    ],
)
@pytest.mark.parametrize("name", FINITE)
def test_the_bias_of_a_finite_step_falls_with_it_as_declared(name: str, system: System) -> None:
    """By 2^p at every halving, p the order on the card: 1 along data, 2 for a teacher's Heun step."""
    method = METHODS[name]
    wanted = 2.0 ** order_of(method.card.bias)

    def build(halvings: int) -> Callable[[Perturbed], Objective]:
        options = {**method.card.plain, **finer(name, halvings), "weight": Squared()}
        if "eps" in options:  # a third derivative along data: the cube of their noise drowns it
            options["velocity"] = Teacher(system.velocity)
        return lambda student: objective_of(wired(method, student, system, **options))

    rows = ROWS[system.dim] * {"solver_steps": 4, "eps": 2}.get(next(iter(finer(name, 0))), 1)
    found = [rate(build(k), system, rows) for k in range(3)]
    sizes = [float(mean.norm()) for mean, _ in found]
    errors = [float(error.norm()) for _, error in found]
    assert all(5.0 * e < size for e, size in zip(errors, sizes, strict=True)), (sizes, errors)
    assert sizes[0] / sizes[1] == pytest.approx(wanted, rel=0.15), sizes
    assert sizes[1] / sizes[2] == pytest.approx(wanted, rel=0.15), sizes


@pytest.mark.parametrize("name", each(METHODS))
def test_what_methods_restore_is_current(name: str) -> None:
    """Away from the truth every method from data points home from a wrong law, and every one but flow
    matching from a wrong map; recipes/restores.json says so."""
    row = restores({name: plain(METHODS[name])})[name]
    card = METHODS[name].card
    velocity = card.sampler is Sampler.ODE or card.rectifies  # in its first stage
    assert row == {"law": True, "map": not velocity and not card.law_alone}
    known = json.loads(FILE.read_text())
    assert known.get(name) == row, "not current; run: python tests/conformance/restores.py"
    assert set(known) == set(METHODS)


def test_what_objectives_restore() -> None:
    """A trajectory loss on the student's own velocity restores the map and lets the law alone."""
    own = Own()
    found = restores(
        {
            "diagonal": lambda u, y: Diagonal(u),
            "lagrangian": lambda u, y: Lagrangian(u, gradient=Gradient.TARGET),
            "eulerian": lambda u, y: Eulerian(u, tangent=own, velocity=own),
            "eulerian, data": lambda u, y: Eulerian(u),
            "composition": lambda u, y: Composition(u),
        }
    )
    assert [(row["law"], row["map"]) for row in found.values()] == [
        (True, False),
        (False, True),
        (False, True),
        (True, True),
        (False, True),
    ]


def _teacher(system: System) -> Teacher:
    return Teacher(system.velocity)


def _objectives() -> dict[str, Callable[[FlowMap, System], Objective]]:
    forms: dict[str, Callable[[FlowMap, System], Objective]] = {
        "diagonal, teacher": lambda u, y: Diagonal(u, velocity=_teacher(y), head="v"),
        "lagrangian, teacher, from the prior": lambda u, y: Lagrangian(
            u, end=_teacher(y), times=FromStart(Uniform()), gradient=Gradient.TARGET
        ),
        "eulerian, own tangent, data": lambda u, y: Eulerian(u, tangent=Own(), velocity=Data()),
        "eulerian, data tangent, own": lambda u, y: Eulerian(u, tangent=Data(), velocity=Own()),
        "eulerian, head": lambda u, y: Eulerian(u, tangent=Head("v"), velocity=Head("v")),
        "eulerian, teacher, to the end": lambda u, y: Eulerian(
            u, tangent=_teacher(y), velocity=_teacher(y), times=ToEnd(), gradient=Gradient.FULL
        ),
        "eulerian, data, time": lambda u, y: Eulerian(u, gradient=Gradient.TIME),
        "composition, full, gaps": lambda u, y: Composition(
            u, gradient=Gradient.FULL, times=Gaps(Uniform(0.2, 0.9))
        ),
        "composition, midpoint, restricted": lambda u, y: Composition(
            u, split=Midpoint(), times=Restricted(0.4)
        ),
        "endpoint, two jumps": lambda u, y: Endpoint(u, leg=Jump(2), times=Gaps(Uniform(0.3, 1.0))),
    }
    for g in Gradient:
        forms[f"lagrangian, {g.value}"] = lambda u, y, g=g: Lagrangian(u, gradient=g)
        forms[f"eulerian, own, {g.value}"] = lambda u, y, g=g: Eulerian(
            u, tangent=Own(), velocity=Own(), gradient=g
        )
    return forms


OBJECTIVES = _objectives()


@LAWS
@pytest.mark.parametrize("form", OBJECTIVES)
def test_objectives_are_stationary_at_the_exact_map(form: str, system: System) -> None:
    assert_stationary(lambda student: OBJECTIVES[form](student, system), system)


def test_scm_is_stationary_on_its_own_interpolant() -> None:
    system = gaussian(Trigonometric())

    def build(student: Perturbed) -> Objective:
        return objective_of(scm(student, weight=Squared(), warm_up=None, time=trigonometric_time))  # type: ignore[arg-type]

    assert_stationary(build, system)


def test_data_velocity_through_a_live_spatial_derivative_is_biased() -> None:
    """Why data slots go with TARGET or TIME: with DERIVATIVE the noise multiplies itself."""
    system = gaussian()
    found = expected(lambda u: Eulerian(u, gradient=Gradient.DERIVATIVE), system, ZERO, 20_000)
    mean, error = found["all/eulerian"]
    assert float((mean / error.clamp(min=1e-12)).abs().max()) > 20.0


def test_a_data_pair_as_an_endpoint_is_biased_to_the_mean() -> None:
    """The endpoint loss on independent pairs learns E[x1], not the flow map."""
    system = gaussian()
    mean, error = expected(lambda u: Endpoint(u), system, ZERO, 20_000)["all/endpoint"]
    assert float((mean / error.clamp(min=1e-12)).abs().max()) > 20.0


@pytest.mark.parametrize(("tableau", "order"), [(HEUN, 2), (RK4, 4)], ids=["heun", "rk4"])
def test_endpoint_of_a_teacher_is_as_exact_as_its_integration(tableau: object, order: int) -> None:
    """The expected gradient is that of the solver's error, which falls by 2^order with twice the steps."""
    system = gaussian()

    def size(steps: int) -> float:
        leg = Along(_teacher(system), tableau, steps)  # type: ignore[arg-type]
        times = Gaps(Uniform(0.5, 1.0))
        found = expected(lambda u: Endpoint(u, leg=leg, times=times), system, ZERO, 1000)
        return float(found["all/endpoint"][0].norm())

    assert size(32) / size(64) == pytest.approx(2.0**order, rel=0.2)
