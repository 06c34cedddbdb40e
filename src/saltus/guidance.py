"""Guidance is a function from velocities to velocities, and two ways to train for it.

References:
    Ho and Salimans, "Classifier-free diffusion guidance", 2022, arXiv 2207.12598.
    Kynkaanniemi et al., "Applying guidance in a limited interval", 2024, arXiv 2404.07724.
    Meng et al., "On distillation of guided diffusion models", 2022, arXiv 2210.03142 (w as an input).
    Karras et al., "Guiding a diffusion model with a bad version of itself", 2024, arXiv 2406.02507.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from saltus.streams import Streams
from saltus.tensors import answered, like
from saltus.typing import Condition, Velocity

__all__ = ["CFG", "AutoGuidance", "GuidanceInput", "LabelDropout", "guided"]


def _check(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise a ValueError unless value is a finite number in [low, high]; True is none."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")


def _labelled(cond: Condition | None) -> Condition:
    if cond is None or cond.given is None:
        raise ValueError(
            "guidance needs labels or tokens, but the condition has none; give them or drop guidance"
        )
    return cond


def _strength(cond: Condition, fixed: float | None, t: Tensor) -> Tensor:
    """w [B]: fixed or each row's own, and 1 outside the row's interval."""
    if fixed is not None:
        w = torch.full_like(t, fixed)
    elif cond.w is not None:
        w = cond.w.to(t)
    else:
        raise ValueError("guidance strength: give CFG(..., w=...) or a condition with w [B]")
    if cond.interval is not None:
        inside = (t >= cond.interval[:, 0]) & (t <= cond.interval[:, 1])
        w = torch.where(inside, w, torch.ones_like(w))
    return w


@dataclass(frozen=True, eq=False)
class CFG:
    """b(x; null) + w (b(x; c) - b(x; null)).

    The strength is ``w`` or, where that is None, each row's own ``cond.w``; outside the row's
    ``cond.interval`` it is 1. Both branches are called with unit strength, so a network that takes w
    as an input is asked for its unguided velocity.

    Attributes:
        velocity: (x, t, cond) -> [B, ...].
        w: 1 means no guidance, larger guides more.
        interval: the times (start, end) between which it guides, instead of the rows' own; None keeps those.

    One model makes any number of guided ones: ``CFG(b, 3.0), CFG(b, 3.0, interval=(0.1, 0.6))``.
    """

    velocity: Velocity
    w: float | None = None
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.w is not None:
            _check("guidance strength w", self.w)
        if self.interval is not None:
            start, end = self.interval
            _check("guidance interval, start", start)
            _check("guidance interval, end", end)
            if not start <= end:
                raise ValueError(
                    f"guidance interval: expected (start, end) with start <= end, got {self.interval}; "
                    "t = 0 is noise and t = 1 is data"
                )

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        cond = _labelled(cond)
        if self.interval is not None:
            bounds = torch.stack([torch.full_like(t, end) for end in self.interval], dim=1)
            cond = replace(cond, interval=bounds)
        w = like(_strength(cond, self.w, t), x)
        plain = cond if cond.w is None else replace(cond, w=torch.ones_like(cond.w))
        free = answered(self.velocity(x, t, plain.nulled()), x)
        return free + w * (answered(self.velocity(x, t, plain), x) - free)


@dataclass(frozen=True, eq=False)
class AutoGuidance:
    """weak + w (b - weak): away from a weaker model of the same data.

    With a fixed strength no labels are needed. Without one it is each row's own ``cond.w``, as with
    :class:`CFG`; both models are then called with unit strength.

    Attributes:
        velocity: the model b.
        weak: a smaller or less trained one.
        w: 1 means no guidance; None takes each row's own.
    """

    velocity: Velocity
    weak: Velocity
    w: float | None = None

    def __post_init__(self) -> None:
        if self.w is not None:
            _check("guidance strength w", self.w)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        w: float | Tensor | None = self.w
        if w is None:
            cond = _labelled(cond)
            w = like(_strength(cond, None, t), x)
            cond = cond if cond.w is None else replace(cond, w=torch.ones_like(cond.w))
        weak = answered(self.weak(x, t, cond), x)
        return weak + w * (answered(self.velocity(x, t, cond), x) - weak)


@dataclass(frozen=True)
class LabelDropout:
    """Drop each row's label with probability ``rate``, so the network learns the unconditional flow."""

    rate: float = 0.1

    def __post_init__(self) -> None:
        _check("rate of label dropout", self.rate, 0.0, 1.0)

    def draw(self, rng: Streams) -> Tensor:
        """Rows to drop, bool [B]."""
        return rng.uniform("drop") < self.rate

    def apply(self, cond: Condition | None, drawn: Tensor) -> Condition:
        """The condition with the drawn rows dropped."""
        return _labelled(cond).drop(drawn)


@dataclass(frozen=True)
class GuidanceInput:
    """Give each row a strength w ~ U[1, high] as an input of the network.

    Terms that learn the plain velocity go without: a network reads a missing strength as w = 1.

    Attributes:
        high: the largest strength.
        group: so many samples in a row, counted from the first of the run, share theirs.
    """

    high: float = 4.0
    group: int = 1

    def __post_init__(self) -> None:
        _check("highest guidance strength", self.high, 1.0)
        if isinstance(self.group, bool) or not isinstance(self.group, int) or self.group < 1:
            raise ValueError(f"group: expected a whole number of samples, at least 1, got {self.group!r}")

    def draw(self, rng: Streams) -> Tensor:
        """w, [B]."""
        return 1.0 + (self.high - 1.0) * rng.together(self.group).uniform("w")

    def apply(self, cond: Condition | None, drawn: Tensor) -> Condition:
        """The condition with the drawn strengths."""
        return replace(_labelled(cond), w=drawn)


def guided(
    teacher: Velocity, guidance: GuidanceInput | None, interval: tuple[float, float] | None = None
) -> Velocity:
    """Whom a student with these strengths learns from: every method that takes ``guidance`` asks this.

    Without strengths it is the teacher as it is, guided at one fixed strength or not at all. With them it is
    the teacher guided by its labels, each row at its own ``cond.w``. A teacher that already takes the rows'
    strengths, an :class:`AutoGuidance` or a :class:`CFG` without ``w``, stays what it is.

    Args:
        teacher: (x, t, cond) -> [B, ...].
        guidance: the law of the strengths, or None.
        interval: the times between which it guides, instead of the rows' own; None keeps those.

    Raises:
        ValueError: for an interval of a teacher that takes the rows' strengths in its own way, or strengths
            for a CFG that has one already.

    >>> from saltus.exact import reference_mixture
    >>> b, weak = reference_mixture(), reference_mixture()
    >>> guided(b, None) is b, guided(b, GuidanceInput(3.0)).w is None
    (True, True)
    >>> guided(AutoGuidance(b, weak), GuidanceInput(3.0)).weak is weak
    True
    """
    if guidance is None:
        return teacher
    if isinstance(teacher, CFG) and teacher.w is not None:  # CFG of CFG(b, w') has the strength w w'
        raise ValueError(
            f"guidance: expected a teacher not guided yet, got CFG(..., w={teacher.w:g}) for a student "
            "that learns every strength; give CFG's velocity itself"
        )
    if not (isinstance(teacher, CFG | AutoGuidance) and teacher.w is None):
        return CFG(teacher, interval=interval)
    if interval is None:
        return teacher
    if isinstance(teacher, CFG) and teacher.interval is None:
        return replace(teacher, interval=interval)
    raise ValueError(
        f"guidance: expected a teacher that this method can guide between the times {interval}, got "
        f"{type(teacher).__name__} with guidance of its own; give the method's interval as None, or the bare "
        "velocity"
    )
