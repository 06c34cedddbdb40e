"""Multi-scale one-step decoding: one jump a stage of a flow whose first stages are coarse.

    L = E | X_{s,t}(y_s) - Y |^2/(t - s)^2,   s = i/K, t = (i+1)/K,   Y = ode( b, rise_i(y_s), s -> t ),

with y_s the state of a pair where the stage before has ended (at s = 0 the prior's noise), and b a teacher's
velocity on the pyramid's path: noise becomes a coarse picture, which rises to the next resolution, and so on
(:mod:`saltus.pyramid`). The rise is part of the jump that follows it, so K jumps make a sample. A network
may look at a state at the resolution of its stage alone, by its time s: what is finer is noise that plays no
part. The early jumps are then cheap, which is the point.

The teacher must know the pyramid's path: it learns by flow matching on the states of the same pyramid, which
is Diagonal(student, states=PyramidStates(pyramid)). With blocks all alike, the default, that path is the
linear interpolant, any velocity on it is a teacher, and this is knowledge distillation of K segments.

Use it for decoders, conditioned on what they decode, and wherever most of the path is spent on coarse
structure. For perceptual distances give ``weight`` (weights.InFeatures); the adversarial term of the paper
is left out.

References:
    "Accelerating diffusion decoders: multi-scale and one-step distillation", 2026, arXiv 2603.19570, by
    notes on the paper and its code; Jin et al., "Pyramidal flow matching", 2024, arXiv 2410.05954 (the
    path).
"""

from __future__ import annotations

from saltus.couplings import Coupling, Independent
from saltus.guidance import GuidanceInput, guided
from saltus.legs import RALSTON3, Tableau
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Endpoint
from saltus.pyramid import Climb, EdgeStates, Pyramid
from saltus.slots import Teacher
from saltus.times import Cells
from saltus.typing import FlowMap, Objective, Velocity
from saltus.weights import Squared, Weight

CARD = Card(
    title="Multi-scale one-step decoding (without perceptual and adversarial terms)",
    paper="arXiv 2603.19570, 2026",
    needs=frozenset({Need.DATA, Need.TEACHER}),
    sampler=Sampler.JUMPS,
    steps=(2,),
    two_times=False,
    cost=Cost(live=1.0, teacher=12.0),
    threshold=0.155,
    quick_threshold=0.26,
    bias="Runge-Kutta steps of the teacher over a stage: O(d^3) in the length d of a step",
    second_hand=("the loss and its terms", "stages of equal length, begun from data", "the teacher's steps"),
)


def multiscale(
    student: FlowMap,
    *,
    teacher: Velocity,
    coupling: Coupling = Independent(),
    pyramid: Pyramid = Pyramid((1, 1)),
    solver_steps: int = 4,
    tableau: Tableau = RALSTON3,
    weight: Weight = Squared(),
    guidance: GuidanceInput | None = None,
) -> Objective:
    """Distillation of a flow of several resolutions.

    Args:
        student: the flow map that learns; of it the jumps from edge to edge.
        teacher: the velocity on the pyramid's path.
        coupling: how noise and data are paired; it says where to look, not what to learn.
        pyramid: the stages; their number is that of the steps to sample with. The card is that of two. The
            default is for a teacher on the linear interpolant; Pyramid((2, 1)) begins at half the resolution.
        solver_steps: the teacher's steps in a stage.
        tableau: the method of each; none of its stages may be at the end of a step.
        weight: error -> loss.
        guidance: learn the map of the guided teacher, its strength an input of the network.
    """
    if 1.0 in tableau.c:
        raise ValueError(
            "multiscale: expected a tableau that asks for no velocity at the end of a step, where the next "
            f"stage begins, got one with c = {tableau.c}; use EULER or RALSTON3"
        )
    return Endpoint(
        student,
        coupling=coupling,
        states=EdgeStates(pyramid),
        times=Cells(len(pyramid.blocks)),
        leg=Climb(pyramid, Teacher(guided(teacher, guidance)), tableau, solver_steps),
        weight=weight,
        guidance=guidance,
    )
