"""Moment matching against closed forms: discrepancies of Gaussian laws by quadrature, and what the loss is at
and away from the exact map.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from systems import Perturbed, gaussian, pairs
from torch import Tensor, nn

from saltus.legs import RK4, Along
from saltus.maps import AverageVelocity
from saltus.nn import MLP
from saltus.objectives import Eulerian, Moments
from saltus.objectives.moments import discrepancy
from saltus.radial import RBF, Kernel, Laplace, Quadratic
from saltus.slots import Teacher
from saltus.tensors import like
from saltus.times import Constant, Gaps, Triangle, Uniform
from saltus.typing import Batch
from saltus.weights import InStates, Scaled, Span, Squared

C = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
ONE = (0.4, 0.6)
OTHER = (-0.5, 0.9)
"""Mean and s.d. of two Gaussian laws on the line."""


def nodes(law: tuple[float, float], count: int = 14) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite points and weights of a law."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return law[0] + law[1] * torch.from_numpy(points), torch.from_numpy(weights / weights.sum())


def expected(kernel: Kernel, a: tuple[float, float], b: tuple[float, float]) -> float:
    """E k(|x - y|), x ~ a and y ~ b apart, in closed form."""
    variance, gap = a[1] ** 2 + b[1] ** 2, a[0] - b[0]
    if isinstance(kernel, Quadratic):
        return -0.5 * (variance + gap**2)
    assert isinstance(kernel, RBF)
    (h,) = kernel.bandwidths
    return math.sqrt(h * h / (h * h + variance)) * math.exp(-0.5 * gap**2 / (h * h + variance))


@pytest.mark.parametrize("kernel", [RBF((1.3,)), Quadratic()], ids=["rbf", "quadratic"])
def test_the_mean_over_groups_is_the_discrepancy_of_the_laws(kernel: Kernel) -> None:
    """Of two particles each, over all four by quadrature: exactly if unbiased; else with the terms of equal
    particles, as in closed form."""
    x, p = nodes(ONE)
    y, q = nodes(OTHER)
    points = torch.cartesian_prod(x, x, y, y)
    weights = torch.cartesian_prod(p, p, q, q).prod(1)
    crowd, other = points[:, :2, None], points[:, 2:, None]
    one = torch.ones(len(points), dtype=torch.float64)
    kxx, kyy, kxy = (
        expected(kernel, a, b) for a, b in ((ONE, ONE), (OTHER, OTHER), (ONE, OTHER))
    )
    unbiased = (weights * discrepancy(crowd, other, kernel, one, unbiased=True)).sum()
    assert float(unbiased) == pytest.approx(kxx + kyy - 2.0 * kxy, abs=1e-7)
    itself = float(kernel(torch.zeros(1, dtype=torch.float64)))
    both = (weights * discrepancy(crowd, other, kernel, one)).sum()
    assert float(both) == pytest.approx(0.5 * (kxx + kyy) + itself - 2.0 * kxy, abs=1e-7)
    assert bool((discrepancy(crowd, other, RBF((1.3,)), one) >= 0.0).all())
    doubled = discrepancy(crowd, other, kernel, 2.0 * one)
    assert torch.allclose(doubled, discrepancy(2.0 * crowd, 2.0 * other, kernel, one), atol=1e-12)


def particles(**options: object) -> tuple[Moments, Perturbed, Perturbed]:
    system = gaussian()
    student, target = Perturbed(system.exact, C), Perturbed(system.exact, -C).requires_grad_(False)
    given: dict[str, object] = {"times": Triangle(Uniform(0.1, 0.9)), "step": Constant(0.05), **options}
    return Moments(student, target, **given), student, target  # type: ignore[arg-type]


def test_one_particle_is_consistency_training() -> None:
    """Value and gradient of |X - X'|^2; with another kernel k it is 2 (k(0) - k(c |X - X'|))."""
    moments, student, target = particles(particles=1, kernel=Quadratic())
    training = Eulerian(
        student, target, times=moments.times, step=moments.step, weight=InStates(Squared())
    )
    batch, rng = pairs(gaussian(), 32)
    draws = moments.draw(batch, rng)
    values = moments(batch, draws)["moments"].value, training(batch, draws)["eulerian"].value
    assert torch.allclose(*values, rtol=1e-9, atol=1e-15)
    found, wanted = (torch.autograd.grad(v.sum(), student.c)[0] for v in values)
    assert float(wanted.abs().max()) > 1e-3 and torch.allclose(found, wanted, rtol=1e-8)

    def scale(span: Span) -> Tensor:
        return 1.0 / (span.t - span.s)

    laplace = replace(moments, kernel=Laplace((0.7,)), scale=scale)
    s, t = draws["s"], draws["t"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor)
    distance = values[1].sqrt().detach() * scale(Span(s, t))
    by_hand = 2.0 * (1.0 - torch.exp(-distance / 0.7))
    assert torch.allclose(laplace(batch, draws)["moments"].value, by_hand, rtol=1e-9)


def test_a_group_shares_its_times_and_nothing_else() -> None:
    """The value of each group is the discrepancy of its own crowds; a part of a group is refused."""
    moments, student, target = particles(kernel=RBF((0.8,)))
    batch, rng = pairs(gaussian(), 16)
    draws = moments.draw(batch, rng)
    s, t = draws["s"], draws["t"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor)
    assert torch.equal(s, s[::4].repeat_interleave(4)) and len(s.unique()) == 4
    assert torch.equal(t, t[::4].repeat_interleave(4))
    value = moments(batch, draws)["moments"].value
    d = torch.clamp(t - s, max=0.05)
    x, x_m = ((1.0 - like(z, batch.x0)) * batch.x0 + like(z, batch.x0) * batch.data() for z in (s, s + d))
    made, wanted = student(x, s, t, batch.cond).detach(), target(x_m, s + d, t, batch.cond)
    for group in range(4):
        a, b = (z[4 * group : 4 * group + 4] for z in (made, wanted))
        by_hand = sum(
            float(moments.kernel((u[j] - v[k]).norm())) * sign / 16.0
            for u, v, sign in ((a, a, 1.0), (b, b, 1.0), (a, b, -2.0))
            for j in range(4)
            for k in range(4)
        )
        assert float(value[group].detach()) == pytest.approx(by_hand, abs=1e-12)
    with pytest.raises(ValueError, match="whole groups of 4"):
        moments.draw(batch.rows(torch.arange(6)), rng.rows(torch.arange(6)))
    with pytest.raises(ValueError, match="at least 2 particles"):
        particles(particles=1, unbiased=True)


@pytest.mark.parametrize("unbiased", [False, True], ids=["all pairs", "unbiased"])
def test_the_gradient_is_that_of_the_discrepancy_in_the_students_ends(unbiased: bool) -> None:
    """Also where an unbiased one is negative; Y carries none. A weight by the span multiplies it."""
    moments, student, _ = particles(
        kernel=RBF((0.8,)), unbiased=unbiased, step=Constant(0.01), particles=8
    )
    moments = replace(moments, target=None, weight=Scaled(Squared(), factor=lambda span: 1.0 + span.s))
    batch, rng = pairs(gaussian(), 64)
    draws = moments.draw(batch, rng)
    s, t = draws["s"], draws["t"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor)
    d = torch.clamp(t - s, max=0.01)
    x, x_m = ((1.0 - like(z, batch.x0)) * batch.x0 + like(z, batch.x0) * batch.data() for z in (s, s + d))
    ends = student(x, s, t, batch.cond), student(x_m, s + d, t, batch.cond).detach()
    made, wanted = (z.unflatten(0, (-1, 8)) for z in ends)
    z = discrepancy(made, wanted, moments.kernel, torch.ones_like(s[::8]), unbiased)
    assert bool((z < 0.0).any()) is unbiased
    value = moments(batch, draws)["moments"].value
    assert torch.allclose(value, (1.0 + s[::8]) * z, rtol=1e-8, atol=1e-14)
    found, by_hand = (torch.autograd.grad(v.sum(), student.c)[0] for v in (value, (1.0 + s[::8]) * z))
    assert float(by_hand.abs().max()) > 1e-4 and torch.allclose(found, by_hand, rtol=1e-7)


@pytest.mark.parametrize(
    ("kernel", "unbiased"), [(RBF((0.8,)), False), (Laplace((0.5,)), True)], ids=["rbf", "laplace, unbiased"]
)
def test_at_the_exact_map_along_the_flow_it_is_at_rest_and_elsewhere_it_points_home(
    kernel: Kernel, unbiased: bool
) -> None:
    """With the flow itself for a leg both crowds are the same points, so nothing pulls, row by row. (A
    Laplace kernel has a kink there, between a row and its own counterpart.) Away from it the expected
    gradient has a positive part along the displacement."""
    system = gaussian()
    leg = Along(Teacher(system.velocity), RK4, 4)
    zero = Perturbed(system.exact, torch.zeros(8, dtype=torch.float64))
    times = Gaps(Uniform(0.3, 0.9))
    batch, rng = pairs(system, 256)
    rest = Moments(zero, times=times, step=Constant(0.2), leg=leg, kernel=kernel, unbiased=unbiased)
    term = rest(batch, rest.draw(batch, rng))["moments"]
    (pull,) = torch.autograd.grad(term.value.sum(), zero.c)
    assert float(term.value.detach().abs().max()) < 1e-6 and float(pull.abs().max()) < 1e-4
    away = Perturbed(system.exact, 0.3 * C)
    moved = replace(rest, student=away)
    batch, rng = pairs(system, 8192)
    value = moved(batch, moved.draw(batch, rng))["moments"].value.reshape(16, -1)
    pulls = torch.stack([torch.autograd.grad(v.mean(), away.c, retain_graph=True)[0] @ C for v in value])
    assert float(pulls.mean()) > 5.0 * float(pulls.std()) / 4.0


def test_neighbouring_jumps_are_compared_in_full_precision() -> None:
    """Under autocast the discrepancy of ends that are a small step apart would be that of their roundings."""
    net = MLP((2,), width=16, depth=2)
    for k, p in enumerate(net.parameters()):
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(k))
    moments = Moments(AverageVelocity(net), step=Constant(1e-3))
    batch, rng = pairs(gaussian(), 16)
    batch = Batch(batch.x0.float(), batch.data().float())
    draws = moments.draw(batch, replace(rng, dtype=torch.float32))
    wanted = moments(batch, draws)["moments"].value
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(moments(batch, draws)["moments"].value, wanted)
