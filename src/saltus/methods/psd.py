"""Progressive self-distillation: a flow map from data alone, by making one jump equal to two.

    L = eta     E | u_{t,t}(I_t) - dI_t |^2
      + (1-eta) E | u_{s,t}(I_s) - sg( g u_{s,m}(I_s) + (1-g) u_{m,t}(X_{s,m}(I_s)) ) |^2,
    m = s + g (t - s),   s < t on the triangle

with eta = 0.75 the share of rows and the weight. g ~ U(0, 1) here; ``psd_midpoint`` has g = 1/2. The
loss compares average velocities: that is the semigroup identity divided by t - s.

Use it where no derivative can be taken of the network: it needs plain calls only.

References:
    Boffi, Albergo and Vanden-Eijnden, 2025, arXiv 2505.18825, eqs. (12), (15), (22), (92), whose gamma
    is 1 - g here.
"""

from __future__ import annotations

from functools import partial

from saltus.couplings import Coupling, Independent
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Method, Need, Sampler
from saltus.objectives import Composition, Diagonal, Part, Sum
from saltus.times import Midpoint, Split, UniformSplit
from saltus.typing import FlowMap, Gradient, Objective
from saltus.weights import Squared, Weight

CARD = Card(
    title="Progressive self-distillation (PSD)",
    paper="Boffi, Albergo and Vanden-Eijnden 2025, arXiv 2505.18825",
    needs=frozenset({Need.DATA}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped=0.5),
    threshold=0.48,
    quick_threshold=0.59,
)


def psd(
    student: FlowMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    eta: float = 0.75,
    split: Split = UniformSplit(),
    gradient: Gradient = Gradient.TARGET,
    weight: Weight = Squared(),
    dropout: LabelDropout | None = None,
) -> Objective:
    """Progressive self-distillation.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        eta: the share and the weight of the diagonal.
        split: the law of g; Midpoint() is PSD-M.
        gradient: TARGET is the paper's; FULL differentiates the two jumps as well.
        weight: error -> loss.
        dropout: label dropout on the diagonal.
    """
    diagonal = Diagonal(student, None, interpolant, coupling, weight=weight, guidance=dropout)
    jump = Composition(student, None, interpolant, coupling, split=split, gradient=gradient, weight=weight)
    return Sum((Part("diagonal", diagonal, eta, eta), Part("composition", jump, 1.0 - eta, 1.0 - eta)))


VARIANTS = (Method("psd_midpoint", partial(psd, split=Midpoint()), CARD),)
