"""Legs along the reverse diffusion against closed forms: the law that they keep, and where a jump that
follows them in the mean square is led.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from systems import System, gaussian, mixture, pairs, points, streams
from torch import Tensor

from saltus.interpolants import Interpolant, Linear, Trigonometric
from saltus.legs import Along, draw_noise, slide
from saltus.objectives import Composition, Endpoint, Eulerian
from saltus.sde import ReverseSDE, diffuse
from saltus.slots import Teacher
from saltus.states import State
from saltus.tensors import like
from saltus.times import Constant

PATHS = [Linear(), Trigonometric()]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_law_of_a_single_point_is_met_by_steps_of_any_length(path: Interpolant, eta: float) -> None:
    """x_m = beta_m c + alpha_m N(0, 1): the step is affine in (x0, z), so its coefficients say it all."""
    c = torch.full((5, 1), 0.7).double()
    s, m = torch.linspace(0.0, 0.8, 5).double(), torch.linspace(0.3, 1.0, 5).double()
    here, there = path(s), path(m)

    def end(x0: float, z: float) -> Tensor:
        x0s, zs = torch.full_like(c, x0), torch.full_like(c, z)
        x = like(here.alpha, c) * x0s + like(here.beta, c) * c
        b = like(here.dalpha, c) * x0s + like(here.dbeta, c) * c
        return diffuse(path, x, b, s, m, eta, zs)

    mean = end(0.0, 0.0)
    assert torch.allclose(mean, like(there.beta, c) * c, atol=1e-14)
    variance = (end(1.0, 0.0) - mean).square() + (end(0.0, 1.0) - mean).square()
    assert torch.allclose(variance, like(there.alpha.square(), c), atol=1e-14)
    fresh = (end(0.0, 1.0) - mean).flatten()[:-1]
    assert bool((fresh == 0.0).all()) if eta == 0.0 else float(fresh.abs().min()) > 1e-2
    if eta == 1.0:
        assert float(fresh[0]) == pytest.approx(float(there.alpha[0])), "from the prior all noise is fresh"


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_without_noise_it_is_ddim_to_the_last_bit_but_rounding(path: Interpolant) -> None:
    system = gaussian(path)
    x, s, m, _ = points(system, 50)
    b = system.velocity(x, s)
    found = ReverseSDE(Teacher(system.velocity), 0.0)(system.exact, State(x), path, s, m, None)
    assert torch.allclose(found, slide(path, x, b, s, m), rtol=1e-13, atol=1e-13)
    if isinstance(path, Linear):
        three = ReverseSDE(Teacher(system.velocity), 0.0, 3)(system.exact, State(x), path, s, m, None)
        euler = Along(Teacher(system.velocity), steps=3)(system.exact, State(x), path, s, m, None)
        assert torch.allclose(three, euler, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_variance_of_data_with_spread_is_kept_to_the_order_of_the_step(eta: float) -> None:
    """N(0, 1/4) on the line: variances by recursion, exactly; twice the steps, half the error at m."""
    law = 0.25

    def variance(steps: int) -> float:
        grid = torch.linspace(0.2, 0.8, steps + 1).double()
        v = (1 - grid[:1]).square() + grid[:1].square() * law
        for s, m in zip(grid[:-1, None], grid[1:, None], strict=True):
            slope = (s * law - (1 - s)) / ((1 - s).square() + s.square() * law)
            one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
            gain = diffuse(Linear(), one, slope.reshape(1, 1), s, m, eta, zero)
            v = gain.square() * v + diffuse(Linear(), zero, zero, s, m, eta, one).square()
        return float(v)

    wanted = 0.2**2 + 0.8**2 * law
    errors = [abs(variance(n) - wanted) for n in (160, 320)]
    assert errors[1] < 0.01 * wanted and errors[0] / errors[1] == pytest.approx(2.0, rel=0.06)


def residual(system: System, eta: float, d: float, mean: bool) -> float:
    """Root mean square over x_s of E_z[ f(x_m, m) - f(x_s, s) ]/d, with f the posterior mean E[x1 | x] or the
    end of the flow; the mean over z on the line by Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    z, w = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    batch, rng = pairs(system, 24)
    s = 0.1 + 0.7 * rng.uniform("s")
    m = s + d
    x = like(1 - s, batch.x0) * batch.x0 + like(s, batch.x0) * batch.data()

    def f(x: Tensor, t: Tensor) -> Tensor:
        if mean:
            return x + like(1 - t, x) * system.velocity(x, t)
        return system.exact(x, t, torch.ones_like(t))

    n = len(z)
    y, s_, m_ = x.repeat_interleave(n, 0), s.repeat_interleave(n), m.repeat_interleave(n)
    ends = diffuse(Linear(), y, system.velocity(y, s_), s_, m_, eta, z.repeat(24).unsqueeze(1))
    after = (f(ends, m_).reshape(24, n, -1) * w.unsqueeze(1)).sum(1)
    return float(((after - f(x, s)) / d).square().mean().sqrt())


def test_the_reverse_sde_leads_to_the_posterior_mean_and_the_flow_to_its_end() -> None:
    """eta = 1 leaves the posterior mean (a martingale) with O(d) and the flow's end with O(1); eta = 0 the
    other way round; between, the end is missed by the more, the larger eta."""
    system = mixture(spread=0.5)
    for eta, mean in ((1.0, True), (0.0, False)):
        coarse, fine = (residual(system, eta, d, mean) for d in (0.02, 0.01))
        assert coarse / fine == pytest.approx(2.0, rel=0.15)
    away = [residual(system, eta, 0.01, False) for eta in (0.0, 0.1, 0.3, 0.6, 1.0)]
    print("residual of the flow's end over d at eta = 0, .1, .3, .6, 1:", [round(a, 3) for a in away])
    assert all(a < b for a, b in zip(away, away[1:], strict=False)) and away[-1] > 10.0 * away[0]
    assert residual(system, 0.0, 0.01, True) > 5.0 * residual(system, 1.0, 0.01, True)


def test_objectives_draw_the_noise_of_their_leg_and_of_no_other() -> None:
    system = gaussian()
    noisy, quiet = (ReverseSDE(Teacher(system.velocity), eta, 2) for eta in (0.5, 0.0))
    batch, rng = pairs(system, 32)
    batch = replace(batch, cond=None)
    for leg in (noisy, quiet):
        for objective in (
            Eulerian(system.exact, step=Constant(0.1), leg=leg),
            Composition(system.exact, leg=leg),
            Endpoint(system.exact, leg=leg),
        ):
            draws = objective.draw(batch, rng)
            assert ("leg" in draws) == (leg is noisy)
            (term,) = objective(batch, draws).values()
            if leg is noisy:
                z = draws["leg"]
                assert isinstance(z, Tensor) and z.shape == (32, 2, 2)
                (again,) = objective(batch, draws | {"leg": -z}).values()
                assert float((again.value - term.value).abs().max()) > 1e-3
    assert draw_noise(None, batch, streams(32)) == {}


def test_a_leg_that_got_no_noise_says_so() -> None:
    system = gaussian()
    x, s, m, _ = points(system, 4)
    with pytest.raises(ValueError, match="expected a state with noise"):
        ReverseSDE(Teacher(system.velocity), 0.5)(system.exact, State(x), Linear(), s, m, None)
    for eta, steps in ((-0.1, 1), (1.5, 1), (0.5, 0)):
        with pytest.raises(ValueError, match="eta from 0 to 1"):
            ReverseSDE(eta=eta, steps=steps)
