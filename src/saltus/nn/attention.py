"""Self-attention, once for every network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from saltus.nn.embeddings import RMSNorm

__all__ = ["SelfAttention"]


class SelfAttention(nn.Module):
    """softmax(q k' / sqrt(d)) v over tokens, with q and k normalised by their root mean square so that
    the logits stay bounded. Fused in plain passes; a derivative in safe mode takes the formula.

    Args:
        width: of a token.
        heads: number of heads; divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"attention: expected a width divisible by {heads} heads, got {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.leave = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Tokens h [B, N, width] -> [B, N, width]."""
        qkv: Tensor = self.qkv(h)
        q, k, v = qkv.reshape(*h.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        out: Tensor = self.leave(y.transpose(1, 2).flatten(2))
        return out
