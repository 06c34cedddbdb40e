"""Flow maps of one network against the formulas of their papers' codes, in those codes' own time and
variables, value and gradient. The student is a perturbed map: nothing is at an optimum.
"""

from __future__ import annotations

import math

import pytest
import torch
from systems import Perturbed, gaussian, means, mixture, noise, pairs, row_gradients, unfold
from test_method_equalities import C, Net, assert_same, assert_same_gradient, drawn, meanflow_of, parts, sq
from torch import Tensor

from saltus.autodiff import derivative
from saltus.maps import AverageVelocity
from saltus.methods.facm import facm
from saltus.methods.mean_flow import mean_flow
from saltus.methods.rcgm import rcgm
from saltus.methods.restricted_mean_flow import restricted_mean_flow
from saltus.methods.transition_models import transition_models
from saltus.objectives import Eulerian
from saltus.tensors import like
from saltus.times import Constant, Restricted
from saltus.typing import FlowMap
from saltus.weights import Clipped, Squared, Weight

SYSTEM = gaussian()


def student_of() -> Perturbed:
    return Perturbed(SYSTEM.exact, C, C.flip(0))


# RCGM, in the code's time


def recursive_target(
    student: FlowMap, x: Tensor, v: Tensor, t: Tensor, tt: Tensor, n: int, bound: float
) -> Tensor:
    """F - clamp(100 ((t - tt) F - sum of n jumps) - v), the code's coefficients where t - tt > 0.01."""
    u = meanflow_of(student)
    t_m = t - 0.01
    x_m, total = x - 0.01 * v, torch.zeros_like(x)
    times = [t_m * (1 - i / n) + tt * (i / n) for i in range(n + 1)]
    for a, b in zip(times, times[1:], strict=False):
        f = u(x_m, b, a)
        x_m, total = x_m - like(a - b, x) * f, total + like(a - b, x) * f
    f = u(x, tt, t)
    return (f - (100.0 * (like(t - tt, x) * f - total) - v).clamp(-bound, bound)).detach()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("clipped", [False, True], ids=["squared", "clipped"])
def test_rcgm_is_the_official_target(n: int, clipped: bool) -> None:
    """In a time in which 1 is noise and the velocity points to it."""
    student = student_of()
    bound = 1.0 if clipped else 1e6
    seen = parts(rcgm(student, jumps=n, weight=Clipped(Squared(), bound)))["all"]  # type: ignore[arg-type]
    x, v, s, t = drawn(seen)
    far = t - s > 0.011
    assert int(far.sum()) > 20
    target = recursive_target(student, x, -v, 1.0 - s, 1.0 - t, n, bound)
    wanted = sq(-student.average(x, s, t) - target)
    value = seen.objective(seen.batch, seen.draws)["eulerian"].value
    assert torch.allclose(value[far], wanted[far], rtol=1e-8)
    assert_same_gradient(value[far].mean(), wanted[far].mean(), student)


def test_rcgm_of_one_jump_is_the_rescaled_target() -> None:
    """N = 1: sg[ v + (t - s - d)(u_{m,t}(I_m) - u)/d ], as one jump after the step is without ``onward``."""
    student = student_of()
    seen = parts(rcgm(student, jumps=1, weight=Squared()))["all"]  # type: ignore[arg-type]
    x, v, s, t = drawn(seen)
    d = torch.clamp(t - s, max=0.01)
    x_m = x + like(d, x) * v
    u, u_m = student.average(x, s, t), student.average(x_m, s + d, t)
    target = (v + like(t - s - d, x) * (u_m - u) / like(d, x)).detach()
    assert_same(seen, sq(u - target), student, "eulerian")
    plain = Eulerian(student, step=Constant(0.01), times=Restricted(1.0))
    ours, theirs = (o(seen.batch, seen.draws)["eulerian"].value for o in (seen.objective, plain))
    assert torch.allclose(ours, theirs, rtol=1e-9)


def test_rcgm_draws_the_code_s_times() -> None:
    """t ~ U[0, 1] in its time, and tt ~ U[0, t]."""
    seen = parts(rcgm(student_of()), rows=4000)["all"]  # type: ignore[arg-type]
    s, t = seen.times()
    assert float(s.mean()) == pytest.approx(0.5, abs=0.02)
    ratio = (t - s) / (1.0 - s)
    assert float(ratio.mean()) == pytest.approx(0.5, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([ratio, s]))[0, 1])) < 0.05


# Transition models


def test_transition_models_are_the_official_loss() -> None:
    """(|e|^2/D + 1 - cos) over its own size, times 1/sqrt(tan t - tan r + 1), with the path's difference."""
    student = student_of()
    for name in ("eulerian", "to_end"):
        seen = parts(transition_models(student))[name]
        x, v, s, t = drawn(seen)
        e, data, (t_mf, r_mf) = seen.batch.x0, seen.batch.data(), (1.0 - s, 1.0 - t)
        u, eps = meanflow_of(student), 0.005

        near = [t_mf + eps, t_mf - eps, t_mf]
        after, before, f = (u((1.0 - like(z, e)) * data + like(z, e) * e, r_mf, z) for z in near)
        du = (after - before) / (2.0 * eps)
        target = ((e - data) - like(t_mf - r_mf, x) * du).detach()
        loss = sq(f - target) / 2.0 + 1.0 - torch.nn.functional.cosine_similarity(f, target, dim=1)
        wanted = loss / (loss.detach() + 1e-5) / torch.sqrt(torch.tan(t_mf) - torch.tan(r_mf) + 1.0)
        assert_same(seen, 2.0 * wanted, student, "eulerian")


def test_transition_models_split_their_rows_as_the_code_does() -> None:
    """Half at s = t, a tenth at t = 1, s being the earlier of two draws in all."""
    found = parts(transition_models(student_of()), rows=4000)
    assert [len(p.rows) for p in found.values()] == pytest.approx([2000, 1600, 400], abs=2)
    theirs = torch.sigmoid(-0.4 + torch.special.ndtri(torch.rand(2, 100_000, dtype=torch.float64))).amax(0)
    for part in found.values():
        s, t = part.times()
        assert float(s.mean()) == pytest.approx(float(1.0 - theirs.mean()), abs=0.02)
        assert float(s.std()) == pytest.approx(float(theirs.std()), abs=0.02)
    assert bool((found["to_end"].times()[1] == 1.0).all())


# FACM: t = 1 is data there too


@pytest.mark.parametrize("taught", [False, True], ids=["data", "teacher"])
def test_facm_is_the_official_loss(taught: bool) -> None:
    """D times the code's: m/(m + c)^p with m the mean square of (1 - sqrt t) clamp(F - v - (1 - t) dF),
    fading with cos(pi t/2); and the mean square and the angle of the anchor."""
    student = AverageVelocity(Net())
    found = parts(facm(student, teacher=SYSTEM.velocity if taught else None))
    seen = found["eulerian"]
    x, v, s, t = drawn(seen)
    v = SYSTEM.velocity(x, s) if taught else v
    f = student.average(x, s, t)
    _, df = derivative(lambda x, s: student.average(x, s, t), (x, s), (v, torch.ones_like(s)))
    g = (f - v - like(1.0 - s, x) * df).detach()
    assert float(g.abs().max()) > 1.0
    target = f.detach() - like(1.0 - s.sqrt(), x) * g.clamp(-1.0, 1.0)
    e = (f - target).square().mean(1)
    cm = e / (e + 1e-3).sqrt().detach() * torch.cos(s * math.pi / 2)
    assert_same(seen, 2.0 * cm, student, "eulerian")
    seen = found["diagonal"]
    x, v, s, _ = drawn(seen)
    v = SYSTEM.velocity(x, s) if taught else v
    f = student.velocity(x, s)
    fm = (f - v).square().mean(1) + 1.0 - torch.nn.functional.cosine_similarity(f, v, dim=1)
    assert_same(seen, 2.0 * fm, student, "diagonal")


def test_facm_draws_the_code_s_times() -> None:
    """t = 1 - (2/pi) atan(sigma), log sigma ~ N(-0.8, 1.6^2), in both terms."""
    for seen in parts(facm(student_of()), rows=4000).values():
        s, _ = seen.times()
        log = torch.log(torch.tan(0.5 * math.pi * (1.0 - s)))
        assert float(log.mean()) == pytest.approx(-0.8, abs=0.1)
        assert float(log.std()) == pytest.approx(1.6, abs=0.1)


@pytest.mark.parametrize("taught", [False, True], ids=["data", "teacher"])
def test_the_shortcut_of_facm_is_displaced_where_there_is_no_teacher(taught: bool) -> None:
    """At the exact map: noisy velocities go through a clamp and a power, which move it; not in the plain
    form, and not with the teacher's."""
    system = mixture()

    def displacement(weight: Weight | None, rows: int) -> tuple[float, float]:
        student = Perturbed(system.exact, torch.zeros(8, dtype=torch.float64))
        loss = facm(student, teacher=system.velocity if taught else None, weight=weight)
        batch, rng = pairs(system, rows)
        seen = unfold(loss, batch, loss.draw(batch, rng))[1]
        mean, error = means(row_gradients(student, seen, rows)["eulerian"], noise(system, seen))
        return float(mean.norm()), float(error.norm())

    own, error = displacement(None, 3000)
    none, of_none = displacement(Squared(), 1500)
    assert (own > 5.0 * error + 1e-8) == (not taught) and none <= 5.0 * of_none + 1e-8


# Restricted MeanFlow


def test_restricted_mean_flow_is_mean_flow_on_short_jumps() -> None:
    student = student_of()
    short, long = parts(restricted_mean_flow(student), rows=400), parts(mean_flow(student), rows=400)
    s, t = short["eulerian"].times()
    assert float((t - s).max()) <= 0.25 and float((t - s).max()) > 0.24 and float(s.max()) > 0.9
    for name, term in (("diagonal", "diagonal"), ("eulerian", "eulerian")):
        here, there = short[name], long[name]
        ours, theirs = (p.objective(here.batch, here.draws)[term].value for p in (here, there))
        assert torch.equal(ours, theirs)
