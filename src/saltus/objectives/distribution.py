"""Distribution matching: the law of the student's one jump moves towards the teacher's.

With X = X_{0,1}(x0) = alpha_0 x0 + u, u = u_{0,1}(alpha_0 x0), fresh noise n and the re-noised sample
I_t = alpha_t n + beta_t X at the noise level t, the error is

    u - sg( u - Delta ),   Delta = v(I_t, t) - b(I_t, t),

b the teacher's velocity and v the critic's, which is to be that of the student's samples (a flow matching of
its own, on :class:`OnSamples`). A descent moves u along b - v. Nothing but u = X - alpha_0 x0 carries
gradient.

Let q_t and p_t be the laws of I_t for the student's samples and for the teacher's data. At one place

    v - b = (alpha dbeta - dalpha beta)(alpha/beta) grad log(q_t/p_t),   linear: (1-t)/t grad log(q_t/p_t),

and dI_t/dX = beta_t, so the gradient of the inverse Kullback-Leibler divergence KL(q_t | p_t) in the
student's parameters is beta^2/(alpha (alpha dbeta - dalpha beta)) times E[Delta . d u], linear: t^2/(1-t).
The squared error drops this factor, as FreeFlow does (its gradient is 2 E[Delta . d u]); a weight by the
level, Scaled(Squared(), factor=...), restores it or makes it another paper's: those with score or denoiser
differences (Diff-Instruct, variational score distillation, DMD without its normaliser).

References:
    Tong et al., "Flow map distillation without data" (FreeFlow), 2025, arXiv 2511.19428, eqs. (10), (11).
    Luo et al., "Diff-Instruct", 2023, arXiv 2305.18455; Wang et al., "ProlificDreamer", 2023,
    arXiv 2305.16213; Yin et al., "One-step diffusion with distribution matching distillation", 2023,
    arXiv 2311.18828.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from saltus.guidance import GuidanceInput
from saltus.interpolants import Interpolant, Linear, path
from saltus.states import PriorStates, locate
from saltus.streams import Streams
from saltus.tensors import answered, full_like_rows, sg
from saltus.times import Law, Uniform
from saltus.typing import Batch, Condition, Draws, FlowMap, Objective, Term, Velocity
from saltus.weights import Span, Squared, Weight, slope

__all__ = ["Distribution", "OnSamples"]


@dataclass(frozen=True, eq=False)
class Distribution:
    """Move the student's samples from the critic's velocity towards the teacher's. Data-free.

    Attributes:
        student: the flow map that learns; only u_{0,1} is asked.
        teacher: the velocity b of the law that is wanted.
        critic: its u_{t,t} is the velocity of the student's samples.
        interpolant: the path between prior and data.
        times: the law of the noise level t, 0 being noise; where the critic and the teacher are compared.
        weight: error -> loss; the rows' span is (t, t).
        guidance: strengths as an input of student, critic and teacher, or None.
    """

    student: FlowMap
    teacher: Velocity
    critic: FlowMap
    interpolant: Interpolant = Linear()
    times: Law = Uniform()
    weight: Weight = Squared()
    guidance: GuidanceInput | None = None

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The level t [B], stratified over the global batch, the noise n [B, ...], the guidance's numbers."""
        t = self.times(rng.stratified("t")).clamp(0.0, 1.0)
        draws: Draws = {"t": t, "noise": rng.normal_like("noise", batch.x0)}
        return draws if self.guidance is None else {**draws, "guidance": self.guidance.draw(rng)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``distribution``."""
        t, n = draws["t"], draws["noise"]
        assert isinstance(t, Tensor) and isinstance(n, Tensor)
        u, start, cond = _jump(self.student, self.interpolant, self.guidance, batch, draws)
        with torch.no_grad():
            x, _ = path(self.interpolant, n.to(u.dtype), start + u, t)
            delta = self.critic.velocity(x, t, cond) - answered(self.teacher(x, t, cond), x)
        error, span = delta + (u - sg(u)), Span(t, t)
        steep = partial(slope, self.weight, error, span)
        return {"distribution": Term(self.weight(error, span), slope=steep)}


@dataclass(frozen=True, eq=False)
class OnSamples:
    """Another objective with the student's samples X_{0,1}(x0) for data, without gradient to the student.

    The batch's x1 becomes the sample and its x0 fresh noise, independent of the noise that made the sample.
    With a :class:`saltus.objectives.Diagonal` of a critic, the critic learns the velocity of the
    student's law.

    Attributes:
        student: the flow map that makes the samples.
        objective: what is minimised on them.
        interpolant: the path between prior and data.
        guidance: strengths as an input of the student and of who learns, or None.
    """

    student: FlowMap
    objective: Objective
    interpolant: Interpolant = Linear()
    guidance: GuidanceInput | None = None

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The noise n [B, ...], the guidance's numbers, and under ``of`` what the objective draws."""
        n = rng.normal_like("noise", batch.x0)
        draws: Draws = {"noise": n, "of": self.objective.draw(replace(batch, x0=n), rng)}
        return draws if self.guidance is None else {**draws, "guidance": self.guidance.draw(rng)}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The objective's own terms."""
        n, of = draws["noise"], draws["of"]
        assert isinstance(n, Tensor) and isinstance(of, dict)
        with torch.no_grad():
            u, start, cond = _jump(self.student, self.interpolant, self.guidance, batch, draws)
        return self.objective(replace(batch, x0=n, x1=start + u, cond=cond), of)


def _jump(
    student: FlowMap, interpolant: Interpolant, guidance: GuidanceInput | None, batch: Batch, draws: Draws
) -> tuple[Tensor, Tensor, Condition | None]:
    """u_{0,1} at the prior states, these states, each [B, ...], and the rows' condition."""
    s = full_like_rows(0.0, batch.x0)
    state, cond = locate(PriorStates(), interpolant, guidance, batch, draws, s)
    return student.average(state.x, s, torch.ones_like(s), cond), state.x, cond
