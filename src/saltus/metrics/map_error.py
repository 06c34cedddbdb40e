"""How far a sampler's results are from the reference's, from the same starts."""

from __future__ import annotations

from torch import Tensor

from saltus.tensors import per_row_norm2

__all__ = ["rmse"]


def rmse(x: Tensor, reference: Tensor) -> Tensor:
    """sqrt(mean over samples of |x - reference|^2), the square summed over dimensions. 0-d.

    For the map error at k steps, x is the result of k jumps and ``reference`` the exact flow map,
    both from the same prior states.

    Args:
        x, reference: states of the same rows, [B, ...].

    >>> import torch
    >>> rmse(torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [0.0, 4.0]]))  # sqrt((2 + 16) / 2)
    tensor(3.)
    """
    if x.shape != reference.shape:
        raise ValueError(
            f"rmse: expected states of the same rows, got shapes {list(x.shape)} and {list(reference.shape)}"
        )
    return per_row_norm2(x - reference).mean().sqrt()
