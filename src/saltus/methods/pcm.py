"""Phased consistency models: the time axis in phases, each with a consistency model that jumps to its end.

    L = E mean_i huber( X_{s,e}(I_s) - sg X_{m,e}(x_m) )_i,   e the end of the phase that s lies in,

with x_m one DDIM step of the teacher from I_s to m = s + 1/50, or to e where that is nearer. The target is
the student itself, or with a ``decay`` its moving average. Within a phase all is as in consistency
distillation, and with one phase it is that. The number of phases is the number of steps of the sampler, which
goes from edge to edge without new noise: unlike a consistency model's, its samples are a function of the
prior, and the jumps that it learns are shorter and easier. At any other number of steps it is asked for jumps
that it has never seen.

With a ``discriminator`` the jump has to pass, beside its distance, for its own target, both noised to a
random level before D sees them:

    + lambda E[ max(0, 1 - D(X_{s,e}(I_s))) ],
    L_D = E[ max(0, 1 - D(X_{m,e}(x_m))) + max(0, 1 + D(X_{s,e}(I_s))) ].

Both terms are means, the one over entries, the other over the logits of D. Real is what the target makes, not
the data, so the two laws agree at the exact map.

Use it if the number of steps is known beforehand.

References:
    Wang et al., "Phased consistency models", 2024, arXiv 2405.18407, sec. 3, and the authors' code
    (github.com/G-U-N/Phased-Consistency-Model: c = 0.001, lambda 0.1, 50 DDIM times, no moving average). The
    phases are equal in the time of the interpolant in use. The paper noises what the discriminator sees to
    levels of the same phase; here to any level below. There student and discriminator take turns; here each
    moves in every step. By default there is none.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

from torch import nn

from saltus.adversaries import Adversary, Hinge
from saltus.couplings import Coupling, Independent
from saltus.curricula import Phases
from saltus.games import Follow, Game, Move, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Slide
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Discrimination, Eulerian, Real
from saltus.slots import Teacher
from saltus.times import Constant, Law, StepLaw, Uniform
from saltus.typing import Velocity
from saltus.weights import EntryHuber, InStates, PerEntry, Squared, Weight

CARD = Card(
    title="Phased consistency models (PCM)",
    paper="Wang et al. 2024, arXiv 2405.18407",
    needs=frozenset({Need.DATA, Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(4,),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.0, teacher=1.0),
    threshold=0.15,
    quick_threshold=0.25,
    bias="a DDIM step of the teacher: O(d)",
    plain={"weight": Squared()},
)


def pcm(
    student: NetworkMap,
    *,
    teacher: Velocity,
    discriminator: nn.Module | None = None,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    phases: int = 4,
    times: Law = Uniform(),
    step: StepLaw = Constant(1.0 / 50.0),
    decay: float = 0.0,
    adversarial: float = 0.1,
    weight: Weight = InStates(PerEntry(EntryHuber(0.001))),
    guidance: GuidanceInput | None = None,
) -> Game:
    """Phased consistency distillation.

    Args:
        student: the flow map that learns; of it X_{s,e}.
        teacher: the velocity on the interpolant's path that the neighbour is reached with.
        discriminator: for the adversarial term (a :class:`saltus.adversaries.Discriminator`); it is trained.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        phases: their number, which is the number of steps to sample with; the card is that of four.
        times: the law of s.
        step: the distance of the neighbour.
        decay: of the moving average that jumps from it; 0 is the student itself.
        adversarial: lambda, where there is a discriminator.
        weight: error in velocities -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    target = deepcopy(student).requires_grad_(False) if decay else None
    velocity = Teacher(guided(teacher, guidance))
    adversary = None
    if discriminator is not None:
        adversary = Adversary(discriminator, Hinge(bounded=True), Uniform(), interpolant, weight=adversarial)
    loss = Eulerian(
        student,
        target,
        interpolant,
        coupling,
        times=Phases(phases, times, stratified=True),
        step=step,
        leg=Slide(velocity),
        tangent=velocity,
        velocity=velocity,
        weight=weight,
        guidance=guidance,
        adversary=adversary,
    )
    after = () if target is None else (Follow(target, student, decay),)
    learns = student_move(student, loss, after=after)
    if discriminator is None or adversary is None:
        return Game((learns,))
    telling = Discrimination(replace(loss, adversary=None), adversary, Real.WANTED)
    return Game((learns, Move("discriminator", discriminator, telling)))
