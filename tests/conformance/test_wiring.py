"""How methods are put together: every option reaches every part, each step calls the network as often as its
card says, every interpolant is served, and what a paper's own weight does is printed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import pytest
import torch
from systems import (
    Perturbed,
    System,
    Undecided,
    first,
    gaussian,
    means,
    mixture,
    noise,
    objective_of,
    pairs,
    row_gradients,
    unfold,
    wired,
)
from torch import Tensor

from saltus.couplings import MinibatchOT
from saltus.games import as_game
from saltus.interpolants import Trigonometric
from saltus.methods import Cost, Need, discover
from saltus.policies import MomentumPolicy
from saltus.tensors import like
from saltus.typing import Condition, Objective, Output
from saltus.weights import LearnedLogVariance, PseudoHuber, Scaled

METHODS = discover()
C = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
ZERO = torch.zeros(8, dtype=torch.float64)


def options_of(name: str) -> set[str]:
    return set(inspect.signature(METHODS[name].build).parameters)


def objectives(name: str, student: Perturbed, **options: object) -> list[Objective]:
    objective = objective_of(wired(METHODS[name], student, gaussian(), **options))
    batch, rng = pairs(gaussian(), 64)
    return [seen.objective for seen in unfold(objective, batch, objective.draw(batch, rng))]


@pytest.mark.parametrize("name", METHODS)
def test_every_option_reaches_every_part(name: str) -> None:
    """A part that kept its default interpolant, coupling or weight would learn another problem. Not all
    have all three: a loss on the law of samples pairs nothing."""
    given = {"interpolant": Trigonometric(), "coupling": MinibatchOT(), "weight": PseudoHuber(0.1)}
    options = {key: value for key, value in given.items() if key in options_of(name)}
    assert "weight" in options and ("coupling" not in options or Need.DATA in METHODS[name].card.needs)
    student = Perturbed(gaussian().exact, C)
    for part in objectives(name, student, **options):
        fields = vars(part)
        kept = [key for key, value in options.items() if fields.get(key, value) is not value]
        assert not kept, (type(part).__name__, kept)
        assert fields["student"] is student


@pytest.mark.parametrize("name", [n for n in METHODS if {"interpolant"} <= options_of(n)])
def test_methods_are_stationary_on_the_trigonometric_interpolant_too(name: str) -> None:
    """The expected gradient at the exact map of that interpolant is zero; a finite step has its bias, of the
    order that its card says, and is left out."""
    finite = options_of(name) & {"step", "solver_steps", "cells", "eps"}
    if finite or name == "scm":  # scm's times depend on the interpolant: tested apart
        return
    system = gaussian(Trigonometric())
    student = Perturbed(system.exact, ZERO)
    options = {**METHODS[name].card.plain, "interpolant": system.interpolant}
    objective = objective_of(wired(METHODS[name], student, system, **options))
    batch, rng = pairs(system, 6000, progress=1.0)
    for seen in unfold(objective, batch, objective.draw(batch, rng)):
        controls = noise(system, seen)
        for term, values in row_gradients(student, seen, 6000).items():
            mean, error = means(values, controls)
            assert bool((mean.abs() <= 5.0 * error + 1e-8).all()), (seen.name, term, mean / error)
            assert float(error.norm()) < 0.02


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "inside another"])
def test_a_learned_weight_is_trained_by_the_move_of_the_student(name: str, wrapped: bool) -> None:
    """Also by methods that return a game of their own, and also where another weight holds it."""
    learned = LearnedLogVariance()
    student = Perturbed(gaussian().exact, C)
    weight = Scaled(Scaled(learned)) if wrapped else learned
    move = as_game(wired(METHODS[name], student, gaussian(), weight=weight), student).moves[0]
    trained = [id(p) for p in move.module.parameters()]
    assert len(trained) == len(set(trained))
    assert {id(p) for p in (*student.parameters(), *learned.parameters())} == set(trained)


def test_times_of_the_diagonal_are_even_over_the_batch() -> None:
    """Stratified: no gap of the golden-ratio sequence is longer than 1.9/n, against log(n)/n of chance."""
    (diagonal,) = objectives("flow_matching", Perturbed(gaussian().exact, C))
    batch, rng = pairs(gaussian(), 256)
    t = diagonal.draw(batch, rng)["t"]
    assert isinstance(t, Tensor)
    assert float(t.sort().values.diff().max()) < 1.9 / 256


@dataclass
class Calls:
    """Rows that went through a network, by kind of call."""

    live: int = 0
    live_jvp: int = 0
    stopped: int = 0
    stopped_jvp: int = 0
    teacher: int = 0
    log: list[str] = field(default_factory=list)


class Counted(Perturbed):
    """A perturbed map that counts its rows: with or without gradient, with or without a derivative beside."""

    calls = Calls()

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        live = torch.is_grad_enabled() and self.c.requires_grad
        moving = any(torch._C._functorch.is_gradtrackingtensor(z) or _dual(z) for z in (x, s, t))
        kind = ("live" if live else "stopped") + ("_jvp" if moving else "")
        vars(self.calls)[kind] += x.shape[0]
        h = like(t - s, x)
        u = x + h * torch.tanh(x) + torch.einsum("k,kbd->bd", self.c, self.basis(x, s, t))
        return Output(u, {"v": u + self.of_head.sum()})

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.evaluate(x, s, t, cond).u

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.average(x, t, t, cond)

    def policy(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> MomentumPolicy:
        """A policy from one call, for the methods that are made for one."""
        u = self.average(x, s, t, cond).unsqueeze(1)
        return MomentumPolicy(s, u, torch.zeros_like(u))


def _dual(z: Tensor) -> bool:
    return torch.autograd.forward_ad.unpack_dual(z).tangent is not None


def asked(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    """A teacher that counts its rows."""
    Counted.calls.teacher += x.shape[0]
    return torch.tanh(x) * like(t, x)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_calls_the_network_as_often_as_the_card_says(name: str) -> None:
    """Rows of each kind of call over rows of the batch, every turn of a move counted."""
    student = Counted(gaussian().exact, C)
    card = METHODS[name].card
    others = {"critic": Counted(gaussian().exact, ZERO), "discriminator": Undecided()}
    built = METHODS[name].wired(student, teacher=asked, **others, **card.plain)
    batch, rng = pairs(gaussian(), 64, progress=0.5)
    Counted.calls = calls = Calls()
    for move in as_game(first(built), student).moves:
        for _ in range(move.when(0)):
            move.objective(batch, move.objective.draw(batch, rng))
    counts = (calls.live, calls.live_jvp, calls.stopped, calls.stopped_jvp, calls.teacher)
    found = Cost(*(n / 64 for n in counts))
    assert found == card.cost
    assert (found.live_jvp + found.stopped_jvp > 0) == (Need.JVP in card.needs)


def displacement(name: str, system: System, rows: int, plain: bool) -> tuple[float, float]:
    """The expected gradient at the exact map, all terms, and its standard error."""
    student = Perturbed(system.exact, ZERO)
    options = METHODS[name].card.plain if plain else {}
    objective = objective_of(wired(METHODS[name], student, system, **options))
    batch, rng = pairs(system, rows, progress=1.0)
    square, error = 0.0, 0.0
    for seen in unfold(objective, batch, objective.draw(batch, rng)):
        for values in row_gradients(student, seen, rows).values():
            mean, of_mean = means(values, noise(system, seen))
            square += float((mean * seen.weight).square().sum())
            error += float((of_mean * seen.weight).square().sum())
    return square**0.5, error**0.5


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].card.bias is None])
def test_methods_without_a_declared_bias_have_none_in_their_own_form(name: str) -> None:
    """With the paper's defaults, on the Gaussian and the paper's path: a card without a bias is true of what
    runs by default."""
    path_ = inspect.signature(METHODS[name].build).parameters.get("interpolant")
    found, error = displacement(name, gaussian(path_.default if path_ else None), 6000, plain=False)
    assert found <= 5.0 * error + 1e-8


@pytest.mark.parametrize("name", ["mean_flow", "improved_mean_flow"])
def test_own_weights_of_papers_displace_the_fixed_point_in_low_dimension(name: str) -> None:
    """p = 1 on skewed noise: printed, not bounded, but there, and not in the plain form."""
    own, error = displacement(name, mixture(), 20_000, plain=False)
    none, of_none = displacement(name, mixture(), 3000, plain=True)
    print(f"{name}: gradient at the exact map {own:.3f} +- {error:.3f}, plain {none:.4f} +- {of_none:.4f}")
    assert own > 5.0 * error and none <= 5.0 * of_none + 1e-8
