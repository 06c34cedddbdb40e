"""Any callable as a Velocity of the student's path.

References:
    Song et al., "Score-based generative modeling through SDEs", 2021, arXiv 2011.13456 (noise, VP, VE).
    Salimans and Ho, "Progressive distillation", 2022, arXiv 2202.00512 (v).
    Karras et al., "Elucidating the design space" (EDM), 2022, arXiv 2206.00364 (denoisers, log sigma).
    Albergo, Boffi and Vanden-Eijnden, "Stochastic interpolants", 2023, arXiv 2303.08797 (change of
        interpolant).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from saltus.interpolants import Interpolant, Linear
from saltus.predictions import Converted, Prediction
from saltus.typing import Condition, FlowMap, Velocity

__all__ = ["Foreign", "teacher"]

_LINEAR = Linear()


@dataclass(frozen=True, eq=False)
class Foreign:
    """A model that is asked in its own way: by its own clock, with or without a condition.

    Attributes:
        model: (x, time, cond) -> [B, ...], or (x, time) -> [B, ...] if not ``conditional``.
        clock: our t [B], 0 at noise, to the model's time argument, [B]; None leaves it.
        conditional: whether the model takes a condition.
    """

    model: Callable[..., Tensor]
    clock: Callable[[Tensor], Tensor] | None = None
    conditional: bool = True

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        time = t if self.clock is None else self.clock(t)
        if self.conditional:
            return self.model(x, time, cond)
        if cond is not None and cond.given is not None:
            raise ValueError(
                "teacher: expected no label, because it takes no condition, got labels or tokens "
                f"{list(cond.given.shape)}; use a labelled teacher, or leave labels and guidance out"
            )
        return self.model(x, time)


def teacher(
    model: Callable[..., Tensor] | FlowMap,
    interpolant: Interpolant = _LINEAR,
    prediction: Prediction = Prediction.VELOCITY,
    *,
    onto: Interpolant = _LINEAR,
    clock: Callable[[Tensor], Tensor] | None = None,
    between: tuple[float, float] = (0.0, 1.0),
    conditional: bool = True,
) -> Velocity:
    """Any model as the Velocity of the student's path, exactly (:class:`saltus.predictions.Converted`).

    Noise says nothing of the data at t = 0, and a denoiser nothing of the noise at t = 1: such kinds
    need a ``between`` that leaves the end out. The bias is of first order: for an exact noise model of the
    reference mixture, asked on the line no earlier than t = 0.01, 0.001 or 0.0001, the velocity at t = 0
    is off by 1.7, 0.17 or 0.017 % (root mean square), and after 64 steps of Heun's method the samples by
    2e-4, 2e-5 or 2e-6; for a denoiser and the other end, about the same. But a network's own error is
    multiplied by 1/beta_t there (1/alpha_t for a denoiser), so the smallest ``low`` is not the best one.

    Args:
        model: (x, time, cond) -> prediction in the shape of x. A flow map, such as a finished run's, is
            asked for its velocity u_{t,t}; one that knows only jumps to t = 1 (a consistency model) has none.
        interpolant: the path that the model was trained on, in our times.
        prediction: what it predicts.
        onto: the student's path.
        clock: a time of ``interpolant`` (0 is noise), [B], to the model's own time argument: for instance
            ``lambda t: 1 - t``, an index ``lambda t: 999 * (1 - t)`` (``(999 * (1 - t)).round().long()`` for
            a model that looks it up in a table), or the logarithm of the noise level,
            ``lambda t: VE()(t).alpha.log()``.
        between: the times of ``interpolant``, in our t, outside of which the model is not asked.
        conditional: whether the model takes a condition; False calls model(x, time), and labels are refused.

    Raises:
        ValueError: if the prediction says nothing at an end of ``between``, or a flow map is given a
            prediction, a clock or no condition; or for something else than a Prediction or an interpolant.

    >>> import torch
    >>> from saltus.exact import Gaussian
    >>> from saltus.interpolants import Trigonometric
    >>> law = Gaussian(torch.tensor([1.0]), 0.25)
    >>> noise = lambda x, tau: (x - (1 - tau) * law.posterior_mean(x, 1 - tau)) / tau
    >>> b = teacher(noise, Linear(), Prediction.NOISE, clock=lambda t: 1 - t, between=(0.001, 1.0),
    ...     onto=Trigonometric(), conditional=False)
    >>> x, t = torch.tensor([[0.3]]), torch.tensor([0.5])
    >>> bool((b(x, t) - Gaussian(torch.tensor([1.0]), 0.25, Trigonometric())(x, t)).abs() < 1e-6)
    True
    """
    if not isinstance(prediction, Prediction):
        kinds = ", ".join(f"Prediction.{kind.name}" for kind in Prediction)
        raise ValueError(f"teacher: expected a prediction of {kinds}, got {prediction!r}")
    for name, path in (("interpolant", interpolant), ("onto", onto)):
        if isinstance(path, type) or not callable(path):
            raise ValueError(f"teacher: expected {name} to be an interpolant such as VP(), got {path!r}")
    if isinstance(model, FlowMap):
        if prediction is not Prediction.VELOCITY or clock is not None or not conditional:
            raise ValueError(
                f"teacher: expected a flow map as it is, got it with prediction={prediction}, clock={clock}, "
                f"conditional={conditional}; its velocity is u_(t,t) in our times, so leave these out"
            )
        asked: Velocity = model.velocity
    else:
        asked = model if clock is None and conditional else Foreign(model, clock, conditional)
    if prediction is Prediction.VELOCITY and onto == interpolant and between == (0.0, 1.0):
        return asked
    return Converted(asked, interpolant, prediction, onto, between)
