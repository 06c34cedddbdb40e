"""Operations of PyTorch as formulas of primitive ones, for use inside a derivative.

The fused layer norm, instance norm, training batch norm and gated linear unit have wrong or missing
second-order rules, and fused attention has no forward-mode rule. Each function here takes the arguments
of the one it stands for and gives the same numbers, up to rounding, with rules that are right.
:data:`FORMULAS` says which stands for which; :mod:`saltus.autodiff` swaps them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saltus.tensors import upcast

__all__ = ["FORMULAS"]


def _normalise(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if weight is not None:
        y = y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _layer_norm(
    input: Tensor,
    normalized_shape: list[int] | tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    shape = tuple(normalized_shape)
    y = _normalise(upcast(input), tuple(range(-len(shape), 0)), eps)
    return _affine(y, weight, bias, shape).to(input.dtype)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    y = _normalise(upcast(input).reshape(input.shape[0], num_groups, -1), (-1,), eps)
    return _affine(y.reshape(input.shape), weight, bias, (-1,) + (1,) * (input.ndim - 2)).to(input.dtype)


def _statistics_norm(
    x: Tensor,
    running: tuple[Tensor | None, Tensor | None],
    weight: Tensor | None,
    bias: Tensor | None,
    live_dims: tuple[int, ...] | None,
    eps: float,
    name: str,
) -> Tensor:
    """Batch or instance norm: over ``live_dims``, or with stored statistics where they are None."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var = running
    if live_dims is not None:
        if mean is not None:
            raise ValueError(
                f"{name} in training inside a derivative: expected no running statistics, got some, which a "
                "derivative cannot update; use track_running_stats=False, eval() or another norm"
            )
        y = _normalise(upcast(x), live_dims, eps)
    else:
        assert mean is not None and var is not None
        y = (upcast(x) - mean.reshape(shape)) * torch.rsqrt(var.reshape(shape) + eps)
    return _affine(y, weight, bias, shape).to(x.dtype)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    dims = tuple(range(2, input.ndim)) if use_input_stats else None
    return _statistics_norm(input, (running_mean, running_var), weight, bias, dims, eps, "instance norm")


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    dims = (0, *range(2, input.ndim)) if training else None
    return _statistics_norm(input, (running_mean, running_var), weight, bias, dims, eps, "batch norm")


def _weight_first(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.batch_norm`` and ``torch.instance_norm`` take the weights before the statistics; F does not."""

    def norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *rest: Any) -> Tensor:  # noqa: ANN401
        return formula(x, mean, var, weight, bias, *rest)

    return norm


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k' / sqrt(d) + mask) v; rows in which every key is masked give zero, as the fused one."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attention: expected attn_mask or is_causal, got both; merge the two masks")
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = upcast(query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, -torch.inf)
        empty = torch.isneginf(attn_mask).all(-1, keepdim=True)
        weights = (scores + attn_mask.masked_fill(empty, 0.0)).softmax(-1).masked_fill(empty, 0.0)
    if dropout_p > 0.0:
        weights = torch.dropout(weights, dropout_p, True)
    return weights.to(value.dtype) @ value


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


def _multi_head_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401
    """The variant that returns its weights is written in primitive operations already."""
    out, weights = F.multi_head_attention_forward(*args, **{**kwargs, "need_weights": True})
    return out, weights if kwargs.get("need_weights", True) else None


FORMULAS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _weight_first(_instance_norm),
    F.batch_norm: _batch_norm,
    torch.batch_norm: _weight_first(_batch_norm),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.glu: _glu,
}
