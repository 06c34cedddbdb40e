"""Truncated consistency models: a consistency model of the noisy times alone, tied to one of all times.

The first stage is consistency training as ECT does it,

    L = E |X_{s,1}(I_s) - sg X_{m,1}(I_m)| / (sigma_s - sigma_m),   sigma_t = (1 - t)/t,

with m = s + d by a step that shrinks. In the second stage, with s' the time at which sigma is
``transition``, the student learns from s <= s' alone, and whatever lies after s' is answered by the first
stage's model, frozen:

    L = E_{s < s'} |X_{s,1}(I_s) - sg Y_{m,1}(I_m)| / (sigma_s - sigma_m) + w_b (the same at s = s'),

    Y = X where m <= s', the frozen model where m > s'.

All capacity goes to the jumps that samples are made of. The second term, of a quarter of the rows, holds the
map at s', from where the first term hands it on; without it a constant would do. The step of the second
stage is fixed and short, (sigma_s - sigma_m)/sigma_s = 0.001 (1 + 8 sigmoid(-sigma_s)).

Use it after consistency training has stopped improving. Sample one step, or two by re-noising at s' or
before: later the student has forgotten. The card's cost is that of the first stage; in the second both the
student and the frozen model answer at every neighbour, so another call without gradient is made.

References:
    Lee et al., "Truncated consistency models", 2024, arXiv 2410.14895, sec. 3, and the authors' code
    (github.com/NVlabs/TCM, CIFAR-10: transition 1, a quarter of the rows at s' with weight 0.1, log sigma of
    Student's law with 0.01 degrees of freedom and scale 0.2 around 0, cut off at the transition and 80, steps
    that shrink to 0.001 in both stages). Here the law is its limit of few degrees of freedom, the stages are
    of equal length, and the first one's step is ECT's, which ends at 1/256. There the frozen model and the
    start of the second stage are a moving average of the first; here they are its last weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from saltus.couplings import Coupling, Independent
from saltus.curricula import LogHyperbolic, SigmoidGap
from saltus.games import Artifact, Freeze, Stage, Stages
from saltus.guidance import LabelDropout
from saltus.legs import Line
from saltus.maps import NetworkMap, Spliced
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian, Part, Sum
from saltus.times import Law, Lognormal, StepLaw, ToEnd, Uniform
from saltus.typing import FlowMap, Objective
from saltus.weights import InStates, PseudoHuber, Scaled, Squared, Weight, per_noise_step

CARD = Card(
    title="Truncated consistency models (TCM)",
    paper="Lee et al. 2024, arXiv 2410.14895",
    needs=frozenset({Need.DATA}),
    sampler=Sampler.RENOISE,
    steps=(1, 2),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0),
    threshold=0.42,
    quick_threshold=1.07,
    bias="finite steps along the line of a pair: O(d); the norm instead of its square",
    plain={"weight": Squared()},
    second_hand=(
        "stages of equal length",
        "the frozen model and the second stage's start, the last weights of the first, not their average",
    ),
)


def tcm(
    student: NetworkMap,
    *,
    coupling: Coupling = Independent(),
    times: Law = Lognormal(-1.1, 2.0),
    step: StepLaw = SigmoidGap(),
    later_step: StepLaw = SigmoidGap(q=1000.0, stages=1),
    transition: float = 1.0,
    noisiest: float = 80.0,
    boundary: float = 0.25,
    boundary_weight: float = 0.1,
    weight: Weight = Scaled(InStates(PseudoHuber(0.0)), factor=per_noise_step),
    dropout: LabelDropout | None = None,
) -> Stages:
    """Truncated consistency training on the linear interpolant.

    Args:
        student: the flow map of which X_{s,1} learns; the second stage goes on with its weights.
        coupling: how noise and data are paired.
        times: the law of s in the first stage.
        step: the distance of the neighbour in the first stage.
        later_step: that in the second.
        transition: sigma at s'. The card's two steps are those of 1, which even steps re-noise at; with a
            larger one re-noise at s', or take one step.
        noisiest: the largest sigma of the second stage.
        boundary: the share of its rows at s'.
        boundary_weight: w_b.
        weight: error in velocities -> loss.
        dropout: label dropout.
    """
    if not 0.0 < boundary < 1.0:
        raise ValueError(f"tcm: expected a share of rows at the boundary between 0 and 1, got {boundary}")
    at = 1.0 / (1.0 + transition)
    later = LogHyperbolic(0.0, 0.2, 0.01, transition, noisiest)

    def training(target: FlowMap | None, law: Law, step: StepLaw) -> Eulerian:
        return Eulerian(
            student,
            target,
            coupling=coupling,
            times=ToEnd(law),
            step=step,
            leg=Line(),
            weight=weight,
            guidance=dropout,
        )

    def whole(artifacts: Mapping[str, Artifact]) -> Objective:
        return training(None, times, step)

    def truncated(artifacts: Mapping[str, Artifact]) -> Objective:
        frozen = artifacts["whole"]
        assert isinstance(frozen, FlowMap)
        target = Spliced(student, frozen, at)
        edge = training(target, Uniform(at, at), later_step)
        inside = training(target, later, later_step)
        held = Part("boundary", edge, boundary, boundary_weight)
        return Sum((held, Part("inside", inside, 1.0 - boundary)))

    return Stages((Stage("whole", whole, produce={"whole": Freeze(student)}), Stage("truncated", truncated)))
