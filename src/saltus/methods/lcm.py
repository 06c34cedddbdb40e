"""Latent consistency models: consistency distillation of a guided teacher by long DDIM steps.

    L = E sum_i huber( X_{s,1}(I_s) - sg X'_{m,1}(x_m) )_i,   x_m one DDIM step of the teacher from I_s,

with m = s + 1/50, huber(e) = sqrt(e^2 + c^2) - c for every entry, c = 0.001, and X' a moving average of the
student. The step is 20 of the teacher's 1000 times: neighbours that are closer teach little. With
``guidance`` the teacher is guided by its labels or texts at a strength w that the student is told as an
input; its one call then stands for two of the teacher's, at any w.

Use it for few steps of a guided latent model, on its latents; with adapters as the only weights that learn
it is LCM-LoRA (there without the moving average: decay 0). Sample one step, or several by re-noising; never
compose jumps.

References:
    Luo et al., "Latent consistency models: synthesizing high-resolution images with few-step inference",
    2023, arXiv 2310.04378, algorithm 1 (strengths of 2 to 14 beside the plain one, 3 to 15 in our w:
    guidance=GuidanceInput(15.0) draws 1 to 15); "LCM-LoRA", 2023, arXiv 2311.05556. Constants as in the
    training code of diffusers. There s is one of the 50 times of the solver; here it is uniform, and the
    last step ends at the data. The step is uniform in the time of the interpolant in use.
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
from saltus.times import Constant, Law, StepLaw, ToEnd, Uniform
from saltus.typing import Velocity
from saltus.weights import EntryHuber, InStates, Squared, Weight

CARD = Card(
    title="Latent consistency models (LCM)",
    paper="Luo et al. 2023, arXiv 2310.04378",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.TARGET}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4, 8),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0, teacher=1.0),
    threshold=0.28,
    quick_threshold=1.45,
    bias="a DDIM step of the teacher: O(d)",
    plain={"weight": Squared()},
    second_hand=("decay 0.95, c = 0.001 and 50 times, from the training code of diffusers",),
)


def lcm(
    student: NetworkMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: Law = Uniform(),
    step: StepLaw = Constant(1.0 / 50.0),
    decay: float = 0.95,
    weight: Weight = InStates(EntryHuber(0.001)),
    guidance: GuidanceInput | None = None,
) -> Game:
    """Latent consistency distillation.

    Args:
        student: the flow map of which X_{s,1} learns.
        teacher: the velocity on the interpolant's path that the neighbour is reached with.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of s.
        step: the distance of the neighbour.
        decay: of the moving average that jumps from it; 0 is the student itself.
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
        times=ToEnd(times, stratified=True),
        step=step,
        leg=Slide(velocity),
        tangent=velocity,
        velocity=velocity,
        weight=weight,
        guidance=guidance,
    )
    return Game((student_move(student, loss, after=(Follow(target, student, decay),)),))
