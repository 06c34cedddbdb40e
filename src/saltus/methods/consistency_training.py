"""Consistency training: jump to the data from two neighbours on the line of one pair (x0, x1).

    L = E w( X_{s,1}(I_s) - sg X'_{m,1}(I_m) ),   m = s + d one cell further on the Karras clock

X' is a moving average of the student. The number of cells grows with progress from 1 to 150, so d
shrinks. With finite d the line is not the flow, and the fixed point is biased by O(d): at one cell it
is the mean of the data given I_s.

Use it as the historical base line. Sample one step, or several by re-noising; never compose jumps.

References:
    Song et al., "Consistency models", 2023, arXiv 2303.01469, algorithm 3 (CIFAR-10: first 2, last 150
    grid points, mu_0 = 0.9). The decay of the moving average is held at the curriculum's last value
    exp(2 log(0.9)/150), where the paper lets it rise with the number of cells.
"""

from __future__ import annotations

import math
from copy import deepcopy

from saltus.couplings import Coupling, Independent
from saltus.curricula import KarrasGap
from saltus.games import Follow, Game, student_move
from saltus.guidance import LabelDropout
from saltus.legs import Line
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.times import Karras, Law, StepLaw, ToEnd
from saltus.weights import InStates, Squared, Weight

CARD = Card(
    title="Consistency training (CT)",
    paper="Song et al. 2023, arXiv 2303.01469",
    needs=frozenset({Need.DATA, Need.TARGET}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0),
    threshold=0.65,
    quick_threshold=1.51,
    bias="finite steps along the line of a pair: O(d)",
    plain={"decay": 0.95},
    second_hand=("constant decay of the moving average",),
)


def consistency_training(
    student: NetworkMap,
    *,
    coupling: Coupling = Independent(),
    times: Law = Karras(),
    step: StepLaw = KarrasGap(),
    decay: float = math.exp(2.0 * math.log(0.9) / 150.0),
    weight: Weight = InStates(Squared()),
    dropout: LabelDropout | None = None,
) -> Game:
    """Consistency training on the linear interpolant.

    Args:
        student: the flow map of which X_{s,1} learns.
        coupling: how noise and data are paired.
        times: the law of s.
        step: the distance of the neighbour.
        decay: of the moving average that jumps from it.
        weight: error in velocities -> loss.
        dropout: label dropout.
    """
    target = deepcopy(student).requires_grad_(False)
    loss = Eulerian(
        student,
        target,
        coupling=coupling,
        times=ToEnd(times, stratified=True),
        step=step,
        leg=Line(),
        weight=weight,
        guidance=dropout,
    )
    return Game((student_move(student, loss, after=(Follow(target, student, decay),)),))
