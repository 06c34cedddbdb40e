"""Drifting: samples move along a field that data draw and other samples repel.

The samples X_i of a group of N rows, one jump from the prior each, are regressed on X + V, stopped:

    e_i = X_i - sg( X_i + V_i ),   V_i = sum_k a_ik y_k - sum_k r_ik X_k,

y the group's data. The field is antisymmetric in the two crowds: it vanishes where they have one law, which
is all that it asks for; no noise is paired with any data. Of data and of samples the row's own one is left
out, so that both crowds have N - 1 members.

Rows act on each other where they have one label, so a group of several labels is as many smaller groups, each
with the law of its own label. Rows whose label is dropped are one more, in a whole group at once: their data
are of all labels, if the group's are. A row that is alone with its label drifts nowhere.

With a kernel k of the distance the field is, by its normalisation:

SEPARATE: a and r are k(X_i, .) over their own sums, so V = m_p(X_i) - m_q(X_i) with the kernel-weighted means
m of both laws (a mean shift). For Gaussian kernels of width h it is h^2 grad log of (k*p)/(k*q).
JOINT: A is the geometric mean of two softmaxes over both crowds, along rows and along columns (which makes
crowded places weigh less); a_ik = A_ik sum_l R_il and r_ik = R_ik sum_l A_il with R the samples' half of it.

References:
    Deng, Li, Li, Du and He, "Generative modeling via drifting", 2026, arXiv 2602.04770, algorithm 2 (JOINT)
    and its equation for V (SEPARATE); there a row's own data count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from saltus.guidance import LabelDropout
from saltus.interpolants import Interpolant, Linear
from saltus.radial import Laplace
from saltus.samples import FromPrior, Maker, draw_samples, make_samples
from saltus.streams import Streams
from saltus.tensors import sg, upcast
from saltus.typing import Batch, Condition, Draws, FlowMap, Term
from saltus.weights import Span, Squared, Weight

__all__ = ["Drift", "LogKernel", "Normalisation", "drift_field"]


class LogKernel(Protocol):
    """A kernel that knows its logarithm, distances -> values of the same shape."""

    def log(self, d: Tensor) -> Tensor: ...


class Normalisation(Enum):
    """How the kernel's values become weights; see the module."""

    SEPARATE = "separate"
    JOINT = "joint"


def drift_field(
    x: Tensor,
    data: Tensor,
    samples: Tensor,
    kernel: LogKernel,
    normalisation: Normalisation = Normalisation.JOINT,
    own: bool = False,
    alike: Tensor | None = None,
) -> Tensor:
    """V at x, [G, N, D]; 0 where nothing attracts or repels.

    Args:
        x: where, [G, N, D].
        data: what attracts, [G, P, D].
        samples: what repels, [G, Q, D].
        kernel: k.
        normalisation: how its values become weights.
        own: whether row i's own data and sample, those of the same number, are left out.
        alike: which data, and samples, act on a row, bool [G, N, N], N = P = Q; None is all.

    >>> x, data = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> drift_field(x, data, -data, Laplace(), Normalisation.SEPARATE)  # from -1 to 1
    tensor([[[2.]]])
    """
    logs = [kernel.log(_distances(x, crowd)) for crowd in (data, samples)]
    if own:
        same = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        logs = [log.masked_fill(same, -torch.inf) for log in logs]
    if alike is not None:
        logs = [log.masked_fill(~alike, -torch.inf) for log in logs]
    if normalisation is Normalisation.SEPARATE:
        attract, repel = (_shares(log, -1) for log in logs)
    else:
        joint = torch.cat(logs, dim=-1)
        weights = torch.sqrt(_shares(joint, -1) * _shares(joint, -2))
        near, away = weights[..., : data.shape[1]], weights[..., data.shape[1] :]
        attract, repel = near * away.sum(-1, keepdim=True), away * near.sum(-1, keepdim=True)
    return attract @ data - repel @ samples


def _shares(logs: Tensor, dim: int) -> Tensor:
    """The softmax, 0 where all is left out."""
    return logs.softmax(dim).masked_fill(logs == -torch.inf, 0.0)


def _alike(cond: Condition | None, group: int) -> Tensor | None:
    """Which rows of a group have one label, or else one text, bool [G, N, N]; None where there is neither.
    Those that were dropped are alike."""
    if cond is None or cond.given is None:
        return None
    if cond.label is not None:
        label = cond.label.reshape(-1, group)
        same = label.unsqueeze(2) == label.unsqueeze(1)
    else:
        text = upcast(cond.given).reshape(-1, group, cond.given[0].numel())
        same = torch.cdist(text, text, p=torch.inf) == 0.0
    if cond.null is None:
        return same
    free = cond.null.reshape(-1, group)
    one, other = free.unsqueeze(2), free.unsqueeze(1)
    return torch.where(one | other, one & other, same)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Of x [G, N, D] to y [G, M, D]: [G, N, M]."""
    return (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1).sqrt()


@dataclass(frozen=True, eq=False)
class Drift:
    """Move samples along the drift field towards the data.

    Attributes:
        student: the flow map that learns.
        interpolant: the path between prior and data.
        kernels: k, one field for each; their arguments are distances over the mean distance of the samples
            and data of a label in a group if ``relative``.
        normalisation: of the kernels' values.
        relative: see ``kernels``.
        levelled: whether each kernel's field is divided by its root mean square over a label's rows in the
            group, and their sum multiplied by the mean distance over sqrt(D): fields of all widths count
            alike, and the noise of a field never falls below its size. If not, fields are added as they are.
        group: N, rows of a group: neighbours by their number in the run, several of each label.
        features: phi, [n, ...] -> [n, ...]: where distances and the field are taken; None is the samples'
            own space. Its parameters, if any, take no gradient here.
        maker: how the samples are made.
        weight: error -> loss; the rows' span is (0, 1).
        guidance: label dropout, of whole groups, so that many rows act on each other; or None.
    """

    student: FlowMap
    interpolant: Interpolant = Linear()
    kernels: tuple[LogKernel, ...] = (Laplace((0.02,)), Laplace((0.05,)), Laplace((0.2,)))
    normalisation: Normalisation = Normalisation.JOINT
    relative: bool = True
    levelled: bool = True
    group: int = 64
    features: Callable[[Tensor], Tensor] | None = None
    maker: Maker = FromPrior()
    weight: Weight = Squared()
    guidance: LabelDropout | None = None

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ValueError(f"drift: expected at least 2 rows in a group, got {self.group}")

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        """The span's times, each [B], what the maker draws, and the guidance's numbers."""
        place = rng.places(self.group)
        zero = torch.zeros(len(place), dtype=rng.dtype, device=rng.device)
        draws: Draws = {"s": zero, "t": torch.ones_like(zero)}
        if self.guidance is not None:
            draws["guidance"] = self.guidance.draw(rng.together(self.group))
        return draws | draw_samples(self.maker, None, batch, rng)

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        """The term ``drift``."""
        s, t = draws["s"], draws["t"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor)
        made, cond = make_samples(self.maker, self.student, self.interpolant, self.guidance, batch, draws)
        phi = self.features or _same
        live = upcast(phi(made.x)).flatten(1)
        with torch.no_grad():
            real = upcast(phi(batch.data())).flatten(1)
            x, y = (z.reshape(-1, self.group, z.shape[1]) for z in (live, real))
            with torch.autocast(x.device.type, enabled=False):  # near the data's law the crowds cancel
                error = -self._field(x, y, _alike(cond, self.group)).flatten(0, 1)
        return {"drift": Term(self.weight(error + (live - sg(live)), Span(s, t)))}

    def _field(self, x: Tensor, y: Tensor, alike: Tensor | None = None) -> Tensor:
        """V of samples x and data y, [G, N, D] each, where rows act on those like them, bool [G, N, N]."""
        crowd = x.new_ones(x.shape[0], x.shape[1], x.shape[1]) if alike is None else alike.to(x.dtype)
        count = crowd.sum(-1)

        def mean(values: Tensor) -> Tensor:
            """Over the rows like each: [G, N] -> [G, N, 1]."""
            return ((crowd * values.unsqueeze(1)).sum(-1) / count).unsqueeze(2)

        far = (torch.cat([crowd, crowd], dim=2) * _distances(x, torch.cat([x, y], dim=1))).sum(-1)
        size = mean(far / (2.0 * count))
        unit = size.where(size > 0.0, 1.0) if self.relative else torch.ones_like(size)
        found = torch.zeros_like(x)
        for kernel in self.kernels:
            v = unit * drift_field(x / unit, y / unit, x / unit, kernel, self.normalisation, True, alike)
            if self.levelled:
                rms = mean(v.square().mean(2)).sqrt()
                v = v * size / (x.shape[-1] ** 0.5 * rms.clamp(min=torch.finfo(x.dtype).tiny))
            found = found + v
        return found


def _same(x: Tensor) -> Tensor:
    return x
