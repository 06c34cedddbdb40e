"""Easy consistency tuning: consistency training whose step shrinks from all the way to almost nothing.

    L = E |X_{s,1}(I_s) - sg X_{m,1}(I_m)| / (sigma_s - sigma_m),   sigma_t = (1 - t)/t,
    sigma_m = max(0, sigma_s (1 - 2^-(stage+1) n(sigma_s))),  n = 1 + 8 sigmoid(-sigma)

At the first stage many neighbours are the data themselves, which is denoising; eight stages later the
ratio of neighbouring noise levels is about 1 - 1/256. No moving average. The times are log-normal in sigma.

Use it to turn a trained diffusion model into a consistency model; from scratch it works as well. Sample
one step, or several by re-noising; never compose jumps.

References:
    Geng et al., "Consistency models made easy", 2024, arXiv 2406.14548 (P_mean -1.1, P_std 2, q = 2,
    k = 8, b = 1; plain norm, c = 0, as in their code for CIFAR-10; the later one for ImageNet has q = 4 and
    another weight).
"""

from __future__ import annotations

from saltus.couplings import Coupling, Independent
from saltus.curricula import SigmoidGap
from saltus.guidance import LabelDropout
from saltus.legs import Line
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.times import Law, Lognormal, StepLaw, ToEnd
from saltus.typing import FlowMap, Objective
from saltus.weights import InStates, PseudoHuber, Scaled, Squared, Weight, per_noise_step

CARD = Card(
    title="Easy consistency tuning (ECT)",
    paper="Geng et al. 2024, arXiv 2406.14548",
    needs=frozenset({Need.DATA}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0),
    threshold=0.65,
    quick_threshold=0.56,
    bias="finite steps along the line of a pair: O(d); the norm instead of its square",
    plain={"weight": Squared()},
)


def ect(
    student: FlowMap,
    *,
    coupling: Coupling = Independent(),
    times: Law = Lognormal(-1.1, 2.0),
    step: StepLaw = SigmoidGap(),
    weight: Weight = Scaled(InStates(PseudoHuber(0.0)), factor=per_noise_step),
    dropout: LabelDropout | None = None,
) -> Objective:
    """Easy consistency tuning on the linear interpolant.

    Args:
        student: the flow map of which X_{s,1} learns.
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
