"""Weights of feature networks from files: safetensors, and the .pth files in which older ones are published.

A .pth file is a pickle. It is read with PyTorch's restricted unpickler, which builds tensors and plain
containers and calls nothing else, and this is the one place of the package that reads one; what it gives
is held against the network's names and shapes like any other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["stored_tensors"]

PTH = (".pth", ".pt")


def stored_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file by name, on the CPU.

    Raises:
        ValueError: for a file that is absent, damaged, of another kind, or holds anything but tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of weights, found none; check the path")
    try:
        if path.suffix in PTH:
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            found = load_file(path)
    except Exception as wrong:  # each reader has errors of its own
        why = " ".join(str(wrong).split())[:200]
        raise ValueError(f"{path}: expected weights as .safetensors or .pth, got {why}") from None
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(f"{path}: expected tensors by name, got something else; take its state_dict")
    return dict(found)
