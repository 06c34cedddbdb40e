"""One jump X_{s,t}(x) as a program that runs without saltus: torch.export's .pt2, or ONNX.

The program takes x [B, ...], s [B] and t [B] in float32, label [B] (int64) where the map knows classes, and
w [B] where it learned strengths of guidance, and returns X_{s,t}(x); B is free. Times are those of saltus:
0 is noise, 1 is data.

An ONNX file is read back by ONNX Runtime and held against the network before it is left.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saltus.maps import NetworkMap
from saltus.metrics.features.graph import session
from saltus.typing import Condition

__all__ = ["Jump", "exported_jump", "save_onnx", "save_program"]

NEAR = 1e-5
"""How far ONNX Runtime may be from PyTorch, in units of the largest number."""
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


def save_onnx(path: Path, jump: Jump, shape: tuple[int, ...], facts: Mapping[str, Any]) -> None:
    """Write an .onnx file of one piece; ``facts`` are its metadata under the key saltus.

    Raises:
        ImportError: without the packages of the extra ``onnx``.
        ValueError: for an operation that ONNX or its runtime lacks, or another answer than PyTorch's.
    """
    program = exported_jump(jump, shape)
    given = jump.example(shape, seed=1)
    told = logging.getLogger("torch.onnx")
    before = told.level
    told.setLevel(logging.ERROR)  # that torchvision is not there, say
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, dynamo=True, input_names=list(given), output_names=["X"], verbose=False
            )
        assert made is not None
        made.model.metadata_props["saltus"] = json.dumps(dict(facts))
        made.save(path, external_data=False)
    except ImportError as absent:
        raise ImportError(f"ONNX needs more packages ({absent}): pip install 'saltus[onnx]'") from None
    except Exception as wrong:  # the exporter has many errors of its own
        why = f"{type(wrong).__name__}: {' '.join(str(wrong).split())[:300]}"
        raise ValueError(f"onnx: expected operations that it has, got {why}; export it --to torch") from wrong
    finally:
        told.setLevel(before)
    _check_onnx(path, jump, given)


@torch.no_grad()
def _check_onnx(path: Path, jump: Jump, given: Mapping[str, Tensor]) -> None:
    answer = jump(*given.values())
    run = session(path.read_bytes(), path)
    found = torch.from_numpy(run.run(None, {name: value.numpy() for name, value in given.items()})[0])
    off = float((found - answer).abs().max() / answer.abs().max().clamp(min=1.0))
    if not off <= NEAR:  # NaN too
        raise ValueError(
            f"onnx: expected PyTorch's answer within {NEAR:g}, got one {off:.2g} away; export it --to torch"
        )
