"""Distribution matching against closed forms: student, teacher and critic are Gaussian laws, and expectations
over noise are exact by quadrature.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from systems import Perturbed, gaussian, pairs, streams
from torch import Tensor, nn

from saltus.exact import Gaussian, Mixture, reference_mixture
from saltus.interpolants import Interpolant, Linear, Trigonometric
from saltus.objectives import Diagonal, Distribution, OnSamples, PerResidual
from saltus.samples import FixedStops, Renoising
from saltus.tensors import like
from saltus.times import Uniform
from saltus.typing import Batch, Condition, Output
from saltus.weights import Scaled, Span, Squared

PATHS = pytest.mark.parametrize("given", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])


class Affine(nn.Module):
    """A student whose jump from the prior is mean + root x0: its samples are Gaussian."""

    def __init__(self, mean: Tensor, root: Tensor) -> None:
        super().__init__()
        self.mean, self.root = nn.Parameter(mean.clone()), nn.Parameter(root.clone())

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.mean + x @ self.root.T - x

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.average(x, t, t, cond)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return x + like(t - s, x) * self.average(x, s, t, cond)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        return Output(self.average(x, s, t, cond), {})

    def law(self, interpolant: Interpolant) -> Gaussian:
        """Of its samples."""
        root = self.root.detach()
        return Gaussian(self.mean.detach().clone(), root @ root.T, interpolant)


class Knows(nn.Module):
    """A flow map that is asked for its velocity alone."""

    def __init__(self, law: Gaussian) -> None:
        super().__init__()
        self.law = law

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.law(x, t)


def student() -> Affine:
    mean = torch.tensor([-0.4, 0.8], dtype=torch.float64)
    return Affine(mean, torch.tensor([[1.1, 0.3], [-0.2, 0.6]], dtype=torch.float64))


def nodes(dim: int) -> tuple[Tensor, Tensor]:
    """Three-point Gauss-Hermite quadrature of N(0, I): points [3^dim, dim] and weights; exact to degree 5."""
    line = torch.tensor([-math.sqrt(3.0), 0.0, math.sqrt(3.0)], dtype=torch.float64)
    weight = torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64) / 6.0
    points, weights = torch.cartesian_prod(*[line] * dim), torch.cartesian_prod(*[weight] * dim)
    return points, weights.prod(1)


def divergence(map_: Affine, teacher: Gaussian, r: Tensor) -> Tensor:
    """KL(q_r | p_r) of the student's and the teacher's noised laws, in closed form, [0-d]."""
    c = teacher.interpolant(r)
    eye = torch.eye(2, dtype=torch.float64)
    cov = torch.as_tensor(teacher.cov)
    q, p = (c.alpha**2 * eye + c.beta**2 * k for k in (map_.root @ map_.root.T, cov))
    gap = c.beta * (teacher.mean - map_.mean)
    trace = torch.trace(torch.linalg.solve(p, q))
    return 0.5 * (trace + gap @ torch.linalg.solve(p, gap) - 2.0 + torch.logdet(p) - torch.logdet(q))


@PATHS
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_gradient_is_that_of_the_inverse_divergence(
    given: Interpolant, level: float
) -> None:
    """beta^2/(alpha (alpha dbeta - dalpha beta)) E[Delta . d u] = d KL(q_r | p_r), with an exact critic."""
    teacher = gaussian(given).velocity
    assert isinstance(teacher, Gaussian)
    moving = student()
    points, weights = nodes(4)
    r = torch.full((len(points),), level, dtype=torch.float64)

    def factor(span: Span) -> Tensor:
        c = given(span.t)
        return 0.5 * c.beta**2 / (c.alpha * (c.alpha * c.dbeta - c.dalpha * c.beta))

    critic = Knows(moving.law(given))
    weight = Scaled(Squared(), factor=factor)
    objective = Distribution(moving, teacher, critic, given, weight=weight)  # type: ignore[arg-type]
    term = objective(Batch(points[:, :2]), {"t": r, "noise": points[:, 2:]})["distribution"]
    ours = torch.autograd.grad((weights * term.value).sum(), tuple(moving.parameters()))
    exact = torch.autograd.grad(divergence(moving, teacher, r[0]), tuple(moving.parameters()))
    for a, b in zip(ours, exact, strict=True):
        assert float(b.abs().max()) > 1e-4
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@PATHS
def test_difference_of_velocities_is_that_of_scores(given: Interpolant) -> None:
    """v - b = (alpha dbeta - dalpha beta)(alpha/beta)(score of v - score of b), on mixtures."""
    b = reference_mixture(given)
    v = replace(b, means=0.7 * b.means + 0.2, covs=0.3)
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    x = torch.randn(19, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    c = given(t)
    gain = (c.alpha * c.dbeta - c.dalpha * c.beta) * c.alpha / c.beta
    assert torch.allclose(v(x, t) - b(x, t), like(gain, x) * (v.score(x, t) - b.score(x, t)), atol=1e-10)


def test_a_gaussian_student_with_an_exact_critic_becomes_its_teacher() -> None:
    """Descent on the squared error, its factor dropped as in the paper: the mean and the covariance arrive,
    and the very first step brings both nearer."""
    given = Linear()
    teacher = gaussian().velocity
    assert isinstance(teacher, Gaussian)
    moving, (points, weights) = student(), nodes(4)
    levels = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)

    def distances() -> Tensor:
        root = moving.root.detach()
        gap = root @ root.T - torch.as_tensor(teacher.cov)
        return torch.stack([(moving.mean.detach() - teacher.mean).norm(), gap.norm()])

    seen = [distances()]
    for _ in range(400):
        critic = Knows(moving.law(given))
        objective = Distribution(moving, teacher, critic, given)  # type: ignore[arg-type]
        total = torch.zeros((), dtype=torch.float64)
        for level in levels:
            draws = {"t": level.expand(len(points)), "noise": points[:, 2:]}
            total = total + (weights * objective(Batch(points[:, :2]), draws)["distribution"].value).sum()
        grads = torch.autograd.grad(total / len(levels), tuple(moving.parameters()))
        with torch.no_grad():
            for p, g in zip(moving.parameters(), grads, strict=True):
                p.sub_(0.1 * g)
        seen.append(distances())
    assert bool((seen[1] < seen[0]).all())
    assert float(seen[-1].max()) < 1e-6


@PATHS
def test_the_residual_scale_is_that_of_distribution_matching_distillation(given: Interpolant) -> None:
    """The step is (D_critic - D_teacher)/mean|X - D_teacher| of the denoisers E[x1 | x_t], at least ``least``
    below the line: by the mixtures' own posterior means, through the score."""
    b = reference_mixture(given)
    v = replace(b, means=0.7 * b.means + 0.2, covs=0.3)
    moving = student()
    rng = streams(24)
    batch, n = Batch(rng.normal("x0", 2)), rng.normal("n", 2)
    t = torch.linspace(0.05, 0.9, 24, dtype=torch.float64)
    least = 0.7
    objective = Distribution(
        moving, b, Mixed(v), given, scale=PerResidual(given, least)  # type: ignore[arg-type]
    )
    value = objective(batch, {"t": t, "noise": n})["distribution"].value
    c = given(t)
    sample = moving.mean + batch.x0 @ moving.root.T
    x = (like(c.alpha, n) * n + like(c.beta, n) * sample).detach()
    ours, theirs = ((x + like(c.alpha**2, x) * law.score(x, t)) / like(c.beta, x) for law in (v, b))
    size = (sample.detach() - theirs).abs().mean(1)
    assert bool((size < least).any()) and bool((size > least).any())
    step = (ours - theirs) / like(size.clamp(min=least), x)
    assert torch.allclose(value, step.square().sum(1), rtol=1e-8)
    found = torch.autograd.grad(value.sum(), moving.mean)[0]
    assert torch.allclose(found, 2.0 * step.sum(0), rtol=1e-8)


class Mixed(nn.Module):
    """A critic that knows a mixture."""

    def __init__(self, law: Mixture) -> None:
        super().__init__()
        self.law = law

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.law(x, t)


def test_samples_are_the_makers_for_the_student_and_for_its_critic() -> None:
    """Backward simulation: both losses see what the maker makes of their own draws, the student's gradient
    passes through the last jump, the critic's loss has the samples for data."""
    system = gaussian()
    moving = Perturbed(system.exact, torch.linspace(-0.3, 0.3, 8, dtype=torch.float64))
    critic = Perturbed(system.exact, torch.linspace(0.2, -0.2, 8, dtype=torch.float64))
    maker = Renoising(FixedStops((0.0, 0.5)))
    batch, rng = pairs(system, 32)
    batch = replace(batch, x1=None)
    loss = Distribution(moving, system.velocity, critic, maker=maker, times=Uniform(0.1, 0.9))
    draws = loss.draw(batch, rng)
    of, t, n = draws["maker"], draws["t"], draws["noise"]
    assert isinstance(of, dict) and isinstance(t, Tensor) and isinstance(n, Tensor)
    x = maker(moving, system.interpolant, batch, of).x
    level = (1.0 - like(t, x)) * n + like(t, x) * x.detach()
    delta = critic.velocity(level, t, batch.cond) - system.velocity(level, t)
    value = loss(batch, draws)["distribution"].value
    assert torch.allclose(value, delta.square().sum(1), atol=1e-12)
    found = torch.autograd.grad(value.sum(), moving.c)[0]
    wanted = torch.autograd.grad(2.0 * (delta.detach() * x).sum(), moving.c)[0]
    assert float(wanted.abs().max()) > 1e-2 and torch.allclose(found, wanted, rtol=1e-9)

    learning = OnSamples(moving, Diagonal(critic), maker=maker)
    draws = learning.draw(batch, rng)
    of, n, inner = draws["maker"], draws["noise"], draws["of"]
    assert isinstance(of, dict) and isinstance(n, Tensor) and isinstance(inner, dict)
    t = inner["t"]
    assert isinstance(t, Tensor)
    x = maker(moving, system.interpolant, batch, of).x.detach()
    level = (1.0 - like(t, x)) * n + like(t, x) * x
    wanted = (critic.velocity(level, t, batch.cond) - (x - n)).square().sum(1)
    assert torch.allclose(learning(batch, draws)["diagonal"].value, wanted, atol=1e-12)
