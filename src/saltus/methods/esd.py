"""Eulerian self-distillation: a flow map from data alone, by making the end of a jump invariant as its
start moves along the velocity that the same network learns.

    L = eta     E | u_{t,t}(I_t) - dI_t |^2
      + (1-eta) E | d_s X_{s,t}(I_s) + sg( grad X_{s,t}(I_s) u_{s,s}(I_s) ) |^2,   s < t on the triangle

with eta = 0.75 the share of rows and the weight. By default the gradient passes through d_s X only and
the transport is a constant (the authors' "full" stop-gradient).

Use it to compare: on images the authors found every choice of stop-gradient unstable and report no
figure. The default repeats d_s X <- -grad X b, which takes one derivative in space an iteration and
amplifies what is rough: at the reference budget on the 2-D mixture it diverges, while
gradient=TARGET and DERIVATIVE, which act on both sides, converge; ``esd_convex`` is the latter.

References:
    Boffi, Albergo and Vanden-Eijnden, 2025, arXiv 2505.18825, eqs. (12), (14), (94), appendix G.2.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from saltus.autodiff import Derivative, Forward
from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.methods import Card, Cost, Method, Need, Sampler
from saltus.objectives import Diagonal, Eulerian, Part, Sum
from saltus.slots import Guided, Own
from saltus.typing import FlowMap, Gradient, Objective
from saltus.weights import Squared, Weight

CARD = Card(
    title="Eulerian self-distillation (ESD)",
    paper="Boffi, Albergo and Vanden-Eijnden 2025, arXiv 2505.18825",
    needs=frozenset({Need.DATA, Need.JVP}),
    sampler=Sampler.JUMPS,
    steps=(1, 2, 4, 8, 16),
    two_times=True,
    cost=Cost(live=0.75, live_jvp=0.25, stopped=0.25, stopped_jvp=0.25),
    threshold=None,
    quick_threshold=0.5,
)


def esd(
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
    """Eulerian self-distillation.

    Args:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        coupling: how noise and data are paired.
        eta: the share and the weight of the diagonal.
        gradient: TIME is the authors' "full" stop-gradient, DERIVATIVE their "convex", FULL their
            "none"; TARGET stops all but u.
        near: how the derivative is taken.
        weight: error -> loss.
        dropout: label dropout on the diagonal.
        guidance: learn the map of the guided velocity, its strength an input of the network; needs
            ``dropout``, which trains the unconditional velocity that guidance uses.
    """
    if guidance is not None and dropout is None:
        raise ValueError(
            f"esd: expected dropout beside guidance={guidance}, got none; LabelDropout(0.1) trains the "
            "velocity without labels that guidance uses"
        )
    own = Own() if guidance is None else Guided()
    diagonal = Diagonal(student, None, interpolant, coupling, weight=weight, guidance=dropout)
    jump = Eulerian(
        student,
        interpolant=interpolant,
        coupling=coupling,
        near=near,
        tangent=own,
        velocity=own,
        gradient=gradient,
        weight=weight,
        guidance=guidance,
    )
    return Sum((Part("diagonal", diagonal, eta, eta), Part("eulerian", jump, 1.0 - eta, 1.0 - eta)))


CONVEX = replace(CARD, cost=Cost(live=0.75, live_jvp=0.25, stopped=0.25), threshold=0.39)

VARIANTS = (Method("esd_convex", partial(esd, gradient=Gradient.DERIVATIVE), CONVEX),)
