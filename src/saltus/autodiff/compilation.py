"""Compilation of a whole loss with its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from saltus.autodiff.ways import RULES, quietly

__all__ = ["compiled"]


def _zeros(
    size: list[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Tensor:
    return torch.full(size, 0, dtype=dtype, device=device)


def _inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Inductor that materialises the symbolic zeros which forward mode leaves in the graph; without
    this it stops at "ZeroTensors are immutable" (PyTorch 2.11 to 2.13)."""
    table = quietly("torch._inductor.decomposition").select_decomp_table()
    table = {**table, torch.ops.aten._efficientzerotensor.default: _zeros}
    result: Callable[..., Any] = quietly("torch._inductor.compile_fx").compile_fx(
        graph, inputs, decompositions=table
    )
    return result


def compiled(module: nn.Module, backend: str | None = None) -> nn.Module:
    """``module``, whose forward is a whole loss with its derivatives, compiled as one graph.

    Args:
        module: the loss; parameters are shared with the result.
        backend: None is inductor with the work-around for derivatives; a name as ``torch.compile``
            takes it otherwise ("aot_eager" checks the graph without a compiler).

    >>> from torch import nn
    >>> compiled(nn.Linear(1, 1), backend="aot_eager")(torch.zeros(2, 1)).shape
    torch.Size([2, 1])
    """
    quietly(RULES)
    result: Any = torch.compile(module, backend=backend or _inductor, fullgraph=True)
    wrapped: nn.Module = result
    return wrapped
