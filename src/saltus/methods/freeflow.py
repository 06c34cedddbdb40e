"""FreeFlow: the flow map of a teacher from the teacher and nothing else, learned from noise alone.

Two losses share the rows of a batch of noise x0. Prediction, on ``share`` of them, makes jumps from the
prior end where the teacher b carries them (the Lagrangian identity at s = 0, everything but u stopped):

    e = u_{0,t}(x0) - sg( b_t(X_{0,t}(x0)) - t d_t u_{0,t}(x0) ),    |e|^2 / sg(|e|^2/D + c)^k.

What it gets wrong early it never sees again, for the states are its own. Correction, on the other rows,
matches the law of X_{0,1}(x0) with the teacher's: re-noised to I_r, at levels r that favour noise,

    Delta = v(I_r, r) - b(I_r, r),   gradient lambda E[Delta . d u_{0,1}],
    lambda = alpha mean|grad of prediction| / mean|Delta|  over the global batch,

with v the critic, a second network that learns the velocity of the student's samples by flow matching, a
move of its own in every step. ``freeflow_prediction`` is the first loss alone, without a critic.

With ``guidance`` the strength w is an input of student and critic, drawn for each row; the teacher is guided
between the times of ``prediction_interval`` and, in the correction, only where r >= 0.3.

Use it where there is a model and no data, or none that the model was trained on. It learns X_{0,t} only, so
it samples in one step from the prior. Student and critic should start from the teacher's weights if they
can; ``share=0``, the correction alone, must.

References:
    Tong et al., "Flow map distillation without data", 2025, arXiv 2511.19428, eqs. (7)-(11) (k = 1, 75 % of
    the rows for prediction, levels logit-normal with location 0.8 towards noise, guidance of the
    correction cut at noise levels above 0.7). In that paper t = 1 is noise; u points from noise to data as
    ours does.
"""

from __future__ import annotations

import inspect

from saltus.autodiff import Derivative, TwoPass
from saltus.games import Game, Move, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Method, Need, Sampler
from saltus.objectives import Diagonal, Distribution, Lagrangian, OnSamples, Part, Sum
from saltus.slots import Teacher
from saltus.states import PriorStates
from saltus.times import FromStart, Law, LogitNormal, Uniform
from saltus.typing import FlowMap, Gradient, Objective, Velocity
from saltus.weights import AdaptivePower, Squared, Weight

PREDICTION = Card(
    title="FreeFlow, prediction alone",
    paper="Tong et al. 2025, arXiv 2511.19428",
    needs=frozenset({Need.TEACHER, Need.JVP}),
    sampler=Sampler.JUMPS,
    steps=(1,),
    two_times=False,
    cost=Cost(live=1.0, stopped_jvp=1.0, teacher=1.0),
    threshold=0.28,
    quick_threshold=1.13,
    plain={"weight": Squared()},
    second_hand=("the law of t, uniform here", "c in the weight"),
)

CARD = Card(
    title="FreeFlow",
    paper="Tong et al. 2025, arXiv 2511.19428",
    needs=frozenset({Need.TEACHER, Need.CRITIC, Need.JVP}),
    sampler=Sampler.JUMPS,
    steps=(1,),
    two_times=False,
    cost=Cost(live=2.0, stopped=1.25, stopped_jvp=0.75, teacher=1.0),
    threshold=0.34,
    quick_threshold=1.07,
    plain={"weight": Squared()},
    second_hand=(
        "the law of t, uniform here",
        "c in the weight",
        "s.d. 1 of the levels' logit-normal",
        "the balance takes the prediction's gradient after its weight",
        "the critic moves once a step, at the student's batch size and learning rate",
        "the critic's levels, uniform here",
    ),
)


def freeflow_prediction(
    student: FlowMap,
    *,
    teacher: Velocity,
    interpolant: Interpolant = Linear(),
    times: Law = Uniform(),
    k: float = 1.0,
    near: Derivative = TwoPass(),
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
    prediction_interval: tuple[float, float] | None = None,
) -> Objective:
    """FreeFlow's prediction alone: Lagrangian distillation from the prior in target form.

    Args:
        student: the flow map of which X_{0,t} learns.
        teacher: the velocity b on the interpolant's path.
        interpolant: the path between prior and data.
        times: the law of the end t.
        k: exponent of the weight, 0 for the squared error.
        near: how the derivative in time is taken; it carries no gradient, so two passes need a third of
            the memory.
        weight: error -> loss; None is the paper's with its exponent k.
        guidance: learn the map of the guided teacher, its strength an input of the network.
        prediction_interval: the times between which the teacher is guided; None leaves it to the rows.

    Raises:
        ValueError: for an interval without ``guidance``, which nothing would read.
    """
    if guidance is None and prediction_interval is not None:
        raise ValueError(
            f"prediction_interval: expected none without guidance, got {prediction_interval}; give the "
            "teacher its own, CFG(b, w, interval=...), or the student strengths as an input, guidance=..."
        )
    return Lagrangian(
        student,
        interpolant=interpolant,
        states=PriorStates(),
        times=FromStart(times),
        near=near,
        end=Teacher(guided(teacher, guidance, prediction_interval)),
        gradient=Gradient.TARGET,
        weight=AdaptivePower(k, per_dimension=True) if weight is None else weight,
        guidance=guidance,
    )


def freeflow(
    student: NetworkMap,
    *,
    teacher: Velocity,
    critic: NetworkMap,
    interpolant: Interpolant = Linear(),
    times: Law = Uniform(),
    levels: Law = LogitNormal(-0.8),
    share: float = 0.75,
    alpha: float = 1.0,
    factor: float | None = None,
    k: float = 1.0,
    near: Derivative = TwoPass(),
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
    prediction_interval: tuple[float, float] | None = None,
    correction_interval: tuple[float, float] | None = (0.3, 1.0),
    critic_moves: int = 1,
) -> Game:
    """Prediction and correction: the student's move, then the critic's.

    Args:
        student: the flow map of which X_{0,t} learns.
        teacher: the velocity b on the interpolant's path.
        critic: learns the velocity of the student's samples; a network like the student's, and none that
            teaches, for it is trained.
        interpolant: the path between prior and data.
        times: the law of the prediction's end t.
        levels: the law of the correction's noise level r; it must come close to r = 0, all noise.
        share: of the rows for prediction; 0 is the correction alone. For 1 use freeflow_prediction.
        alpha: size of the correction's mean gradient beside the prediction's.
        factor: a number for lambda itself, instead of the balance that alpha asks for. Under accumulation
            each micro-batch has a balance of its own; with a fixed factor it is exact.
        k: exponent of the prediction's weight, 0 for the squared error.
        near: how the prediction's derivative is taken; it carries no gradient.
        weight: error -> loss in both; None is the paper's: exponent k there, squared in the correction.
        guidance: learn the map of the guided teacher, its strength an input of student and critic.
        prediction_interval: the times between which the teacher is guided; None leaves it to the rows.
        correction_interval: the same in the correction, the paper's more cautious at high noise; of a teacher
            with a strength and an interval of its own it says nothing.
        critic_moves: of the critic in a step, each after the first on noise of its own.
    """
    if teacher is critic or (inspect.ismethod(teacher) and teacher.__self__ is critic):
        raise ValueError("freeflow: expected a critic apart from the teacher, got the same network; copy it")
    if student is critic:
        raise ValueError("freeflow: expected a critic apart from the student, got the same network; copy it")
    if not 0.0 <= share < 1.0:
        raise ValueError(
            f"freeflow: expected a share in [0, 1), got {share}; freeflow_prediction is a share of 1"
        )
    if share == 0.0 and factor is not None:
        raise ValueError(f"factor: expected none where share is 0, got {factor}; it balances two parts")
    if critic_moves < 1:
        raise ValueError(
            f"freeflow: expected at least one move of the critic, got {critic_moves}; a critic that does not "
            "follow the student's samples corrects nothing, freeflow_prediction has none"
        )
    loss: Objective = Distribution(
        student,
        guided(teacher, guidance, correction_interval),
        critic,
        interpolant,
        levels,
        Squared() if weight is None else weight,
        guidance,
    )
    if share > 0.0:
        prediction = freeflow_prediction(
            student,
            teacher=teacher,
            interpolant=interpolant,
            times=times,
            k=k,
            near=near,
            weight=weight,
            guidance=guidance,
            prediction_interval=prediction_interval,
        )
        fixed = 1.0 if factor is None else factor
        rest = Part(
            "correction", loss, 1.0 - share, (1.0 - share) * fixed, balance=alpha if factor is None else None
        )
        loss = Sum((Part("prediction", prediction, share, share), rest))
    samples = OnSamples(student, Diagonal(critic, interpolant=interpolant), interpolant, guidance)
    follow = Move("critic", critic, samples, when=lambda step: critic_moves)
    return Game((student_move(student, loss), follow))


VARIANTS = (Method("freeflow_prediction", freeflow_prediction, PREDICTION),)
