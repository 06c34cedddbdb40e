"""The Gaussian against the joint law of (x0, x1, I_t), and its samples and errors."""

from __future__ import annotations

import pytest
import torch

from saltus.exact import Gaussian, Mixture
from saltus.interpolants import VP, Interpolant, Linear, Trigonometric
from saltus.streams import Streams

D = torch.float64
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=D)
COV = torch.tensor([[1.0, 0.4, 0.1], [0.4, 0.6, -0.2], [0.1, -0.2, 0.9]], dtype=D)


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric(), VP()], ids=lambda i: type(i).__name__)
def test_fields_are_conditional_expectations(interpolant: Interpolant) -> None:
    """Gaussian conditioning: E[y | I] = E[y] + Cov(y, I) Cov(I)^-1 (I - E[I])."""
    system = Gaussian(MEAN, COV, interpolant)
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    t = torch.linspace(0.05, 0.95, 9, dtype=D)
    eye = torch.eye(3, dtype=D)
    for row in range(len(x)):
        a, b, da, db = (v.item() for v in interpolant(t[row]))
        gain = torch.linalg.inv(a * a * eye + b * b * COV) @ (x[row] - b * MEAN)
        at = (x[row : row + 1], t[row : row + 1])
        truth = {
            system.posterior_mean: MEAN + b * COV @ gain,
            system: db * MEAN + (a * da * eye + b * db * COV) @ gain,
            system.score: -gain,
        }
        for field, expected in truth.items():
            torch.testing.assert_close(field(*at)[0], expected, rtol=1e-11, atol=1e-11)
        law = torch.distributions.MultivariateNormal(b * MEAN, a * a * eye + b * b * COV)
        torch.testing.assert_close(system.log_density(*at)[0], law.log_prob(x[row]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cov", [0.3, COV.diagonal(), COV], ids=["scalar", "diagonal", "full"])
def test_samples_have_the_law(cov: torch.Tensor | float) -> None:
    n = 100_000
    x1 = Gaussian(MEAN, cov).sample(Streams(0, index=torch.arange(n), dtype=D))
    cov = torch.as_tensor(cov, dtype=D)
    full = cov if cov.ndim == 2 else torch.diag(cov.expand(3))
    assert ((x1.mean(0) - MEAN).abs() < 5 * (full.diagonal() / n).sqrt()).all()
    scale = full.diagonal()
    error = ((full.square() + scale[:, None] * scale) / n).sqrt()
    assert ((torch.cov(x1.T) - full).abs() < 5 * error).all()


@pytest.mark.parametrize("cov", [0.3, COV.diagonal(), COV], ids=["scalar", "diagonal", "full"])
def test_is_a_mixture_of_one(cov: torch.Tensor | float) -> None:
    covs = cov if isinstance(cov, float) else cov.unsqueeze(0)
    one, many = Gaussian(MEAN, cov), Mixture(MEAN.unsqueeze(0), torch.ones(1, dtype=D), covs)
    x, t = torch.randn(5, 3, dtype=D), torch.rand(5, dtype=D)
    for a, b in [(one, many), (one.score, many.score), (one.posterior_mean, many.posterior_mean)]:
        torch.testing.assert_close(a(x, t), b(x, t), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(one.log_density(x, t), many.log_density(x, t), rtol=1e-11, atol=1e-11)


def test_keeps_the_dtype_and_its_precision() -> None:
    system = Gaussian(MEAN, COV)
    x, t = torch.randn(6, 3), torch.rand(6)
    for dtype, eps in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        y = system(x.to(dtype), t)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), system(x.to(dtype).double(), t), rtol=eps, atol=eps)


@pytest.mark.parametrize(
    ("cov", "message"),
    [
        (torch.ones(2), r"expected a scalar, \[3\] or \[3, 3\], got shape \[2\]"),
        (-1.0, "positive variances"),
        (torch.tensor([1.0, 0.0, 1.0]), "positive variances"),
        (torch.diag(torch.tensor([1.0, 1.0, -1.0])), "positive variances"),
        (torch.eye(3).index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(0.5)), "symmetric"),
    ],
)
def test_rejects_a_wrong_covariance(cov: torch.Tensor | float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gaussian(MEAN, cov)


def test_rejects_wrong_inputs() -> None:
    system = Gaussian(MEAN, COV)
    with pytest.raises(ValueError, match=r"expected shape \[B, 3\], got \[2, 4\]"):
        system(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="time t: expected float32 or float64"):
        system(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"mean: expected a floating-point tensor \[D\]"):
        Gaussian(torch.zeros(1, 3), 1.0)
    with pytest.raises(ValueError, match="NaN"):
        Gaussian(torch.tensor([torch.nan]), 1.0)
