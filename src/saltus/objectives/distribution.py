"""Distribution matching: the law of the student's samples moves towards the teacher's.

With X a sample of the student's, fresh noise n and the re-noised sample I_t = alpha_t n + beta_t X at the
level t, the error is

    X - sg( X - c Delta ),   Delta = v(I_t, t) - b(I_t, t),

b the teacher's velocity and v the critic's, which is to be that of the student's samples (a flow matching of
its own, on :class:`OnSamples`). A descent moves X along b - v. Nothing but X carries gradient; how it is
made, by one jump from the prior or otherwise, the ``maker`` says. c is 1, or a ``scale``.

Let q_t and p_t be the laws of I_t for the student's samples and for the teacher's data. At one place

    v - b = (alpha dbeta - dalpha beta)(alpha/beta) grad log(q_t/p_t),   linear: (1-t)/t grad log(q_t/p_t),

and dI_t/dX = beta_t, so the gradient of the inverse Kullback-Leibler divergence KL(q_t | p_t) in the
student's parameters is beta^2/(alpha (alpha dbeta - dalpha beta)) times E[Delta . dX], linear: t^2/(1-t).
The squared error drops this factor, as FreeFlow does (its gradient is 2 E[Delta . dX]); a weight by the
level, Scaled(Squared(), factor=...), restores it or makes it another paper's: those with score or denoiser
differences (Diff-Instruct, variational score distillation). :class:`PerResidual` is DMD's.

References:
    Tong et al., "Flow map distillation without data" (FreeFlow), 2025, arXiv 2511.19428, eqs. (10), (11).
    Luo et al., "Diff-Instruct", 2023, arXiv 2305.18455; Wang et al., "ProlificDreamer", 2023,
    arXiv 2305.16213; Yin et al., "One-step diffusion with distribution matching distillation", 2023,
    arXiv 2311.18828.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from saltus.guidance import GuidanceInput
from saltus.interpolants import Interpolant, Linear
from saltus.samples import Ends, FromPrior, Made, Maker, draw_samples, make_samples, renoised
from saltus.streams import Streams
from saltus.tensors import answered, like, sg
from saltus.times import Law, Uniform
from saltus.typing import Batch, Condition, Draws, FlowMap, Objective, Term, Velocity
from saltus.weights import Span, Squared, Weight, slope

__all__ = ["Compared", "Critic", "Distribution", "OnSamples", "PerResidual"]


class Critic(Protocol):
    """Who knows the velocity of the student's samples: a flow map that learns it, or something made of the
    student itself."""

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor: ...


class Compared(NamedTuple):
    """What the loss has looked at, without gradient.

    Attributes:
        sample: X, [n, ...].
        x: I_t, [n, ...].
        t: [n].
        b: the teacher's velocity there, [n, ...].
        v: the critic's.
    """

    sample: Tensor
    x: Tensor
    t: Tensor
    b: Tensor
    v: Tensor


@dataclass(frozen=True)
class PerResidual:
    """c = (alpha/det)/max( mean |X - D|, least ), D the teacher's denoiser, so that

        c Delta = (D_critic - D)/mean |X - D|,   det = alpha dbeta - dalpha beta,

    the mean over a row's dimensions: how far the two denoisers are apart beside how far the sample is from
    one, of one size at all levels.

    References:
        Yin et al., 2023, arXiv 2311.18828, eq. (8).
    """

    interpolant: Interpolant = Linear()
    least: float = 1e-5

    def __call__(self, compared: Compared) -> Tensor:
        at = self.interpolant(compared.t)
        det = at.alpha * at.dbeta - at.dalpha * at.beta
        x = compared.x
        data = (like(at.alpha, x) * compared.b - like(at.dalpha, x) * x) / like(det, x)
        size = (compared.sample - data).abs().flatten(1).mean(1)
        return at.alpha / (det * size.clamp(min=self.least))


@dataclass(frozen=True, eq=False)
class Distribution:
    """Move the student's samples from the critic's velocity towards the teacher's. Data-free, unless the
    maker begins at data.

    Attributes:
        student: the flow map that learns.
        teacher: the velocity b of the law that is wanted.
        critic: its velocity is that of the student's samples.
        interpolant: the path between prior and data.
        times: the law of the noise level t, 0 being noise, where the critic and the teacher are compared; a
            fraction of the samples' own time, which is 1 unless the maker says otherwise.
        weight: error -> loss; the rows' span is (t, t).
        guidance: strengths as an input of student, critic and teacher, or None.
        maker: how samples are made.
        scale: c, by what has been compared, [n]; None is 1.
    """

    student: FlowMap
    teacher: Velocity
    critic: Critic
    interpolant: Interpolant = Linear()
    times: Law = Uniform()
    weight: Weight = Squared()
    guidance: GuidanceInput | None = None
    maker: Maker = FromPrior()
    scale: Callable[[Compared], Tensor] | None = None

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The level t [B], stratified over the global batch, the noise n [B, ...], what the maker draws and
        the guidance's numbers."""
        t = self.times(rng.stratified("t")).clamp(0.0, 1.0)
        draws: Draws = {"t": t, "noise": rng.normal_like("noise", batch.x0)}
        return draws | draw_samples(self.maker, self.guidance, batch, rng)

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``distribution``."""
        t, n = draws["t"], draws["noise"]
        assert isinstance(t, Tensor) and isinstance(n, Tensor)
        made, cond = make_samples(self.maker, self.student, self.interpolant, self.guidance, batch, draws)
        with torch.no_grad():
            t = t * made.t
            x = renoised(self.interpolant, made.x, made.t, t, n)
            v = self.critic.velocity(x, t, cond)
            b = answered(self.teacher(x, t, cond), x)
            delta = v - b
            if self.scale is not None:
                delta = like(self.scale(Compared(made.x, x, t, b, v)), x) * delta
        error, span = delta + (made.x - sg(made.x)), Span(t, t)
        steep = partial(slope, self.weight, error, span)
        return {"distribution": Term(self.weight(error, span), slope=steep)}


@dataclass(frozen=True, eq=False)
class OnSamples:
    """Another objective with the student's samples for data, without gradient to the student.

    The batch's x1 becomes the sample and its x0 fresh noise, independent of the noise that made the sample.
    With a :class:`saltus.objectives.Diagonal` of a critic, the critic learns the velocity of the
    student's law.

    Attributes:
        student: the flow map that makes the samples.
        objective: what is minimised on them.
        interpolant: the path between prior and data.
        guidance: strengths as an input of the student and of who learns, or None.
        maker: how samples, at time 1, are made.
    """

    student: FlowMap
    objective: Objective
    interpolant: Interpolant = Linear()
    guidance: GuidanceInput | None = None
    maker: Maker = FromPrior()

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The noise n [B, ...], what the maker draws, the guidance's numbers, and under ``of`` what the
        objective draws."""
        n = rng.normal_like("noise", batch.x0)
        draws: Draws = {"noise": n, "of": self.objective.draw(replace(batch, x0=n), rng)}
        return draws | draw_samples(self.maker, self.guidance, batch, rng)

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The objective's own terms."""
        return self.objective(*self._seen(batch, draws))

    def ends(
        self, batch: Batch, draws: Draws, compared: bool = True
    ) -> tuple[Made, Tensor | None, Condition | None]:
        """The objective's own, where it makes samples that a discriminator can be shown: jumps, say."""
        if not isinstance(self.objective, Ends):
            raise ValueError(
                f"on samples: expected an objective whose jumps a discriminator can be shown, got "
                f"{type(self.objective).__name__}; Eulerian has some"
            )
        return self.objective.ends(*self._seen(batch, draws), compared)

    @torch.no_grad()
    def _seen(self, batch: Batch, draws: Draws) -> tuple[Batch, Draws]:
        """What the objective sees: samples for data, noise of their own."""
        n, of = draws["noise"], draws["of"]
        assert isinstance(n, Tensor) and isinstance(of, dict)
        made, cond = make_samples(self.maker, self.student, self.interpolant, self.guidance, batch, draws)
        return replace(batch, x0=n, x1=made.x, cond=cond), of
