"""One jump X_{s,t}(x) as a program that runs without saltus: torch.export's .pt2, or ONNX.

The program takes x [B, ...], s [B] and t [B] in float32, label [B] (int64) where the map knows classes, and
w [B] where it learned strengths of guidance, and returns X_{s,t}(x); B is free. Times are those of saltus:
0 is noise, 1 is data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saltus.maps import NetworkMap
from saltus.typing import Condition

__all__ = ["Jump", "exported_jump", "save_program"]

ROWS = 3
"""Of the example that is traced; neither 0 nor 1, which torch.export would take for constants."""


class Jump(nn.Module):
    """X_{s,t}(x) as a function of tensors alone.

    Args:
        model: the flow map.
        labelled: whether it takes a label.
        guided: whether it takes a strength of guidance.
    """

    def __init__(self, model: NetworkMap, labelled: bool, guided: bool) -> None:
        super().__init__()
        self.model, self.labelled, self.guided = model, labelled, guided

    def forward(self, x: Tensor, s: Tensor, t: Tensor, *asked: Tensor) -> Tensor:
        """[B, ...]; what is asked for comes in the order of :meth:`example`."""
        rest = list(asked)
        label = rest.pop(0) if self.labelled else None
        w = rest.pop(0) if self.guided else None
        cond = Condition(label=label, w=w) if asked else None
        out: Tensor = self.model(x, s, t, cond)
        return out

    def example(self, shape: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
        """Arguments for ``ROWS`` rows."""
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(ROWS, *shape, generator=random)
        s = torch.rand(ROWS, generator=random) / 2.0
        given = {"x": x, "s": s, "t": s + 0.5}
        if self.labelled:
            given["label"] = torch.zeros(ROWS, dtype=torch.int64)
        if self.guided:
            given["w"] = torch.full((ROWS,), 1.5)
        return given


def exported_jump(jump: Jump, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The program of a jump, with a free number of rows.

    Raises:
        ValueError: where PyTorch cannot follow the network.
    """
    example = jump.example(shape)
    free = {0: torch.export.Dim("rows", min=1)}
    given = tuple(example.values())
    asked = ((free,) * (len(given) - 3),) if len(given) > 3 else ()
    try:
        return torch.export.export(jump.cpu().eval(), given, dynamic_shapes=(free, free, free, *asked))
    except Exception as wrong:  # torch.export has no error of its own for what it cannot follow
        raise ValueError(
            f"torch.export: expected a network that it can follow, got {type(wrong).__name__}: "
            f"{' '.join(str(wrong).split())[:300]}; export it as .safetensors, or --to diffusers"
        ) from wrong


def save_program(path: Path, jump: Jump, shape: tuple[int, ...], facts: Mapping[str, Any]) -> None:
    """Write a .pt2 file; ``facts`` goes into it as saltus.json."""
    program = exported_jump(jump, shape)
    torch.export.save(program, path, extra_files={"saltus.json": json.dumps(dict(facts))})
