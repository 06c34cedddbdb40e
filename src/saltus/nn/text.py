"""A sequence of embeddings, of a text say, as a network sees it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.typing import Condition

__all__ = ["Text"]


class Text(nn.Module):
    """Tokens in the width of a network, by a layer of their own, and one that stands for no text.

    A row without a text, whose text is dropped, or of which no token counts, sees that one alone.

    Args:
        size: of a token.
        width: of the network.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.randn(size))
        self.enter = nn.Linear(size, width)
        self.leave = nn.Linear(width, width)

    def forward(self, x: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor | None]:
        """The tokens [B, L, width], and which of them count, bool [B, L]; None is all.

        Raises:
            ValueError: for tokens or a mask of another shape.
        """
        rows, size = x.shape[0], len(self.null)
        if cond is None or cond.tokens is None:
            return self._wide(self.null.expand(rows, 1, -1)), None
        tokens, mask = cond.tokens, cond.mask
        if tokens.ndim != 3 or tokens.shape[0] != rows or tokens.shape[2] != size:
            raise ValueError(
                f"tokens: expected shape [{rows}, L, {size}], got {list(tokens.shape)}; "
                f"build the network with tokens={tokens.shape[-1]}, or give every row its own"
            )
        if mask is not None and (mask.shape != tokens.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask: expected bool {list(tokens.shape[:2])}, one for each token, got {mask.dtype} "
                f"{list(mask.shape)}; use mask.bool()"
            )
        gone = cond.null
        if mask is not None:
            empty = ~mask.any(dim=1)
            gone = empty if gone is None else gone | empty
        tokens = tokens.to(self.null.dtype)
        if gone is not None:  # alike tokens are one, however many and whichever count
            tokens = torch.where(gone[:, None, None], self.null, tokens)
            mask = None if mask is None else mask | gone[:, None]
        return self._wide(tokens), mask

    def _wide(self, tokens: Tensor) -> Tensor:
        h: Tensor = self.leave(F.gelu(self.enter(tokens), approximate="tanh"))
        return h
