"""MDT-dist: velocity matching to the end, and velocity distillation where the student's own samples are.

Velocity matching (VM) on data, the Eulerian identity to t = 1 with a finite step d along the teacher b:

    L = E | u_{s,1}(I_s) - sg( b_s + (1 - s - d)(u_{m,1}(x_m) - u_{s,1}(I_s))/d ) |^2,   x_m = I_s + d b_s.

Velocity distillation (VD): X = X_{0,1}(x0) is re-noised to I_t, where the map implies the velocity

    v = u_{t,1} - (1 - t - d)(u_{m,1}(x_m) - u_{t,1})/d,   x_m = I_t + d b_t
    L = E | X - sg(X - (v - b_t)) |^2:

X moves against VM's own residual, as if v were the velocity of the student's law. There is no critic to
know that law, so this is a direction and no gradient of a divergence; on the reference mixture it makes the
map worse (one-step RMSE 0.20 for 0.18, seed 0), and ``distil=0`` leaves it out, as in the plain form, whose
cost the card has: one call with gradient, one without and one of the teacher. A row of VD has two without
and two of the teacher, asked the same twice. With ``weight=InStates(Squared())`` VM is consistency
distillation; with ``step=None`` it takes the derivative.

Use VM where there is a teacher and data and derivatives are not to be had. The law of s hardly draws the
end near s = 1, from where the map is learned backwards: it is for students that start as their teacher. With
random weights training diverges, and takes ``Uniform()``. Only X_{s,1} is learned: sample one step, or two
by re-noising.

References:
    Zhou et al., "Few-step flow for 3D generation via marginal-data transport distillation", 2025,
    arXiv 2509.04406, and the authors' code (d = 0.01, s logit-normal(1, 1) in their time). Second-hand: half
    of the rows for VD. Their code divides u' - u over d by its norm over the whole of a sample, which in many
    dimensions leaves plain velocity matching; that is not taken over. Their target has 1 - s for 1 - s - d,
    O(d) off.
"""

from __future__ import annotations

from saltus.autodiff import Derivative, TwoPass
from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Along
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Distribution, Eulerian, Part, Sum
from saltus.slots import Implied, Teacher
from saltus.times import Constant, Law, LogitNormal, StepLaw, ToEnd, Uniform
from saltus.typing import FlowMap, Objective, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="MDT-dist",
    paper="Zhou et al. 2025, arXiv 2509.04406",
    needs=frozenset({Need.DATA, Need.TEACHER}),
    sampler=Sampler.RENOISE,
    steps=(1, 2),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0, teacher=1.0),
    threshold=None,
    quick_threshold=1.09,
    bias="an Euler step of the teacher: O(d); velocity distillation is a heuristic direction",
    plain={"distil": 0.0, "times": Uniform()},
    second_hand=("half of the rows for velocity distillation",),
)


def mdt_dist(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: Law = LogitNormal(-1.0, 1.0),
    step: StepLaw | None = Constant(0.01),
    near: Derivative = TwoPass(),
    distil: float = 0.5,
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
) -> Objective:
    """MDT-dist.

    Args:
        student: the flow map of which X_{s,1} learns.
        teacher: the velocity on the interpolant's path.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of s in VM and of the level t in VD.
        step: d, for VD the same in the whole run; None takes the derivative along the teacher, and then
            ``distil`` must be 0.
        near: how the derivative is taken, if there is no step; it carries no gradient.
        distil: the share of the rows for VD; 0 leaves it out.
        weight: error -> loss.
        guidance: learn the guided teacher, its strength an input of the network.
    """
    if not 0.0 <= distil < 1.0 or (distil > 0.0 and step is None):
        raise ValueError(
            f"mdt_dist: expected a share in [0, 1) for distillation, and 0 without a step, got {distil} with "
            f"step={step}; distil=0 is velocity matching alone"
        )
    known = guided(teacher, guidance)
    velocity = Teacher(known)
    match = Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        times=ToEnd(times, stratified=True),
        near=near,
        step=step,
        leg=Along(velocity),
        tangent=velocity,
        velocity=velocity,
        weight=weight,
        guidance=guidance,
    )
    if distil == 0.0 or step is None:
        return match
    own = Implied(student, known, step)
    move = Distribution(student, known, own, interpolant, times, weight, guidance)
    return Sum((Part("matching", match, 1.0 - distil, 1.0 - distil), Part("distil", move, distil, distil)))
