"""Terminal velocity matching: match the velocity at the end of a jump, and the data's on the diagonal.

    L = E | d_t X_{s,t}(I_s) - sg u'_{t,t}(X_{s,t}(I_s)) |^2 + E | u_{t,t}(I_t) - dI_t |^2

The velocity at the end is that of a moving average u' of the student; the gradient passes through the
time derivative. The second term has a uniform t of its own. It is Lagrangian self-distillation with both
terms on every row and a lagged end.

Use it like LSD, at three times its diagonal cost and with one more copy of the weights.

References:
    Zhou et al., "Terminal velocity matching", 2025, arXiv 2511.19797. Second-hand: the loss is taken
    from a description, not from the paper's code; the decay 0.99 and the stop-gradient are ours, and its
    scaled parametrisation and guidance input are not built.
"""

from __future__ import annotations

from copy import deepcopy

from saltus.autodiff import Derivative, Forward
from saltus.couplings import Coupling, Independent
from saltus.games import Follow, Game, student_move
from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Lagrangian, Part, Sum
from saltus.weights import Squared, Weight

CARD = Card(
    title="Terminal velocity matching (TVM)",
    paper="Zhou et al. 2025, arXiv 2511.19797",
    needs=frozenset({Need.DATA, Need.JVP, Need.TARGET}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=1.0, live_jvp=1.0, stopped=1.0),
    threshold=0.40,
    quick_threshold=0.71,
    second_hand=("the loss", "decay 0.99", "stop-gradient at the end velocity"),
)


def tvm(
    student: NetworkMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    decay: float = 0.99,
    near: Derivative = Forward(),
    weight: Weight = Squared(),
    dropout: LabelDropout | None = None,
) -> Game:
    """Terminal velocity matching.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        decay: of the moving average that gives the velocity at the end.
        near: how the derivative in time is taken.
        weight: error -> loss.
        dropout: label dropout on the diagonal.
    """
    target = deepcopy(student).requires_grad_(False)
    start = Diagonal(student, None, interpolant, coupling, weight=weight, guidance=dropout)
    end = Lagrangian(student, target, interpolant, coupling, near=near, weight=weight)
    loss = Sum((Part("diagonal", start), Part("lagrangian", end)))
    return Game((student_move(student, loss, after=(Follow(target, student, decay),)),))
