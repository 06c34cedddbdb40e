"""A few questions to a teacher whose answers are known, asked once before training.

If x0 ~ N(0, I) is independent of x1, a state of the prior says nothing of the data and a state of the data
nothing of the prior: E[x1 | I_0] = E[x1] and E[x0 | I_1] = 0. So whatever the data,

    b_0(x) = dalpha_0 x/alpha_0 + dbeta_0 E[x1],      b_1(x) = dbeta_1 x/beta_1.

On the line the slope of b_0 on the state is -1 and that of b_1 is 1. A flipped sign swaps them, a clock that
runs backwards too, a clock that hardly moves keeps one of them at both ends; a noise prediction taken for a
velocity has the slopes 1 and 0, a data prediction 0 and 1. Both at once, a clock that runs backwards and a
flipped sign (the velocity from data to noise), has the right slopes but gives E[x1] at the wrong end.

What cannot be told: that last mistake if the data are centred (for N(0, C) data it is exactly the teacher of
N(0, C^-1) data); a wrong sign on a path with dalpha_0 = 0, such as the trigonometric one, unless E[x1] is
large; a teacher of the right form for other data; one that was trained on another interpolant with the same
ends; labels in another order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saltus.interpolants import Coefficients, Interpolant, Linear
from saltus.streams import Streams
from saltus.tensors import full_like_rows
from saltus.typing import Condition, Velocity

__all__ = ["probe"]

_LINEAR = Linear()
_STEPS = 8
_ROWS = 32
_ALLOWED = 0.75
"""The line's slopes are -1 and 1 and a wrong one 0 or the other: this leaves room for a short training."""
_CAUSES = (
    "its sign may be flipped (use -model), its time may run backwards (clock=lambda t: 1 - t) or over "
    "another range (clock=lambda t: 1000 * t), or it predicts something else (prediction=Prediction.NOISE, "
    "say); for a teacher of dependent pairs (reflow, optimal transport) leave this out with independent=False"
)


@torch.no_grad()
def probe(
    velocity: Velocity,
    shape: tuple[int, ...],
    rng: Streams | None = None,
    cond: Condition | None = None,
    *,
    interpolant: Interpolant = _LINEAR,
    independent: bool = True,
    guided: bool = False,
) -> None:
    """Ask a teacher at both ends of time and along eight Euler steps of its own; a dozen calls or so.

    Args:
        velocity: on the student's path, b_t(x).
        shape: of one sample.
        rng: the rows to ask about, their device and dtype; 32 in float32, or as many as ``cond`` has.
        cond: of those rows.
        interpolant: the student's path.
        independent: whether the teacher learned from independent pairs; False asks no slopes.
        guided: whether it must depend on the label, as guidance needs.

    Raises:
        ValueError: for a teacher that raises, returns something else than finite numbers in the shape,
            dtype and device of x, answers one question in two ways, has the wrong slopes (see the module), or
            ignores labels though guided.

    >>> from saltus.exact import reference_mixture
    >>> probe(reference_mixture(), (2,))
    >>> probe(lambda x, t, cond=None: -reference_mixture()(x, t), (2,))
    Traceback (most recent call last):
    ...
    ValueError: teacher: expected a slope of b_0(x) on x near -1, got 1; its sign ...
    """
    if rng is None:
        given = None if cond is None else cond.given
        rng = Streams(0, index=torch.arange(_ROWS if given is None else len(given)))
    start, end = _ends(interpolant)
    x = float(start.alpha) * rng.normal("probe", *shape)
    first = _asked(velocity, x, 0.0, cond)
    if not torch.equal(first, _asked(velocity, x, 0.0, cond)):
        raise ValueError(
            "teacher: expected the same answer to the same question, got two; dropout may be on, so "
            "call eval() on it first, or it draws noise of its own"
        )
    z, last = _walk(velocity, x, first, cond)
    if independent:
        mirrored = _asked(velocity, -x, 0.0, cond)
        _slope(0, x, 0.5 * (first - mirrored), float(start.dalpha / start.alpha), start)
        data = float(end.dbeta / end.beta) * z
        if math.isfinite(float(end.dalpha)):
            _slope(1, z, last, float(end.dbeta / end.beta), end)
            _orientation(0.5 * (first + mirrored), last - data, start, end)
        _moves(first, _asked(velocity, x, 1.0, cond), x)
    if guided:
        _labelled(velocity, z, cond)


def _ends(interpolant: Interpolant) -> tuple[Coefficients, Coefficients]:
    """The coefficients at t = 0 and at t = 1, 0-d."""
    c = interpolant(torch.tensor([0.0, 1.0], dtype=torch.float64))
    return Coefficients(*(v[0] for v in c)), Coefficients(*(v[1] for v in c))


def _asked(velocity: Velocity, x: Tensor, t: float, cond: Condition | None) -> Tensor:
    """b_t(x), or a ValueError that says what is wrong with it and at which t."""
    try:
        b = velocity(x, full_like_rows(t, x), cond)
    except Exception as wrong:
        raise ValueError(
            f"teacher: expected a velocity at t = {t:g}, got {type(wrong).__name__}: {wrong}; it is "
            "asked as model(x [B, ...], t [B] in [0, 1], cond): give teacher a clock or conditional=False"
        ) from wrong
    if not isinstance(b, Tensor):
        raise ValueError(
            f"teacher: expected a tensor like x, got {type(b).__name__} at t = {t:g}; wrap the model in a "
            "function that returns its prediction alone"
        )
    if (b.shape, b.dtype, b.device) != (x.shape, x.dtype, x.device):
        want, got = (f"{v.dtype} of shape {list(v.shape)} on {v.device}" for v in (x, b))
        raise ValueError(
            f"teacher: expected {want}, like x, got {got} at t = {t:g}; wrap the model in a function that "
            "returns that"
        )
    bad = ~torch.isfinite(b)
    if bool(bad.any()):
        row = int(bad.reshape(len(b), -1).any(dim=1).nonzero()[0])
        raise ValueError(
            f"teacher: expected finite numbers, got {int(bad.sum())} NaN or infinite ones of {b.numel()} at "
            f"t = {t:g}, first in row {row}; keep that time away from it with between=(low, high), or change "
            "its clock"
        )
    return b


def _walk(velocity: Velocity, x: Tensor, first: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor]:
    """Where eight Euler steps from x lead, and the velocity there at t = 1."""
    b = first
    for i in range(_STEPS):
        x = x + b / _STEPS
        b = _asked(velocity, x, (i + 1) / _STEPS, cond)
    return x, b


def _slope(t: int, x: Tensor, b: Tensor, expected: float, c: Coefficients) -> None:
    rate = torch.maximum(c.dalpha.abs(), c.dbeta.abs()) / torch.hypot(c.alpha, c.beta)
    found = float((x.double() * b.double()).sum() / x.double().square().sum())
    if not abs(found - expected) <= _ALLOWED * max(1.0, float(rate)):
        raise ValueError(
            f"teacher: expected a slope of b_{t}(x) on x near {expected:.3g}, got {found:.3g}; {_CAUSES}"
        )


def _orientation(at_prior: Tensor, at_data: Tensor, start: Coefficients, end: Coefficients) -> None:
    """E[x1] must be what the prior's end gives, [B, ...], and E[x0] = 0 what the data's end gives."""
    rate = float(start.dbeta / end.dalpha.abs())
    if not 0.2 < rate < 5.0:  # no path in common use but the line and the quarter circle
        return
    data, noise = (v.double().mean(dim=0).square().mean().sqrt() for v in (at_prior, at_data))
    data, noise = data / float(start.dbeta), noise / float(end.dalpha.abs())
    if float(noise) > max(2.0 * float(data), 0.25):
        raise ValueError(
            f"teacher: expected E[x0 | x1] near 0 from b_1 and E[x1] from b_0, got root mean squares "
            f"{float(noise):.3g} and {float(data):.3g}; it may be the velocity from data to noise: use "
            "lambda x, t, cond: -model(x, 1 - t, cond), or leave this question out with independent=False"
        )


def _moves(first: Tensor, last: Tensor, x: Tensor) -> None:
    size = max(float(first.norm()), float(last.norm()))
    moved = float((last - first).norm())
    if size > 0.05 * float(x.norm()) and moved < 0.05 * size:
        raise ValueError(
            f"teacher: expected a velocity that changes between t = 0 and t = 1, got one that moves by "
            f"{moved / size:.2%} of itself; {_CAUSES}"
        )


def _labelled(velocity: Velocity, x: Tensor, cond: Condition | None) -> None:
    if cond is None or cond.given is None:
        raise ValueError(
            "teacher: expected labels to guide by, got none; give probe a condition with labels, or leave "
            "guidance out"
        )
    own, none = (_asked(velocity, x, 0.5, c) for c in (cond, cond.nulled()))
    size, apart = float(own.norm()), float((own - none).norm())
    if apart <= 1e-5 * size:
        raise ValueError(
            "teacher: expected a velocity that depends on the label, got the same with and without; "
            "an unlabelled teacher cannot be guided by labels: leave guidance out or use AutoGuidance"
        )
