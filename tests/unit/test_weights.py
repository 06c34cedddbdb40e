"""From errors to losses: each weight's value and its gradient against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saltus.weights import (
    AdaptivePower,
    Differences,
    EntryHuber,
    InFeatures,
    InStates,
    LearnedLogVariance,
    PerEntry,
    PseudoHuber,
    Scaled,
    Span,
    Squared,
    TangentNormalised,
    Weight,
    per_noise_step,
    slope,
)

ERROR = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3.0
S = torch.linspace(0.0, 0.8, 5, dtype=torch.float64)
SPAN = Span(S, S + 0.2, 0.1 + 0.1 * S)


def value_and_gradient(weight: Weight, error: Tensor = ERROR, span: Span = SPAN) -> tuple[Tensor, Tensor]:
    live = error.clone().requires_grad_(True)
    value = weight(live, span)
    assert value.shape == (len(error),)
    (grad,) = torch.autograd.grad(value.sum(), live)
    return value.detach(), grad


def rows(x: Tensor) -> Tensor:
    return x.reshape(-1, 1, 1)


SQUARE = ERROR.flatten(1).square().sum(1)


def test_squared() -> None:
    value, grad = value_and_gradient(Squared())
    assert torch.allclose(value, SQUARE, rtol=1e-14) and torch.allclose(grad, 2 * ERROR, rtol=1e-14)


@pytest.mark.parametrize("c", [0.0, 0.3])
def test_pseudo_huber(c: float) -> None:
    value, grad = value_and_gradient(PseudoHuber(c))
    root = torch.sqrt(SQUARE + c * c)
    assert torch.allclose(value, root - c, rtol=1e-13)
    assert torch.allclose(grad, ERROR / rows(root), rtol=1e-13)
    wide, _ = value_and_gradient(PseudoHuber(c, per_dimension=True))
    scaled = c * math.sqrt(6)
    assert torch.allclose(wide, torch.sqrt(SQUARE + scaled**2) - scaled, rtol=1e-13)


def test_entry_huber_takes_each_entry_by_itself() -> None:
    wanted = sum(torch.sqrt(e.square() + 0.09) - 0.3 for e in ERROR.flatten(1).unbind(1))
    assert torch.allclose(EntryHuber(0.3)(ERROR, SPAN), wanted, rtol=1e-12)
    with pytest.raises(ValueError, match="expected c > 0"):
        EntryHuber(0.0)


def test_per_entry_is_a_mean_also_of_ends_and_of_features() -> None:
    """Over the entries that the inner weight is given: of a state in InStates, of features in InFeatures."""
    assert torch.allclose(PerEntry(Squared())(ERROR, SPAN), ERROR.square().flatten(1).mean(1))
    whole, mean = (InStates(w)(ERROR, SPAN) for w in (EntryHuber(0.1), PerEntry(EntryHuber(0.1))))
    assert torch.allclose(mean * ERROR[0].numel(), whole)
    seen = SPAN._replace(x=torch.zeros_like(ERROR), u=ERROR)
    whole, mean = (InFeatures(w, Differences())(ERROR, seen) for w in (Squared(), PerEntry(Squared())))
    assert torch.allclose(mean * ERROR[0].diff(dim=0).numel(), whole) and float(whole.min()) > 0.0


def test_one_over_the_step_in_noise() -> None:
    s, d = SPAN.s[1:], SPAN.d[1:]  # type: ignore[index]
    wanted = 1.0 / ((1.0 - s) / s - (1.0 - s - d) / (s + d))
    assert torch.allclose(per_noise_step(Span(s, SPAN.t[1:], d)), wanted, rtol=1e-12)
    with pytest.raises(ValueError, match="finite step"):
        per_noise_step(Span(s, s))


@pytest.mark.parametrize("c", [0.0, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pseudo_huber_at_zero_has_no_gradient(c: float, dtype: torch.dtype) -> None:
    value, grad = value_and_gradient(PseudoHuber(c), torch.zeros(5, 2, dtype=dtype))
    assert float(value.abs().max()) < 1e-18 and bool((grad == 0).all())


@pytest.mark.parametrize(("p", "c"), [(1.0, 1e-2), (0.5, 1e-3), (0.0, 1e-2)])
def test_adaptive_power_stops_its_own_weight(p: float, c: float) -> None:
    value, grad = value_and_gradient(AdaptivePower(p, c))
    assert torch.allclose(value, SQUARE / (SQUARE + c) ** p, rtol=1e-13)
    assert torch.allclose(grad, 2 * ERROR / rows((SQUARE + c) ** p), rtol=1e-13)


def test_tangent_normalised_bounds_the_gradient() -> None:
    value, grad = value_and_gradient(TangentNormalised(0.1))
    size = torch.sqrt(SQUARE / 6)
    normalised = ERROR / rows(size + 0.1)
    assert torch.allclose(grad, 2 * normalised, rtol=1e-13)
    assert torch.allclose(value, normalised.flatten(1).square().sum(1), rtol=1e-13)
    _, huge = value_and_gradient(TangentNormalised(0.1), 1e6 * ERROR)
    assert torch.allclose(huge.square().mean((1, 2)).sqrt(), torch.full((5,), 2.0, dtype=torch.float64))
    _, none = value_and_gradient(TangentNormalised(0.1), torch.zeros_like(ERROR))
    assert bool((none == 0).all())


def test_scaled_multiplies_the_error_then_the_loss() -> None:
    assert SPAN.d is not None
    d, gap = SPAN.d, SPAN.t - SPAN.s
    weight = Scaled(PseudoHuber(0.3), lambda span: d, lambda span: 1.0 / (span.t - span.s))
    value, grad = value_and_gradient(weight)
    root = torch.sqrt(d**2 * SQUARE + 0.09)
    assert torch.allclose(value, (root - 0.3) / gap, rtol=1e-13)
    assert torch.allclose(grad, rows(d**2 / root / gap) * ERROR, rtol=1e-13)
    plain, _ = value_and_gradient(Scaled(Squared()))
    assert torch.equal(plain, SQUARE)


def test_in_states_has_the_value_and_gradient_of_two_jumps() -> None:
    """|X - sg X'|^2 with X - X' = d e and dX/du = t - s."""
    assert SPAN.d is not None
    value, grad = value_and_gradient(InStates(Squared()))
    assert torch.allclose(value, SPAN.d**2 * SQUARE, rtol=1e-13)
    assert torch.allclose(grad, rows(2 * SPAN.d * (SPAN.t - SPAN.s)) * ERROR, rtol=1e-13)
    with pytest.raises(ValueError, match="finite step"):
        InStates(Squared())(ERROR, Span(S, S))


def test_learned_log_variance_value_and_gradients() -> None:
    weight = LearnedLogVariance(features=8).double()
    value, grad = value_and_gradient(weight)
    assert torch.equal(value, SQUARE), "w starts at 0, where the loss is the inner one"
    torch.nn.init.normal_(weight.linear.weight, generator=torch.Generator().manual_seed(0))
    w = weight.log_variance(SPAN.s, SPAN.t).detach()
    value, grad = value_and_gradient(weight)
    assert torch.allclose(value, torch.exp(-w) * SQUARE + w, rtol=1e-13)
    assert torch.allclose(grad, rows(torch.exp(-w)) * 2 * ERROR, rtol=1e-13)
    k = math.pi * torch.arange(4, dtype=torch.float64)
    pair = torch.stack([SPAN.s, SPAN.t]).unsqueeze(-1) * k
    features = torch.cat([torch.cos(pair), torch.sin(pair)], -1).sum(0) / math.sqrt(2)
    assert torch.allclose(w, features @ weight.linear.weight[0].detach(), rtol=1e-12)
    (of_w,) = torch.autograd.grad(weight(ERROR, SPAN).sum(), weight.linear.weight)
    assert torch.allclose(of_w[0], (1 - torch.exp(-w) * SQUARE) @ features, rtol=1e-12)


def test_learned_log_variance_finds_the_log_of_the_mean_loss() -> None:
    """Where that logarithm is in the span of the features."""
    weight = LearnedLogVariance(features=8).double()
    s, t = torch.rand(2, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    s, t = torch.minimum(s, t), torch.maximum(s, t)
    log_mean = 0.5 + torch.cos(math.pi * s) + torch.cos(math.pi * t) - 0.7 * (
        torch.sin(2 * math.pi * s) + torch.sin(2 * math.pi * t)
    )
    error = torch.exp(0.5 * log_mean).unsqueeze(1)
    optimiser = torch.optim.LBFGS(weight.parameters(), max_iter=200, tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = weight(error, Span(s, t)).mean()
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    assert torch.allclose(weight.log_variance(s, t), log_mean, atol=1e-4)


EVERY: dict[str, Weight] = {
    "squared": Squared(),
    "huber": PseudoHuber(0.1),
    "entries": EntryHuber(0.1),
    "a mean": PerEntry(EntryHuber(0.1)),
    "power": AdaptivePower(),
    "tangent": TangentNormalised(),
    "scaled": Scaled(Squared(), scale=lambda span: span.t - span.s),
    "states": InStates(Squared()),
    "learned": LearnedLogVariance(),
}


@pytest.mark.parametrize("name", EVERY)
def test_losses_are_per_row_and_never_in_half_precision(name: str) -> None:
    weight = EVERY[name]
    span = Span(*(v.float() for v in SPAN if v is not None))
    half = weight(ERROR.to(torch.bfloat16), span)
    assert half.dtype == torch.float32
    full = weight(ERROR.to(torch.bfloat16).float(), span)
    assert torch.allclose(half, full, rtol=1e-5)
    order = torch.tensor([3, 1])
    part = weight(ERROR[order].float(), Span(*(v[order] for v in span if v is not None)))
    assert torch.allclose(part, weight(ERROR.float(), span)[order], rtol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_a_term_without_rows_has_no_losses(name: str) -> None:
    empty = torch.zeros(0)
    assert EVERY[name](torch.zeros(0, 2, 3), Span(empty, empty, empty)).shape == (0,)


@pytest.mark.parametrize(
    "weight",
    [
        Squared(),
        PseudoHuber(0.3),
        AdaptivePower(0.75, 1e-2),
        AdaptivePower(1.0, 0.5, per_dimension=True),
        TangentNormalised(0.1),
        Scaled(PseudoHuber(0.2), lambda span: 1.0 + span.s, lambda span: span.t),
        InStates(Squared()),
        LearnedLogVariance(AdaptivePower(0.5)).double(),
    ],
    ids=lambda w: type(w).__name__,
)
def test_slope_is_the_norm_of_the_gradient_in_the_error(weight: Weight) -> None:
    """Of every weight, a constant, and 0 where the error is."""
    _, grad = value_and_gradient(weight)
    found = slope(weight, ERROR.clone().requires_grad_(), SPAN)
    assert not found.requires_grad
    assert torch.allclose(found, grad.flatten(1).norm(dim=1), rtol=1e-12)
    assert float(slope(weight, 0.0 * ERROR, SPAN).abs().max()) == 0.0


def test_adaptive_power_per_dimension_divides_by_the_mean_square() -> None:
    value, grad = value_and_gradient(AdaptivePower(0.75, 0.2, per_dimension=True))
    size = (SQUARE / 6.0 + 0.2) ** 0.75
    assert torch.allclose(value, SQUARE / size, rtol=1e-13)
    assert torch.allclose(grad, 2.0 * ERROR / rows(size), rtol=1e-13)
