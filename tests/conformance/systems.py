"""What the conformance tests share: exact systems, the exact map plus a perturbation, gradients row by row.

A student is u = u* + sum_i c_i phi_i with u* the exact average velocity and phi_i smooth functions of
(x, s, t). It is linear in c, so with c of shape [B, K] and each row knowing its own index (pooled in its
condition, which follows the rows through every split), one backward pass gives the gradient of every row's
loss in c.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from saltus.autodiff import derivative
from saltus.exact import Gaussian, MixtureMap1D, line_mixture
from saltus.games import Game, Stages
from saltus.interpolants import Interpolant, Linear, Trigonometric, path
from saltus.methods import Method
from saltus.objectives import Continued, OnFlow, OnStored, Renewed, Sum
from saltus.streams import Streams
from saltus.tensors import like
from saltus.typing import Batch, Condition, Draws, FlowMap, Objective, Output, Term, Velocity

__all__ = [
    "Basis",
    "ON_DIAGONAL",
    "Perturbed",
    "Seen",
    "System",
    "Towards",
    "Undecided",
    "few",
    "first",
    "gaussian",
    "loss",
    "means",
    "mixture",
    "noise",
    "objective_of",
    "pairs",
    "points",
    "row_gradients",
    "smooth",
    "streams",
    "systems",
    "together",
    "unfold",
    "wired",
]

Basis = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [B, D], s [B], t [B]) -> K functions, [K, B, D]."""


@dataclass(frozen=True, eq=False)
class System:
    """Data whose velocity and flow map are known in closed form."""

    name: str
    velocity: Velocity
    exact: FlowMap
    interpolant: Interpolant
    dim: int
    sample: Callable[[Streams], Tensor]


def gaussian(interpolant: Interpolant | None = None, shift: float = 0.0, scale: float = 1.0) -> System:
    """A correlated Gaussian in the plane; shift and scale make another law of it."""
    mean = torch.tensor([0.7, -0.5], dtype=torch.float64) + shift
    cov = scale * torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    path_ = interpolant or Linear()
    law = Gaussian(mean, cov, path_)
    return System(f"gaussian, {type(path_).__name__}", law, law.flow_map(), path_, 2, law.sample)


def mixture(interpolant: Interpolant | None = None, shift: float = 0.0, spread: float = 0.0) -> System:
    """Two Gaussians on the line, whose flow map F_t^-1 o F_s is far from affine.

    shift moves both; spread, added to their variances, makes the map gentler where their parts meet.
    """
    path_ = interpolant or Linear()
    law = line_mixture(path_)
    law = replace(law, means=law.means + shift, covs=law.covs + spread)
    return System(
        f"mixture, {type(path_).__name__}",
        lambda x, t, cond=None: law(x, t),
        MixtureMap1D(law),
        path_,
        1,
        lambda rng: law.sample(rng)[0],
    )


def systems() -> list[System]:
    """Both laws on both interpolants."""
    return [make(i) for make in (gaussian, mixture) for i in (Linear(), Trigonometric())]


ON_DIAGONAL = (True, True, True, True, False, False, False, False)
"""Which of the functions of :func:`smooth` do not vanish at s = t."""


def smooth(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Eight smooth, linearly independent functions; the last four vanish at s = t. [8, B, D]."""
    y, s, t = x + 0.5 * x.flip(1), like(s, x), like(t, x)
    h = t - s
    one = torch.ones_like(x)
    return torch.stack(
        [
            one,
            torch.tanh(x),
            torch.sin(y + t),
            torch.cos(y) * torch.cos(2.0 * s),
            h * one,
            h * torch.cos(y + s),
            h * t * torch.tanh(y),
            h * h * torch.sin(2.0 * x - t),
        ]
    )


@dataclass(frozen=True, eq=False)
class Towards:
    """The single function u_other - u*: at c = 1 the student is the exact flow map of another law."""

    exact: FlowMap
    other: FlowMap

    def __call__(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return (self.other.average(x, s, t) - self.exact.average(x, s, t)).unsqueeze(0)


class Perturbed(nn.Module):
    """u = u* + sum_i c_i phi_i, with a second head "v" = b_s + sum_i k_i phi_i.

    Args:
        exact: the exact map.
        c: [K], or [B, K] with row indices as what the condition has pooled.
        of_head: k, likewise.
        basis: phi.
    """

    def __init__(
        self, exact: FlowMap, c: Tensor, of_head: Tensor | None = None, basis: Basis = smooth
    ) -> None:
        super().__init__()
        self.exact, self.basis = exact, basis
        self.c = nn.Parameter(c.clone())
        self.of_head = nn.Parameter(torch.zeros_like(c) if of_head is None else of_head.clone())

    def _add(self, c: Tensor, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        phi = self.basis(x, s, t)
        if c.ndim == 1:
            return torch.einsum("k,kbd->bd", c, phi)
        assert cond is not None and cond.pooled is not None
        return torch.einsum("bk,kbd->bd", c[cond.pooled.squeeze(1)], phi)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u and the head."""
        v = self.exact.velocity(x, s) + self._add(self.of_head, x, s, t, cond)
        return Output(self.average(x, s, t, cond), {"v": v})

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{s,t}(x)."""
        if s is t:  # the diagonal's own formula is the same number, and cheap on the mixture
            return self.velocity(x, t, cond)
        return self.exact.average(x, s, t) + self._add(self.c, x, s, t, cond)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """u_{t,t}(x); beyond t = 1, where a network may hold a twin, that at 2 - t: the twin is as displaced
        as the velocity, which is the one that the samples of another law have."""
        t = torch.where(t > 1.0, 2.0 - t, t)
        return self.exact.velocity(x, t) + self._add(self.c, x, t, t, cond)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """X_{s,t}(x)."""
        return x + like(t - s, x) * self.average(x, s, t, cond)


class Undecided(nn.Module):
    """D = 0, the best discriminator where what is made has the law of what is real, though it can learn."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition | None = None, start: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """0, [B, 1]."""
        seen = x if start is None else x + start[0]
        return self.gain * torch.tanh(seen.flatten(1).sum(1, keepdim=True))


def streams(rows: int, seed: int = 0) -> Streams:
    """Streams in float64 for rows 0, 1, ..."""
    return Streams(seed=seed, index=torch.arange(rows), dtype=torch.float64)


def pairs(system: System, rows: int, seed: int = 0, progress: float = 0.0) -> tuple[Batch, Streams]:
    """Independent pairs (x0, x1) of one label; each row knows its index."""
    rng = streams(rows, seed)
    x0, x1 = rng.normal("x0", system.dim), system.sample(rng)
    place = torch.tensor(progress, dtype=torch.float64)
    index = torch.arange(rows)
    return Batch(x0, x1, Condition(label=torch.zeros_like(index), pooled=index.unsqueeze(1)), place), rng


def points(system: System, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States x_s on the law of I_s, and times s < m < t."""
    batch, rng = pairs(system, rows, seed)
    s, m, t = rng.uniform("times", 3).sort(dim=1).values.unbind(1)
    x, _ = path(system.interpolant, batch.x0, batch.data(), s)
    return x, s, m, t


def few(method: Method) -> dict[str, object]:
    """Options with which a method does with 16 rows."""
    return {"group": 8} if "group" in inspect.signature(method.build).parameters else {}


def first(built: Objective | Game | Stages) -> Objective | Game:
    """What is played first: of stages the first, which needs nothing of another."""
    return built.stages[0].build({}) if isinstance(built, Stages) else built


def objective_of(built: Objective | Game) -> Objective:
    """The student's objective."""
    return built.moves[0].objective if isinstance(built, Game) else built


def wired(method: Method, student: Perturbed, system: System, **options: object) -> Objective | Game:
    """A method on a perturbed map; its teacher is the exact velocity, its critic knows the student's own,
    which is the best one at the exact map, also that of another law; its discriminator is the best one at the
    exact map. Of stages, the first."""
    critic = Perturbed(system.exact, student.c.detach(), basis=student.basis)
    players: dict[str, Any] = {"teacher": system.velocity, "critic": critic, "discriminator": Undecided()}
    built: Objective | Game | Stages = method.wired(student, **players, **options)
    return first(built)


def loss(terms: dict[str, Term]) -> Tensor:
    """sum of weight * mean(value)."""
    total = sum(term.weight * term.value.mean() for term in terms.values())
    assert isinstance(total, Tensor)
    return total


@dataclass(frozen=True, eq=False)
class Seen:
    """One objective of a sum, with what it sees: its rows of the batch and its draws."""

    name: str
    objective: Objective
    batch: Batch
    draws: Draws
    rows: Tensor
    weight: float = 1.0
    paired: bool = False

    def times(self) -> tuple[Tensor, Tensor]:
        """(s, t) of its rows; s = t on the diagonal. On samples, those of the objective there; of samples
        that are judged as they are, those of the jump that made them."""
        draws = self.draws.get("of", self.draws)
        assert isinstance(draws, dict)
        if "t" not in draws:
            made, one = draws.get("maker", {}), torch.ones(len(self.rows), dtype=torch.float64)
            assert isinstance(made, dict)
            s = made.get("s", 0.0 * one)
            assert isinstance(s, Tensor)
            return s, one
        s, t = draws.get("s", draws["t"]), draws["t"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor)
        return s, t


def unfold(objective: Objective, batch: Batch, draws: Draws) -> list[Seen]:
    """The parts of a sum; anything else is its own only part. What pairs are made for is seen with them."""
    everyone = torch.arange(batch.x0.shape[0])
    paired = False
    while isinstance(objective, OnFlow | OnStored | Renewed | Continued):
        (batch, draws), objective, paired = objective.inside(batch, draws), objective.objective, True
    if not isinstance(objective, Sum):
        return [Seen("all", objective, batch, draws, everyone, paired=paired)]
    found = []
    for part in objective.parts:
        drawn, rows = draws[part.name], everyone
        assert isinstance(drawn, dict)
        if part.share is not None:
            assert isinstance(drawn["rows"], Tensor) and isinstance(drawn["of"], dict)
            rows, drawn = drawn["rows"], drawn["of"]
        found.append(Seen(part.name, part.objective, batch.rows(rows), drawn, rows, part.weight, paired))
    return found


def row_gradients(student: Perturbed, seen: Seen, rows: int) -> dict[str, Tensor]:
    """By term: the gradient of every row's loss in c and in the head's k, [n, 2K]."""
    for p in (student.c, student.of_head):
        p.data = p.data.expand(rows, p.shape[-1]).contiguous()
    found = {}
    for name, term in seen.objective(seen.batch, seen.draws).items():
        grads = torch.autograd.grad(
            term.value.sum(), (student.c, student.of_head), retain_graph=True, allow_unused=True
        )
        wide = torch.cat([torch.zeros_like(student.c) if g is None else g for g in grads], dim=1)
        found[name] = _crowds(seen, wide[seen.rows])
    return found


def together(objective: Objective) -> int:
    """How many rows in a row pull at each other, 1 for most."""
    fields = vars(objective)
    size: int = fields.get("group", fields.get("particles", 1))
    return size


def _crowds(seen: Seen, values: Tensor) -> Tensor:
    """Means over the rows of each group that pull at each other, [n/M, K]: those are independent."""
    size = together(seen.objective)
    return values.reshape(len(values) // size, size, -1).mean(1)


def noise(system: System, seen: Seen) -> Tensor:
    """Functions of a row whose expectation is zero by the definition of the velocity, [n, 16].

    phi_i . (dI_s - b_s) and phi_i . grad X (dI_s - b_s), at the row's x_s, s and t. Regressing a
    gradient on them takes away the noise that data velocities bring and leaves any bias. Of pairs that a flow
    made they have another expectation, and are left out.
    """
    if seen.paired:
        return torch.zeros(len(seen.rows), 16, dtype=torch.float64)
    s, t = seen.times()
    x, v = path(system.interpolant, seen.batch.x0, seen.batch.data(), s)
    w = v - system.velocity(x, s)
    if s is t:
        return _crowds(seen, (smooth(x, s, t)[:4] * w).sum(-1).T)
    _, pushed = derivative(lambda y: system.exact.average(y, s, t), (x,), (w,))
    carried = w + like(t - s, x) * pushed
    phi = smooth(x, s, t)
    return _crowds(seen, torch.cat([(phi * w).sum(-1), (phi * carried).sum(-1)]).T)


def means(values: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over rows of values [n, K] less their regression on controls [n, J] of mean zero, and
    its standard error, each [K]."""
    centred = controls - controls.mean(0)
    fit = torch.linalg.lstsq(centred, values - values.mean(0), driver="gelsd").solution
    left = values - controls @ fit
    return left.mean(0), left.std(0) / math.sqrt(values.shape[0])
