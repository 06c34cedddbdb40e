"""Sums of objectives, each on its own rows or on all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from saltus.streams import Streams
from saltus.tensors import placed
from saltus.typing import Batch, Draws, Objective, Term

__all__ = ["Part", "Sum"]

NEGLIGIBLE = 1e-9
"""What is left of a share by rounding."""


@dataclass(frozen=True, eq=False)
class Part:
    """One summand.

    Attributes:
        name: prefixes its random streams and, where two parts would clash, its terms.
        objective: the loss.
        share: the fraction of the global batch it sees; None is all of it.
        weight: multiplies its terms.
        balance: how large the mean gradient of its terms in their errors is to be beside that of the first
            part's terms (before ``weight``), over the global batch; a factor without gradient makes it
            so. None leaves the terms as they are.
    """

    name: str
    objective: Objective
    share: float | None = None
    weight: float = 1.0
    balance: float | None = None


@dataclass(frozen=True, eq=False)
class Sum:
    """Add objectives. Those with a share split the batch among them by global index (:func:`assign`), so
    the split does not depend on the number of processes, and any run of rows holds each in proportion.

    Attributes:
        parts: the summands; their shares add to 1, and those with a share of 0 are left out.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if part.share is not None and not -NEGLIGIBLE <= part.share <= 1.0 + NEGLIGIBLE:
                raise ValueError(
                    f"sum: expected a share of rows in [0, 1] for part {part.name!r}, got {part.share:.4g}; "
                    "the shares of all parts add to 1"
                )
        asked = tuple(p for p in self.parts if p.share is None or p.share > NEGLIGIBLE)
        object.__setattr__(self, "parts", asked)
        shares = [p.share for p in self.parts if p.share is not None]
        if shares and abs(sum(shares) - 1.0) > NEGLIGIBLE:
            raise ValueError(f"sum: expected shares that add to 1, got {shares}; adjust them or use None")
        names = [p.name for p in self.parts]
        if len(set(names)) != len(names):
            raise ValueError(f"sum: expected parts with different names, got {names}; rename one")
        if self.parts and self.parts[0].balance is not None:
            raise ValueError("sum: the first part is what others are balanced with; set its balance to None")

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """Each part's draws under its name; a part with a share has its rows [n] there too."""
        draws: Draws = {}
        owner = assign(rng.index, [p.share for p in self.parts if p.share is not None])
        split = 0
        for part in self.parts:
            if part.share is None:
                draws[part.name] = part.objective.draw(batch, rng.named(part.name))
                continue
            rows = (owner == split).nonzero().flatten()
            split += 1
            if len(rows) == 0:
                raise ValueError(
                    f"sum: expected at least one row for part {part.name!r} with share {part.share}, got a "
                    f"batch of {len(rng.index)}; use a larger batch"
                )
            here = placed(rows, batch.x0.device)
            own = part.objective.draw(batch.rows(here), rng.rows(rows).named(part.name))
            draws[part.name] = {"rows": here, "of": own}
        return draws

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The terms of all parts."""
        terms: dict[str, Term] = {}
        first: Tensor | None = None
        balanced = any(part.balance is not None for part in self.parts)
        for part in self.parts:
            drawn, seen = draws[part.name], batch
            assert isinstance(drawn, dict)
            if part.share is not None:
                rows, of = drawn["rows"], drawn["of"]
                assert isinstance(rows, Tensor) and isinstance(of, dict)
                seen, drawn = batch.rows(rows), of
            own = part.objective(seen, drawn)
            factor: float | Tensor = 1.0
            if balanced and first is None:
                first = _steepness(part, own, seen)
            elif part.balance is not None and first is not None:
                size = _steepness(part, own, seen)
                factor = part.balance * first / size.clamp(min=torch.finfo(size.dtype).eps)
            for name, term in own.items():
                key = name if name not in terms else f"{part.name}_{name}"
                way, weight = (part.name, *term.part), term.weight * part.weight * factor
                terms[key] = replace(term, weight=weight, part=way)
        return terms


def _steepness(part: Part, terms: dict[str, Term], seen: Batch) -> Tensor:
    """The mean over the global batch of the size of a part's gradient in its errors, 0-d."""
    total = torch.zeros((), device=seen.x0.device)
    for name, term in terms.items():
        if term.slope is None:
            raise ValueError(
                f"sum: balance compares the sizes of gradients, but term {name!r} of part {part.name!r} does "
                "not tell its own; balance Lagrangian and Distribution, or give a weight instead"
            )
        total = total + term.weight * seen.mean(term.slope())
    return total


_HALVES = ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF))


def assign(index: Tensor, shares: list[float]) -> Tensor:
    """Which share each global sample belongs to, int64 [n]: proportional in every run of samples.

    Sample k takes the share in whose part of [0, 1] its binary van der Corput number falls (the bits of
    k mirrored at the point), so shares that are multiples of 1/2^j are exact in every 2^j samples.

    >>> assign(torch.arange(8), [0.75, 0.25])
    tensor([0, 0, 0, 1, 0, 0, 0, 1])
    """
    bits = index.numpy() & 0xFFFFFFFF
    for width, mask in _HALVES:  # swap neighbouring runs of 1, 2, 4, 8 and 16 bits
        bits = ((bits >> width) & mask) | ((bits & mask) << width)
    edges = np.cumsum(shares[:-1])
    return torch.from_numpy(np.searchsorted(edges, bits * 2.0**-32, side="right"))
