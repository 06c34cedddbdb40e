"""Adversarial losses: the student's samples are to pass for real ones with a discriminator that learns.

:class:`Adversarial` is the student's term on samples of its own making; a trajectory loss may carry the same
term on its jumps, which saves a network call (see :class:`saltus.objectives.Eulerian`). The discriminator's
move is :class:`Discrimination` in either case.

Where the discriminator is optimal, the student's expected gradient under the softplus loss is
-E[sigmoid(-D*) grad D* . dX], D* = log p/q: a reweighted descent on a divergence of the two laws, zero where
they agree. It restores a law, and says nothing of which noise goes where.

References:
    Sauer et al., 2024, arXiv 2403.12015 (heads on the frozen teacher's features, samples noised anew);
    Kim et al., 2023, arXiv 2310.02279 (beside a trajectory loss).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from saltus.adversaries import Adversary
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.samples import Ends, FromPrior, Made, Maker, draw_samples, make_samples
from saltus.streams import Streams
from saltus.typing import Batch, Condition, Draws, FlowMap, Term

__all__ = ["Adversarial", "Discrimination", "Real"]


class Real(Enum):
    """What counts as real.

    DATA: x1 of the batch.
    WANTED: what a trajectory loss compares its jump with, a target's own jump from further on: then no data
        is told from samples, and the laws that agree at the exact map are those of two jumps.
    """

    DATA = "data"
    WANTED = "wanted"


@dataclass(frozen=True, eq=False)
class Adversarial:
    """Samples that pass for real ones.

    Attributes:
        student: the flow map that learns.
        adversary: the discriminator and how it is shown samples.
        interpolant: the path between prior and data.
        maker: how the samples are made.
        guidance: label dropout, strengths as an input of the network, or None.
    """

    student: FlowMap
    adversary: Adversary
    interpolant: Interpolant = Linear()
    maker: Maker = FromPrior()
    guidance: LabelDropout | GuidanceInput | None = None

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The maker's draws, the adversary's and the guidance's numbers."""
        draws = draw_samples(self.maker, self.guidance, batch, rng)
        return {**draws, "adversary": self.adversary.draw(batch, rng.named("adversary"))}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``adversarial``."""
        made, cond = make_samples(self.maker, self.student, self.interpolant, self.guidance, batch, draws)
        drawn = draws["adversary"]
        assert isinstance(drawn, dict)
        return {"adversarial": self.adversary.fool(made, cond, drawn)}

    def ends(
        self, batch: Batch, draws: Draws, compared: bool = True
    ) -> tuple[Made, Tensor | None, Condition | None]:
        """The samples without gradient; nothing that they are compared with."""
        with torch.no_grad():
            made, cond = make_samples(
                self.maker, self.student, self.interpolant, self.guidance, batch, draws
            )
        return made, None, cond


@dataclass(frozen=True, eq=False)
class Discrimination:
    """The discriminator's loss on samples that another loss makes.

    Attributes:
        of: that loss: :class:`Adversarial`, or a trajectory loss.
        adversary: the discriminator and how it is shown samples.
        real: what counts as real.
    """

    of: Ends
    adversary: Adversary
    real: Real = Real.DATA

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """What the loss draws, and the adversary's own."""
        return {
            "of": self.of.draw(batch, rng),
            "adversary": self.adversary.draw(batch, rng.named("adversary")),
        }

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The terms ``discriminator`` and, if asked for, ``r1``."""
        of, drawn = draws["of"], draws["adversary"]
        assert isinstance(of, dict) and isinstance(drawn, dict)
        made, wanted, cond = self.of.ends(batch, of, compared=self.real is Real.WANTED)
        real = batch.data() if self.real is Real.DATA else wanted
        if real is None:
            raise ValueError(
                f"discrimination: expected a loss with a target, got {type(self.of).__name__}, which has "
                "none; use Real.DATA"
            )
        return self.adversary.tell(real, made, cond, drawn)
