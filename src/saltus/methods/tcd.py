"""Trajectory consistency distillation: consistency distillation towards every later time.

    L = E | X_{s,t}(I_s) - sg X'_{m,t}(x_m) |^2,   s < m <= t,

with x_m one DDIM step of the teacher from I_s to m = s + 1/50, or to t where that is nearer, t uniform after
s, and X' a moving average of the student. So a jump may stop on its way, and what is left of a step can be
noise or not, as the sampler likes: the paper jumps ahead to m = t + gamma (1 - t) and re-noises back to t
(samplers.renoise, gamma = 0.3 there); with gamma = 0 the jumps are composed.

The paper writes the jump as a DDIM step whose estimate of the data the network makes. On the linear
interpolant that is the average velocity itself, given both times.

Use it for few-step models of a guided latent teacher that may take any number of steps.

References:
    Zheng et al., "Trajectory consistency distillation: improved latent consistency distillation by
    semi-linear consistency function with trajectory mapping", 2024, arXiv 2402.19159, sec. 4. The step is
    uniform in the time of the interpolant in use.
"""

from __future__ import annotations

from copy import deepcopy

from saltus.couplings import Coupling, Independent
from saltus.games import Follow, Game, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Slide
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.slots import Teacher
from saltus.times import Constant, PairLaw, Restricted, StepLaw
from saltus.typing import Velocity
from saltus.weights import InStates, Squared, Weight

CARD = Card(
    title="Trajectory consistency distillation (TCD)",
    paper="Zheng et al. 2024, arXiv 2402.19159",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.TARGET}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped=1.0, teacher=1.0),
    threshold=0.35,
    quick_threshold=1.49,
    bias="a DDIM step of the teacher: O(d)",
    plain={"weight": Squared()},
    second_hand=("decay 0.95 and 50 times, from memory of the paper", "t uniform after s"),
)


def tcd(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: PairLaw = Restricted(1.0),
    step: StepLaw = Constant(1.0 / 50.0),
    decay: float = 0.95,
    weight: Weight = InStates(Squared()),
    guidance: GuidanceInput | None = None,
) -> Game:
    """Trajectory consistency distillation.

    Args:
        student: the flow map that learns.
        teacher: the velocity on the interpolant's path that the neighbour is reached with.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of (s, t).
        step: the distance of the neighbour.
        decay: of the moving average that jumps from it.
        weight: error in velocities -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    target = deepcopy(student).requires_grad_(False)
    velocity = Teacher(guided(teacher, guidance))
    loss = Eulerian(
        student,
        target,
        interpolant,
        coupling,
        times=times,
        step=step,
        leg=Slide(velocity),
        tangent=velocity,
        velocity=velocity,
        weight=weight,
        guidance=guidance,
    )
    return Game((student_move(student, loss, after=(Follow(target, student, decay),)),))
