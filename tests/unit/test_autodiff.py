"""Derivatives along a direction against closed forms; the formulas of safe mode against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.autodiff import Derivative, FiniteDifference, Forward, TwoPass, compiled, derivative
from saltus.typing import Output

WAYS: list[Derivative] = [Forward(), Forward(safe=False), TwoPass(), FiniteDifference(eps=1e-4)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_closed_form(how: Derivative) -> None:
    """f(x, t) = a sin(x) e^(2t): df = a e^(2t) (cos(x) dx + 2 sin(x) dt), and its gradient in a."""
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    x, t, dx, dt = (normal(4, seed=i) for i in range(4))
    value, tangent = derivative(lambda x, t: a * x.sin() * (2 * t).exp(), (x, t), (dx, dt), how)
    slope = (2 * t).exp() * (x.cos() * dx + 2 * x.sin() * dt)
    assert torch.allclose(value, a * x.sin() * (2 * t).exp(), rtol=1e-14)
    assert torch.allclose(tangent, a * slope, rtol=1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(value.sum(), a, retain_graph=True)
    assert torch.allclose(grad, (x.sin() * (2 * t).exp()).sum())
    assert tangent.requires_grad != isinstance(how, TwoPass)
    if tangent.requires_grad:
        (grad,) = torch.autograd.grad(tangent.sum(), a)
        assert torch.allclose(grad, slope.sum(), rtol=1e-6)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_none_stands_for_zeros(how: Derivative) -> None:
    x, t, dx = normal(3), normal(3, seed=1), normal(3, seed=2)
    _, sparse = derivative(lambda x, t: x * x * t, (x, t), (dx, None), how)
    _, full = derivative(lambda x, t: x * x * t, (x, t), (dx, torch.zeros(3)), how)
    assert torch.allclose(sparse, 2 * x * t * dx, rtol=1e-8)
    assert torch.allclose(sparse, full, rtol=1e-12)
    value, still = derivative(lambda x, t: x * t, (x, t), (None, None), how)
    assert torch.equal(value, x * t) and float(still.abs().max()) == 0.0


def test_result_that_ignores_its_argument_has_zero_derivative() -> None:
    constant = normal(3)
    _, tangent = derivative(lambda x: constant, (normal(3),), (normal(3),))
    assert torch.equal(tangent, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_nests_of_tensors(how: Derivative) -> None:
    x, dx = normal(3), normal(3, seed=1)
    value, tangent = derivative(lambda x: Output(x.square(), {"v": x.sin()}), (x,), (dx,), how)
    assert isinstance(value, Output) and isinstance(tangent, Output)
    assert torch.allclose(tangent.u, 2 * x * dx, rtol=1e-6)
    assert torch.allclose(tangent.heads["v"], x.cos() * dx, rtol=1e-6)


def test_derivative_of_derivative_and_of_primal() -> None:
    x, one = normal(3).requires_grad_(), torch.ones(3, dtype=torch.float64)
    _, second = derivative(lambda x: derivative(torch.sin, (x,), (one,))[1], (x,), (one,))
    assert torch.allclose(second, -x.sin(), rtol=1e-14)
    (third,) = torch.autograd.grad(second.sum(), x)
    assert torch.allclose(third, -x.cos(), rtol=1e-14)


def test_tangent_is_cast_to_its_primal() -> None:
    _, tangent = derivative(torch.sin, (torch.zeros(2),), (torch.ones(2, dtype=torch.float64),))
    assert tangent.dtype == torch.float32 and torch.equal(tangent, torch.ones(2))


def test_mismatch_is_named() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="expected 1 tangents, one a primal, got 2; use None"):
        derivative(torch.sin, (x,), (x, x))
    with pytest.raises(ValueError, match=r"expected tangent 0 of shape \[2, 3\], got \[2\]; expand it"):
        derivative(torch.sin, (x,), (x[:, 0],))


def test_finite_difference_in_single_precision_and_under_autocast() -> None:
    """At the default step the error stays below 1e-4 in float32, and autocast does not reach it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4))
    x, v = normal(64, 4).float(), normal(64, 4, seed=1).float()
    _, plain = derivative(net, (x,), (v,), FiniteDifference())
    with torch.autocast("cpu", torch.bfloat16):
        _, cast = derivative(net, (x,), (v,), FiniteDifference())
    _, exact = derivative(net.double(), (x.double(),), (v.double(),))
    assert float(((plain - exact).norm() / exact.norm()).detach()) < 1e-4
    assert torch.equal(plain, cast)


X3, W = normal(3, 6, 8), normal(8, seed=4)
W6, B6, MEAN, VAR = normal(6, seed=5), normal(6, seed=6), normal(6, seed=7), normal(6, seed=8).square() + 0.5
Q, K, V = normal(2, 4, 5, 8), normal(2, 2, 7, 8, seed=1), normal(2, 2, 7, 3, seed=2)
KEEP = normal(5, 7, seed=3) > 0.0
KEEP[2] = False
FLOAT = torch.where(KEEP, normal(5, 7, seed=9), -torch.inf)
SQUARE = normal(2, 4, 5, 8, seed=10)


def attend(**options: object) -> Callable[[Tensor], Tensor]:
    return lambda q: F.scaled_dot_product_attention(q, K, V, enable_gqa=True, **options)  # type: ignore[arg-type]


FORMULAS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "F.layer_norm": (lambda x: F.layer_norm(x, (6, 8), normal(6, 8), normal(6, 8, seed=1), 1e-2), X3),
    "torch.layer_norm": (lambda x: torch.layer_norm(x, [8], W, None, 1e-2), X3),
    "F.group_norm": (lambda x: F.group_norm(x, 3, W6, B6, 1e-2), X3),
    "torch.group_norm": (lambda x: torch.group_norm(x, 2, W6, B6, 1e-2), X3),
    "F.instance_norm": (lambda x: F.instance_norm(x, None, None, W6, B6, eps=1e-2), X3),
    "stored instance_norm": (lambda x: F.instance_norm(x, MEAN, VAR, W6, B6, False), X3),
    "torch.instance_norm": (lambda x: torch.instance_norm(x, W6, B6, None, None, True, 0.1, 1e-2, True), X3),
    "F.batch_norm": (lambda x: F.batch_norm(x, None, None, W6, B6, True, 0.1, 1e-2), X3),
    "stored batch_norm": (lambda x: F.batch_norm(x, MEAN, VAR, W6, B6, eps=1e-2), X3),
    "torch.batch_norm": (lambda x: torch.batch_norm(x, W6, B6, MEAN, VAR, False, 0.1, 1e-2, True), X3),
    "glu": (lambda x: F.glu(x, dim=1), X3),
    "unflatten": (lambda x: x.unflatten(1, (2, 3)).square(), X3),
    "attention": (attend(), Q),
    "attention, scale": (attend(scale=0.3), Q),
    "attention, causal": (attend(is_causal=True), Q),
    "attention, boolean mask": (attend(attn_mask=KEEP), Q),
    "attention, float mask": (attend(attn_mask=FLOAT), Q),
    "self-attention": (lambda q: F.scaled_dot_product_attention(q, q, q), SQUARE),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_safe_formula_equals_native(name: str) -> None:
    """Value against the native call; derivative against central differences of the native call."""
    f, x = FORMULAS[name]
    v, h = normal(*x.shape, seed=11), 1e-5
    value, tangent = derivative(f, (x,), (v,))
    assert torch.allclose(value, f(x), rtol=1e-12, atol=1e-13)
    assert torch.allclose(tangent, (f(x + h * v) - f(x - h * v)) / (2 * h), rtol=1e-7, atol=1e-7)
    assert float(tangent.abs().max()) > 0.1


def test_dropped_attention_keeps_its_mean() -> None:
    torch.manual_seed(0)
    q = torch.randn(200, 4, 16, 8)
    ones = torch.ones(200, 4, 16, 1)
    out, _ = derivative(lambda q: F.scaled_dot_product_attention(q, q, ones, dropout_p=0.3), (q,), (q,))
    assert float(out.std()) > 0.1
    assert abs(float(out.mean()) - 1.0) < 5.0 * float(out.std()) / out.numel() ** 0.5


def test_half_precision_norm_keeps_its_dtype() -> None:
    x = X3.bfloat16()
    value, tangent = derivative(lambda x: F.layer_norm(x, (8,), W.float()), (x,), (x,))
    assert value.dtype == tangent.dtype == torch.bfloat16
    exact = F.layer_norm(x.float(), (8,), W.float())
    assert float((value - exact).norm() / exact.norm()) < 4e-3


def test_multi_head_attention_returns_weights_only_if_asked() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double()
    x, keys = normal(3, 5, 8), torch.tensor([[False] * 4 + [True]] * 3)
    for need in (True, False):
        seen: list[Tensor | None] = []

        def f(x: Tensor, need: bool = need, seen: list[Tensor | None] = seen) -> Tensor:
            out, weights = layer(x, x, x, need_weights=need, key_padding_mask=keys)
            seen.append(weights)
            return out

        value, _ = derivative(f, (x,), (x,))
        assert torch.allclose(value, layer(x, x, x, key_padding_mask=keys)[0], rtol=1e-12, atol=1e-14)
        assert (seen[0] is not None) == need


def test_norm_in_training_that_cannot_be_differentiated_says_so() -> None:
    net = nn.InstanceNorm1d(6, track_running_stats=True).double()
    with pytest.raises(ValueError, match="instance norm in training inside a derivative"):
        derivative(net, (X3,), (X3,))
    with pytest.raises(ValueError, match="batch norm in training inside a derivative"):
        derivative(lambda x: F.batch_norm(x, MEAN, VAR, training=True), (X3,), (X3,))
    with pytest.raises(ValueError, match="got both"):
        derivative(attend(attn_mask=KEEP, is_causal=True), (Q,), (Q,))


def test_safe_mode_ends_with_the_derivative() -> None:
    """Also when the function fails."""
    calls = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,  # noqa: ANN401
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:  # noqa: ANN401
            calls.append(func)
            return func(*args, **(kwargs or {}))

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        derivative(fail, (X3,), (X3,))
    with Watch():
        F.layer_norm(X3, (8,))
    assert F.layer_norm in calls and torch.rsqrt not in calls


@pytest.mark.parametrize("how", [Forward(), TwoPass(), FiniteDifference(eps=1e-3)], ids=str)
def test_every_way_compiles_whole(how: Derivative) -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            fold = nn.Unflatten(1, (2, 4))
            self.net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), fold, nn.Tanh()).double()

        def forward(self, x: Tensor, v: Tensor) -> Tensor:
            value, tangent = derivative(self.net, (x,), (v,), how)
            return (value + tangent.detach()).square().mean()

    torch.compiler.reset()
    loss, x, v = Loss(), normal(4, 8), normal(4, 8, seed=1)
    traced, eager = compiled(loss, backend="aot_eager")(x, v), loss(x, v)
    assert abs(float((traced - eager).detach())) < 1e-13
    parameters = list(loss.parameters())
    pairs = zip(torch.autograd.grad(traced, parameters), torch.autograd.grad(eager, parameters), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-13


ARITHMETIC = {
    "scaled": lambda x, w: 2.0 * x * w + x * 3,
    "shifted": lambda x, w: (w + x) + (1.0 + x) + torch.add(x, w, alpha=2.0),
    "subtracted": lambda x, w: (w - x) * (3.0 - x) * (x - w) + torch.sub(x, 1.0),
    "divided": lambda x, w: x / w + torch.div(x, 3.0) + w / x + torch.div(x, w, rounding_mode=None),
    "broadcast": lambda x, w: x.unsqueeze(1) * w + w.unsqueeze(0) - x.unsqueeze(1) / w.unsqueeze(0),
    "of one number": lambda x, w: x * w.sum() - w.mean() + x.sum() * w,
    "both": lambda x, w: x * x + x / (x + 3.0 + w) - (x - 2.0 * x),
    "linear": lambda x, w: F.linear(x.expand(4, -1), w.outer(w), w) + F.linear(x, w.outer(w)),
    "silu": lambda x, w: F.silu(w * x) + F.silu(w) + F.silu(x, inplace=False),
    "precisions": lambda x, w: x.float() * w + x.float() - w,
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_rules_of_our_own_equal_pytorchs(name: str) -> None:
    """Value, derivative and the gradient through both, to rounding, for moving and resting operands."""
    f = ARITHMETIC[name]
    found = []
    for safe in (True, False):
        x = torch.linspace(0.5, 1.5, 5, dtype=torch.float64).requires_grad_()
        w = torch.linspace(2.0, -1.5, 5, dtype=torch.float64).requires_grad_()
        v = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
        value, tangent = derivative(lambda x, w=w: f(x, w), (x,), (v,), Forward(safe=safe))
        assert value.dtype == tangent.dtype
        (value.square().sum() + (tangent * torch.cos(value)).sum()).backward()
        found.append((value, tangent, x.grad, w.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert torch.allclose(ours, theirs, rtol=1e-12 if name != "precisions" else 1e-6, atol=1e-12)
