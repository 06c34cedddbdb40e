"""RCGM: any-step generation from data by finite steps, the student's several jumps being the rest of the way.

    L = E | u_{s,t}(I_s) - sg( u - clamp(u - y) ) |^2,   u = u_{s,t}(I_s),   m = s + d,
    y = dI_s + (t - s - d)( u' - u )/d,   u' = (X'_N(I_m) - I_m)/(t - m)

with X'_N the N equal jumps of a moving average of the student from m to t, and the clamp to [-1, 1] for every
entry. It is consistency training towards every t, rescaled: the error is that of velocities, whatever d is.
With N = 1 it is one jump after a step along the pair; more jumps make a better target while the student's
long jumps are worse than its short ones. No derivative is taken, and no row has s = t.

Use it where no derivative can be taken and jumps of any length are wanted. The finite step along data biases
it towards the mean.

References:
    Sun and Lin, "Any-step generation via N-th order recursive consistent velocity field estimation", 2025
    (github.com/LINs-lab/RCGM), in the form of the authors' TwinFlow code, arXiv 2512.05150: d = 0.01, N = 2,
    s uniform and t uniform after it, moving average 0.99. Where t - s is less than d that code moves the
    state by all of d; here the step ends at t. Its decay rises from 0 over the first steps; here it is
    constant.
"""

from __future__ import annotations

from copy import deepcopy

from saltus.couplings import Coupling, Independent
from saltus.games import Follow, Game, student_move
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.legs import Jump, Leg, Line
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Eulerian
from saltus.times import Constant, PairLaw, Restricted, StepLaw
from saltus.weights import Clipped, Squared, Weight

CARD = Card(
    title="Recursive consistent generation (RCGM)",
    paper="Sun and Lin 2025, github.com/LINs-lab/RCGM",
    needs=frozenset({Need.DATA, Need.TARGET}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, stopped=2.0),
    threshold=0.45,
    quick_threshold=0.8,
    bias="finite steps along the line of a pair: O(d); the clamp, where rows of noisy targets exceed it",
    plain={"weight": Squared(), "decay": 0.95},
    second_hand=("a constant decay of the moving average",),
)


def rcgm(
    student: NetworkMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    times: PairLaw = Restricted(1.0),
    step: StepLaw = Constant(0.01),
    leg: Leg = Line(),
    jumps: int = 2,
    decay: float = 0.99,
    weight: Weight = Clipped(Squared()),
    dropout: LabelDropout | None = None,
) -> Game:
    """Recursive consistent generation.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        times: the law of (s, t).
        step: the finite step d.
        leg: how the state moves by it; Along(Teacher(b)) learns from a teacher instead.
        jumps: the number N of jumps that lead on from there to t.
        decay: of the moving average.
        weight: error -> loss.
        dropout: label dropout.
    """
    target = deepcopy(student).requires_grad_(False)
    loss = Eulerian(
        student,
        target,
        interpolant,
        coupling,
        times=times,
        step=step,
        leg=leg,
        onward=Jump(jumps),
        weight=weight,
        guidance=dropout,
    )
    return Game((student_move(student, loss, after=(Follow(target, student, decay),)),))
