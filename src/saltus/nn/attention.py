"""Attention, once for every network.

:func:`attention` is the one place where a network of this package asks for a scaled dot product. PyTorch's
fused kernels have no forward-mode rule on any device. So inside a derivative the formula is computed, with
the scores in memory, right to any order; in every other pass (values, plain gradients, samples, the
three passes of a finite difference) it is the fused kernel that the device has. Safe mode makes the same
exchange in networks that are not ours. A kernel with a derivative of its own would enter here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.autodiff.under_way import differentiating
from saltus.nn.embeddings import RMSNorm
from saltus.primitives import FORMULAS
from saltus.tensors import upcast

__all__ = ["ATTENTION", "CrossAttention", "SelfAttention", "attention", "rotary", "turned"]

ATTENTION = "fused in plain passes; inside a derivative its formula, with the scores in memory"
"""How :func:`attention` is computed, in words."""

ROTARY_BASE = 100.0


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d)) v: q [..., N, d], k and v [..., L, d] -> [..., N, d].

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: which keys each query sees, bool, broadcast to [..., N, L]; None is all.
    """
    if differentiating() and not torch.compiler.is_compiling():  # safe mode does it while a loss is traced
        found: Tensor = FORMULAS[F.scaled_dot_product_attention](q, k, v, mask)
        return found
    return F.scaled_dot_product_attention(q, k, v, mask)


def rotary(rows: int, columns: int, size: int, x: Tensor) -> Tensor:
    """The angles by which :func:`turned` turns queries and keys of a grid of tokens, in at least float32:
    [rows * columns, size/2].

    The first half turns with the row, the other with the column, at frequencies 100^(-4k/size).

    Args:
        rows: of the grid.
        columns: of the grid.
        size: of a query; divisible by 4.
        x: has the device and the type.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    frequency = ROTARY_BASE ** (torch.arange(0, size, 4, dtype=dtype, device=x.device) / -size)
    row = torch.arange(rows, dtype=dtype, device=x.device).repeat_interleave(columns)
    column = torch.arange(columns, dtype=dtype, device=x.device).repeat(rows)
    return torch.cat([row.unsqueeze(-1) * frequency, column.unsqueeze(-1) * frequency], dim=-1)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """The pairs (x_i, x_{i + size/2}) turned by the angles [N, size/2]: x [..., N, size].

    The scalar product of two turned vectors depends on the difference of their positions alone.
    """
    a, b = upcast(x).chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention of tokens to each other, with q and k normalised by their root mean square so that
    the logits stay bounded.

    Args:
        width: of a token.
        heads: number of heads; divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.leave = nn.Linear(width, width)

    def forward(self, h: Tensor, angle: Tensor | None = None) -> Tensor:
        """Tokens h [B, N, width] -> [B, N, width]; with rotary positions by the angles [N, width/heads/2]."""
        qkv: Tensor = self.qkv(h)
        q, k, v = qkv.reshape(*h.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if angle is not None:
            q, k = turned(q, angle), turned(k, angle)
        y = attention(q, k, v)
        out: Tensor = self.leave(y.transpose(1, 2).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Attention of tokens to those of a text, q and k normalised as in :class:`SelfAttention`; zero at the
    start.

    Args:
        width: of a token, and of one of the text.
        heads: number of heads; divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.leave = nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, h: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """h [B, N, width], text [B, L, width], mask bool [B, L] -> [B, N, width]."""
        q: Tensor = self.q(h)
        kv: Tensor = self.kv(text)
        q = q.reshape(*q.shape[:2], self.heads, -1).transpose(1, 2)
        k, v = kv.reshape(*kv.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        seen = None if mask is None else mask[:, None, None, :].expand(-1, 1, h.shape[1], -1)
        y = attention(self.q_norm(q), self.k_norm(k), v, seen)
        out: Tensor = self.leave(y.transpose(1, 2).flatten(2))
        return out


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"attention: expected a width divisible by {heads} heads, got {width}")
