"""Numbers and weights from a seed, the same in every format."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["numbers", "randomise"]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randomise(net: nn.Module, std: float = 0.2, seed: int = 0) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            centre = 1.0 if p.ndim == 1 and name.endswith("weight") else 0.0
            p.copy_(centre + std * torch.randn(p.shape, generator=rng, dtype=torch.float64))
