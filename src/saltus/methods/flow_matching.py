"""Flow matching: learn the velocity, sample by an ODE solver. The base line of everything here.

    L = E | u_{t,t}(I_t) - dI_t |^2,   t ~ U[0, 1]

Use it to train a teacher, or to know what many steps of the same network give. The network takes two
times, so its weights can start any other method.

References:
    Lipman et al., "Flow matching for generative modeling", 2022, arXiv 2210.02747.
    Liu et al., "Flow straight and fast", 2022, arXiv 2209.03003.
    Albergo and Vanden-Eijnden, "Building normalizing flows with stochastic interpolants", 2022,
    arXiv 2209.15571.
"""

from __future__ import annotations

from saltus.couplings import Coupling, Independent
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal
from saltus.times import Law, Uniform
from saltus.typing import FlowMap, Objective
from saltus.weights import Squared, Weight

CARD = Card(
    title="Flow matching",
    paper="Lipman et al. 2022, arXiv 2210.02747",
    needs=frozenset({Need.DATA}),
    sampler=Sampler.ODE,
    steps=(1, 2, 4, 8, 16, 32, 64),
    two_times=False,
    cost=Cost(live=1.0),
    threshold=None,
    quick_threshold=None,
)


def flow_matching(
    student: FlowMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: Law = Uniform(),
    weight: Weight = Squared(),
    guidance: LabelDropout | None = None,
) -> Objective:
    """Flow matching.

    Args:
        student: the flow map whose velocity u_{t,t} learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; minibatch transport straightens the flow.
        times: the law of t.
        weight: error -> loss.
        guidance: label dropout, for classifier-free guidance later.
    """
    return Diagonal(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=times,
        weight=weight,
        guidance=guidance,
    )
