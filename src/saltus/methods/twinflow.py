"""TwinFlow: a one-step model from data alone whose critic is its own network, beyond the data's time.

Every batch is split. Three parts make jumps by recursion (``rcgm``): from the prior to the data at
once, of any length, and over a twentieth of the way,

    b( clamp( u_{s,t}(I_s) - y ) ),   y = dI_s + (t - s - d)(u' - u)/d,   m = s + d,

u' the average velocity of two jumps of a moving average from I_m to t, I_m further along the pair's line. A
fourth teaches the twin u'_t = u_{2-t,2-t} the velocity of the student's own one-step samples, flow matching;
and a fifth moves these samples from the twin's velocity to the student's own, which data have taught it:

    gradient E[ clamp( u'_t(J_t) - u_{t,t}(J_t) ) . dX ],   X = X_{0,1}(x0),  J_t = X noised anew to t.

No teacher, no critic and no discriminator is needed beside the one network; errors are measured by
b(e) = |e|^2/sg(|e|^2/D + c^2)^(1/2), and those of jumps the more the shorter they are.

Use it to make a large flow model one of one step where a second network does not fit into memory.

References:
    Cheng et al., "TwinFlow: realizing one-step generation on large models with self-adversarial flows", 2025,
    arXiv 2512.05150, and the authors' code (four equal parts, d = 0.01, two jumps, c = 1e-3, the clamps at 1,
    the fifth loss at weight 1/2, moving average 0.99). There the fifth part shares the rows and the jump of
    the first; here it has rows of its own, 3/16 of them like the second, third and fourth, and the first has
    4/16. Their guidance and their image-free form are not built here.
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor

from saltus.couplings import Coupling, Independent
from saltus.games import Follow, Game, student_move
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Jump, Line
from saltus.maps import NetworkMap, Twin
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Distribution, Eulerian, OnSamples, Part, Sum
from saltus.times import Constant, FromStart, PairLaw, Restricted, StepLaw, Uniform
from saltus.weights import AdaptivePower, Clipped, Scaled, Span, Squared, Weight

CARD = Card(
    title="TwinFlow",
    paper="Cheng et al. 2025, arXiv 2512.05150",
    needs=frozenset({Need.DATA, Need.TARGET}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped=1.8125),
    threshold=0.84,
    quick_threshold=0.88,
    bias="finite steps along the line of a pair: O(d); rows divided by their own error, and clamps, move the "
    "fixed point in low dimension",
    plain={"weight": Squared(), "decay": 0.95},
    second_hand=("a constant decay of the moving average",),
)

ROBUST = AdaptivePower(0.5, 1e-6, per_dimension=True)


def by_length(span: Span) -> Tensor:
    """tan((1 - (t - s)) pi/2.5) + 1, [n]."""
    return torch.tan((1.0 - (span.t - span.s)) * (math.pi / 2.5)) + 1.0


def twinflow(
    student: NetworkMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    step: StepLaw = Constant(0.01),
    jumps: int = 2,
    near: float = 0.05,
    rectify: float = 0.5,
    decay: float = 0.99,
    weight: Weight | None = None,
    dropout: LabelDropout | None = None,
) -> Game:
    """TwinFlow.

    Args:
        student: the flow map that learns, and holds its twin; maps.AverageVelocity or maps.Trigonometric.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        step: the finite step d.
        jumps: that lead on from there.
        near: of the way to the data, the most that the third part jumps.
        rectify: weight of the fifth part.
        decay: of the moving average.
        weight: error -> loss in all parts; None is the paper's.
        dropout: label dropout in the jumps.
    """
    target = deepcopy(student).requires_grad_(False)
    twin, clipped = Twin(student), Clipped(ROBUST)

    def jump(times: PairLaw) -> Eulerian:
        return Eulerian(
            student,
            target,
            interpolant,
            coupling,
            times=times,
            step=step,
            leg=Line(),
            onward=Jump(jumps),
            weight=weight or Scaled(clipped, factor=by_length),
            guidance=dropout,
        )

    fake = Diagonal(twin, interpolant=interpolant, weight=weight or ROBUST)
    law = Distribution(student, student.velocity, twin, interpolant, weight=weight or clipped)
    share = 3.0 / 16.0
    parts = (
        Part("at_once", jump(FromStart(Uniform(1.0, 1.0))), 1.0 - 4.0 * share, 0.25),
        Part("any", jump(Restricted(1.0)), share, 0.25),
        Part("near", jump(Restricted(near, relative=True)), share, 0.25),
        Part("twin", OnSamples(student, fake, interpolant), share, 0.25),
        Part("rectify", law, share, rectify),
    )
    return Game((student_move(student, Sum(parts), after=(Follow(target, student, decay),)),))
