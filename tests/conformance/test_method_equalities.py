"""Methods against the formulas of their papers, in the papers' own time and variables, value and gradient;
and the facts that connect methods with each other. The student is a perturbed map: nothing is at an optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from systems import (
    Perturbed,
    Seen,
    System,
    gaussian,
    loss,
    objective_of,
    pairs,
    streams,
    unfold,
)
from torch import Tensor, nn

from saltus.autodiff import derivative
from saltus.interpolants import Linear, Trigonometric, path
from saltus.legs import Jump
from saltus.maps import EDM, AverageVelocity
from saltus.maps import Trigonometric as TrigonometricMap
from saltus.methods import discover
from saltus.methods.alpha_flow import alpha_flow
from saltus.methods.consistency_training import consistency_training
from saltus.methods.ect import ect
from saltus.methods.improved_mean_flow import improved_mean_flow
from saltus.methods.lsd import lsd
from saltus.methods.mean_flow import mean_flow
from saltus.methods.psd import psd
from saltus.methods.scm import scm
from saltus.methods.shortcut import shortcut
from saltus.objectives import Composition, Eulerian
from saltus.tensors import like
from saltus.times import Constant, Fraction, LogitNormal, Midpoint
from saltus.typing import Condition, FlowMap, Gradient, Objective, Output
from saltus.weights import AdaptivePower, Squared

ROWS = 40
C = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
SYSTEM = gaussian()


def student_of(system: System = SYSTEM) -> Perturbed:
    return Perturbed(system.exact, C, C.flip(0))


class Net(nn.Module):
    """A small smooth network in float64, not zero at the start, with a second head."""

    blocks = nn.ModuleList()

    def __init__(self, dim: int = 2, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(dim + 2, width)
        self.leave = nn.Linear(width, 2 * dim)
        self.double()

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u and the head v."""
        seen = torch.cat([x, s.unsqueeze(1), (t - s).unsqueeze(1)], dim=1)
        u, v = self.leave(torch.tanh(self.enter(seen))).chunk(2, dim=1)
        return Output(u, {"v": v})


def parts(built: object, progress: float = 0.3, seed: int = 0, rows: int = ROWS) -> dict[str, Seen]:
    objective = objective_of(built)  # type: ignore[arg-type]
    batch, rng = pairs(SYSTEM, rows, seed, progress)
    batch = replace(batch, cond=None)
    return {seen.name: seen for seen in unfold(objective, batch, objective.draw(batch, rng))}


def assert_same(seen: Seen, wanted: Tensor, module: nn.Module, of: str, factor: float = 1.0) -> None:
    """The term's values, and its gradient in the module's parameters up to a factor, are ``wanted``'s."""
    value = seen.objective(seen.batch, seen.draws)[of].value
    if factor == 1.0:
        assert torch.allclose(value, wanted, rtol=1e-10, atol=1e-12)
    assert_same_gradient(value.mean(), wanted.mean(), module, factor)


def assert_same_gradient(value: Tensor, wanted: Tensor, module: nn.Module, factor: float = 1.0) -> None:
    ours, theirs = (
        torch.autograd.grad(v, list(module.parameters()), allow_unused=True, retain_graph=True)
        for v in (value, wanted)
    )
    flat = [torch.cat([g.flatten() for g in gs if g is not None]) for gs in (ours, theirs)]
    assert flat[0].shape == flat[1].shape
    assert float(flat[1].norm()) > 1e-4
    assert torch.allclose(flat[0], factor * flat[1], rtol=1e-9, atol=1e-11 * float(flat[1].abs().max()))


def drawn(seen: Seen) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_s, dI_s, s, t."""
    s, t = seen.times()
    x, v = path(Linear(), seen.batch.x0, seen.batch.data(), s)
    return x, v, s, t


def sq(e: Tensor) -> Tensor:
    return e.square().sum(1)


# MeanFlow and its improvement, in their time: t = 1 is noise, v = e - x


def meanflow_of(student: FlowMap) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """u(z, r, t) in MeanFlow's convention: z_r = z_t - (t - r) u, so u points from data to noise."""
    return lambda z, r, t: -student.average(z, 1.0 - t, 1.0 - r)


@pytest.mark.parametrize("p", [0.0, 0.75, 1.0])
def test_mean_flow_is_the_official_loss(p: float) -> None:
    """u - sg( v - (t - r) du/dt ), du/dt = jvp(u, (z, r, t), (v, 0, 1)), over sg(|.|^2 + c)^p."""
    student = student_of()
    seen = parts(mean_flow(student, weight=AdaptivePower(p, 1e-2)))["eulerian"]
    x, _, s, t = drawn(seen)
    e, data = seen.batch.x0, seen.batch.data()
    t_mf, r_mf, v = 1.0 - s, 1.0 - t, e - data
    assert torch.allclose(x, (1 - t_mf).unsqueeze(1) * data + t_mf.unsqueeze(1) * e)
    u_of = meanflow_of(student)
    u, du = derivative(u_of, (x, r_mf, t_mf), (v, torch.zeros_like(s), torch.ones_like(s)))
    error = u - (v - like(t_mf - r_mf, x) * du).detach()
    assert_same(seen, sq(error) / (sq(error).detach() + 1e-2) ** p, student, "eulerian")


def test_mean_flow_on_its_diagonal_is_flow_matching() -> None:
    student = student_of()
    seen = parts(mean_flow(student, weight=Squared()))["diagonal"]
    x, v, s, _ = drawn(seen)
    assert len(seen.rows) == ROWS * 3 // 4
    u, law = torch.linspace(0.01, 0.99, 9), seen.objective.times  # type: ignore[attr-defined]
    assert torch.allclose(law(u), LogitNormal(0.4, 1.0)(1.0 - torch.sqrt(1.0 - u)))
    assert_same(seen, sq(student.velocity(x, s) - v), student, "diagonal")


def test_improved_mean_flow_is_the_official_loss() -> None:
    """V = u + (t - r) sg(du/dt) along the head's velocity, against v; and the head against v."""
    student = AverageVelocity(Net())
    seen = parts(improved_mean_flow(student, weight=Squared()))["eulerian"]
    x, _, s, t = drawn(seen)
    t_mf, r_mf, v = 1.0 - s, 1.0 - t, seen.batch.x0 - seen.batch.data()
    predicted = -student.evaluate(x, s, s).heads["v"].detach()
    u, du = derivative(
        meanflow_of(student), (x, r_mf, t_mf), (predicted, torch.zeros_like(s), torch.ones_like(s))
    )
    of_u = sq(u + like(t_mf - r_mf, x) * du.detach() - v)
    of_v = sq(-student.evaluate(x, s, t).heads["v"] - v)
    assert_same(seen, of_u, student, "eulerian")
    assert_same(seen, of_v, student, "v")


def test_improved_mean_flow_with_the_adaptive_weight_divides_each_term_by_itself() -> None:
    student = student_of()
    seen = parts(improved_mean_flow(student))["eulerian"]
    plain = replace(seen, objective=replace(seen.objective, weight=Squared()))  # type: ignore[type-var]
    ours = seen.objective(seen.batch, seen.draws)
    for name, term in plain.objective(plain.batch, plain.draws).items():
        wanted = term.value / (term.value.detach() + 0.01)
        assert torch.allclose(ours[name].value, wanted, rtol=1e-12)


def test_psd_regresses_on_the_mean_of_its_legs() -> None:
    """gamma u_{s,m} + (1 - gamma) u_{m,t}(X_{s,m}), which is the average velocity of the two jumps."""
    student = student_of()
    seen = parts(psd(student))["composition"]
    x, _, s, t = drawn(seen)
    gamma = seen.draws["gamma"]
    assert isinstance(gamma, Tensor) and float(gamma.std()) > 0.1
    m = s + gamma * (t - s)
    end = student(student(x, s, m), m, t)
    target = ((end - x) / like(t - s, x)).detach()
    assert_same(seen, sq(student.average(x, s, t) - target), student, "composition")
    middle = student(x, s, m)
    legs = like(gamma, x) * student.average(x, s, m) + like(1 - gamma, x) * student.average(middle, m, t)
    assert torch.allclose(legs, target, rtol=1e-9)


def test_shortcut_is_the_official_loss(levels: int = 8) -> None:
    """b1 = s(x, t, d/2), x2 = clip(x + d/2 b1), b2 = s(x2, t + d/2, d/2), target clip((b1 + b2)/2), s of one
    cell, the smallest step, the velocity."""
    student = student_of()
    seen = parts(shortcut(student, clip=0.9, levels=levels))["composition"]  # type: ignore[arg-type]
    x, _, s, t = drawn(seen)
    d = t - s
    assert bool((torch.log2(d) == torch.log2(d).round()).all()) and float(d.min()) >= 2.0 ** (2 - levels)
    assert float(((s / d) - (s / d).round()).abs().max()) == 0.0
    assert len(seen.rows) == ROWS // 8
    first, last = seen.objective.times(streams(2000))  # type: ignore[attr-defined]
    assert sorted(set((last - first).tolist())) == [2.0**-j for j in range(levels - 2, -1, -1)]
    average, m = student.average, s + d / 2
    least = d < 1.5 * 2.0 ** (2 - levels)
    with torch.no_grad():
        b1 = average(x, s, torch.where(least, s, m))
        x2 = torch.clip(x + like(d / 2, x) * b1, -0.9, 0.9)
        b2 = average(x2, m, torch.where(least, m, t))
        target = torch.clip((b1 + b2) / 2, -0.9, 0.9)
    assert_same(seen, sq(average(x, s, t) - target), student, "composition")


def test_shortcut_with_one_level_of_jumps_asks_velocities() -> None:
    test_shortcut_is_the_official_loss(2)
    with pytest.raises(ValueError, match="at least 2 levels"):
        shortcut(student_of(), levels=1)  # type: ignore[arg-type]


def test_alpha_flow_at_one_half_with_its_own_jump_is_shortcut() -> None:
    """The rescaled error is twice shortcut's, with the same live factor: the gradient is 1/alpha times."""
    student = student_of()
    step = Fraction(lambda progress: torch.full_like(progress, 0.5))
    jump = Eulerian(student, step=step, leg=Jump())
    shortcut_ = Composition(student, split=Midpoint())
    batch, rng = pairs(SYSTEM, ROWS)
    batch = replace(batch, cond=None)
    draws = shortcut_.draw(batch, rng)
    ours, theirs = jump(batch, draws)["eulerian"].value, shortcut_(batch, draws)["composition"].value
    assert torch.allclose(ours, 4.0 * theirs, rtol=1e-9)
    assert_same_gradient(ours.mean(), theirs.mean(), student, 2.0)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.1, 0.005])
def test_alpha_flow_has_the_gradient_of_its_own_loss(alpha: float) -> None:
    """Squared: that of |u - u_T|^2/alpha. Adaptive: that of alpha l / sg(l/D + c), l = |u - u_T|^2; at the
    floor the authors' for the derivative, |e|^2 / sg(|e|^2/D + c), e = (u - u_T)/alpha."""
    student = student_of()
    step = Fraction(lambda progress: torch.full_like(progress, alpha))
    for weight in (Squared(), None):
        given = {} if weight is None else {"weight": weight}
        seen = parts(alpha_flow(student, step=step, **given))["eulerian"]  # type: ignore[arg-type]
        x, v, s, t = drawn(seen)
        m = s + alpha * (t - s)
        x_m = path(Linear(), seen.batch.x0, seen.batch.data(), m)[0]
        u_t = alpha * v + (1 - alpha) * student.average(x_m, m, t).detach()
        off = sq(student.average(x, s, t) - u_t)
        value = seen.objective(seen.batch, seen.draws)["eulerian"].value
        if weight is None:
            scaled = off / alpha**2 if alpha == 0.005 else off
            wanted = alpha * scaled / (scaled / 2 + 1e-3).detach()
            assert_same_gradient(value.mean(), wanted.mean(), student)
        else:
            assert_same_gradient(value.mean(), (off / alpha).mean(), student)


@pytest.mark.parametrize(
    ("name", "part", "term"),
    [
        ("tvm", "lagrangian", "lagrangian"),
        ("shortcut", "composition", "composition"),
        ("consistency_training", "all", "eulerian"),
    ],
)
def test_moving_averages_bootstrap_and_follow(name: str, part: str, term: str) -> None:
    """The target of a loss is a copy that its game moves: another copy, another target."""
    student = student_of()
    game = discover()[name].build(student)
    (follow,) = game.moves[0].after
    assert follow.source is student and follow.target is not student
    seen = parts(game)[part]
    before = seen.objective(seen.batch, seen.draws)[term].value.detach()
    follow.target.c.data += 0.5
    after = seen.objective(seen.batch, seen.draws)[term].value.detach()
    assert float((after - before).abs().max()) > 1e-3
    follow()
    close = (1.0 - follow.decay) * student.c + follow.decay * (student.c + 0.5)
    assert torch.allclose(follow.target.c, close, rtol=1e-12)


# Consistency models, in EDM's variables: x = x1 + sigma x0, sigma = (1 - s)/s, D(x, sigma) = X_{s,1}(s x)


def denoiser_of(student: FlowMap) -> Callable[[Tensor, Tensor], Tensor]:
    """The consistency function of EDM's variables; at sigma = 0 it is the identity."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = 1.0 / (1.0 + sigma)
        return student(like(s, x) * x, s, torch.ones_like(s))

    return denoise


@pytest.mark.parametrize("progress", [0.05, 0.5, 1.0])
def test_consistency_training_is_the_distance_of_two_jumps(progress: float) -> None:
    student = EDM(Net(), sigma_data=0.7)
    seen = parts(consistency_training(student), progress)["all"]
    s, _ = seen.times()
    d = seen.objective.step(s, torch.ones_like(s), seen.batch.progress)  # type: ignore[attr-defined]
    (near, far), f = ((1 - s) / s, (1 - s - d) / (s + d)), denoiser_of(student)
    noisy = [seen.batch.data() + like(sigma, seen.batch.x0) * seen.batch.x0 for sigma in (near, far)]
    cells = math.ceil(math.sqrt(progress * (151**2 - 4) + 4) - 1.0)
    root = [torch.clamp(sigma, min=0.0) ** (1 / 7) for sigma in (near, far)]
    inner = far > 1e-9
    gap = (root[0] - root[1])[inner]
    assert torch.allclose(gap, torch.full_like(gap, (80 ** (1 / 7) - 0.002 ** (1 / 7)) / cells), rtol=1e-5)
    wanted = sq(f(noisy[0], near) - f(noisy[1], far).detach())
    assert_same(seen, wanted, student, "eulerian")


@pytest.mark.parametrize("progress", [0.0, 0.4, 0.99])
def test_ect_is_the_official_loss(progress: float) -> None:
    """|D(x_t) - sg D(x_r)| / (t - r), r = max(0, t (1 - 2^-(stage + 1) (1 + 8 sigmoid(-t))))."""
    student = EDM(Net(), sigma_data=0.7)
    seen = parts(ect(student), progress)["all"]
    s, _ = seen.times()
    sigma = (1 - s) / s
    r = sigma * (1 - 2.0 ** -(int(8 * progress) + 1) * (1 + 8 * torch.sigmoid(-sigma)))
    r = torch.clamp(r, min=0.0)
    assert bool((r == 0).any()) == (progress < 0.3)
    d, x0, x1 = denoiser_of(student), seen.batch.x0, seen.batch.data()
    error = d(x1 + like(sigma, x0) * x0, sigma) - d(x1 + like(r, x0) * x0, r).detach()
    assert_same(seen, torch.sqrt(sq(error)) / (sigma - r), student, "eulerian")


def test_ect_and_consistency_training_differ_by_step_and_weight_alone() -> None:
    student = student_of()
    a = parts(ect(student, step=Constant(0.1), weight=Squared()))["all"]
    b = parts(consistency_training(student, step=Constant(0.1), weight=Squared()))["all"]  # type: ignore[arg-type]
    values = [o.objective(a.batch, a.draws)["eulerian"].value for o in (a, b)]
    assert torch.allclose(values[0], values[1], rtol=1e-12)


# sCM, in TrigFlow's variables


def test_scm_has_the_gradient_of_the_official_loss() -> None:
    """F - sg(F) - g/(|g|/sqrt(D) + c), weight 1/tan(a); g = -cos(a)^2 (F - dx/da)
    - (cos(a) sin(a) x + cos(a) sin(a) dF/da), f = cos(a) x - sin(a) F, at the noise angle a."""
    student = TrigonometricMap(Net(), sigma_data=1.0)
    game = scm(student, warm_up=None)
    seen = parts(game)["all"]
    s, _ = seen.times()
    a = (math.pi / 2.0) * (1.0 - s)
    z, x1 = seen.batch.x0, seen.batch.data()
    cos, sin = like(torch.cos(a), z), like(torch.sin(a), z)
    x, dx = cos * x1 + sin * z, cos * z - sin * x1

    def f_of(x: Tensor, a: Tensor) -> Tensor:
        """The paper's network, whose output points from data to noise."""
        start = 1.0 - a * (2.0 / math.pi)
        return -student.backbone(x, start, torch.ones_like(start)).u

    f, df = derivative(f_of, (x, a), (cos * sin * dx, torch.cos(a) * torch.sin(a)))
    g = -(cos**2) * (f - dx) - (cos * sin * x + df)
    g = (g / (like(torch.sqrt(sq(g) / 2), g) + 0.1)).detach()
    learned = seen.objective.weight  # type: ignore[attr-defined]
    learned.linear.weight.data += 0.1
    w = learned.log_variance(s, torch.ones_like(s)).detach().double()
    wanted = torch.exp(-w) * sq(f - f.detach() - g) / torch.tan(a) + w
    value = seen.objective(seen.batch, seen.draws)["eulerian"].value
    assert torch.allclose(value, wanted, rtol=1e-9)
    assert_same_gradient(value.mean(), wanted.mean(), student)


def test_scm_tangent_is_that_of_the_jump() -> None:
    """g = cos(a) df/da with f = X_{s,1} along the trajectory of the pair."""
    student = TrigonometricMap(Net(), sigma_data=1.0)
    seen = parts(scm(student, warm_up=None, weight=Squared()))["all"]
    s, t = seen.times()
    z, x1 = seen.batch.x0, seen.batch.data()
    x, v = path(Trigonometric(), z, x1, s)
    jump, slope = derivative(lambda x, s: student(x, s, t), (x, s), (v, torch.ones_like(s)))
    assert torch.allclose(sq(slope), seen.objective(seen.batch, seen.draws)["eulerian"].value, rtol=1e-9)
    assert jump.shape == x.shape


def test_lsd_target_form_has_the_value_of_the_time_form() -> None:
    student = student_of()
    seen = {g: parts(lsd(student, gradient=g))["lagrangian"] for g in Gradient}
    values = [p.objective(p.batch, p.draws)["lagrangian"].value for p in seen.values()]
    for value in values[1:]:
        assert torch.allclose(value, values[0], rtol=1e-10)
    slopes = [torch.autograd.grad(v.mean(), student.c)[0] for v in values]
    target, time, derivative, full = slopes
    assert torch.equal(time, derivative)
    assert min(float((target - time).norm()), float((full - time).norm())) > 1e-2


def test_lsd_and_psd_weight_their_parts_by_their_shares() -> None:
    """eta and 1 - eta, as in the authors' code: the loss is the mean over all rows."""
    for build in (lsd, psd):
        student = student_of()
        objective: Objective = build(student, eta=0.75)
        batch, rng = pairs(SYSTEM, ROWS)
        terms = objective(batch, objective.draw(batch, rng))
        rows = torch.cat([term.value for term in terms.values()])
        assert rows.shape[0] == ROWS
        assert loss(terms).item() == pytest.approx(rows.mean().item(), rel=1e-12)
