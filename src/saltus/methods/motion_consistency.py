"""Motion consistency models: consistency distillation of a clip's motion, its look left to an adversary.

    L = E mean_i huber( phi(X_{s,1}(x_s)) - sg phi(X'_{m,1}(x_m)) )_i,   phi neighbouring frames' differences,

x_m one DDIM step of the teacher from x_s, m = s + 1/50, and X' a moving average of the student. Half of the
states x_s lie on the paths of data, half on those of the student's own one-step samples, noised anew: at
sampling it sees the latter. What all frames share phi does not see, and the loss leaves it free; a
discriminator of single frames, which may know better pictures than the clips have, is to pin it:

    + lambda E fool( D(frames of X_{s,1}(x_s)) ),

on all states, of the same jumps. Both terms are means, the one over entries of phi, the other over the logits
of D. Without one, add a term that sees the frames, or take phi = None, which is a latent consistency model
with states of its own.

Use it to distil a video model on clips whose pictures are worse than its own.

References:
    Zhai et al., "Motion consistency model: accelerating video diffusion with disentangled motion-appearance
    distillation", 2024, arXiv 2406.06890, and the authors' code (half of the rows from its own samples, 50
    DDIM times, huber with c = 0.001, decay 0.95, lambda 1, the hinge loss, guidance strengths of 5 to 15
    beside the plain one, 6 to 16 in our w). The phi of their runs adds a learned convolution to the clip, and
    their student is a low-rank change of the teacher whose target has no average. Their discriminator is
    heads on a frozen image encoder that see two frames and a text, told apart from an image data set; here
    phi is any map, and real frames are those of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

from torch import Tensor, nn

from saltus.adversaries import AdversarialLoss, Adversary, Hinge
from saltus.couplings import Coupling, Independent
from saltus.games import Follow, Game, Move, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Slide
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Discrimination, Eulerian, OnSamples, Part, Sum
from saltus.slots import Teacher
from saltus.times import Constant, Law, StepLaw, ToEnd, Uniform
from saltus.typing import Velocity
from saltus.weights import Differences, EntryHuber, InFeatures, InStates, PerEntry, Squared, Weight

CARD = Card(
    title="Motion consistency models (MCM)",
    paper="Zhai et al. 2024, arXiv 2406.06890",
    needs=frozenset({Need.DATA, Need.TEACHER, Need.TARGET}),
    sampler=Sampler.RENOISE,
    steps=(1, 2, 4, 8),
    two_times=False,
    cost=Cost(live=1.0, stopped=1.5, teacher=1.0),
    threshold=0.30,
    quick_threshold=1.43,
    bias="a DDIM step of the teacher: O(d); what phi does not see is left free",
    plain={"weight": Squared()},
    second_hand=(
        "phi, in the authors' runs a learned convolution",
        "the discriminator's kind and real frames",
    ),
)


def motion_consistency(
    student: NetworkMap,
    *,
    teacher: Velocity,
    discriminator: nn.Module | None = None,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: Law = Uniform(),
    step: StepLaw = Constant(1.0 / 50.0),
    decay: float = 0.95,
    motion: Callable[[Tensor], Tensor] | None = Differences(),
    own: float = 0.5,
    frames: Callable[[Tensor], Tensor] | None = None,
    adversarial: float = 1.0,
    loss: AdversarialLoss = Hinge(),
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
) -> Game:
    """Motion consistency models.

    Args:
        student: the flow map of which X_{s,1} learns.
        teacher: the velocity on the interpolant's path that the neighbour is reached with.
        discriminator: who tells frames apart (a :class:`saltus.adversaries.Discriminator`), trained; or None.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        times: the law of s.
        step: the distance of the neighbour.
        decay: of the moving average that jumps from it.
        motion: phi; the frames are the first axis of a row. None compares whole clips.
        own: the share of rows whose states come from the student's own samples.
        frames: what of a clip the discriminator sees; None is all.
        adversarial: lambda.
        loss: of student and discriminator.
        weight: error in velocities -> loss; None is the paper's with this phi.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    if not 0.0 < own < 1.0:
        raise ValueError(f"motion_consistency: expected a share of own samples in (0, 1), got {own}")
    target = deepcopy(student).requires_grad_(False)
    velocity = Teacher(guided(teacher, guidance))
    if weight is None:
        huber = PerEntry(EntryHuber(0.001))
        weight = InStates(huber) if motion is None else InFeatures(huber, motion)
    adversary = None
    if discriminator is not None:
        adversary = Adversary(discriminator, loss, projection=frames, weight=adversarial)
    on_data = Eulerian(
        student,
        target,
        interpolant,
        coupling,
        times=ToEnd(times),
        step=step,
        leg=Slide(velocity),
        tangent=velocity,
        velocity=velocity,
        weight=weight,
        guidance=guidance,
        adversary=adversary,
    )
    unpaired = replace(on_data, coupling=Independent(), guidance=None)  # its samples bring noise and strength
    on_own = OnSamples(student, unpaired, interpolant, guidance)
    halves = Sum((Part("data", on_data, 1.0 - own, 1.0 - own), Part("own", on_own, own, own)))
    learns = student_move(student, halves, after=(Follow(target, student, decay),))
    if discriminator is None or adversary is None:
        return Game((learns,))
    data = Discrimination(replace(on_data, adversary=None), adversary)
    samples = Discrimination(replace(on_own, objective=replace(unpaired, adversary=None)), adversary)
    telling = Sum((Part("data", data, 1.0 - own, 1.0 - own), Part("own", samples, own, own)))
    return Game((learns, Move("discriminator", discriminator, telling)))
