"""Whether a derivative is being taken."""

from __future__ import annotations

from torch.autograd import forward_ad

__all__ = ["differentiating"]


def differentiating() -> bool:
    """Whether the caller runs within a forward-mode derivative.

    >>> differentiating()
    False
    """
    return forward_ad._current_level >= 0
