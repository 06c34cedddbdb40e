"""What compiling block by block would gain over compiling the whole loss: one line for each way.

    python benchmarks/compile.py --depth 12

Ways: "whole", :func:`saltus.autodiff.compiled` as ``--compile`` does; "nested", the same with every block
marked by ``torch.compiler.nested_compile_region``, so that blocks alike are compiled once; "nested, safe",
with safe mode entered again inside the region; "block", each block by ``nn.Module.compile``, the loss
itself eager. Times are of the process (CPU seconds), so that other programs count little; a step is loss
and gradient, the fastest of five. The error is that of the gradient of all parameters against the eager
one, relative.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from saltus.autodiff import compiled, derivative
from saltus.autodiff.rules import Primitive
from saltus.nn import DiT

WAYS = ("whole", "nested", "nested, safe", "block")


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        depth: blocks of the transformer.
        width: of its tokens.
        batch: rows.
        backend: of the compiler.
        losses: with a derivative or without.
        ways: of compiling.
    """

    depth: int = 4
    width: int = 64
    batch: int = 8
    backend: Literal["inductor", "aot_eager"] = "inductor"
    losses: tuple[Literal["plain", "derivative"], ...] = ("plain", "derivative")
    ways: tuple[str, ...] = WAYS


class Loss(nn.Module):
    """A loss of a network's value, and of its derivative if asked."""

    def __init__(self, net: nn.Module, moves: bool) -> None:
        super().__init__()
        self.net, self.moves = net, moves

    def forward(self, x: Tensor, v: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """A number: x and v [B, ...], s and t [B]."""
        if not self.moves:
            u: Tensor = self.net(x, s, t).u
            return u.square().sum()
        y, dy = derivative(lambda x: self.net(x, s, t).u, (x,), (v,))
        return (y * dy).sum()


def safely(block: nn.Module, forward: Any, *args: Tensor) -> Tensor:  # noqa: ANN401 - the block's own
    """The block in safe mode."""
    with Primitive():
        out: Tensor = forward(block, *args)
    return out


def prepared(way: str, moves: bool, options: Options) -> tuple[nn.Module, nn.Module]:
    """The network and its compiled loss."""
    torch.manual_seed(0)
    net = DiT((1, 8, 8), width=options.width, depth=options.depth, attention_heads=2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    backend = None if options.backend == "inductor" else options.backend
    if way == "eager":
        return net, Loss(net, moves)
    if way == "block":
        for block in net.blocks:
            block.compile(backend=options.backend, fullgraph=True)
        return net, Loss(net, moves)
    if way.startswith("nested"):
        kind: Any = type(net.blocks[0])
        plain = kind.forward
        inner = (lambda block, *args: safely(block, plain, *args)) if "safe" in way else plain
        region = torch.compiler.nested_compile_region(inner)
        for block in net.blocks:
            block.forward = partial(region, block)
    return net, compiled(Loss(net, moves), backend=backend)


def step(loss: nn.Module, net: nn.Module, options: Options) -> tuple[float, Tensor]:
    """CPU seconds, and the gradient."""
    rng = torch.Generator().manual_seed(1)
    shape = (options.batch, 1, 8, 8)
    x, v = (torch.randn(shape, generator=rng) for _ in range(2))
    s, t = (torch.rand(options.batch, generator=rng) for _ in range(2))
    begin = time.process_time()
    gradients = torch.autograd.grad(
        loss(x, v, s, t), list(net.parameters()), allow_unused=True, materialize_grads=True
    )
    return time.process_time() - begin, torch.cat([g.flatten() for g in gradients])


def line(way: str, moves: bool, options: Options) -> str:
    """A row of the table."""
    torch._dynamo.reset()
    net, loss = prepared("eager", moves, options)
    exact = step(loss, net, options)[1]
    eager = min(step(loss, net, options)[0] for _ in range(5))
    try:
        net, loss = prepared(way, moves, options)
        compiling, gradient = step(loss, net, options)
        fast = min(step(loss, net, options)[0] for _ in range(5))
    except Exception as error:  # noqa: BLE001 - whatever the compiler says is the result
        return f"fails: {type(error).__name__} | | | |"
    wrong = float((gradient - exact).norm() / exact.norm())
    return f"{compiling:.0f} | {1e3 * fast:.1f} | {1e3 * eager:.1f} | {wrong:.0e} |"


def main(options: Options) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    where = f"width {options.width}, {options.batch} rows of 16 tokens, {options.backend}"
    print(f"DiT of {options.depth} blocks, {where}, one CPU thread, PyTorch {torch.__version__}\n")
    print("| loss | way | compile s | step ms | eager ms | error |\n| --- | --- | --- | --- | --- | --- |")
    for loss in options.losses:
        for way in options.ways:
            print(f"| {loss} | {way} | {line(way, loss == 'derivative', options)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
