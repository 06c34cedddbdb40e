"""Consistency distillation: jump to the data from two neighbours on a trajectory of the teacher.

    L = E w( X_{s,1}(I_s) - sg X'_{m,1}(x_m) ),   x_m one Heun step of the teacher from I_s

with m = s + d one cell further on the Karras clock of 40 levels, and X' a moving average of the student.
As d -> 0 this is emd to t = 1: with step=None the derivative itself is taken, in target form.

Use it as the historical base line. Sample one step, or several by re-noising; never compose jumps.

References:
    Song et al., "Consistency models", 2023, arXiv 2303.01469, algorithm 2, and the authors' settings for
    ImageNet (40 levels from 80 to 0.002, rho 7, decay 0.95; 18 levels and no average for CIFAR-10).
    s is uniform on the clock, between the grid's levels too, and the last cell ends at t = 1. The Heun step
    is taken in x, where the paper's is taken in x/t as a function of (1-t)/t: the same order.
"""

from __future__ import annotations

from copy import deepcopy

from saltus.autodiff import Derivative, TwoPass
from saltus.couplings import Coupling, Independent
from saltus.curricula import KarrasGap
from saltus.games import Follow, Game, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import HEUN, Along, Tableau
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.slots import Teacher
from saltus.times import Karras, Law, StepLaw, ToEnd
from saltus.typing import Velocity
from saltus.weights import InStates, Squared, Weight

CARD = Card(
    title="Consistency distillation (CD)",
    paper="Song et al. 2023, arXiv 2303.01469",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.TARGET}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0, teacher=2.0),
    threshold=0.28,
    quick_threshold=0.89,
    bias="a Heun step of the teacher: O(d^2)",
    plain={"decay": 0.95, "step": KarrasGap(first=18, last=17)},
)


def consistency_distillation(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: Law = Karras(),
    step: StepLaw | None = KarrasGap(first=40, last=39),
    tableau: Tableau = HEUN,
    near: Derivative = TwoPass(),
    decay: float = 0.95,
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
) -> Game:
    """Consistency distillation.

    Args:
        student: the flow map of which X_{s,1} learns.
        teacher: the velocity on the interpolant's path that the neighbour is reached with.
        interpolant: the path between prior and data; the default laws of times are for the linear one.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of s.
        step: the distance of the neighbour; None takes the derivative along the teacher instead.
        tableau: the method of the teacher's step.
        near: how the derivative is taken, if there is no step; it carries no gradient.
        decay: of the moving average that jumps from the neighbour.
        weight: error in velocities -> loss; None is the squared distance of the two jumps or, without a
            step, the squared error.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    target = deepcopy(student).requires_grad_(False)
    velocity = Teacher(guided(teacher, guidance))
    if weight is None:
        weight = Squared() if step is None else InStates(Squared())
    loss = Eulerian(
        student,
        target,
        interpolant,
        coupling,
        times=ToEnd(times, stratified=True),
        near=near,
        step=step,
        leg=Along(velocity, tableau),
        tangent=velocity,
        velocity=velocity,
        weight=weight,
        guidance=guidance,
    )
    return Game((student_move(student, loss, after=(Follow(target, student, decay),)),))
