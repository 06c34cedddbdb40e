"""Discriminators: who tells the student's samples from real ones, and the losses of both sides.

D gives logits; where it is at its optimum, D*(x) = log p(x)/q(x) with p the law of what is real and q that of
what is made (softplus loss), or the sign of p - q (hinge loss). Both may be noised to a level t first, each
with noise of its own; D then compares the laws of I_t, which overlap.

The discriminator's gradient penalty is the finite difference |D(x + h e) - D(x)|^2/h^2, e ~ N(0, I), whose
mean is |grad D|^2 + O(h^2): R1 without a second derivative.

References:
    Goodfellow et al., 2014, arXiv 1406.2661 (softplus, non-saturating); Lim and Ye, 2017, arXiv 1705.02894
    (hinge); Mescheder et al., 2018, arXiv 1801.04406 (R1); Lin et al., "Diffusion adversarial
    post-training", 2025, arXiv 2501.08316 (its finite difference).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from saltus.interpolants import Interpolant, Linear
from saltus.samples import Made, renoised
from saltus.streams import Streams
from saltus.tensors import upcast
from saltus.times import Law
from saltus.typing import Batch, Condition, Draws, Term

__all__ = ["Adversary", "AdversarialLoss", "Discriminator", "Hinge", "Softplus"]


class Discriminator(Protocol):
    """D: samples x [n, ...] at times t [n] -> logits [n, H], H those of its heads and places.

    ``start`` is the state and the time [n] of the jump that led to x, for discriminators of pairs.
    """

    def __call__(
        self, x: Tensor, t: Tensor, cond: Condition | None = None, start: tuple[Tensor, Tensor] | None = None
    ) -> Tensor: ...


class AdversarialLoss(Protocol):
    """The two sides of a game, elementwise in logits."""

    def fool(self, made: Tensor) -> Tensor:
        """What the student minimises."""
        ...

    def tell(self, real: Tensor, made: Tensor) -> Tensor:
        """What the discriminator minimises."""
        ...


@dataclass(frozen=True)
class Softplus:
    """softplus(-D) for the student; softplus(-D(real)) + softplus(D(made)), logistic regression.

    At D = 0 the discriminator's is 2 log 2; at its optimum 2 log 2 - 2 JS(p, q).
    """

    def fool(self, made: Tensor) -> Tensor:
        return F.softplus(-made)

    def tell(self, real: Tensor, made: Tensor) -> Tensor:
        return F.softplus(-real) + F.softplus(made)


@dataclass(frozen=True)
class Hinge:
    """-D for the student; max(0, 1 - D(real)) + max(0, 1 + D(made)), at its optimum 2 - 2 TV(p, q).

    If ``bounded`` the student's is max(0, 1 - D): what passes for real with a margin is left alone.
    """

    bounded: bool = False

    def fool(self, made: Tensor) -> Tensor:
        return F.relu(1.0 - made) if self.bounded else -made

    def tell(self, real: Tensor, made: Tensor) -> Tensor:
        return F.relu(1.0 - real) + F.relu(1.0 + made)


@dataclass(frozen=True, eq=False)
class Adversary:
    """A discriminator and how it is shown samples.

    Attributes:
        discriminator: D.
        loss: of both sides.
        levels: the law of the level that samples are noised to, as a fraction of their own time; None shows
            them as they are.
        interpolant: the path on which they are noised.
        pairs: whether D sees where the jump began, too.
        projection: what of the samples is shown, row by row (some frames of a clip, say); None is all.
            It comes before the noise.
        weight: of the student's term.
        r1: of the penalty; 0 is none.
        spread: h of its finite difference.
    """

    discriminator: Discriminator
    loss: AdversarialLoss = Softplus()
    levels: Law | None = None
    interpolant: Interpolant = Linear()
    pairs: bool = False
    projection: Callable[[Tensor], Tensor] | None = None
    weight: float = 1.0
    r1: float = 0.0
    spread: float = 0.1

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The level's place [B], noises for what is made and for what is real, and the penalty's."""
        shown = batch.x0 if self.projection is None else self.projection(batch.x0)
        draws: Draws = {}
        if self.levels is not None:
            draws["level"] = self.levels(rng.stratified("level")).clamp(0.0, 1.0)
            draws["made"], draws["real"] = (rng.normal_like(name, shown) for name in ("made", "real"))
        if self.r1 > 0.0:
            draws["penalty"] = rng.normal_like("penalty", shown)
        return draws

    def fool(self, made: Made, cond: Condition | None, draws: Draws) -> Term:
        """The student's term, [n]; the gradient passes through D to what is made. It lands in D's parameters
        too, where nobody steps along it."""
        x, t = self._shown(made.x, made.t, draws, "made")
        logits = self._logits(x, t, made, cond)
        return Term(upcast(self.loss.fool(logits)).mean(1), self.weight)

    def tell(self, real: Tensor, made: Made, cond: Condition | None, draws: Draws) -> dict[str, Term]:
        """The discriminator's terms, [n] each: ``discriminator``, and ``r1`` of what is real if asked for."""
        x, t = self._shown(real.detach(), made.t, draws, "real")
        of_real = self._logits(x, t, made, cond)
        y, t = self._shown(made.x.detach(), made.t, draws, "made")
        value = self.loss.tell(of_real, self._logits(y, t, made, cond))
        terms = {"discriminator": Term(upcast(value).mean(1))}
        if self.r1 > 0.0:
            e = draws["penalty"]
            assert isinstance(e, Tensor)
            moved = self._logits(x + self.spread * e.to(x.dtype), t, made, cond)
            slope = upcast(moved - of_real) / self.spread
            terms["r1"] = Term(slope.square().mean(1), self.r1)
        return terms

    def _shown(self, x: Tensor, m: Tensor, draws: Draws, who: str) -> tuple[Tensor, Tensor]:
        """What D sees of samples at time m, and at what time."""
        x = x if self.projection is None else self.projection(x)
        if self.levels is None:
            return x, m
        level, noise = draws["level"], draws[who]
        assert isinstance(level, Tensor) and isinstance(noise, Tensor)
        t = level * m
        return renoised(self.interpolant, x, m, t, noise), t

    def _logits(self, x: Tensor, t: Tensor, made: Made, cond: Condition | None) -> Tensor:
        start = (made.start.x.detach(), made.s) if self.pairs else None
        logits = self.discriminator(x, t, cond, start)
        return logits if logits.ndim == 2 else logits.reshape(len(x), -1)
