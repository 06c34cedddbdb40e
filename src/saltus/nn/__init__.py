"""Networks with two time inputs. Each satisfies :class:`saltus.typing.Backbone`: it embeds s and
t - s, is zero at the start, and is safe under forward mode and under a backward pass through it.

Adding one: write a file with a class that has ``SIZES``, and add the class to ``BACKBONES``.
"""

from __future__ import annotations

import difflib

from torch import nn

from saltus.nn.adapters import GuidanceAdapters
from saltus.nn.dit import DiT
from saltus.nn.mlp import MLP, ResidualMLP
from saltus.nn.unet import UNet

__all__ = [
    "BACKBONES",
    "MLP",
    "DiT",
    "GuidanceAdapters",
    "Network",
    "ResidualMLP",
    "UNet",
    "build",
    "parameter_count",
]

Network = MLP | ResidualMLP | UNet | DiT
"""Any backbone of the package."""

BACKBONES: dict[str, type[Network]] = {
    "mlp": MLP,
    "residual-mlp": ResidualMLP,
    "unet": UNet,
    "dit": DiT,
}
"""Every backbone by name."""


def _pick(kind: str, name: str, known: dict[str, object]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        raise ValueError(f"{kind}: expected one of {', '.join(known)}, got {name!r}; {hint}")


def build(
    name: str,
    size: str,
    shape: tuple[int, ...],
    classes: int | None = None,
    heads: tuple[str, ...] = (),
    guidance: bool = False,
) -> Network:
    """A backbone by name and size.

    Args:
        name: a key of ``BACKBONES``.
        size: a key of that class's ``SIZES``: tiny, small, base or large.
        shape: of one sample.
        classes: number of labels, None without.
        heads: names of second outputs of x's shape.
        guidance: whether ``cond.w`` is an input.

    Raises:
        ValueError: an unknown name or size, or a shape that the network cannot take.

    >>> parameter_count(build("mlp", "small", (2,)))
    35202
    """
    _pick("network", name, dict(BACKBONES))
    kind = BACKBONES[name]
    _pick(f"size of {name}", size, dict(kind.SIZES))
    return kind(shape, **kind.SIZES[size], classes=classes, heads=heads, guidance=guidance)


def parameter_count(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
