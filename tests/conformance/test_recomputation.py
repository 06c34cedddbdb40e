"""Recomputed activations change nothing but the memory: losses and gradients against the plain network's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from systems import first
from test_backbones import Loss, draw, make
from torch import Tensor, nn

from saltus.autodiff import Forward, TwoPass, compiled, derivative, recomputed
from saltus.games import as_game
from saltus.maps import AverageVelocity
from saltus.methods import discover
from saltus.nn import BACKBONES, DiT, GuidanceAdapters, build
from saltus.streams import Streams
from saltus.training import EMA, LossModule, Precision, initialised
from saltus.training.memory import Tracker
from saltus.typing import Batch, Condition, Gradient, Output

SHAPE, ROWS = (1, 4, 4), 16
OPTIONS: dict[str, tuple[str, dict[str, object]]] = {
    "lsd": ("lsd", {}),
    "esd": ("esd", {}),
    "esd, nothing stopped": ("esd", {"gradient": Gradient.FULL}),
    "mean_flow": ("mean_flow", {}),
    "psd": ("psd", {}),
}
METHODS = list(OPTIONS)


def randomise(net: nn.Module) -> None:
    """Weights away from the start, where the output is zero and much is hidden."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype))


def losses(
    name: str, method: str, dtype: torch.dtype, precision: Precision = Precision.FLOAT32
) -> tuple[nn.Module, LossModule, Callable[[nn.Module], list[Tensor]]]:
    """A network, the loss that trains it, and a function from such a loss to its value and gradients."""
    network = initialised(0, lambda: build(name, "tiny", SHAPE, classes=3))
    student = AverageVelocity(network).to(dtype)
    randomise(student)
    kind, options = OPTIONS[method]
    built = first(discover()[kind].wired(student, **options))
    move = as_game(built, student).moves[0]
    rng = Streams(0, index=torch.arange(ROWS), dtype=dtype)
    cond = Condition(label=rng.integers("label", 3), null=rng.uniform("null") < 0.2)
    batch = Batch(rng.normal("x0", *SHAPE), rng.normal("x1", *SHAPE), cond, torch.full((), 0.3, dtype=dtype))
    with torch.no_grad():
        draws = move.objective.draw(batch, rng)
    parameters = list(network.parameters())

    def measured(loss: nn.Module) -> list[Tensor]:
        value, _ = loss(batch, draws)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        return [value.detach(), *(g for g in gradients if g is not None)]

    return network, LossModule(move, precision), measured


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference over the largest number."""
    assert len(ours) == len(theirs)
    scale = max(float(b.abs().max()) for b in theirs)
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) / scale


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BACKBONES)
def test_gradient_is_the_plain_networks(name: str, method: str) -> None:
    network, loss, measured = losses(name, method, torch.float64)
    plain = measured(loss)
    recomputed(network)
    assert error(measured(loss), plain) < 1e-12


@pytest.mark.parametrize("name", BACKBONES)
def test_under_autocast(name: str) -> None:
    """The recomputation runs in the same mixture of precisions, to the bit. Only where a tensor enters
    several blocks (the skips of the U-Nets) half-precision gradients are added up in another order: they
    differ by less than half precision itself does."""
    network, loss, measured = losses(name, "lsd", torch.float32, Precision.BF16)
    plain = measured(loss)
    recomputed(network)
    again = measured(loss)
    loss.precision = Precision.FLOAT32
    drift = error(measured(loss), plain)
    assert torch.equal(again[0], plain[0]) and drift > 1e-4
    assert error(again, plain) <= (0.25 * drift if name in ("unet", "edm2", "ddpmpp") else 0.0)


SLOW = [("unet", "lsd"), ("unet", "mean_flow"), ("dit", "mean_flow"), ("mlp", "mean_flow")]
QUICK = [("mlp", "lsd"), ("residual-mlp", "mean_flow"), ("dit", "lsd")]


@pytest.mark.parametrize(
    ("name", "method"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_compiled_whole(name: str, method: str) -> None:
    """The tracer keeps the recomputation in the graph, as one graph."""
    torch._dynamo.reset()
    network, loss, measured = losses(name, method, torch.float64)
    plain = measured(loss)
    recomputed(network)
    assert error(measured(compiled(loss, backend="aot_eager")), plain) < 1e-10


def test_compiled_in_a_thread_that_has_taken_no_derivative() -> None:
    torch._dynamo.reset()
    network, loss, measured = losses("mlp", "lsd", torch.float64)
    plain = measured(loss)
    recomputed(network)
    with ThreadPoolExecutor(1) as threads:
        again = threads.submit(lambda: measured(compiled(loss, backend="aot_eager"))).result()
    assert error(again, plain) < 1e-10


@pytest.mark.parametrize("moving", [(), (0,), (1,), (2,), (0, 1, 2)], ids=["none", "x", "s", "t", "all"])
@pytest.mark.parametrize("how", [Forward(), TwoPass()], ids=str)
def test_whichever_arguments_move(moving: tuple[int, ...], how: Forward | TwoPass) -> None:
    net, (point, along, cond) = make("dit"), draw()
    direction = tuple(v if i in moving else None for i, v in enumerate(along))
    loss, parameters = Loss(net, how), list(net.parameters())
    plain = torch.autograd.grad(loss(point, direction, cond), parameters, allow_unused=True)
    recomputed(net)
    again = torch.autograd.grad(loss(point, direction, cond), parameters, allow_unused=True)
    assert error([g for g in again if g is not None], [g for g in plain if g is not None]) < 1e-12


class Foreign(nn.Module):
    """A network of layers whose own rules under a derivative are wrong or missing."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True), nn.LayerNorm(8)
        self.blocks = nn.ModuleList([*layers, nn.Dropout(0.4)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("how", [None, Forward()], ids=str)
def test_safe_mode_and_dropout_are_repeated(how: Forward | None) -> None:
    """Without safe mode in the backward pass fused attention has no derivative, layer norm a wrong one."""
    net = Foreign().double()
    randomise(net)
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        pair = (net(x), x) if how is None else derivative(net, (x,), (x.sin(),), how)
        return list(torch.autograd.grad((pair[0].sin() * pair[1]).sum(), list(net.parameters())))

    plain = gradients()
    recomputed(net)
    assert error(gradients(), plain) < 1e-12


def test_native_rules_stay_native() -> None:
    """A derivative that is asked for without safe mode is recomputed without it."""
    net, (point, along, cond) = make("residual-mlp"), draw()
    loss, parameters = Loss(net, Forward(safe=False)), list(net.parameters())
    plain = torch.autograd.grad(loss(point, along, cond), parameters)
    recomputed(net)
    assert error(list(torch.autograd.grad(loss(point, along, cond), parameters)), list(plain)) < 1e-12


def test_adapters_see_the_strength_again() -> None:
    """Their strengths are no argument of the blocks, and gone when the backward pass comes."""
    (x, s, t), (dx, _, _), cond = draw()
    net = GuidanceAdapters(build("dit", "tiny", SHAPE, classes=3)).double()
    randomise(net)
    trained = [p for p in net.parameters() if p.requires_grad]

    def gradients() -> list[Tensor]:
        y, dy = derivative(lambda x: net(x, s, t, cond).u, (x,), (dx,))
        plain = net(x, s, t, Condition(cond.label)).u
        return list(torch.autograd.grad((y.sin() * dy + plain).sum(), trained, allow_unused=True))

    before = gradients()
    recomputed(net)
    again = gradients()
    assert error([g for g in again if g is not None], [g for g in before if g is not None]) < 1e-12


def test_derivative_of_a_derivative() -> None:
    """Right, though its activations are kept."""
    net, ((x, s, t), (v, _, _), cond) = make("residual-mlp"), draw()
    parameters = list(net.parameters())

    def gradients() -> list[Tensor]:
        def inner(x: Tensor) -> Tensor:
            return derivative(lambda x: net(x, s, t, cond).u, (x,), (v,))[1]

        _, second = derivative(inner, (x,), (v,))
        return list(torch.autograd.grad(second.sum(), parameters, allow_unused=True))

    plain = gradients()
    recomputed(net)
    pairs = [(a, b) for a, b in zip(gradients(), plain, strict=True) if b is not None]
    assert error([a for a, _ in pairs], [b for _, b in pairs]) < 1e-12


@pytest.mark.parametrize("how", [None, Forward()], ids=["plain", "derivative"])
def test_each_block_runs_twice_with_gradient_and_once_without(how: Forward | None) -> None:
    net, ((x, s, t), (v, _, _), _) = build("dit", "tiny", SHAPE).double(), draw()
    randomise(net)
    calls: list[str] = []
    for k, block in enumerate(net.blocks):
        block.attention.register_forward_hook(lambda *_, k=k: calls.append(f"{k}"))
    recomputed(net)
    recomputed(net)  # again is once

    def value() -> Tensor:
        if how is None:
            return net(x, s, t).u
        return derivative(lambda x: net(x, s, t).u, (x,), (v,), how)[1]

    value().sum().backward()
    assert calls == ["0", "1", "1", "0"]
    calls.clear()
    with torch.no_grad():
        value()
    assert calls == ["0", "1"]


def kept(net: nn.Module, how: Forward | None) -> int:
    """Bytes alive between a forward pass and its backward pass."""
    (x, s, t), (v, _, _), _ = draw()
    x, v, s, t = (torch.cat([y] * 8) for y in (x, v, s, t))
    with Tracker() as tracker:
        if how is None:
            loss = net(x, s, t).u.sum()
        else:
            y, dy = derivative(lambda x: net(x, s, t).u, (x,), (v,), how)
            loss = (y * dy).sum()
        alive = tracker.live
    loss.backward()
    return alive


@pytest.mark.parametrize("how", [None, Forward()], ids=["plain", "derivative"])
def test_memory_is_that_of_the_arguments(how: Forward | None) -> None:
    """Of eight blocks only what enters them is kept: (h, c), or (h, dh, c, dc), a small part of the whole."""
    net = DiT(SHAPE, width=64, depth=8, attention_heads=2).double()
    randomise(net)
    plain = kept(net, how)
    recomputed(net)
    entering = 8 * 32 * 4 * 64 * 8 * (1 if how is None else 2)  # blocks, rows, tokens, width, bytes
    assert entering < kept(net, how) < 2 * entering < plain / 4


def test_copies_and_state() -> None:
    """Names stay; a copy recomputes with weights of its own."""
    net = build("mlp", "tiny", (2,)).double()
    randomise(net)
    names = list(net.state_dict())
    recomputed(net)
    copy = deepcopy(net)
    average = EMA(net, 0.9).module
    assert list(net.state_dict()) == list(copy.state_dict()) == list(average.state_dict()) == names
    x, s, t = torch.ones(3, 2).double(), torch.zeros(3).double(), torch.ones(3).double()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert float(copy(x, s, t).u.detach().abs().max()) > 0.0
    copy(x, s, t).u.sum().backward()
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None for p in copy.blocks.parameters())


def test_outputs_of_any_shape() -> None:
    """Blocks may take words and return nests."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2).double()

        def forward(self, h: Tensor, *, gain: Tensor, power: int) -> Output:
            y = F.silu(self.linear(h)) * gain
            return Output(y**power, {"constant": torch.ones_like(gain)})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Pair()])

        def forward(self, x: Tensor) -> Output:
            found: Output = self.blocks[0](x, gain=x.cos(), power=3)
            return found

    net, x = Net(), torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).reshape(4, 2)

    def gradients() -> list[Tensor]:
        y, dy = derivative(net, (x,), (x.sin(),))
        assert float(dy.heads["constant"].abs().max()) == 0.0
        return list(torch.autograd.grad((y.u * dy.u).sum() + y.u.sum(), list(net.parameters())))

    plain = gradients()
    recomputed(net)
    assert error(gradients(), plain) < 1e-12


def test_network_without_blocks_is_told() -> None:
    with pytest.raises(ValueError, match=r"expected a network with blocks .* got Linear without"):
        recomputed(nn.Linear(1, 1))
