"""Every backbone, and modules that are not ours, against float64 finite differences: the derivative,
and the parameter gradient through it. Also compilation, precision, and what a backbone promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.autodiff import Derivative, FiniteDifference, Forward, TwoPass, compiled, derivative
from saltus.nn import BACKBONES, Network, build
from saltus.typing import Condition, Output

SHAPE = (1, 4, 4)
ROWS = 4
NAMES = list(BACKBONES)
Point = tuple[Tensor, Tensor, Tensor]


def randomise(net: nn.Module, std: float = 0.2, seed: int = 0) -> None:
    """Every weight random and none zero, the output layers' and the gates' included."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            centre = 1.0 if p.ndim == 1 and name.endswith("weight") else 0.0  # the gain of a norm
            p.copy_(centre + std * torch.randn(p.shape, generator=rng, dtype=p.dtype))


def make(name: str) -> Network:
    net = build(name, "tiny", SHAPE, classes=3, heads=("v",), guidance=True).double()
    randomise(net)
    return net


def draw(dtype: torch.dtype = torch.float64) -> tuple[Point, Point, Condition]:
    """A point (x, s, t), a direction there, and a condition."""
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    s, t = normal(ROWS).sigmoid(), normal(ROWS).sigmoid()
    cond = Condition(
        label=torch.tensor([0, 1, 2, 1]),
        w=1.0 + normal(ROWS).abs(),
        null=torch.tensor([False, False, True, False]),
    )
    return (normal(ROWS, *SHAPE), s, t), (normal(ROWS, *SHAPE), normal(ROWS), normal(ROWS)), cond


class Loss(nn.Module):
    """A number that depends on value and derivative, of u and of the second head alike."""

    def __init__(self, net: nn.Module, how: Derivative) -> None:
        super().__init__()
        self.net = net
        self.how = how

    def forward(self, point: Point, along: Point, cond: Condition) -> Tensor:
        value, tangent = derivative(lambda x, s, t: self.net(x, s, t, cond), point, along, self.how)
        parts = [value.u, tangent.u, value.heads["v"], tangent.heads["v"]]
        return torch.stack([(c * part + part.square()).mean() for c, part in enumerate(parts, 1)]).sum()


def gradient_errors(loss: Callable[[], Tensor], module: nn.Module, step: float = 2e-5) -> dict[str, float]:
    """|g.d - (finite difference along d)| for a random unit direction d of each parameter tensor, relative
    to |g.d|, plus a thousandth of the largest tensor's so that a gradient that is zero by symmetry passes."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(), parameters)
    floor = 1e-3 * max(float(g.norm()) for g in gradients)
    rng = torch.Generator().manual_seed(2)
    errors = {}
    for name, p, g in zip(names, parameters, gradients, strict=True):
        d = torch.randn(p.shape, generator=rng, dtype=p.dtype)
        d /= d.norm()
        start, values = p.detach().clone(), []
        for e in (-step, step):
            with torch.no_grad():
                p.copy_(start + e * d)
                values.append(float(loss()))
        with torch.no_grad():
            p.copy_(start)
        slope = (values[1] - values[0]) / (2.0 * step)
        exact = float((g * d).sum())
        errors[name] = abs(exact - slope) / (abs(exact) + floor)
    return errors


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("moving", [(0,), (1,), (2,), (0, 1, 2)], ids=["x", "s", "t", "all"])
def test_derivative_equals_finite_difference(name: str, moving: tuple[int, ...]) -> None:
    net, (point, along, cond) = make(name), draw()
    direction = tuple(v if i in moving else None for i, v in enumerate(along))

    def at(e: float) -> Output:
        return net(*(p if v is None else p + e * v for p, v in zip(point, direction, strict=True)), cond)

    with torch.no_grad():
        value, tangent = derivative(lambda x, s, t: net(x, s, t, cond), point, direction)
        h = 1e-4
        ends = [at(k * h) for k in (-2, -1, 1, 2)]
    u = [e.u for e in ends]
    v = [e.heads["v"] for e in ends]
    assert relative((u[0] - 8 * u[1] + 8 * u[2] - u[3]) / (12 * h), tangent.u) < 1e-5
    assert relative((v[0] - 8 * v[1] + 8 * v[2] - v[3]) / (12 * h), tangent.heads["v"]) < 1e-5
    assert relative(value.u, net(*point, cond).u.detach()) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_parameter_gradient_through_derivative(name: str) -> None:
    net, (point, along, cond) = make(name), draw()
    loss = Loss(net, Forward())
    errors = gradient_errors(lambda: loss(point, along, cond), net)
    assert max(errors.values()) < 1e-6, {k: v for k, v in errors.items() if v >= 1e-6}


@pytest.mark.parametrize("name", NAMES)
def test_ways_agree(name: str) -> None:
    net, (point, along, cond) = make(name), draw()

    def take(how: Derivative) -> tuple[Output, Output]:
        return derivative(lambda x, s, t: net(x, s, t, cond), point, along, how)

    value, tangent = take(Forward())
    for how, bound in ((TwoPass(), 1e-12), (FiniteDifference(eps=1e-5), 1e-5)):
        other_value, other = take(how)
        assert relative(other_value.u, value.u) < 1e-12
        assert relative(other.u, tangent.u) < bound
        assert relative(other.heads["v"], tangent.heads["v"]) < bound
        assert other_value.u.requires_grad
        assert other.u.requires_grad == isinstance(how, FiniteDifference)


LONG = ("edm2", "ddpmpp")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.all if n in LONG else ()) for n in NAMES])
def test_compiled_loss_equals_eager(name: str) -> None:
    torch.compiler.reset()
    net, (point, along, cond) = make(name), draw()
    loss = Loss(net, Forward())
    parameters = list(net.parameters())
    eager = loss(point, along, cond)
    traced = compiled(loss, backend="aot_eager")(point, along, cond)
    assert relative(traced, eager) < 1e-12
    pairs = zip(torch.autograd.grad(traced, parameters), torch.autograd.grad(eager, parameters), strict=True)
    scale = max(float(p.abs().max()) for p in torch.autograd.grad(loss(point, along, cond), parameters))
    assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-12 * scale


@pytest.mark.slow
def test_inductor_equals_eager() -> None:
    torch.compiler.reset()
    net, (point, along, cond) = make("mlp"), draw()
    loss = Loss(net, Forward())
    parameters = list(net.parameters())
    eager, fused = loss(point, along, cond), compiled(loss)(point, along, cond)
    assert relative(fused, eager) < 1e-12
    pairs = zip(torch.autograd.grad(fused, parameters), torch.autograd.grad(eager, parameters), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-10


DRIFT = {"mlp": 0.01, "residual-mlp": 0.03, "unet": 0.06, "dit": 0.02, "edm2": 0.05, "ddpmpp": 0.1}
"""Largest relative change of value, derivative and gradient under bf16 autocast, at random weights that
amplify (s.d. 0.2). Measured: mlp .005 .003 .006; residual-mlp .014 .011 .021; unet .011 .025 .038; dit
.010 .010 .013; edm2 below .035; ddpmpp, of twice the convolutions, .020 .032 .070."""


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_drift(name: str) -> None:
    net = make(name).float()
    point, along, cond = draw(torch.float32)
    parameters = list(net.parameters())

    def everything() -> tuple[Tensor, Tensor, Tensor]:
        value, tangent = derivative(lambda x, s, t: net(x, s, t, cond), point, along)
        gradient = torch.autograd.grad(Loss(net, Forward())(point, along, cond), parameters)
        return value.u, tangent.u, torch.cat([g.flatten() for g in gradient])

    exact = everything()
    with torch.autocast("cpu", torch.bfloat16):
        half = everything()
    assert half[0].dtype == half[1].dtype == torch.float32
    drift = [relative(a, b) for a, b in zip(half, exact, strict=True)]
    assert 0.0 < max(drift) < DRIFT[name], drift


@pytest.mark.parametrize("name", NAMES)
def test_starts_at_zero_and_learns_from_there(name: str) -> None:
    net = build(name, "tiny", SHAPE, heads=("v", "weight")).double()
    (x, s, t), _, _ = draw()
    out = net(x, s, t)
    assert out.u.shape == x.shape and set(out.heads) == {"v", "weight"}
    assert all(torch.equal(y, torch.zeros_like(x)) for y in (out.u, *out.heads.values()))
    (out.u - 1.0).square().mean().backward()
    assert max(float(p.grad.abs().max()) for p in net.out.u.parameters() if p.grad is not None) > 0.0
    assert isinstance(net.blocks, nn.ModuleList) and len(net.blocks) > 0


@pytest.mark.parametrize("name", NAMES)
def test_condition(name: str) -> None:
    net, ((x, s, t), _, cond) = make(name), draw()
    with torch.no_grad():
        seen = net(x, s, t, cond).u
        free = net(x, s, t, Condition(w=cond.w)).u
        nulled = net(x, s, t, cond.nulled()).u
        unguided = net(x, s, t, Condition(cond.label, null=cond.null)).u
        one = net(x, s, t, Condition(cond.label, torch.ones_like(t), null=cond.null)).u
        other = net(x, s, t, Condition((cond.label + 1) % 3, cond.w, null=cond.null)).u
        again = net(x, s, t, cond).u
    assert torch.equal(seen, again)
    assert torch.equal(free, nulled)
    assert torch.equal(unguided, one)
    changed = (seen - other).flatten(1).abs().amax(1) > 1e-3
    assert changed.tolist() == [True, True, False, True]
    assert torch.equal(seen[2], free[2])
    assert float((seen - unguided).flatten(1).abs().amax(1).min()) > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_mix_and_any_real_time_is_taken(name: str) -> None:
    net, ((x, s, t), _, cond) = make(name), draw()
    with torch.no_grad():
        whole = net(x, 5.0 * s - 2.0, -t, cond).u
        last = net(x[-1:], 5.0 * s[-1:] - 2.0, -t[-1:], cond.rows(torch.tensor([ROWS - 1]))).u
    assert bool(torch.isfinite(whole).all())
    assert relative(whole[-1:], last) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_named(name: str) -> None:
    net, ((x, s, t), _, cond) = build(name, "tiny", SHAPE).double(), draw()
    with pytest.raises(ValueError, match=r"expected \[B, 1, 4, 4\], got \[1, 4, 4\]; use x.unsqueeze\(0\)"):
        net(x[0], s, t)
    with pytest.raises(ValueError, match=r"expected \[B, 1, 4, 4\], got \[4, 1, 4, 2\]"):
        net(x[..., :2], s, t)
    with pytest.raises(ValueError, match="time s: expected float32 or float64"):
        net(x, s.long(), t)
    with pytest.raises(ValueError, match="time t: expected float32 or float64 of shape"):
        net(x, s, t[:1])
    with pytest.raises(ValueError, match="built without classes"):
        net(x, s, t, cond)


class Attend(nn.Module):
    """A network of other people's parts."""

    def __init__(self, middle: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.enter, self.middle = nn.Linear(3, width), middle
        self.leave = nn.LazyLinear(3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.middle(torch.tanh(self.enter(x)) * (1.0 + t[:, None, None]))
        return self.leave(h[0] if isinstance(h, tuple) else h)


class SelfMultihead(nn.MultiheadAttention):
    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(h, h, h, need_weights=False)[0]


class CausalAttention(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(h, h, h, is_causal=True)


FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: nn.LayerNorm(8),
    "GroupNorm": lambda: nn.GroupNorm(2, 6),
    "InstanceNorm": lambda: nn.InstanceNorm1d(6, affine=True),
    "BatchNorm in training": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "BatchNorm in evaluation": lambda: nn.BatchNorm1d(6).eval(),
    "RMSNorm": lambda: nn.RMSNorm(8),
    "GLU": lambda: nn.GLU(),
    "MultiheadAttention": lambda: SelfMultihead(8, 2, batch_first=True),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True),
    "scaled dot product": CausalAttention,
}


def foreign_errors(part: nn.Module, how: Derivative) -> dict[str, float]:
    rng = torch.Generator().manual_seed(3)
    x, v, t = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((5, 6, 3), (5, 6, 3), (5,)))
    net = Attend(part).double()
    net(x, t)
    randomise(net, std=0.4)

    def loss() -> Tensor:
        value, tangent = derivative(net, (x, t), (v, torch.ones_like(t)), how)
        return (value.sin() + tangent.square()).mean()

    return gradient_errors(loss, net)


@pytest.mark.parametrize("name", FOREIGN)
def test_parameter_gradient_through_foreign_module(name: str) -> None:
    errors = foreign_errors(FOREIGN[name](), Forward())
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.xfail(strict=True, reason="PyTorch: wrong gradient through layer norm's derivative")
def test_canary_native_layer_norm() -> None:
    """When this passes, PyTorch is mended and the safe mode can be retired."""
    assert max(foreign_errors(nn.LayerNorm(8), Forward(safe=False)).values()) < 1e-6
