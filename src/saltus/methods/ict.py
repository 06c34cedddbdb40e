"""Improved consistency training: consistency training without a moving average, on a grid that doubles.

    L = E ( sqrt(|X_{s,1}(I_s) - sg X_{m,1}(I_m)|^2 + c^2) - c ) / (sigma_s - sigma_m),   sigma_t = (1 - t)/t,

with m = s + d one cell further on the Karras clock, whose number of cells doubles eight times from 10 to
1280, and c = 0.00054 sqrt(D). The target is the student itself, stopped: a moving average of it biases even
the continuous limit. s is log-normal in sigma, which looks more often where it is neither noise nor data.

Use it to learn a consistency model from data alone; ECT, which starts from a diffusion model, is cheaper.
With finite steps along data it is biased to the mean. Sample one step, or several by re-noising; never
compose jumps.

References:
    Song and Dhariwal, "Improved techniques for training consistency models", 2023, arXiv 2310.14189, table
    1. The paper draws s from the grid's levels with the log-normal's mass of each cell; here s is drawn from
    the log-normal itself, and has its neighbour on the grid or off it.
"""

from __future__ import annotations

from saltus.couplings import Coupling, Independent
from saltus.curricula import DoublingGap
from saltus.guidance import LabelDropout
from saltus.legs import Line
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.times import Law, Lognormal, StepLaw, ToEnd
from saltus.typing import FlowMap, Objective
from saltus.weights import InStates, PseudoHuber, Scaled, Squared, Weight, per_noise_step

CARD = Card(
    title="Improved consistency training (iCT)",
    paper="Song and Dhariwal 2023, arXiv 2310.14189",
    needs=frozenset({Need.DATA}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0),
    threshold=0.38,
    quick_threshold=0.51,
    bias="finite steps along the line of a pair: O(d); the norm instead of its square",
    plain={"weight": Squared()},
    second_hand=("c = 0.00054 sqrt(D) and 10 to 1280 cells, from memory of the paper and its public code",),
)


def ict(
    student: FlowMap,
    *,
    coupling: Coupling = Independent(),
    times: Law = Lognormal(-1.1, 2.0),
    step: StepLaw = DoublingGap(),
    weight: Weight = Scaled(InStates(PseudoHuber(0.00054, per_dimension=True)), factor=per_noise_step),
    dropout: LabelDropout | None = None,
) -> Objective:
    """Improved consistency training on the linear interpolant.

    Args:
        student: the flow map of which X_{s,1} learns; maps.EDM is the paper's.
        coupling: how noise and data are paired.
        times: the law of s.
        step: the distance of the neighbour.
        weight: error in velocities -> loss.
        dropout: label dropout.
    """
    return Eulerian(
        student,
        coupling=coupling,
        times=ToEnd(times),
        step=step,
        leg=Line(),
        weight=weight,
        guidance=dropout,
    )
