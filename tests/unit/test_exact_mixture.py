"""Mixtures against integrals over the data, against each other, and against wrong input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saltus.exact import ImageMixture, Mixture, line_mixture, reference_mixture, ring
from saltus.exact import mixture as mixture_module
from saltus.interpolants import VE, VP, Cosine, Interpolant, Linear, Trigonometric
from saltus.streams import Streams
from saltus.typing import Condition

D = torch.float64
INTERPOLANTS = [Linear(), Trigonometric(), VP(), Cosine(), VE(sigma_min=0.05, sigma_max=5.0, rho=3.0)]


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


@pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda i: type(i).__name__)
def test_fields_are_integrals_over_the_data(interpolant: Interpolant) -> None:
    """Bayes' rule by the trapezoidal rule over x1: no formula in common with the class."""
    system = line_mixture(interpolant)
    t = torch.linspace(0.05, 0.9, 24, dtype=D)
    x = 2.0 * rand(0, 24, 1)
    y = torch.linspace(-5.0, 5.0, 8001, dtype=D)
    law = sum(
        (w / s) * torch.exp(-0.5 * ((y - m) / s).square())
        for w, m, s in [(0.4, -1.0, 0.3), (0.6, 1.5, 0.4)]
    )
    a, b, da, db = (v.unsqueeze(1) for v in interpolant(t))
    joint = law * torch.exp(-0.5 * ((x - b * y) / a).square())
    posterior = joint / joint.sum(dim=1, keepdim=True)
    noise = (x - b * y) / a
    expected = {
        system: (posterior * (da * noise + db * y)).sum(1, keepdim=True),
        system.posterior_mean: (posterior * y).sum(1, keepdim=True),
        system.score: -(posterior * noise).sum(1, keepdim=True) / a,
    }
    for field, truth in expected.items():
        torch.testing.assert_close(field(x, t), truth, rtol=1e-9, atol=1e-9)
    density = joint.sum(1) * (10.0 / 8000) / (2.0 * torch.pi * a[:, 0])
    torch.testing.assert_close(system.log_density(x, t), density.log(), rtol=1e-9, atol=1e-9)


def correlated() -> Mixture:
    root = rand(1, 3, 2, 2)
    covs = 0.3 * root @ root.transpose(-1, -2) + 0.1 * torch.eye(2, dtype=D)
    return Mixture(rand(2, 3, 2), torch.tensor([0.5, 1.0, 2.5]), covs, torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("shared", [False, True])
def test_velocity_by_self_normalised_monte_carlo(shared: bool) -> None:
    """E[dI_t | I_t = x] over samples of the class's own sampler, within five standard errors."""
    system = correlated()
    if shared:
        system = Mixture(system.means, system.weights, torch.as_tensor(system.covs)[:1], system.labels)
    x1, label = system.sample(Streams(5, index=torch.arange(200_000), dtype=D))
    assert label is not None
    t = torch.tensor([0.3, 0.5, 0.7], dtype=D)
    x = torch.tensor([[0.2, -0.1], [0.5, 0.4], [-0.4, 0.3]], dtype=D)
    exact, of_class = system(x, t), system(x, t, Condition(label=torch.ones(3, dtype=torch.int64)))
    for row in range(3):
        noise = (x[row] - t[row] * x1) / (1.0 - t[row])
        for keep, truth in ((torch.ones_like(label), exact[row]), (label, of_class[row])):
            w = keep * torch.exp(-0.5 * noise.square().sum(1))
            w = (w / w.sum()).unsqueeze(1)
            estimate = (w * (x1 - noise)).sum(0)
            error = (w.square() * (x1 - noise - estimate).square()).sum(0).sqrt()
            assert ((estimate - truth).abs() < 5.0 * error).all()
            assert (error < 0.02).all()


def test_samples_follow_weights_and_labels() -> None:
    system, n = reference_mixture(), 50_000
    x1, label = system.sample(Streams(1, index=torch.arange(n), dtype=D))
    assert label is not None
    for k, w in enumerate([0.4, 0.3, 0.2, 0.1]):
        mine = x1[label == k]
        assert abs(len(mine) / n - w) < 5.0 * (w * (1 - w) / n) ** 0.5
        assert ((mine.mean(0) - system.means[k]).abs() < 5.0 * 0.35 / len(mine) ** 0.5).all()
        assert (mine.std(0) / 0.35 - 1.0).abs().max() < 5.0 / (2 * len(mine)) ** 0.5


@pytest.mark.parametrize("shared", [False, True])
def test_samples_have_each_components_covariance(shared: bool) -> None:
    """In three dimensions, where principal axes are not their own transpose."""
    root, n = rand(6, 2, 3, 3), 50_000
    covs = root @ root.transpose(-1, -2) + 0.1 * torch.eye(3, dtype=D)
    covs = covs[:1] if shared else covs
    system = Mixture(rand(7, 2, 3), torch.ones(2), covs, torch.arange(2))
    x1, label = system.sample(Streams(1, index=torch.arange(n), dtype=D))
    assert label is not None
    for k in (0, 1):
        mine, truth = x1[label == k], covs[0 if shared else k]
        v = truth.diagonal()
        error = ((truth.square() + v[:, None] * v) / len(mine)).sqrt()
        assert ((torch.cov(mine.T) - truth).abs() < 5.0 * error).all()


def test_a_class_is_the_mixture_of_its_components() -> None:
    system = correlated()
    x, t = rand(3, 12, 2), torch.rand(12, dtype=D)
    for label in (0, 1):
        alone = system.restricted(label)
        cond = Condition(label=torch.full((12,), label))
        torch.testing.assert_close(system(x, t, cond), alone(x, t), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(system.score(x, t, cond), alone.score(x, t), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(system.log_density(x, t, cond), alone.log_density(x, t))
        shares = system.responsibilities(x, t, cond)
        assert (shares[:, system.labels != label] == 0.0).all()
        torch.testing.assert_close(shares.sum(1), torch.ones(12, dtype=D))
    null = Condition(label=torch.zeros(12, dtype=torch.int64)).nulled()
    assert torch.equal(system(x, t, null), system(x, t))


def test_class_densities_average_to_the_whole() -> None:
    system = correlated()
    x, t = rand(4, 9, 2), torch.rand(9, dtype=D)
    parts = [system.log_density(x, t, Condition(label=torch.full((9,), c))).exp() for c in (0, 1)]
    whole = (0.5 * parts[0] + 3.5 * parts[1]) / 4.0
    torch.testing.assert_close(system.log_density(x, t).exp(), whole, rtol=1e-12, atol=0.0)


def test_covariances_of_every_form_are_one_thing() -> None:
    means, weights, x, t = rand(5, 4, 3), rand(6, 4).exp(), rand(7, 10, 3), torch.rand(10, dtype=D)
    v = 0.37
    forms = [
        v,
        torch.full((4,), v, dtype=D),
        torch.full((1, 3), v, dtype=D),
        torch.full((4, 3), v, dtype=D),
        v * torch.eye(3, dtype=D).expand(1, 3, 3),
        v * torch.eye(3, dtype=D).expand(4, 3, 3),
    ]
    truth = Mixture(means, weights, v)
    for covs in forms:
        other = Mixture(means, weights, covs)
        torch.testing.assert_close(other(x, t), truth(x, t), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.log_density(x, t), truth.log_density(x, t), rtol=1e-12, atol=1e-12)
        a, b = (m.sample(Streams(0, index=torch.arange(9), dtype=D))[0] for m in (other, truth))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_both_ends_of_time_and_far_away_are_finite() -> None:
    """alpha = 0 at t = 1 and beta = 0 at t = 0; at 1e4 from the data no log-sum-exp overflows."""
    system = Mixture(rand(5, 4, 2), torch.ones(4), 1e-4)
    x = torch.cat([rand(8, 6, 2), 1e4 * rand(9, 6, 2)])
    t = torch.tensor([0.0, 1.0, 0.5] * 4, dtype=D)
    for y in (system(x, t), system.score(x, t), system.posterior_mean(x, t), system.log_density(x, t)):
        assert torch.isfinite(y).all()
    start = torch.zeros(12, dtype=D)
    mean = system.means.mean(0).expand(12, 2)
    torch.testing.assert_close(system(x, start), mean - x, rtol=1e-12, atol=1e-9)
    end = torch.ones(12, dtype=D)
    torch.testing.assert_close(system.posterior_mean(x, end), x, rtol=1e-12, atol=1e-9)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    system = correlated()
    x, t = rand(3, 12, 2), torch.rand(12, dtype=D)
    cond = Condition(label=torch.arange(12) % 2)
    fields = (system, system.log_density, system.responsibilities)
    whole = [field(x, t, cond) for field in fields]
    monkeypatch.setattr(mixture_module, "_CHUNK", 30)
    for field, truth in zip(fields, whole, strict=True):
        torch.testing.assert_close(field(x, t, cond), truth, rtol=1e-13, atol=1e-13)


def test_float32_and_autocast_keep_their_precision() -> None:
    """A narrow mixture near the data, where float32 would lose the responsibilities."""
    system = Mixture(rand(5, 200, 16), torch.ones(200), 1e-4)
    t = torch.linspace(0.9, 1.0, 64)
    x = (system.means[torch.arange(64)] + 0.02 * rand(6, 64, 16)).float()
    truth = system(x.double(), t.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = system(x, t)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), truth, rtol=1e-6, atol=1e-6)


def test_images_are_a_mixture_in_their_shape() -> None:
    """Two thousand images in chunks, against the plain mixture of their pixels."""
    images, labels = rand(0, 2000, 1, 4, 4), torch.arange(2000) % 10
    system = ImageMixture(images, 0.2, labels)
    flat = Mixture(images.flatten(1), torch.ones(2000), 0.2**2, labels)
    x, t = rand(1, 6, 1, 4, 4), torch.linspace(0.1, 0.9, 6, dtype=D)
    cond = Condition(label=torch.arange(6))
    for mine, theirs in [
        (system, flat),
        (system.score, flat.score),
        (system.posterior_mean, flat.posterior_mean),
        (system.log_density, flat.log_density),
    ]:
        truth = theirs(x.flatten(1), t, cond)
        torch.testing.assert_close(mine(x, t, cond).reshape(truth.shape), truth)
    x1, label = system.sample(Streams(0, index=torch.arange(64), dtype=D))
    assert label is not None and x1.shape == (64, 1, 4, 4)
    nearest = torch.cdist(x1.flatten(1), images.flatten(1)).argmin(1)
    assert torch.equal(labels[nearest], label)
    spread = (x1 - images[nearest]).std()
    assert abs(spread / 0.2 - 1.0) < 5.0 / (2 * 64 * 16) ** 0.5
    alone = system.restricted(3)
    torch.testing.assert_close(alone(x, t), system(x, t, Condition(label=torch.full((6,), 3))))
    with pytest.raises(ValueError, match="expected shape"):
        system(x.flatten(1), t)


def test_constructors() -> None:
    mixture = reference_mixture()
    truth = torch.tensor([[2.4, -0.2], [0.4, 1.8], [-1.6, -0.2], [0.4, -2.2]], dtype=D)
    torch.testing.assert_close(mixture.means, truth)
    torch.testing.assert_close(ring().means.norm(dim=1), torch.full((8,), 2.0, dtype=D))
    assert isinstance(ring(VP()).interpolant, VP)


BAD = [
    ({"means": torch.zeros(2)}, "means: expected floating-point"),
    ({"means": torch.full((2, 2), torch.nan)}, "NaN"),
    ({"weights": torch.ones(3)}, "weights: expected 2"),
    ({"weights": torch.tensor([1.0, -1.0])}, "weights: expected 2"),
    ({"weights": torch.zeros(2)}, "not all zero"),
    ({"covs": torch.ones(3)}, "covs: expected a scalar"),
    ({"covs": torch.tensor([0.1, 0.0])}, "positive variances"),
    ({"covs": torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])}, "symmetric"),
    ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels: expected 2"),
    ({"labels": torch.zeros(2)}, "labels: expected 2"),
    ({"labels": torch.tensor([0, -1])}, "non-negative"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_rejects_a_wrong_description(wrong: dict[str, Tensor], message: str) -> None:
    right = {"means": torch.zeros(2, 2), "weights": torch.ones(2), "covs": torch.ones(2)}
    with pytest.raises(ValueError, match=message):
        Mixture(**{**right, **wrong})


def test_rejects_wrong_labels_at_a_call() -> None:
    system = Mixture(torch.zeros(3, 2), torch.ones(3), 1.0, torch.tensor([0, 2, 2]))
    x, t = torch.zeros(2, 2), torch.zeros(2)
    for wrong in ([0, 1], [0, 3], [-1, 0]):
        with pytest.raises(ValueError, match=r"expected labels in \[0, 2\]"):
            system(x, t, Condition(label=torch.tensor(wrong)))
    with pytest.raises(ValueError, match="no component of label 1"):
        system.restricted(1)
    with pytest.raises(ValueError, match="the mixture has none"):
        Mixture(torch.zeros(3, 2), torch.ones(3), 1.0)(x, t, Condition(label=torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=r"expected shape \[B, 2\]"):
        system(torch.zeros(2, 3), t)
