"""Facts that connect the losses: limits of finite steps, biases of data legs, what a paper's weight does to
the fixed point, jumps of the exact map, and that no row looks at another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from systems import (
    Perturbed,
    System,
    gaussian,
    loss,
    means,
    mixture,
    noise,
    objective_of,
    pairs,
    points,
    row_gradients,
    streams,
    together,
    unfold,
    wired,
)
from torch import Tensor

from saltus.interpolants import Linear, path
from saltus.legs import EULER, HEUN, Along, Jump, Line, Tableau
from saltus.methods import discover
from saltus.objectives import Diagonal, Eulerian, Lagrangian
from saltus.slots import Own, Teacher
from saltus.states import State
from saltus.times import Fraction
from saltus.trajectories import TrajectoryStates
from saltus.typing import Gradient, Objective
from saltus.weights import AdaptivePower

C = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)


@pytest.mark.parametrize("system", [gaussian(), mixture()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (HEUN, 2)], ids=["euler", "heun"])
def test_finite_eulerian_error_at_the_exact_map_is_the_leg_error(
    system: System, tableau: Tableau, order: int
) -> None:
    """A step of order p leaves O(d^(p+1)) in states, hence O(d^p) in the rescaled error."""
    student = Perturbed(system.exact, 0 * C)
    leg = Along(Teacher(system.velocity), tableau)
    assert_ratio(lambda d: Eulerian(student, step=d, leg=leg), system, 2.0**order)


@pytest.mark.parametrize("system", [gaussian(), mixture()], ids=["gaussian", "mixture"])
def test_finite_steps_converge_to_the_derivative(system: System) -> None:
    """Away from the exact map too: the target with a step is that with a derivative, to O(d)."""
    student = Perturbed(system.exact, C)
    own = Own()
    limits: dict[str, tuple[Callable[[Fraction], Objective], Objective]] = {
        "eulerian": (
            lambda d: Eulerian(student, step=d, leg=Along(own), tangent=own, velocity=own),
            Eulerian(student, tangent=own, velocity=own),
        ),
        "lagrangian": (
            lambda d: Lagrangian(student, step=d, gradient=Gradient.TARGET),
            Lagrangian(student, gradient=Gradient.TARGET),
        ),
        "eulerian, line": (
            lambda d: Eulerian(student, step=d, leg=Line()),
            Eulerian(student),
        ),
    }
    for finite, limit in limits.values():
        assert_ratio(finite, system, 2.0, limit)


def test_finite_lagrangian_error_at_the_exact_map_is_of_first_order() -> None:
    student = Perturbed(gaussian().exact, 0 * C)
    assert_ratio(lambda d: Lagrangian(student, step=d, gradient=Gradient.TARGET), gaussian(), 2.0)


def assert_ratio(
    build: Callable[[Fraction], Objective], system: System, wanted: float, limit: Objective | None = None
) -> None:
    """The root mean square of the error, or of its gradient's distance to the limit's, by halving d."""
    batch, rng = pairs(system, 60)
    batch = replace(batch, cond=None)

    def size(d: float) -> float:
        objective = build(Fraction(lambda progress: torch.full_like(progress, d)))
        draws = objective.draw(batch, rng)
        (term,) = objective(batch, draws).values()
        if limit is None:
            return float(term.value.detach().mean().sqrt())
        (other,) = limit(batch, draws).values()
        student = objective.student  # type: ignore[attr-defined]
        a, b = (torch.autograd.grad(z.value.mean(), student.c)[0] for z in (term, other))
        return float((a - b).norm())

    coarse, fine = size(0.004), size(0.002)
    assert fine > 1e-9
    assert coarse / fine == pytest.approx(wanted, rel=0.1)


def biases(alphas: tuple[float, ...]) -> list[float]:
    """Root mean square over x_s of E[y | x_s] - u_{s,t}(x_s), y = u + (u_T - u)/alpha the rescaled target and
    u_T = alpha dI + (1 - alpha) u_{m,t}(I_m), with the mean over x1 given x_s by quadrature on the line."""
    system = mixture(spread=0.5)
    batch, rng = pairs(system, 24)
    s = 0.8 * rng.uniform("s")
    t = torch.lerp(s, torch.ones_like(s), rng.uniform("t"))
    x, _ = path(Linear(), batch.x0, batch.data(), s)
    grid = torch.linspace(-6.0, 7.0, 801, dtype=torch.float64)
    weights, centres, widths = (0.4, 0.6), (-1.0, 1.5), (0.59**0.5, 0.66**0.5)
    prior = sum(
        w / sd * torch.exp(-0.5 * ((grid - mu) / sd) ** 2)
        for w, mu, sd in zip(weights, centres, widths, strict=True)
    )
    x0 = (x - s.unsqueeze(1) * grid) / (1 - s).unsqueeze(1)
    posterior = prior * torch.exp(-0.5 * x0.square())
    posterior = posterior / posterior.sum(1, keepdim=True)
    found = []
    for alpha in alphas:
        m = s + alpha * (t - s)
        x_m = (1 - m).unsqueeze(1) * x0 + m.unsqueeze(1) * grid
        u_m = system.exact.average(
            x_m.reshape(-1, 1), m.repeat_interleave(len(grid)), t.repeat_interleave(len(grid))
        )
        u_t = alpha * (grid - x0) + (1 - alpha) * u_m.reshape(x_m.shape)
        mean = (posterior * u_t).sum(1, keepdim=True)
        off = (mean - system.exact.average(x, s, t)) / alpha
        found.append(float(off.square().mean().sqrt()))
        if alpha == 1.0:
            assert torch.allclose(mean, system.velocity(x, s), atol=1e-6)  # the denoiser's velocity
    return found


def test_a_finite_step_along_data_is_biased_by_its_length() -> None:
    """At alpha = 1 the target's mean is the velocity b_s, not the average velocity; then O(alpha)."""
    found = biases((1.0, 0.5, 0.25, 0.1, 0.05, 0.025))
    print("bias of the target at alpha = 1, .5, .25, .1, .05, .025:", [round(b, 4) for b in found])
    assert all(a > b for a, b in zip(found, found[1:], strict=False))
    assert found[0] > 0.3
    assert found[4] / found[5] == pytest.approx(2.0, abs=0.1)


def test_the_adaptive_weight_moves_the_fixed_point_of_noisy_targets_only() -> None:
    """p = 1 with data velocities: an expected gradient at the exact map, far from zero. With the exact
    velocity there is no noise, and no displacement. p = 0: none either way. On skewed noise, that is: on a
    Gaussian an M-estimator of the mean is the mean."""
    system = mixture()

    def displacement(objective: Objective, student: Perturbed) -> tuple[float, float]:
        batch, rng = pairs(system, 20_000)
        (seen,) = unfold(objective, batch, objective.draw(batch, rng))
        mean, error = means(row_gradients(student, seen, 20_000)["eulerian"][:, :8], noise(system, seen))
        return float(mean.norm()), float(error.norm())

    def build(p: float, exact: bool) -> tuple[float, float]:
        student = Perturbed(system.exact, 0 * C)
        slots = {"tangent": Teacher(system.velocity), "velocity": Teacher(system.velocity)} if exact else {}
        return displacement(Eulerian(student, weight=AdaptivePower(p, 1e-2), **slots), student)  # type: ignore[arg-type]

    moved, error = build(1.0, False)
    assert moved > 20.0 * error
    assert build(1.0, True)[0] <= 1e-9
    still, noise_of = build(0.0, False)
    assert still <= 5.0 * noise_of + 1e-9 and noise_of < 0.1 * moved
    print(f"displacement of the gradient at the exact map by p = 1: {moved:.3f} +- {error:.3f}")


@pytest.mark.parametrize("system", [gaussian(), mixture()], ids=["gaussian", "mixture"])
def test_three_jumps_are_one_on_the_exact_map(system: System) -> None:
    x, s, _, t = points(system, 50)
    many = Jump(3)
    three = many(system.exact, State(x), system.interpolant, s, t, None)
    assert float((three - system.exact(x, s, t)).abs().max()) <= 1e-9
    away = Perturbed(system.exact, C).requires_grad_(False)
    assert float((many(away, State(x), system.interpolant, s, t, None) - away(x, s, t)).abs().max()) > 1e-2


def permuted(draws: object, perm: Tensor) -> object:
    """Draws for the rows in another order; a part's rows are where they have gone."""
    if isinstance(draws, Tensor):
        return draws[perm]
    assert isinstance(draws, dict)
    if "rows" in draws:
        return {"rows": torch.argsort(perm)[draws["rows"]], "of": draws["of"]}
    return {name: permuted(d, perm) for name, d in draws.items()}


def group_of(objective: Objective) -> int:
    """How many rows in a row share a trajectory or pull at each other, 1 for most."""
    states = vars(objective).get("states")
    return states.group if isinstance(states, TrajectoryStates) else together(objective)


@pytest.mark.parametrize("name", discover())
def test_permuting_rows_with_their_draws_permutes_the_terms(name: str) -> None:
    """No row looks at another: a term's values are the same numbers in another order. Rows that share a
    trajectory or pull at each other stay together, in order: there whole groups change places."""
    method = discover()[name]
    objective = objective_of(wired(method, Perturbed(gaussian().exact, C), gaussian(), **method.card.plain))
    batch, rng = pairs(gaussian(), 64, progress=0.5)
    draws = objective.draw(batch, rng)
    group = group_of(objective)
    places = streams(64 // group, seed=5).permutation("order")
    perm = (places.unsqueeze(1) * group + torch.arange(group)).flatten()
    assert not torch.equal(perm, torch.arange(64))
    terms = objective(batch, draws)
    again = objective(batch.rows(perm), permuted(draws, perm))  # type: ignore[arg-type]
    for key, term in terms.items():
        everyone, groups = term.value.shape[0] == 64, term.value.shape[0] == 64 // group
        wanted = term.value[perm] if everyone else term.value[places] if groups else term.value
        assert torch.allclose(again[key].value, wanted, rtol=1e-12, atol=1e-14)
    assert loss(again).item() == pytest.approx(loss(terms).item(), rel=1e-12)


def test_diagonal_of_every_method_takes_its_own_share() -> None:
    """Rows with s = t: eta or the share in the signature, of every 2^j rows."""
    shares = {"lsd": 0.75, "psd": 0.75, "esd": 0.75, "mean_flow": 0.75, "improved_mean_flow": 0.5}
    shares |= {"alpha_flow": 0.5, "split_mean_flow": 0.5, "shortcut": 0.875}
    for name, share in shares.items():
        method = discover()[name]
        student = Perturbed(gaussian().exact, C)
        objective = objective_of(wired(method, student, gaussian(), **method.card.plain))
        batch, rng = pairs(gaussian(), 64)
        (diagonal,) = (
            p for p in unfold(objective, batch, objective.draw(batch, rng)) if p.name == "diagonal"
        )
        assert len(diagonal.rows) == round(64 * share)
        assert diagonal.weight == pytest.approx(share)
        assert isinstance(diagonal.objective, Diagonal)
