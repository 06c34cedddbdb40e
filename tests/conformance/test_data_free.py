"""Learning from a teacher and the prior alone: the losses are those of their formulas, BOOT is what its paper
writes in signals, TBCM is sCM, and no method without data feels a data set.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from formulas import PROGRESS, Model, P
from systems import Perturbed, System, Undecided, first, gaussian, loss, mixture, pairs, streams, unfold
from test_where_gradients_flow import ROWS, difference, directions, gradient, students, sum_of
from torch import Tensor, nn

from saltus.games import Game, as_game
from saltus.interpolants import VP, Linear, Trigonometric
from saltus.legs import Slide
from saltus.maps import AverageVelocity
from saltus.methods import Need, discover
from saltus.methods.boot import InSignal, boot
from saltus.methods.endpoint import endpoint
from saltus.methods.on_policy import Identity, on_policy
from saltus.methods.tbcm import tbcm
from saltus.nn import MLP
from saltus.objectives import Lagrangian
from saltus.slots import Teacher
from saltus.states import PriorStates
from saltus.streams import Streams
from saltus.tangents import AngleTangents
from saltus.tensors import like
from saltus.times import Constant, FromStart, Uniform
from saltus.training import Precision, fit
from saltus.typing import Batch, Condition, Draws, Gradient, Objective
from saltus.weights import Span, Squared, TangentNormalised

METHODS = discover()
DATA_FREE = [name for name, method in METHODS.items() if Need.DATA not in method.card.needs]
EXACT = torch.zeros(16, dtype=torch.float64)
C = P[:8]


# What the losses are: value, and gradient with everything stopped held fixed.


def drawn(draws: Draws) -> tuple[Tensor, Tensor]:
    s, t = draws["s"], draws["t"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor)
    return s, t


def trajectory(m: Model, x0: Tensor, s: Tensor, group: int) -> Tensor:
    """Euler steps of the exact velocity from the first x0 of each group through the group's times."""
    out = torch.empty_like(x0)
    for row in range(0, len(x0), group):
        x = x0[row : row + 1]
        for k in range(row, row + group):
            out[k] = x[0]
            if k + 1 < row + group:
                x = x + (s[k + 1] - s[k]) * m.b(EXACT, x, s[k : k + 1])
    return out


def on_path(m: Model, p: Tensor, stopped: Tensor, x0: Tensor, s: Tensor, t: Tensor) -> Tensor:
    x = m.jump(stopped, x0, torch.zeros_like(s), s)
    h = like(t - s, x)
    return m.u(p, x, s, t) + h * m.in_end(p, x, s, t) - m.b(EXACT, m.jump(stopped, x, s, t), t)


def eulerian(m: Model, p: Tensor, stopped: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    b = m.b(EXACT, x, s)
    return m.u(p, x, s, t) - b - like(t - s, x) * m.along(stopped, x, s, t, b)


def two_jumps(m: Model, p: Tensor, x0: Tensor, s: Tensor) -> Tensor:
    zero = torch.zeros_like(s)
    return m.jump(p, m.jump(p, x0, zero, s / 2), s / 2, s)


def rotated(m: Model, p: Tensor, stopped: Tensor, x0: Tensor, t: Tensor, d: float) -> Tensor:
    """The finite Lagrangian error from the prior whose end turns by (pi/2) d, TrigFlow's DDIM step."""
    zero, mid = torch.zeros_like(t), t - d
    x_m = m.jump(stopped, x0, zero, mid)
    a = torch.tensor(torch.pi / 2 * d, dtype=torch.float64)
    b = m.b(EXACT, x_m, mid)
    x_t = torch.cos(a) * x_m + torch.sin(a) * (2.0 / torch.pi) * b
    u, u_m = m.u(stopped, x0, zero, t), m.u(stopped, x0, zero, mid)
    return m.u(p, x0, zero, t) - ((x_t - x_m) / d - like(mid, x0) * (u - u_m) / d)


def heun_end(m: Model, x: Tensor, steps: int) -> Tensor:
    for k in range(steps):
        s, t = (torch.full((len(x),), j / steps, dtype=torch.float64) for j in (k, k + 1))
        first = m.b(EXACT, x, s)
        x = x + (first + m.b(EXACT, x + first / steps, t)) / (2.0 * steps)
    return x


LATE = FromStart(Uniform(0.2, 1.0))
Reference = Callable[[Model, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
CASES: dict[str, tuple[Callable[[Perturbed, System], object], str, Reference]] = {
    "on-policy, lagrangian": (
        lambda u, y: on_policy(u, teacher=y.velocity),
        "lagrangian",
        lambda m, L, S, x0, s, t: on_path(m, L, S, x0, s, t),
    ),
    "on-policy, eulerian, two jumps": (
        lambda u, y: on_policy(u, teacher=y.velocity, identity=Identity.EULERIAN, jumps=2),
        "eulerian",
        lambda m, L, S, x0, s, t: eulerian(m, L, S, two_jumps(m, S, x0, s), s, t),
    ),
    "tbcm": (
        lambda u, y: tbcm(u, teacher=y.velocity, nodes=4, weight=Squared(), warm_up=None),  # type: ignore[arg-type]
        "eulerian",
        lambda m, L, S, x0, s, t: eulerian(m, L, S, trajectory(m, x0, s, 4), s, t),
    ),
    "endpoint": (
        lambda u, y: endpoint(u, teacher=y.velocity, solver_steps=3),
        "endpoint",
        lambda m, L, S, x0, s, t: m.u(L, x0, s, t) - (heun_end(m, x0, 3) - x0),
    ),
    "lagrangian, finite, a teacher's DDIM step": (
        lambda u, y: Lagrangian(
            u,
            interpolant=Trigonometric(),
            states=PriorStates(),
            times=LATE,
            step=Constant(0.1),
            leg=Slide(Teacher(y.velocity)),
            gradient=Gradient.TARGET,
        ),
        "lagrangian",
        lambda m, L, S, x0, s, t: rotated(m, L, S, x0, t, 0.1),
    ),
    "boot, derivative": (
        lambda u, y: unfolded(boot(u, teacher=y.velocity, step=None), "lagrangian"),
        "lagrangian",
        lambda m, L, S, x0, s, t: m.u(L, x0, s, t)
        + like(t, x0) * m.in_end(S, x0, s, t)
        - m.b(EXACT, m.jump(S, x0, s, t), t),
    ),
}


def unfolded(built: Objective, name: str) -> Objective:
    """A part of a sum."""
    return next(part.objective for part in vars(built)["parts"] if part.name == name)


@pytest.mark.parametrize("system", [gaussian(), mixture(spread=0.2)], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_the_formula(case: str, system: System) -> None:
    build, name, reference = CASES[case]
    student, _ = students(system)
    built = build(student, system)
    objective = built.moves[0].objective if isinstance(built, Game) else built
    assert isinstance(objective, Objective)
    batch, rng = pairs(system, ROWS, progress=PROGRESS)
    batch = replace(batch, x1=None)
    draws = objective.draw(batch, rng)
    terms = objective(batch, draws)
    assert list(terms) == [name]
    model, (s, t) = Model(system), drawn(draws)
    wanted = reference(model, P, P, batch.x0, s, t).square().sum(1)
    assert float((terms[name].value.detach() - wanted).abs().max()) <= 1e-9
    ways = directions(3)
    with torch.no_grad():
        moved = difference(lambda p: sum_of({name: reference(model, p, P, batch.x0, s, t)}), P, ways)
    found = ways @ gradient(student, loss(terms))
    assert float(found.abs().max()) > 1e-3
    assert float((found - moved).abs().max()) <= 1e-9, (found, moved)


# BOOT in signals.


def signal_residual(
    student: Perturbed, system: System, x0: Tensor, t: Tensor, d: float, exponential: bool
) -> Tensor:
    """(y_t - sg(step of the signal's ODE from y_m))/d by the paper's words: y = (X - alpha x0)/beta,
    l = log(beta/alpha), dy/dt = l' (f - y), with f the denoiser at X_{0,m}(x0).

    The step is exponential, y_m + (1 - exp(l_m - l_t)) (f - y_m), or Euler's in t, y_m + d l'_m (f - y_m).
    """
    path, zero, m = system.interpolant, torch.zeros_like(t), t - d
    here, there = path(m), path(t)
    x = like(path(zero).alpha, x0) * x0

    def y(c: Tensor, end: Tensor) -> Tensor:
        at = path(end)
        u = system.exact.average(x, zero, end) + torch.einsum("k,kbd->bd", c, student.basis(x, zero, end))
        return (x + like(end, x) * u - like(at.alpha, x) * x0) / like(at.beta, x)

    fixed = student.c.detach()
    x_m = like(here.alpha, x) * x0 + like(here.beta, x) * y(fixed, m)
    b = system.velocity(x_m, m)
    det = here.alpha * here.dbeta - here.dalpha * here.beta
    f = (like(here.alpha, x) * b - like(here.dalpha, x) * x_m) / like(det, x)
    rate = here.dbeta / here.beta - here.dalpha / here.alpha
    passed = torch.log(here.beta / here.alpha) - torch.log(there.beta / there.alpha)
    gain = -torch.expm1(passed) if exponential else d * rate
    return (y(student.c, t) - (y(fixed, m) + like(gain, x) * (f - y(fixed, m)))) / d


PATHS = [gaussian(), gaussian(Trigonometric()), gaussian(VP()), mixture()]


@pytest.mark.parametrize("system", PATHS, ids=["linear", "trigonometric", "vp", "mixture"])
def test_boot_in_average_velocities_is_boot_in_signals(system: System) -> None:
    """Value and gradient, on any interpolant: the step with the denoiser held fixed is DDIM."""
    student, d = Perturbed(system.exact, C), 0.04
    built = boot(
        student, teacher=system.velocity, interpolant=system.interpolant, times=Uniform(0.05, 0.99)
    )
    batch, rng = pairs(system, 40)
    batch = replace(batch, cond=None, x1=None)
    seen = {part.name: part for part in unfold(built, batch, built.draw(batch, rng))}
    jump = seen["lagrangian"]
    (term,) = jump.objective(jump.batch, jump.draws).values()
    _, t = drawn(jump.draws)
    wanted = signal_residual(student, system, jump.batch.x0, t, d, exponential=True).square().sum(1)
    scale = wanted.detach().clamp(min=1.0)
    assert float(((term.value - wanted).detach().abs() / scale).max()) <= 1e-9
    ours, theirs = (torch.autograd.grad(z.mean(), student.c)[0] for z in (term.value, wanted))
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-9
    start = seen["boundary"]
    (term,) = start.objective(start.batch, start.draws).values()
    zero = torch.zeros(len(start.rows), dtype=torch.float64)
    x = like(system.interpolant(zero).alpha, start.batch.x0) * start.batch.x0
    error = torch.einsum("k,kbd->bd", student.c, student.basis(x, zero, zero))  # u_{0,0} - b_0
    assert len(start.rows) == 5 and torch.allclose(term.value, error.square().sum(1), atol=1e-12)


def test_an_euler_step_in_signals_is_boot_up_to_the_step() -> None:
    """Why the step is exponential: Euler's in t differs by O(d), and by infinity at m = 0."""
    system = gaussian()
    student = Perturbed(system.exact, C)
    batch, rng = pairs(system, 40)
    t = 0.2 + 0.7 * rng.uniform("t")

    def distance(d: float) -> float:
        both = [signal_residual(student, system, batch.x0, t, d, e).detach() for e in (True, False)]
        return float((both[0] - both[1]).norm())

    assert distance(0.002) / distance(0.001) == pytest.approx(2.0, rel=0.05)


def test_signals_need_a_step() -> None:
    with pytest.raises(ValueError, match="give BOOT a step"):
        InSignal(Squared(), Linear())(torch.ones(1, 1), Span(torch.zeros(1), torch.ones(1)))


# TBCM is sCM.


def test_tbcm_weighs_like_scm_on_any_interpolant() -> None:
    """On TrigFlow's interpolant and on the linear one the loss of one jump is the same number, and so is its
    gradient in where the jump ends."""
    a = torch.linspace(0.1, 1.5, 9, dtype=torch.float64)  # the angle of the noise
    s, turned = torch.cos(a) / (torch.cos(a) + torch.sin(a)), 1.0 - a * 2.0 / torch.pi
    e = torch.stack([torch.linspace(-1.0, 2.0, 9).double(), torch.ones(9).double()], dim=1)  # dX/da
    losses, slopes = [], []
    for interpolant, start, per in (
        (Linear(), s, (torch.cos(a) + torch.sin(a)).square()),  # -da/ds
        (Trigonometric(), turned, torch.full_like(a, torch.pi / 2.0)),
    ):
        end = torch.zeros_like(e).requires_grad_()
        error = like(per, e) * e + (end - end.detach()) / like(1.0 - start, e)
        loss = AngleTangents(interpolant)(error, Span(start, torch.ones_like(s)))
        losses.append(loss.detach())
        slopes.append(torch.autograd.grad(loss.sum(), end)[0])
    g = like(torch.cos(a), e) * e
    n = g / (g.square().mean(1, keepdim=True).sqrt() + 0.1)
    assert torch.allclose(losses[0], n.square().sum(1) / torch.tan(a), rtol=1e-9)
    assert torch.allclose(losses[0], losses[1], rtol=1e-9)
    assert torch.allclose(slopes[1], 2.0 * n / like(torch.tan(a) * torch.sin(a), n), rtol=1e-9)
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-9)


def test_tbcm_by_default_has_the_weight_of_scm() -> None:
    """exp(-w) (s/(1 - s)) |n(s N e)|^2 + w for the linear interpolant, with w = 0 at the start; a row at s
    = 0 has no weight, and no log-variance either."""
    student = AverageVelocity(MLP((2,), width=8, depth=1)).double()
    system = gaussian()
    own, plain = (
        tbcm(student, teacher=system.velocity, weight=w, warm_up=None).moves[0].objective
        for w in (None, Squared())
    )
    batch, rng = pairs(system, 32)
    batch = replace(batch, cond=None)
    draws = own.draw(batch, rng)
    s, t = drawn(draws)
    errors: list[Tensor] = []

    class Kept(Squared):
        def __call__(self, error: Tensor, span: Span) -> Tensor:
            errors.append(error)
            return super().__call__(error, span)

    replace(plain, weight=Kept())(batch, draws)  # type: ignore[type-var]
    n = torch.sqrt(s.square() + (1.0 - s).square())
    value = TangentNormalised(0.1)(like(s * n, errors[0]) * errors[0], Span(s, t)) * s / (1.0 - s)
    own.weight.linear.weight.data += 0.1  # type: ignore[attr-defined]
    w = own.weight.log_variance(s, t).detach()  # type: ignore[attr-defined]
    found = own(batch, draws)["eulerian"].value
    assert torch.allclose(found, torch.where(s > 0.0, torch.exp(-w) * value + w, 0.0), atol=1e-9)
    assert int((s == 0.0).sum()) == 2 and float(w[s == 0.0].abs().min()) > 0.1


# No data, no teacher's gradient.


class Asked(nn.Module):
    """A teacher with a parameter that could take a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.scale * torch.tanh(x) * like(1.0 + t, x)


def played(name: str) -> tuple[AverageVelocity, Asked, Game]:
    """The method's players, away from the initial state in which much is hidden."""
    method, teacher = METHODS[name], Asked()
    heads = ("v",) if Need.HEAD in method.card.needs else ()
    student = AverageVelocity(MLP((2,), width=8, depth=1, classes=3, guidance=True, heads=heads)).double()
    for k, p in enumerate(student.parameters()):
        p.data = 0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype)
    critic = deepcopy(student)
    for p in critic.parameters():
        p.data = p.data + 0.1
    others = {"critic": critic, "discriminator": Undecided()}
    built = first(method.wired(student, teacher=teacher, **others, **method.card.plain))
    return student, teacher, as_game(built, student)


def batches(x1: Tensor | None) -> Callable[[Streams], Batch]:
    """Labelled, for the methods that guide."""
    return lambda rng: Batch(rng.normal("x0", 2), x1, Condition(label=rng.integers("label", 3)))


SETS = (None, torch.zeros(64, 2).double(), 50.0 + torch.arange(128.0).double().reshape(64, 2))
"""No data, and two sets that have nothing to do with the teacher."""


def test_there_are_methods_without_data() -> None:
    assert {"boot", "tbcm", "endpoint", "on_policy"} <= set(DATA_FREE)


@pytest.mark.parametrize("name", DATA_FREE)
def test_a_wrong_data_set_changes_no_bit_of_a_loss_or_gradient(name: str) -> None:
    """Of any player. Nor does any gradient reach the teacher."""
    found = []
    for x1 in SETS:
        _, teacher, game = played(name)
        rng = replace(streams(64), step=7)
        batch = batches(x1)(rng)
        numbers: list[Tensor] = []
        for move in game.moves:
            for p in (p for m in game.moves for p in m.module.parameters()):
                p.grad = None
            seen = batch if game.prepare is None else game.prepare(batch)
            value = loss(move.objective(seen, move.objective.draw(seen, rng)))
            value.backward()
            grads = [p.grad for p in move.module.parameters() if p.grad is not None]
            assert grads and teacher.scale.grad is None
            numbers += [value.detach(), *grads]
        found.append(numbers)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert float(found[0][0]) > 0.0


@pytest.mark.parametrize("name", DATA_FREE)
def test_a_wrong_data_set_changes_no_bit_of_a_training(name: str) -> None:
    trained = []
    for x1 in SETS:
        student, _, game = played(name)
        start = [p.detach().clone() for p in student.parameters()]
        for _ in fit(game, batches(x1), steps=4, seed=1, batch=64, precision=Precision.FLOAT32):
            pass
        trained.append([p.detach() for p in student.parameters()])
        assert any(not torch.equal(a, b) for a, b in zip(start, trained[-1], strict=True))
    for other in trained[1:]:
        assert all(torch.equal(a, b) for a, b in zip(trained[0], other, strict=True))


