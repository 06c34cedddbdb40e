"""What the fields of every exact system owe each other: score, density, velocity, denoiser."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saltus.autodiff import derivative
from saltus.exact import Gaussian, ImageMixture, Mixture, divergence, line_mixture, reference_mixture
from saltus.interpolants import VE, VP, Cosine, Custom, Interpolant, Linear, Trigonometric
from saltus.streams import Streams
from saltus.tensors import like, per_row_sum
from saltus.typing import Condition

System = Gaussian | Mixture | ImageMixture

INTERPOLANTS = [
    Linear(),
    Trigonometric(),
    VP(),
    Cosine(),
    VE(sigma_min=0.01, sigma_max=5.0, rho=3.0),
    Custom(lambda t: (1.0 - t) ** 2 + 0.1 * t, lambda t: t.square()),
]


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(count: int, dim: int) -> Tensor:
    root = rand(3, count, dim, dim)
    return 0.3 * root @ root.transpose(-1, -2) + 0.1 * torch.eye(dim, dtype=torch.float64)


MEANS, WEIGHTS, LABELS = 1.5 * rand(1, 5, 3), rand(2, 5).exp(), torch.tensor([0, 1, 2, 1, 0])


def mixture_of(covs: Tensor | float) -> Callable[[Interpolant], System]:
    return lambda interpolant: Mixture(MEANS, WEIGHTS, covs, LABELS, interpolant)


SYSTEMS: dict[str, Callable[[Interpolant], System]] = {
    "gaussian scalar": lambda i: Gaussian(MEANS[0], 0.3, i),
    "gaussian diagonal": lambda i: Gaussian(MEANS[0], torch.tensor([0.2, 1.0, 1.7]), i),
    "gaussian full": lambda i: Gaussian(MEANS[0], covariances(1, 3)[0], i),
    "mixture scalar": mixture_of(0.2),
    "mixture isotropic": mixture_of(torch.tensor([0.1, 0.2, 0.5, 0.3, 1.0])),
    "mixture shared diagonal": mixture_of(torch.tensor([[0.2, 0.4, 0.9]])),
    "mixture diagonal": mixture_of(rand(4, 5, 3).square() + 0.1),
    "mixture shared full": mixture_of(covariances(1, 3)),
    "mixture full": mixture_of(covariances(5, 3)),
    "images": lambda i: ImageMixture(rand(5, 6, 1, 2, 2), 0.3, torch.arange(6) % 3, i),
    "line": line_mixture,
    "reference": reference_mixture,
}


def states(system: System, rows: int = 24) -> tuple[Tensor, Tensor]:
    """Points where the law of I_t lives, at times over (0, 1)."""
    rng = Streams(7, index=torch.arange(rows), dtype=torch.float64)
    drawn = system.sample(rng)
    x1 = drawn if isinstance(drawn, Tensor) else drawn[0]
    t = 0.02 + 0.93 * rng.uniform("t")
    c = system.interpolant(t)
    return like(c.alpha, x1) * rng.normal_like("x0", x1) + like(c.beta, x1) * x1, t


def relative(difference: Tensor, truth: Tensor) -> float:
    return float(difference.abs().max() / (1.0 + truth.abs().max()))


@pytest.fixture(params=SYSTEMS.values(), ids=SYSTEMS.keys())
def build(request: pytest.FixtureRequest) -> Callable[[Interpolant], System]:
    return request.param


@pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda i: type(i).__name__)
def test_fields_agree(build: Callable[[Interpolant], System], interpolant: Interpolant) -> None:
    system = build(interpolant)
    x, t = states(system)
    labels = None if isinstance(system, Gaussian) else torch.arange(len(x)) % 2
    cond = None if labels is None else Condition(label=labels, null=torch.arange(len(x)) % 3 == 0)

    b, score, denoised = system(x, t, cond), system.score(x, t, cond), system.posterior_mean(x, t, cond)
    live = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(system.log_density(live, t, cond).sum(), live)
    assert relative(score - gradient, gradient) < 1e-11

    # Continuity: d_t log rho + b . grad log rho + div b = 0.
    _, change = derivative(lambda y, m: system.log_density(y, m, cond), (x, t), (b, torch.ones_like(t)))
    with torch.no_grad():
        div = divergence(system, x, t, cond)
    assert relative(change + div, div) < 1e-10

    # Tweedie: alpha^2 score = beta E[x1|x] - x, and b = dalpha E[x0|x] + dbeta E[x1|x].
    alpha, beta, dalpha, dbeta = (like(v, x) for v in interpolant(t))
    assert relative(alpha.square() * score - beta * denoised + x, x) < 1e-11
    noise = (x - beta * denoised) / alpha
    assert relative(dalpha * noise + dbeta * denoised - b, b) < 1e-9


def test_log_density_of_mixtures_against_torch(build: Callable[[Interpolant], System]) -> None:
    system = build(Linear())
    if not isinstance(system, Mixture):
        return
    x, t = states(system)
    covs = torch.as_tensor(system.covs, dtype=torch.float64)
    count, dim = system.means.shape
    eye = torch.eye(dim, dtype=torch.float64)
    if covs.ndim < 2:
        covs = covs.reshape(-1, 1, 1) * eye
    elif covs.ndim == 2:
        covs = torch.diag_embed(covs)
    a, b = (1.0 - t).reshape(-1, 1, 1, 1), t.reshape(-1, 1, 1, 1)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(system.weights.expand(len(x), -1)),
        torch.distributions.MultivariateNormal(
            t.reshape(-1, 1, 1) * system.means, a.square() * eye + b.square() * covs.expand(count, dim, dim)
        ),
    )
    torch.testing.assert_close(system.log_density(x, t), law.log_prob(x), rtol=1e-11, atol=1e-11)


def test_divergence_of_a_linear_field() -> None:
    matrix = rand(9, 4, 4)
    x, t = rand(10, 6, 2, 2), torch.linspace(0.0, 1.0, 6, dtype=torch.float64)

    def field(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return like(t, x) * (x.flatten(1) @ matrix.T).reshape(x.shape)

    torch.testing.assert_close(divergence(field, x, t), t * matrix.trace(), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="at most 16 coordinates"):
        divergence(field, rand(0, 2, 17), t[:2])


def test_per_row_results_do_not_depend_on_the_batch(build: Callable[[Interpolant], System]) -> None:
    system = build(Linear())
    x, t = states(system)
    whole, parts = system(x, t), torch.cat([system(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    assert relative(whole - parts, whole) < 1e-13
    assert system.log_density(x, t).shape == per_row_sum(x).shape
