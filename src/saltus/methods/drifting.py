"""Drifting: samples are moved along a field between them and the data; the network learns to have moved.

    L = E | X_{0,1}(x0) - sg( X_{0,1}(x0) + V ) |^2,

V drawing each sample to nearby data and away from other samples, by a Laplace kernel of their distance at
several widths; it vanishes where both have one law. No time is ever noised, no teacher and no discriminator
asked: one jump from the prior is all that is learned, and which noise becomes which sample is left open.

Use it for a generator of one step from data alone. In high dimension distances must be those of features
that mean something (``features``). Rows drift by those of their own label, so a group needs several of each:
with many labels take larger groups, or batches in which the rows of a label are neighbours. Labels are
dropped by whole groups, for which the data of a group should be of all labels. Sample in one step.

References:
    Deng, Li, Li, Du and He, "Generative modeling via drifting", 2026, arXiv 2602.04770, algorithms 1 and 2
    and appendix A.6 (temperatures 0.02, 0.05 and 0.2 of the mean distance; 64 samples and 64 data of a class;
    fields of each temperature normalised and added).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from saltus.guidance import LabelDropout
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Drift, Normalisation
from saltus.objectives.drift import LogKernel
from saltus.radial import RBF, Laplace
from saltus.typing import FlowMap, Objective
from saltus.weights import Squared, Weight

CARD = Card(
    title="Drifting",
    paper="Deng et al. 2026, arXiv 2602.04770",
    needs=frozenset({Need.DATA}),
    sampler=Sampler.JUMPS,
    steps=(1,),
    two_times=False,
    cost=Cost(live=1.0),
    threshold=None,
    quick_threshold=1.46,
    bias="a law, not a map: every map to the data's law is a fixed point",
    plain={
        "kernels": (RBF((0.7,)),),
        "normalisation": Normalisation.SEPARATE,
        "relative": False,
        "levelled": False,
        "group": 16,
    },
    second_hand=(
        "temperatures and normalisations, from notes and reproductions of the paper",
        "a group of several labels instead of a group for each; labels dropped by groups",
    ),
)


def drifting(
    student: FlowMap,
    *,
    kernels: tuple[LogKernel, ...] = (Laplace((0.02,)), Laplace((0.05,)), Laplace((0.2,))),
    normalisation: Normalisation = Normalisation.JOINT,
    relative: bool = True,
    levelled: bool = True,
    group: int = 64,
    features: Callable[[Tensor], Tensor] | None = None,
    weight: Weight = Squared(),
    dropout: LabelDropout | None = None,
) -> Objective:
    """Drifting.

    Args:
        student: the flow map of which X_{0,1} learns.
        kernels: of the distance, one field each.
        normalisation: of their values: JOINT is the paper's algorithm, SEPARATE its equation.
        relative: whether the kernels' widths are in mean distances of a group.
        levelled: whether each field is divided by its root mean square.
        group: samples, and data, that are held together; those of one label act on each other.
        features: where distances and the field are taken; None is the samples' own space.
        weight: error -> loss.
        dropout: label dropout, of whole groups.
    """
    return Drift(
        student,
        kernels=kernels,
        normalisation=normalisation,
        relative=relative,
        levelled=levelled,
        group=group,
        features=features,
        weight=weight,
        guidance=dropout,
    )
