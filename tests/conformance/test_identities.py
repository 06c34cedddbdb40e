"""The exact maps satisfy every identity, and perturbed ones do not: float64, both laws, both paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from systems import ON_DIAGONAL, Perturbed, System, pairs, points, smooth, systems

from saltus import identities
from saltus.interpolants import path

EVERY = pytest.mark.parametrize("system", systems(), ids=lambda s: s.name)
ROWS = 400


def residuals(system: System, c: torch.Tensor) -> dict[str, float]:
    """The largest entry of each identity's residual for the exact map plus c . phi."""
    student = Perturbed(system.exact, c)
    x, s, m, t = points(system, ROWS)
    with torch.no_grad():
        found = {
            "tangent": identities.tangent(student, system.velocity, x, t),
            "lagrangian": identities.lagrangian(student, system.velocity, x, s, t),
            "eulerian": identities.eulerian(student, system.velocity, x, s, t),
            "semigroup": identities.semigroup(student, x, s, m, t),
        }
    return {name: float(r.abs().max()) for name, r in found.items()}


@EVERY
def test_exact_maps_satisfy_every_identity(system: System) -> None:
    worst = residuals(system, torch.zeros(8, dtype=torch.float64))
    assert max(worst.values()) <= 1e-9, worst


@EVERY
@pytest.mark.parametrize("i", range(8))
def test_every_identity_sees_every_perturbation(system: System, i: int) -> None:
    """Each trajectory identity notices each of the eight functions; the tangent those on the diagonal."""
    c = torch.zeros(8, dtype=torch.float64)
    c[i] = 0.1
    worst = residuals(system, c)
    tangent = worst.pop("tangent")
    assert (tangent > 1e-2) if ON_DIAGONAL[i] else (tangent == pytest.approx(0.0, abs=1e-9))
    assert min(worst.values()) > 1e-3, worst


@EVERY
def test_average_velocity_is_the_mean_of_the_velocity_along_the_flow(system: System) -> None:
    """Against Gauss-Legendre quadrature of b_m(X_{s,m}(x)) over m, independent of the map's own formula."""
    x, s, _, t = points(system, 60)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(120))
    total = torch.zeros_like(x)
    for node, weight in zip(nodes, weights, strict=True):
        m = s + 0.5 * (node + 1.0) * (t - s)
        total += 0.5 * weight * system.velocity(system.exact(x, s, m), m)
    assert float((system.exact.average(x, s, t) - total).abs().max()) <= 1e-9


@EVERY
def test_the_eight_functions_are_independent(system: System) -> None:
    """The condition number of their Gram matrix is moderate, so each matters by itself."""
    x, s, _, t = points(system, 4000)
    phi = smooth(x, s, t).flatten(1)
    phi = phi / phi.square().mean(1, keepdim=True).sqrt()
    eigenvalues = torch.linalg.eigvalsh(phi @ phi.T / phi.shape[1])
    assert float(eigenvalues[0]) > 3e-4


@EVERY
def test_velocity_is_the_conditional_mean(system: System) -> None:
    """E[psi(x) (dI_t - b_t(x))] = 0 for every test function: the fact that all noise controls rest on."""
    batch, rng = pairs(system, 100_000)
    t = rng.stratified("t")
    x, v = path(system.interpolant, batch.x0, batch.data(), t)
    w = v - system.velocity(x, t)
    products = (smooth(x, t, t)[:4] * w).sum(-1).T
    error = products.std(0) / products.shape[0] ** 0.5
    assert float((products.mean(0) / error).abs().max()) < 5.0
    assert float(error.max()) < 0.01  # a velocity off by 0.05 would be seen


def test_tangent_of_a_map_is_its_velocity_at_equal_times() -> None:
    """u_{s,t} tends to u_{t,t} as s -> t at the rate O(t - s), on the exact maps."""
    for system in systems():
        x, _, _, t = points(system, 50)
        here = system.velocity(x, t)
        gaps = [float((system.exact.average(x, t - h, t) - here).abs().max()) for h in (1e-3, 5e-4)]
        assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.02), (system.name, gaps)
        assert float((system.exact(x, t, t) - x).abs().max()) <= 1e-10
