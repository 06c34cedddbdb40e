"""SplitMeanFlow: the average velocity over an interval is the mean of those over its two parts.

    (t - s) u_{s,t}(x) = (m - s) u_{s,m}(x) + (t - m) u_{m,t}(X_{s,m}(x)),   m = s + g (t - s), g ~ U(0, 1)

as a regression on its right side, stopped, beside flow matching on a share of the rows. It is the
integral form of the MeanFlow identity and needs no derivative.

Use it like PSD, from which it differs in the share of the diagonal and, in its paper, by starting from
a distilled teacher; here the diagonal learns from data.

References:
    Guo et al., "SplitMeanFlow: interval splitting consistency in few-step generative modeling", 2025,
    arXiv 2507.16884. Its share of diagonal rows was not available to us: 0.5 is ours.
"""

from __future__ import annotations

from saltus.couplings import Coupling, Independent
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Composition, Diagonal, Part, Sum
from saltus.times import Split, UniformSplit
from saltus.typing import FlowMap, Objective
from saltus.weights import Squared, Weight

CARD = Card(
    title="SplitMeanFlow",
    paper="Guo et al. 2025, arXiv 2507.16884",
    needs=frozenset({Need.DATA}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped=1.0),
    threshold=0.48,
    quick_threshold=0.51,
    second_hand=("share of diagonal rows 0.5",),
)


def split_mean_flow(
    student: FlowMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    diagonal: float = 0.5,
    split: Split = UniformSplit(),
    weight: Weight = Squared(),
    dropout: LabelDropout | None = None,
) -> Objective:
    """SplitMeanFlow from data.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        diagonal: the share of rows that learn the velocity.
        split: the law of g.
        weight: error -> loss.
        dropout: label dropout on the diagonal.
    """
    at_once = Diagonal(student, None, interpolant, coupling, weight=weight, guidance=dropout)
    jump = Composition(student, None, interpolant, coupling, split=split, weight=weight)
    rest = 1.0 - diagonal
    return Sum((Part("diagonal", at_once, diagonal, diagonal), Part("composition", jump, rest, rest)))
