"""Weights that look at a jump, not at its error alone: clipped, directed, and seen through a feature map.
Each against its formula, value and gradient in the live velocity.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from saltus.autodiff import FiniteDifference, derivative
from saltus.maps import AverageVelocity
from saltus.nn import MLP
from saltus.objectives import Composition, Diagonal, Endpoint, Eulerian, Lagrangian
from saltus.streams import Streams
from saltus.times import Constant
from saltus.typing import Batch, Gradient, Objective
from saltus.weights import (
    AdaptivePower,
    Clipped,
    Differences,
    Directed,
    InFeatures,
    InStates,
    PseudoHuber,
    Scaled,
    Span,
    Squared,
    Weight,
    slope,
)

G = torch.Generator().manual_seed(3)
U, Y, X = (torch.randn(5, 3, 4, dtype=torch.float64, generator=G) for _ in range(3))
S = torch.linspace(0.0, 0.6, 5, dtype=torch.float64)
H, D = 0.3 + 0.1 * S, 0.05 + 0.1 * S
JUMP, STEP = Span(S, S + H, None, X, U), Span(S, S + H, D, X, U)


def rows(x: Tensor) -> Tensor:
    return x.reshape(-1, 1, 1)


def value_and_gradient(weight: Weight, span: Span) -> tuple[Tensor, Tensor]:
    """Of a target form: live in u, the target stopped."""
    live = U.clone().requires_grad_()
    value = weight(live - Y, span)
    assert value.shape == (5,)
    return value.detach(), torch.autograd.grad(value.sum(), live)[0]


def by_formula(value: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    return value.detach(), torch.autograd.grad(value.sum(), live)[0]


def same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert float(b.abs().max()) > 1e-2
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)


def test_clipped_takes_a_bounded_step_of_the_target() -> None:
    """u - sg(u - t clamp(u - y)): the value is bounded, the live factor stays one."""
    live = U.clone().requires_grad_()
    step = rows(S + H) * (U - Y).clamp(-0.7, 0.7)
    wanted = (live - (U - step)).square().flatten(1).sum(1)
    same(value_and_gradient(Clipped(Squared(), 0.7, lambda span: span.t), STEP), by_formula(wanted, live))
    assert float((U - Y).abs().max()) > 0.7


def test_directed_adds_the_angle_at_every_place() -> None:
    live = U.clone().requires_grad_()
    cosine = torch.nn.functional.cosine_similarity(live, Y, dim=1)
    wanted = (live - Y).square().flatten(1).sum(1) + 12.0 * (1.0 - cosine.mean(1))
    same(value_and_gradient(Directed(), JUMP), by_formula(wanted, live))
    flat = Directed()((U - Y).flatten(1), JUMP._replace(u=U.flatten(1)))
    angle = torch.nn.functional.cosine_similarity(U.flatten(1), Y.flatten(1))
    assert torch.allclose(flat, (U - Y).flatten(1).square().sum(1) + 12.0 * (1.0 - angle), rtol=1e-12)


def test_directed_has_a_finite_slope_where_a_network_begins() -> None:
    """At u = 0 that of 1 - 100 u y/|y|^2; the cosine itself has none there."""
    live = torch.zeros_like(U).requires_grad_()
    value = Directed(Scaled(Squared(), factor=lambda span: 0.0 * span.s))(live - Y, JUMP._replace(u=0.0 * U))
    (found,) = torch.autograd.grad(value.sum(), live)
    wanted = -12.0 * 100.0 * Y / Y.square().sum(1, keepdim=True) / 4.0
    assert torch.allclose(found, wanted, rtol=1e-9) and torch.allclose(value, torch.tensor(12.0).double())


def test_adaptive_power_divides_what_the_inner_weight_gives() -> None:
    live = U.clone().requires_grad_()
    inner = Directed()(live - Y, JUMP)
    wanted = inner / (inner.detach() / 12.0 + 0.1) ** 0.5
    same(value_and_gradient(AdaptivePower(0.5, 0.1, True, Directed()), JUMP), by_formula(wanted, live))


class Seen(nn.Module):
    """A nonlinear feature map with parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.mix = nn.Linear(4, 6).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mix(x))


@pytest.mark.parametrize("finite", [False, True], ids=["derivative", "step"])
def test_features_are_compared_where_the_jump_and_its_target_end(finite: bool) -> None:
    """phi(x + h u) against phi of where the target ends: x + h y, or x + h u - d (u - y) of a step d."""
    phi, live = Seen(), U.clone().requires_grad_()
    end = X + rows(H) * U - rows(D if finite else H) * (U - Y)
    seen = phi(X + rows(H) * live) - phi(end).detach()
    wanted = torch.sqrt(seen.square().flatten(1).sum(1) + 0.04) - 0.2
    weight = InFeatures(PseudoHuber(0.2), phi)
    span = STEP if finite else JUMP
    same(value_and_gradient(weight, span), by_formula(wanted, live))
    _, grad = value_and_gradient(weight, span)
    assert torch.allclose(slope(weight, U - Y, span), _along(weight, span, grad), rtol=1e-9)


def _along(weight: Weight, span: Span, grad: Tensor) -> Tensor:
    """The derivative along the error: a slope by :func:`slope`'s definition."""
    unit = (U - Y) / rows((U - Y).flatten(1).norm(dim=1))
    return (grad * unit).flatten(1).sum(1).abs()


def test_features_that_are_the_identity_are_states() -> None:
    same(
        value_and_gradient(InFeatures(Squared(), lambda x: x), STEP),
        value_and_gradient(InStates(Squared()), STEP),
    )


def test_motion_is_blind_to_what_all_frames_share() -> None:
    """Differences of frames: an error that is the same in every frame has no loss and no gradient."""
    weight = InFeatures(Squared(), Differences(1))
    live = U.clone().requires_grad_()
    shared = (U - Y).mean(1, keepdim=True).expand_as(U)
    value = weight(shared + (live - U), STEP)
    assert float(value.detach().abs().max()) < 1e-28
    assert float(torch.autograd.grad(value.sum(), live)[0].abs().max()) < 1e-13
    _, grad = value_and_gradient(weight, STEP)
    assert float(grad.abs().max()) > 1e-2 and float(grad.sum(1).abs().max()) < 1e-13


@pytest.mark.parametrize("weight", [Directed(), InFeatures(Squared(), Differences())], ids=["u", "x"])
def test_an_error_of_no_jump_is_refused(weight: Weight) -> None:
    with pytest.raises(ValueError, match="expected the error of"):
        weight(U - Y, Span(S, S + H))


def student() -> AverageVelocity:
    net = AverageVelocity(MLP((3, 4), width=8, depth=1)).double()
    for k, p in enumerate(net.parameters()):
        nn.init.normal_(p, std=0.4, generator=torch.Generator().manual_seed(k))
    return net


class Keeps:
    """A weight that keeps what it is given."""

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        self.error, self.span = error, span
        return Squared()(error, span)


@pytest.mark.parametrize(
    "build",
    [
        lambda u, w: Diagonal(u, weight=w),
        lambda u, w: Eulerian(u, weight=w),
        lambda u, w: Eulerian(u, step=Constant(0.1), weight=w),
        lambda u, w: Eulerian(u, gradient=Gradient.TIME, weight=w),
        lambda u, w: Lagrangian(u, weight=w),
        lambda u, w: Lagrangian(u, step=Constant(0.1), gradient=Gradient.TARGET, weight=w),
        lambda u, w: Composition(u, weight=w),
        lambda u, w: Endpoint(u, weight=w),
    ],
    ids=["diagonal", "eulerian", "step", "time", "lagrangian", "lagrangian-step", "composition", "endpoint"],
)
def test_every_objective_tells_the_state_and_the_velocity(build: object) -> None:
    """x is the state at s and u the student's average velocity from it, without gradient."""
    net, keeps = student(), Keeps()
    objective: Objective = build(net, keeps)  # type: ignore[operator]
    rng = Streams(0, index=torch.arange(5), dtype=torch.float64)
    batch = Batch(X, Y)
    draws = objective.draw(batch, rng)
    objective(batch, draws)
    span = keeps.span
    assert span.x is not None and span.u is not None and not span.u.requires_grad
    assert torch.allclose(span.x, X + rows(span.s) * (Y - X), rtol=1e-12)
    assert torch.allclose(span.u, net.average(span.x, span.s, span.t), rtol=1e-12)
    assert keeps.error.requires_grad


def test_a_stopped_difference_has_the_value_and_the_gradient_of_the_value_alone() -> None:
    net, how = student(), FiniteDifference(1e-3)
    found = [
        derivative(lambda x: net.average(x, S, S + H), (X,), (Y,), replace(how, stopped=z))
        for z in (False, True)
    ]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1].requires_grad and not found[1][1].requires_grad and found[1][0].requires_grad
