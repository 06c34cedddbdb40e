"""Diagonal distillation: a streaming video model whose later chunks take fewer steps.

The student makes a clip chunk by chunk, five steps for the first, then four, three and two, each chunk given
the one before as that one's last step saw it, noisy. The clip's law follows the teacher's, and so does that
of its motion, the differences of neighbouring frames:

    gradient E[ g . dX ] + lambda E[ phi(g) . d phi(X) ],   g = c ( v(I_t) - b(I_t) ),

X the clip, of which one jump of every chunk is live, the last one made, I_t the clip noised to the level t, b
the teacher and v the critic of whole clips, c DMD's normaliser, phi the differences. Without ``frames`` a
sample is one chunk, of the first number of steps, and there is no motion: phi = 0.

Sample with :func:`clips`, which takes the steps of training. The card's sampler makes all at once and knows
even steps alone: it is right at one step, of students of one chunk.

Use it on a student that generates already, one trained by regression on the teacher's trajectories; laws
alone are matched, which noise becomes which clip is left open. The student's network sees the frames before
as tokens of its condition; teacher and critic see whole clips.

References:
    "Streaming autoregressive video generation via diagonal distillation", 2026, arXiv 2603.09488 (steps
    5, 4, 3, 2, 2, lambda = 0.2, strength 3: CFG(b, 3.0)). In the code that was released the motion's gradient
    is taken of a constant and moves nothing; this is the term as it is described. With one chunk, one step
    and lambda = 0 it is distribution matching distillation without its regression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.games import Game, Move, student_move
from saltus.guidance import GuidanceInput, guided
from saltus.interpolants import Interpolant, Linear
from saltus.maps import NetworkMap
from saltus.methods import Card, Cost, Need, Sampler
from saltus.objectives import Diagonal, Distribution, OnSamples, Part, PerResidual, Sum
from saltus.samples import Chunks, FixedStops, Renoising, as_tokens
from saltus.streams import Streams
from saltus.times import Law, Shifted, Uniform, shifted
from saltus.typing import Batch, Condition, FlowMap, Velocity
from saltus.weights import Differences, Span, Squared, Weight

CARD = Card(
    title="Diagonal distillation",
    paper="Diagonal distillation 2026, arXiv 2603.09488",
    needs=frozenset({Need.TEACHER, Need.CRITIC}),
    sampler=Sampler.RENOISE,
    steps=(1,),
    two_times=False,
    cost=Cost(live=4.0, stopped=4.0, teacher=1.0),
    threshold=0.14,
    quick_threshold=0.2,
    bias="a law, not a map: every map to the teacher's law is a fixed point",
    plain={"weight": Squared(), "steps": (1,), "critic_moves": 3, "levels": Uniform(), "normalised": False},
    second_hand=(
        "moves of the critic, its levels, the shift and the frames of a chunk: self forcing's",
        "what a chunk sees: its predecessor's noisy frames instead of the network's keys and values there",
        "the card's sampler: one step of all at once; clips makes them as training does",
    ),
    law_alone=True,
)


@dataclass(frozen=True)
class WithMotion:
    """inner(e) + factor inner(phi e), phi the differences of frames."""

    inner: Weight
    factor: float

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        return self.inner(error, span) + self.factor * self.inner(Differences()(error), span)


def diagonal(
    student: NetworkMap,
    *,
    teacher: Velocity,
    critic: NetworkMap,
    interpolant: Interpolant = Linear(),
    steps: tuple[int, ...] = (5, 4, 3, 2, 2),
    frames: int | None = None,
    shift: float = 5.0,
    see: Callable[[Condition | None, Tensor], Condition] = as_tokens,
    levels: Law = Shifted(Uniform(), 5.0),
    motion: float = 0.2,
    normalised: bool = True,
    critic_moves: int = 5,
    weight: Weight | None = None,
    guidance: GuidanceInput | None = None,
) -> Game:
    """Diagonal distillation.

    Args:
        student: the flow map of chunks, of which X_{s,1} learns.
        teacher: the velocity b of whole clips.
        critic: the flow map of whole clips that learns the velocity of the student's; start it from the
            teacher's weights.
        interpolant: the path between prior and data.
        steps: of each chunk; the last number is for all that follow.
        frames: of a chunk, 3 in self forcing; the first axis of a row counts them. None for data that are no
            clips: the whole of a sample.
        shift: of the clock on which the steps are even.
        see: how the frames before enter the student's condition.
        levels: the law of the level t.
        motion: lambda, where there are frames.
        normalised: whether c is DMD's normaliser; else it is 1. On the line it has no mean.
        critic_moves: of the critic in a step, each after the first on noise of its own.
        weight: error -> loss; None is the squared error of clip and, where there are frames, motion.
        guidance: learn the law of the guided teacher, its strength an input of student and critic.
    """
    if critic_moves < 1:
        raise ValueError(f"diagonal: expected at least one move of the critic, got {critic_moves}")
    maker = _maker(steps, frames, shift, see)
    law = Distribution(
        student,
        guided(teacher, guidance),
        critic,
        interpolant,
        levels,
        weight or (Squared() if frames is None else WithMotion(Squared(), motion)),
        guidance,
        maker,
        PerResidual(interpolant) if normalised else None,
    )
    samples = OnSamples(student, Diagonal(critic, interpolant=interpolant), interpolant, guidance, maker)
    moved = student_move(student, Sum((Part("distribution", law, weight=0.5),)))
    return Game((moved, Move("critic", critic, samples, when=lambda step: critic_moves)))


def _maker(
    steps: tuple[int, ...],
    frames: int | None,
    shift: float,
    see: Callable[[Condition | None, Tensor], Condition],
) -> Chunks | Renoising:
    chunks = Chunks(steps, 1 if frames is None else frames, shift, see)
    if frames is not None:
        return chunks
    even = torch.arange(steps[0], dtype=torch.float64) / steps[0]
    return Renoising(FixedStops(tuple(shifted(even, shift).tolist())))


@torch.no_grad()
def clips(
    student: FlowMap,
    x0: Tensor,
    rng: Streams,
    cond: Condition | None = None,
    *,
    interpolant: Interpolant = Linear(),
    steps: tuple[int, ...] = (5, 4, 3, 2, 2),
    frames: int | None = None,
    shift: float = 5.0,
    see: Callable[[Condition | None, Tensor], Condition] = as_tokens,
) -> Tensor:
    """Samples as training makes them, of which every chunk takes all its steps, [B, ...].

    Args:
        student: what :func:`diagonal` trained, with these same options.
        x0: standard normal noise, [B, ...].
        rng: the rows' streams.
        cond: what is asked for.
        interpolant, steps, frames, shift, see: as in training.
    """
    maker, batch = _maker(steps, frames, shift, see), Batch(x0, cond=cond)
    draws = maker.draw(batch, rng)
    leave = draws.get("exit")
    if isinstance(leave, Tensor):
        draws["exit"] = torch.full_like(leave, steps[0] - 1 if frames is None else 1.0)
    return maker(student, interpolant, batch, draws).x
