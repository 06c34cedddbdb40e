"""The construction options of a flow map, and their way through a weights file's metadata."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch.nn import Module

from saltus import nn
from saltus.maps import EDM, AverageVelocity, NetworkMap, Trigonometric
from saltus.policies import GridMap, MixtureMap, MomentumMap, grid_heads, mixture_heads, momentum_heads

__all__ = ["FOREIGN", "HEADS", "PARAMETRISATIONS", "ModelSpec"]

FOREIGN = "diffusers"
"""The backbone of a student of a diffusers model; its class stands in place of a size."""

PARAMETRISATIONS: dict[str, Callable[[Module, float], NetworkMap]] = {
    "average": lambda network, _: AverageVelocity(network),
    "trigonometric": Trigonometric,
    "edm": EDM,
    "mixture-policy": lambda network, _: MixtureMap(network),
    "grid-policy": lambda network, _: GridMap(network),
    "momentum": lambda network, _: MomentumMap(network),
}
"""What a network's output means, by name: (network, sigma_data) -> flow map."""

HEADS: dict[str, tuple[str, ...]] = {
    "mixture-policy": mixture_heads(8),
    "grid-policy": grid_heads(10),
    "momentum": momentum_heads(6),
}
"""The second outputs of a network that a parametrisation reads."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a flow map, as plain data.

    Attributes:
        shape: of one sample.
        backbone: a key of :data:`saltus.nn.BACKBONES`.
        size: a key of its sizes.
        parametrisation: a key of :data:`PARAMETRISATIONS`.
        sigma_data: the standard deviation of the data, for parametrisations that use it.
        classes: number of labels, None without.
        heads: names of the network's second outputs.
        guidance: whether the strength of guidance is an input of the network.
        patch: side of a patch of a network that has patches; None is its own.
        positions: learned or rotary, of a network that has positions; None is its own.
        tokens: size of a token of the text that the network takes, None without.
        pooled: size of the embedding of a whole text that it takes, None without.

        foreign: what :func:`saltus.teachers.diffusers.plain.build` makes the network of, for students of a
            diffusers model; None for networks of saltus.

    >>> spec = ModelSpec(shape=(2,))
    >>> ModelSpec.from_plain({**spec.plain(), "shape": [2]}) == spec
    True
    """

    shape: tuple[int, ...]
    backbone: str = "mlp"
    size: str = "small"
    parametrisation: str = "average"
    sigma_data: float = 1.0
    classes: int | None = None
    heads: tuple[str, ...] = ()
    guidance: bool = False
    patch: int | None = None
    positions: str | None = None
    tokens: int | None = None
    pooled: int | None = None

    foreign: dict[str, Any] | None = None

    def build(self) -> NetworkMap:
        """The flow map, with initial weights from PyTorch's global generator."""
        if self.foreign is not None:
            from saltus.teachers.diffusers.plain import build

            return AverageVelocity(build(self.foreign, self.guidance))
        network = nn.build(
            self.backbone,
            self.size,
            self.shape,
            self.classes,
            self.heads,
            self.guidance,
            self.patch,
            self.positions,
            self.tokens,
            self.pooled,
        )
        if self.parametrisation not in PARAMETRISATIONS:
            known = ", ".join(PARAMETRISATIONS)
            raise ValueError(f"parametrisation: expected one of {known}, got {self.parametrisation!r}")
        return PARAMETRISATIONS[self.parametrisation](network, self.sigma_data)

    @property
    def shares(self) -> bool:
        """Whether the network holds weights of its teacher, beside which it has adapters."""
        return self.foreign is not None and self.foreign.get("lora") is not None

    def plain(self) -> dict[str, object]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_plain(cls, value: object) -> ModelSpec:
        """The inverse of :meth:`plain`; a ValueError names what does not fit."""
        known = {f.name for f in fields(cls)}
        found = sorted(value) if isinstance(value, dict) else []
        if not isinstance(value, dict) or set(found) - known or not isinstance(value.get("shape"), list):
            got = ", ".join(sorted(set(found) - known)) or ("no shape" if found else repr(value))
            raise ValueError(
                f"construction options: expected the fields {', '.join(sorted(known))}, got {got[:80]}; the "
                "weights were not written by this version of saltus"
            )
        fits: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        for name, fit in _FITS.items():
            if name in fits and not fit(fits[name]):
                raise ValueError(
                    f"construction options: expected those of a network, but {name} cannot be "
                    f"{str(fits[name])[:40]!r}; the weights file is damaged"
                )
        return cls(**fits)


MOST_NUMBERS = 2**28
"""In a sample, or classes: a file that says more is taken for damaged before anything is built."""
MOST_HEADS = 16


def _count(value: object) -> bool:
    """None or a number of things."""
    return value is None or (type(value) is int and 0 < value <= MOST_NUMBERS)


_FITS: dict[str, Callable[[Any], bool]] = {
    "shape": lambda v: (
        0 < len(v) <= 8 and all(type(n) is int and n > 0 for n in v) and math.prod(v) <= MOST_NUMBERS
    ),
    "backbone": lambda v: isinstance(v, str),
    "size": lambda v: isinstance(v, str),
    "parametrisation": lambda v: isinstance(v, str),
    "sigma_data": lambda v: isinstance(v, float | int) and 0 < v < math.inf,
    "classes": _count,
    "heads": lambda v: (
        isinstance(v, tuple) and len(v) <= MOST_HEADS and all(isinstance(name, str) for name in v)
    ),
    "guidance": lambda v: isinstance(v, bool),
    "foreign": lambda v: v is None or isinstance(v, dict),
    "patch": _count,
    "positions": lambda v: v is None or isinstance(v, str),
    "tokens": _count,
    "pooled": _count,
}
"""What each field may hold in a file."""
