"""Align Your Flow: Eulerian map distillation with normalised tangents, a warm-up and its own times.

With e = u_{s,t}(I_s) - b_s - r (t-s)(d_s u + grad u b_s)(I_s), b the teacher, u in e stopped,

    L = E | u_{s,t}(I_s) - sg( u_{s,t}(I_s) - e/(|e|/sqrt(D) + c) ) |^2,   c = 0.1,

t - s = sigmoid(z), z ~ N(-0.8, 1), s ~ U[0, 1 - (t-s)], and r = min(0.99, k/H) in step k. It is emd in
target form but for the weight, the times and r.

Use it on images, with a teacher guided by a weaker version of itself (autoguidance): the best few-step
figures in print of this family. Any number of steps may be taken.

References:
    Sabour, Fidler and Kreis, "Align Your Flow: scaling continuous-time flow map distillation", 2025,
    arXiv 2506.14603 (the Eulerian loss, AYF-EMD).
"""

from __future__ import annotations

from saltus.autodiff import Derivative, TwoPass
from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.slots import Teacher
from saltus.times import Gaps, LogitNormal, PairLaw, Ramp
from saltus.typing import FlowMap, Objective, Schedule, Velocity
from saltus.weights import Squared, TangentNormalised, Weight

CARD = Card(
    title="Align Your Flow (AYF-EMD)",
    paper="Sabour, Fidler and Kreis 2025, arXiv 2506.14603",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.JVP}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped_jvp=1.0, teacher=1.0),
    threshold=None,
    quick_threshold=1.2,
    bias="the warm-up ends at r = 0.99, so 1 % of the derivative's part of the target is missing",
    plain={"weight": Squared(), "warm_up": None},
    second_hand=("constants from a re-implementation", "H as a share of the run", "sqrt(D) beside c"),
)


def align_your_flow(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: PairLaw = Gaps(LogitNormal(-0.8, 1.0)),
    near: Derivative = TwoPass(),
    warm_up: Schedule | None = Ramp(0.1, 0.99),
    weight: Weight = TangentNormalised(0.1),
    guidance: GuidanceInput | None = None,
) -> Objective:
    """Align Your Flow.

    Args:
        student: the flow map that learns.
        teacher: the velocity b on the interpolant's path. The paper's is guided by a weaker one:
            ``AutoGuidance(velocity, weak)`` with ``guidance=GuidanceInput(3.0)``, or with one fixed
            strength, ``AutoGuidance(velocity, weak, w)``, without ``guidance``.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of (s, t).
        near: how the derivative is taken; it carries no gradient.
        warm_up: the factor r on the derivative; None for 1.
        weight: error -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    velocity = Teacher(guided(teacher, guidance))
    return Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=times,
        near=near,
        tangent=velocity,
        velocity=velocity,
        warm_up=warm_up,
        weight=weight,
        guidance=guidance,
    )
