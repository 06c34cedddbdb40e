"""How noise and data are paired within a batch.

A coupling returns the order in which x0 is taken, so that labels stay with their x1. Pairs that a
source already made (reflow) are kept by :class:`Independent`, which leaves the order alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from saltus.typing import Batch

__all__ = ["Coupling", "Independent", "MinibatchOT"]


class Coupling(Protocol):
    """Batch -> the permutation of x0's rows, int64 [B], or None to leave them."""

    def __call__(self, batch: Batch) -> Tensor | None: ...


@dataclass(frozen=True)
class Independent:
    """x0 and x1 as the source paired them: independent draws, or stored pairs."""

    def __call__(self, batch: Batch) -> None:
        return None


@dataclass(frozen=True)
class MinibatchOT:
    """The pairing of a batch with the least sum of squared distances |x0_p(i) - x1_i|^2.

    It is exact within the rows it is given, on the CPU, in O(B^3): keep those at most about 2,000.

    References:
        Tong et al., "Improving and generalizing flow-based generative models with minibatch
        optimal transport", 2023, arXiv 2302.00482.
        Pooladian et al., "Multisample flow matching", 2023, arXiv 2304.14772.
    """

    def __call__(self, batch: Batch) -> Tensor:
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as e:  # pragma: no cover - exercised without the extra
            raise ValueError("minibatch optimal transport needs SciPy: pip install 'saltus[metrics]'") from e
        x0 = batch.x0.detach().flatten(1).double()
        x1 = batch.data().detach().flatten(1).double()
        cost = x1.square().sum(1, keepdim=True) + x0.square().sum(1) - 2.0 * x1 @ x0.T
        _, order = linear_sum_assignment(cost.cpu().numpy())
        return torch.from_numpy(order).to(batch.x0.device)
