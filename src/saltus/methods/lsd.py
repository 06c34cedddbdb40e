"""Lagrangian self-distillation: a flow map from data alone, by making the end of a jump move with the
velocity that the same network learns.

    L = eta     E | u_{t,t}(I_t) - dI_t |^2
      + (1-eta) E | d_t X_{s,t}(I_s) - sg u_{t,t}(X_{s,t}(I_s)) |^2,   s < t uniform on the triangle

eta = 0.75 is both the share of rows and the weight, as in the authors' code (their algorithm 1 adds the
two means instead). The gradient passes through the time derivative, a forward-mode product; the
velocity at the end of the jump is a constant.

Use it first: it is the most stable of the self-distillation losses and the best in the paper, it needs
no teacher, no moving average and no derivative in space, and any number of steps may be taken.

References:
    Boffi, Albergo and Vanden-Eijnden, "How to build a consistency model: learning flow maps via
    self-distillation", 2025, arXiv 2505.18825, eqs. (12), (13), (94).
"""

from __future__ import annotations

from saltus.autodiff import Derivative, Forward
from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Lagrangian, Part, Sum
from saltus.slots import Guided, Own
from saltus.typing import FlowMap, Gradient, Objective
from saltus.weights import Squared, Weight

CARD = Card(
    title="Lagrangian self-distillation (LSD)",
    paper="Boffi, Albergo and Vanden-Eijnden 2025, arXiv 2505.18825",
    needs=frozenset({Need.DATA, Need.JVP}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=0.75, live_jvp=0.25, stopped=0.25),
    threshold=0.40,
    quick_threshold=0.59,
)


def lsd(
    student: FlowMap,
    *,
    interpolant: Interpolant = Linear(),
    coupling: Coupling = Independent(),
    eta: float = 0.75,
    gradient: Gradient = Gradient.TIME,
    near: Derivative = Forward(),
    weight: Weight = Squared(),
    dropout: LabelDropout | None = None,
    guidance: GuidanceInput | None = None,
) -> Objective:
    """Lagrangian self-distillation.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        eta: the share and the weight of the diagonal.
        gradient: TIME is the paper's; TARGET needs no gradient through the derivative; FULL stops nothing.
        near: how the derivative in time is taken.
        weight: error -> loss; a LearnedLogVariance, the paper's choice on images, learns beside the
            student in the move that games.as_game makes.
        dropout: label dropout on the diagonal.
        guidance: learn the map of the guided velocity, its strength an input of the network; needs
            ``dropout``, which trains the unconditional velocity that guidance uses.
    """
    if guidance is not None and dropout is None:
        raise ValueError(
            f"lsd: expected dropout beside guidance={guidance}, got none; LabelDropout(0.1) trains the "
            "velocity without labels that guidance uses"
        )
    end = Own() if guidance is None else Guided()
    diagonal = Diagonal(student, None, interpolant, coupling, weight=weight, guidance=dropout)
    jump = Lagrangian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        near=near,
        end=end,
        gradient=gradient,
        weight=weight,
        guidance=guidance,
    )
    return Sum((Part("diagonal", diagonal, eta, eta), Part("lagrangian", jump, 1.0 - eta, 1.0 - eta)))
