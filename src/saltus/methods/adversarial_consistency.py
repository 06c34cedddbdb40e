"""Adversarial consistency distillation: latent consistency models whose jumps pass for their targets.

    L = E mean_i huber( X_{s,1}(I_s) - sg X'_{m,1}(x_m) )_i + lambda E softplus( -D(X_{s,1}(I_s); I_s, s) ),

x_m one DDIM step of the teacher from I_s, m = s + 1/50, and X' a moving average of the student. The
discriminator sees where the jump began beside where it ended; what counts as real is not data but the
target X'_{m,1}(x_m):

    L_D = E softplus( -D(X'_{m,1}(x_m); I_s, s) ) + softplus( D(X_{s,1}(I_s); I_s, s) ).

Both terms of the student are means, the one over entries, the other over the logits of D.
Both laws agree where X carries x_m and I_s to one end, so the adversary does not move the fixed point; it
judges as a whole what a distance judges entry by entry. The student is called once for both terms.

Use it where consistency distillation blurs. The paper translates radar images to optical ones, with the
radar image as an input of teacher and student: give networks that take one. Sample one step, or several by
re-noising; never compose jumps.

References:
    "Accelerating diffusion for SAR-to-optical image translation via adversarial consistency distillation",
    2024, arXiv 2407.06095, and the authors' code (lambda 1, no guidance, 50 DDIM times, c = 0.001, decay
    0.95, the discriminator moving once a step at the student's rate). Its discriminator is the encoder of a
    U-Net on the pair, which is told m for the time of the jump's end; here it is heads on features of both
    ends, told 1.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

from torch import nn

from saltus.adversaries import AdversarialLoss, Adversary, Softplus
from saltus.couplings import Coupling, Independent
from saltus.games import Follow, Game, Move, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Slide
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Discrimination, Eulerian, Real
from saltus.slots import Teacher
from saltus.times import Constant, Law, StepLaw, ToEnd, Uniform
from saltus.typing import Velocity
from saltus.weights import EntryHuber, InStates, PerEntry, Squared, Weight

CARD = Card(
    title="Adversarial consistency distillation (ACD)",
    paper="SAR-to-optical ACD 2024, arXiv 2407.06095",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.TARGET, Need.DISCRIMINATOR}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4, 8),
    two_times=False,
    cost=Cost(live=1.0, stopped=3.0, teacher=2.0),
    threshold=0.28,
    quick_threshold=1.45,
    bias="a DDIM step of the teacher: O(d)",
    plain={"weight": Squared()},
    second_hand=("the discriminator's heads",),
    pairs=True,
)


def adversarial_consistency(
    student: NetworkMap,
    *,
    teacher: Velocity,
    discriminator: nn.Module,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: Law = Uniform(),
    step: StepLaw = Constant(1.0 / 50.0),
    decay: float = 0.95,
    adversarial: float = 1.0,
    loss: AdversarialLoss = Softplus(),
    r1: float = 0.0,
    weight: Weight = InStates(PerEntry(EntryHuber(0.001))),
    guidance: GuidanceInput | None = None,
) -> Game:
    """Adversarial consistency distillation: the student's move, then the discriminator's.

    Args:
        student: the flow map of which X_{s,1} learns.
        teacher: the velocity on the interpolant's path that the neighbour is reached with.
        discriminator: of pairs (a :class:`saltus.adversaries.Discriminator`); it is trained.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of s.
        step: the distance of the neighbour.
        decay: of the moving average that jumps from it.
        adversarial: lambda.
        loss: of both sides.
        r1: weight of the discriminator's gradient penalty; the paper has none.
        weight: error in velocities -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    target = deepcopy(student).requires_grad_(False)
    velocity = Teacher(guided(teacher, guidance))
    adversary = Adversary(discriminator, loss, pairs=True, weight=adversarial, r1=r1)
    fooling = Eulerian(
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
        adversary=adversary,
    )
    telling = Discrimination(replace(fooling, adversary=None), adversary, Real.WANTED)
    learns = student_move(student, fooling, after=(Follow(target, student, decay),))
    return Game((learns, Move("discriminator", discriminator, telling)))
