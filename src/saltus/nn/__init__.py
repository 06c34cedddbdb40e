"""Networks with two time inputs. Each satisfies :class:`saltus.typing.Backbone`: it embeds s and
t - s, is zero at the start, and is safe under forward mode and under a backward pass through it.

Adding one: write a file with a class that has ``SIZES``, and add the class to ``BACKBONES``.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from torch import nn

from saltus.nn.adapters import GuidanceAdapters
from saltus.nn.ddpmpp import DDPMpp
from saltus.nn.discriminator import BlockFeatures, Discriminator, heads_on
from saltus.nn.dit import DiT
from saltus.nn.edm2 import EDM2
from saltus.nn.mlp import MLP, ResidualMLP
from saltus.nn.unet import UNet

__all__ = [
    "BACKBONES",
    "EDM2",
    "MLP",
    "BlockFeatures",
    "DDPMpp",
    "DiT",
    "Discriminator",
    "GuidanceAdapters",
    "Network",
    "ResidualMLP",
    "UNet",
    "build",
    "heads_on",
    "parameter_count",
]

Network = MLP | ResidualMLP | UNet | DiT | EDM2 | DDPMpp
"""Any backbone of the package."""

BACKBONES: dict[str, type[Network]] = {
    "mlp": MLP,
    "residual-mlp": ResidualMLP,
    "unet": UNet,
    "dit": DiT,
    "edm2": EDM2,
    "ddpmpp": DDPMpp,
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
    patch: int | None = None,
    positions: str | None = None,
    tokens: int | None = None,
    pooled: int | None = None,
) -> Network:
    """A backbone by name and size.

    Args:
        name: a key of ``BACKBONES``.
        size: a key of that class's ``SIZES``: tiny, small and others.
        shape: of one sample.
        classes: number of labels, None without.
        heads: names of second outputs of x's shape.
        guidance: whether ``cond.w`` is an input.
        patch: side of a patch, for networks with patches; None is their own.
        positions: learned or rotary, for networks with positions; None is their own.
        tokens: size of a token of ``cond.tokens``, for networks that take a text; None is without.
        pooled: size of ``cond.pooled``, for networks that take a text; None is without.

    Raises:
        ValueError: an unknown name or size, a shape that the network cannot take, or an option that it
            does not have.

    >>> parameter_count(build("mlp", "small", (2,)))
    35202
    """
    _pick("network", name, dict(BACKBONES))
    kind = BACKBONES[name]
    _pick(f"size of {name}", size, dict(kind.SIZES))
    asked = {"patch": patch, "positions": positions, "tokens": tokens, "pooled": pooled}
    options = {key: value for key, value in asked.items() if value is not None}
    for key in options:
        having = [n for n, k in BACKBONES.items() if key in inspect.signature(k).parameters]
        if name not in having:
            raise ValueError(
                f"{key} {options[key]}: {name} has no such option; drop it, or use {', '.join(having)}"
            )
    sized: dict[str, Any] = {**kind.SIZES[size], **options}
    return kind(shape, **sized, classes=classes, heads=heads, guidance=guidance)


def parameter_count(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
