"""Conditions of texts and classes as a foreign network wants them: with every dropped row filled in.

A network of saltus owns its null embedding; one of diffusers has none of its own, but a class that stands for
no class, or the embedding of the empty text. :func:`filled` puts it into the rows that ``Condition.null``
names, so guidance by ``cond.nulled()`` works as everywhere.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from saltus.tensors import like
from saltus.typing import Condition

__all__ = ["filled", "of_one_length"]


def filled(cond: Condition | None, null: Condition | None, rows: int) -> Condition | None:
    """The condition with ``null`` in its dropped rows, in all of them if there is none; its own ``null`` is
    then None.

    Args:
        cond: of the batch, or None.
        null: what stands for no condition, of one row; None if the model has nothing that does.
        rows: B, of the batch.

    Raises:
        ValueError: for dropped rows of a model without a null condition, or one of another kind.

    >>> cond = Condition(label=torch.tensor([3, 5]), null=torch.tensor([False, True]))
    >>> filled(cond, Condition(label=torch.tensor([10])), 2).label
    tensor([ 3, 10])
    """
    if cond is None or cond.given is None:
        w = None if cond is None else cond.w
        if null is None:
            return cond
        return replace(null.each(lambda v: v.expand(rows, *v.shape[1:])), w=w)
    if cond.null is None:
        return cond
    if null is None:
        raise ValueError(
            "condition: expected no dropped labels or texts, because the model has none that stands for no "
            "condition, got some; leave guidance out, or give open_diffusers(..., null_label=...)"
        )
    ours = replace(cond, null=None)
    if cond.tokens is not None:
        ours, null = of_one_length(ours, null)
    dropped = cond.null
    return replace(
        ours,
        label=_chosen(dropped, null.label, ours.label, "label"),
        tokens=_chosen(dropped, null.tokens, ours.tokens, "tokens"),
        mask=_chosen(dropped, null.mask, ours.mask, "mask"),
        pooled=_chosen(dropped, null.pooled, ours.pooled, "pooled"),
    )


def _chosen(dropped: Tensor, none: Tensor | None, own: Tensor | None, name: str) -> Tensor | None:
    if own is None:
        return None
    if none is None:
        raise ValueError(
            f"condition: expected {name} in the null condition as in the batch's own, got none; encode both "
            "with the same model"
        )
    return torch.where(like(dropped, own), none.to(device=own.device, dtype=own.dtype), own)


def of_one_length(a: Condition, b: Condition) -> tuple[Condition, Condition]:
    """Two texts with as many tokens: the shorter is padded by zeros, which its mask leaves out.

    Raises:
        ValueError: if they differ in length and have no mask.
    """
    if a.tokens is None or b.tokens is None or a.tokens.shape[1] == b.tokens.shape[1]:
        return a, b
    if a.mask is None or b.mask is None:
        raise ValueError(
            f"tokens: expected one length, got {a.tokens.shape[1]} and {b.tokens.shape[1]} without masks; "
            "encode both with the same model"
        )
    length = max(a.tokens.shape[1], b.tokens.shape[1])
    return _padded(a, length), _padded(b, length)


def _padded(cond: Condition, length: int) -> Condition:
    assert cond.tokens is not None and cond.mask is not None
    more = length - cond.tokens.shape[1]
    return replace(cond, tokens=F.pad(cond.tokens, (0, 0, 0, more)), mask=F.pad(cond.mask, (0, more)))
