"""Pictures of samples, whatever their shape: images in labelled rows, points in the plane as densities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from saltus.plots import Row, density, rows

__all__ = ["picture", "said", "shown"]


def said(k: int) -> str:
    """A number of steps in words.

    >>> said(1), said(4)
    ('1 step', '4 steps')
    """
    return f"{k} step" if k == 1 else f"{k} steps"


def shown(shape: tuple[int, ...]) -> int:
    """How many samples of this shape one row, or one density, of a picture takes."""
    return 20 if len(shape) == 3 else 20_000


def picture(
    title: str,
    parts: Sequence[tuple[str, Tensor]],
    labels: Tensor | None = None,
    reach: float | None = None,
) -> Image.Image:
    """Samples of several samplers, one below the other (images) or side by side (points).

    Args:
        title: above.
        parts: a name and samples [n, C, H, W] or [n, 2] each.
        labels: int64 [n], shown above the columns of images.
        reach: half the width of the square that shows points; None takes it from them.

    Raises:
        ValueError: for samples that are neither.
    """
    shape = parts[0][1].shape[1:]
    if len(shape) == 3:
        heads = () if labels is None else [str(k) for k in labels.tolist()]
        return rows([Row(name, x) for name, x in parts], title, heads)
    if tuple(shape) != (2,):
        raise ValueError(f"picture: expected samples [n, C, H, W] or [n, 2], got {list(parts[0][1].shape)}")
    if reach is None:
        points = torch.cat([x for _, x in parts]).abs()
        reach = 1.1 * float(points.quantile(0.999) if points.numel() < 1 << 24 else points.max())
    panels = torch.stack([density(x, reach) for _, x in parts])
    return rows([Row("", panels)], title, [name for name, _ in parts], scale=2, gap=12)
