"""Moment matching and drifting against closed forms: discrepancies and fields of Gaussian laws by quadrature,
the algorithms by loops, and what the losses are at and away from the exact map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from systems import Perturbed, gaussian, pairs, streams
from torch import Tensor, nn

from saltus.guidance import LabelDropout
from saltus.legs import RK4, Along
from saltus.maps import AverageVelocity
from saltus.nn import MLP
from saltus.objectives import Drift, Eulerian, Moments, Normalisation
from saltus.objectives.drift import drift_field
from saltus.objectives.moments import discrepancy
from saltus.radial import RBF, Kernel, Laplace, Quadratic
from saltus.slots import Teacher
from saltus.tensors import like
from saltus.times import Constant, Gaps, Triangle, Uniform
from saltus.typing import Batch, Condition
from saltus.weights import InStates, Scaled, Span, Squared

C = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
ONE = (0.4, 0.6)
OTHER = (-0.5, 0.9)
"""Mean and s.d. of two Gaussian laws on the line."""


def nodes(law: tuple[float, float], count: int = 14) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite points and weights of a law."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return law[0] + law[1] * torch.from_numpy(points), torch.from_numpy(weights / weights.sum())


def expected(kernel: Kernel, a: tuple[float, float], b: tuple[float, float]) -> float:
    """E k(|x - y|), x ~ a and y ~ b apart, in closed form."""
    variance, gap = a[1] ** 2 + b[1] ** 2, a[0] - b[0]
    if isinstance(kernel, Quadratic):
        return -0.5 * (variance + gap**2)
    assert isinstance(kernel, RBF)
    (h,) = kernel.bandwidths
    return math.sqrt(h * h / (h * h + variance)) * math.exp(-0.5 * gap**2 / (h * h + variance))


@pytest.mark.parametrize("kernel", [RBF((1.3,)), Quadratic()], ids=["rbf", "quadratic"])
def test_the_mean_over_groups_is_the_discrepancy_of_the_laws(kernel: Kernel) -> None:
    """Of two particles each, over all four by quadrature: exactly if unbiased; else with the terms of equal
    particles, as in closed form."""
    x, p = nodes(ONE)
    y, q = nodes(OTHER)
    points = torch.cartesian_prod(x, x, y, y)
    weights = torch.cartesian_prod(p, p, q, q).prod(1)
    crowd, other = points[:, :2, None], points[:, 2:, None]
    one = torch.ones(len(points), dtype=torch.float64)
    kxx, kyy, kxy = (
        expected(kernel, a, b) for a, b in ((ONE, ONE), (OTHER, OTHER), (ONE, OTHER))
    )
    unbiased = (weights * discrepancy(crowd, other, kernel, one, unbiased=True)).sum()
    assert float(unbiased) == pytest.approx(kxx + kyy - 2.0 * kxy, abs=1e-7)
    itself = float(kernel(torch.zeros(1, dtype=torch.float64)))
    both = (weights * discrepancy(crowd, other, kernel, one)).sum()
    assert float(both) == pytest.approx(0.5 * (kxx + kyy) + itself - 2.0 * kxy, abs=1e-7)
    assert bool((discrepancy(crowd, other, RBF((1.3,)), one) >= 0.0).all())
    doubled = discrepancy(crowd, other, kernel, 2.0 * one)
    assert torch.allclose(doubled, discrepancy(2.0 * crowd, 2.0 * other, kernel, one), atol=1e-12)


def particles(**options: object) -> tuple[Moments, Perturbed, Perturbed]:
    system = gaussian()
    student, target = Perturbed(system.exact, C), Perturbed(system.exact, -C).requires_grad_(False)
    given: dict[str, object] = {"times": Triangle(Uniform(0.1, 0.9)), "step": Constant(0.05), **options}
    return Moments(student, target, **given), student, target  # type: ignore[arg-type]


def test_one_particle_is_consistency_training() -> None:
    """Value and gradient of |X - X'|^2; with another kernel k it is 2 (k(0) - k(c |X - X'|))."""
    moments, student, target = particles(particles=1, kernel=Quadratic())
    training = Eulerian(
        student, target, times=moments.times, step=moments.step, weight=InStates(Squared())
    )
    batch, rng = pairs(gaussian(), 32)
    draws = moments.draw(batch, rng)
    values = moments(batch, draws)["moments"].value, training(batch, draws)["eulerian"].value
    assert torch.allclose(*values, rtol=1e-9, atol=1e-15)
    found, wanted = (torch.autograd.grad(v.sum(), student.c)[0] for v in values)
    assert float(wanted.abs().max()) > 1e-3 and torch.allclose(found, wanted, rtol=1e-8)

    def scale(span: Span) -> Tensor:
        return 1.0 / (span.t - span.s)

    laplace = replace(moments, kernel=Laplace((0.7,)), scale=scale)
    s, t = draws["s"], draws["t"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor)
    distance = values[1].sqrt().detach() * scale(Span(s, t))
    by_hand = 2.0 * (1.0 - torch.exp(-distance / 0.7))
    assert torch.allclose(laplace(batch, draws)["moments"].value, by_hand, rtol=1e-9)


def test_a_group_shares_its_times_and_nothing_else() -> None:
    """The value of each group is the discrepancy of its own crowds; a part of a group is refused."""
    moments, student, target = particles(kernel=RBF((0.8,)))
    batch, rng = pairs(gaussian(), 16)
    draws = moments.draw(batch, rng)
    s, t = draws["s"], draws["t"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor)
    assert torch.equal(s, s[::4].repeat_interleave(4)) and len(s.unique()) == 4
    assert torch.equal(t, t[::4].repeat_interleave(4))
    value = moments(batch, draws)["moments"].value
    d = torch.clamp(t - s, max=0.05)
    x, x_m = ((1.0 - like(z, batch.x0)) * batch.x0 + like(z, batch.x0) * batch.data() for z in (s, s + d))
    made, wanted = student(x, s, t, batch.cond).detach(), target(x_m, s + d, t, batch.cond)
    for group in range(4):
        a, b = (z[4 * group : 4 * group + 4] for z in (made, wanted))
        by_hand = sum(
            float(moments.kernel((u[j] - v[k]).norm())) * sign / 16.0
            for u, v, sign in ((a, a, 1.0), (b, b, 1.0), (a, b, -2.0))
            for j in range(4)
            for k in range(4)
        )
        assert float(value[group].detach()) == pytest.approx(by_hand, abs=1e-12)
    with pytest.raises(ValueError, match="whole groups of 4"):
        moments.draw(batch.rows(torch.arange(6)), rng.rows(torch.arange(6)))
    with pytest.raises(ValueError, match="at least 2 particles"):
        particles(particles=1, unbiased=True)


@pytest.mark.parametrize("unbiased", [False, True], ids=["all pairs", "unbiased"])
def test_the_gradient_is_that_of_the_discrepancy_in_the_students_ends(unbiased: bool) -> None:
    """Also where an unbiased one is negative; Y carries none. A weight by the span multiplies it."""
    moments, student, _ = particles(
        kernel=RBF((0.8,)), unbiased=unbiased, step=Constant(0.01), particles=8
    )
    moments = replace(moments, target=None, weight=Scaled(Squared(), factor=lambda span: 1.0 + span.s))
    batch, rng = pairs(gaussian(), 64)
    draws = moments.draw(batch, rng)
    s, t = draws["s"], draws["t"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor)
    d = torch.clamp(t - s, max=0.01)
    x, x_m = ((1.0 - like(z, batch.x0)) * batch.x0 + like(z, batch.x0) * batch.data() for z in (s, s + d))
    ends = student(x, s, t, batch.cond), student(x_m, s + d, t, batch.cond).detach()
    made, wanted = (z.unflatten(0, (-1, 8)) for z in ends)
    z = discrepancy(made, wanted, moments.kernel, torch.ones_like(s[::8]), unbiased)
    assert bool((z < 0.0).any()) is unbiased
    value = moments(batch, draws)["moments"].value
    assert torch.allclose(value, (1.0 + s[::8]) * z, rtol=1e-8, atol=1e-14)
    found, by_hand = (torch.autograd.grad(v.sum(), student.c)[0] for v in (value, (1.0 + s[::8]) * z))
    assert float(by_hand.abs().max()) > 1e-4 and torch.allclose(found, by_hand, rtol=1e-7)


@pytest.mark.parametrize(
    ("kernel", "unbiased"), [(RBF((0.8,)), False), (Laplace((0.5,)), True)], ids=["rbf", "laplace, unbiased"]
)
def test_at_the_exact_map_along_the_flow_it_is_at_rest_and_elsewhere_it_points_home(
    kernel: Kernel, unbiased: bool
) -> None:
    """With the flow itself for a leg both crowds are the same points, so nothing pulls, row by row. (A
    Laplace kernel has a kink there, between a row and its own counterpart.) Away from it the expected
    gradient has a positive part along the displacement."""
    system = gaussian()
    leg = Along(Teacher(system.velocity), RK4, 4)
    zero = Perturbed(system.exact, torch.zeros(8, dtype=torch.float64))
    times = Gaps(Uniform(0.3, 0.9))
    batch, rng = pairs(system, 256)
    rest = Moments(zero, times=times, step=Constant(0.2), leg=leg, kernel=kernel, unbiased=unbiased)
    term = rest(batch, rest.draw(batch, rng))["moments"]
    (pull,) = torch.autograd.grad(term.value.sum(), zero.c)
    assert float(term.value.detach().abs().max()) < 1e-6 and float(pull.abs().max()) < 1e-4
    away = Perturbed(system.exact, 0.3 * C)
    moved = replace(rest, student=away)
    batch, rng = pairs(system, 8192)
    value = moved(batch, moved.draw(batch, rng))["moments"].value.reshape(16, -1)
    pulls = torch.stack([torch.autograd.grad(v.mean(), away.c, retain_graph=True)[0] @ C for v in value])
    assert float(pulls.mean()) > 5.0 * float(pulls.std()) / 4.0


def test_neighbouring_jumps_are_compared_in_full_precision() -> None:
    """Under autocast the discrepancy of ends that are a small step apart would be that of their roundings."""
    net = MLP((2,), width=16, depth=2)
    for k, p in enumerate(net.parameters()):
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(k))
    moments = Moments(AverageVelocity(net), step=Constant(1e-3))
    batch, rng = pairs(gaussian(), 16)
    batch = Batch(batch.x0.float(), batch.data().float())
    draws = moments.draw(batch, replace(rng, dtype=torch.float32))
    wanted = moments(batch, draws)["moments"].value
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(moments(batch, draws)["moments"].value, wanted)


# Drifting


def quantiles(law: tuple[float, float], count: int = 6000) -> Tensor:
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (law[0] + law[1] * torch.special.ndtri(u))[None, :, None]


@pytest.mark.parametrize("h", [0.3, 1.0])
def test_the_field_of_two_gaussians_is_their_mean_shift(h: float) -> None:
    """m(x) = (s^2 x + h^2 mu)/(s^2 + h^2) for a Gaussian kernel; the field is m_p - m_q, h^2 times the
    gradient of log (k*p)/(k*q)."""
    x = torch.linspace(-1.2, 1.4, 7, dtype=torch.float64)[None, :, None]

    def mean(law: tuple[float, float]) -> Tensor:
        return (law[1] ** 2 * x + h * h * law[0]) / (law[1] ** 2 + h * h)

    found = drift_field(x, quantiles(ONE), quantiles(OTHER), RBF((h,)), Normalisation.SEPARATE)
    assert torch.allclose(found, mean(ONE) - mean(OTHER), atol=2e-3)
    assert float(found.abs().max()) > 0.2
    score = [-(x - mu) / (sd**2 + h * h) for mu, sd in (ONE, OTHER)]
    assert torch.allclose(mean(ONE) - mean(OTHER), h * h * (score[0] - score[1]))


@pytest.mark.parametrize("normalisation", Normalisation)
@pytest.mark.parametrize("own", [False, True], ids=["others", "own"])
def test_the_field_is_antisymmetric_and_by_loops(normalisation: Normalisation, own: bool) -> None:
    """Data and samples change sides, it changes sign. Each row by loops over the definition."""
    n, kernel = 5, Laplace((0.8,))
    x, y, z = (streams(n, seed).normal("x", 2) for seed in range(3))
    field = drift_field(x[None], y[None], z[None], kernel, normalisation, own)[0]
    swapped = drift_field(x[None], z[None], y[None], kernel, normalisation, own)[0]
    assert torch.allclose(field, -swapped, atol=1e-14) and float(field.abs().max()) > 0.05

    def k(i: int, points: Tensor, j: int) -> float:
        return 0.0 if own and i == j else math.exp(-float((x[i] - points[j]).norm()) / 0.8)

    for i in range(n):
        a, r = ([k(i, points, j) for j in range(n)] for points in (y, z))
        if normalisation is Normalisation.SEPARATE:
            gain = 1.0 / sum(a), 1.0 / sum(r)
        else:
            columns = [[sum(k(row, points, j) for row in range(n)) for j in range(n)] for points in (y, z)]
            total = sum(a) + sum(r)
            a, r = (
                [v / math.sqrt(total * c) for v, c in zip(values, column, strict=True)]
                for values, column in zip((a, r), columns, strict=True)
            )
            gain = sum(r), sum(a)
        by_hand = sum(gain[0] * a[j] * y[j] - gain[1] * r[j] * z[j] for j in range(n))
        assert torch.allclose(field[i], by_hand, atol=1e-13)


PLAIN = {
    "kernels": (RBF((0.7,)),),
    "normalisation": Normalisation.SEPARATE,
    "relative": False,
    "levelled": False,
}


def test_samples_are_regressed_on_where_they_drift() -> None:
    """Value |V|^2, gradient -2 V . dX: nothing of the field is live; every group has a field of its own."""
    system = gaussian()
    student = Perturbed(system.exact, C)
    drift = Drift(student, group=8, **PLAIN)  # type: ignore[arg-type]
    batch, rng = pairs(system, 24)
    value = drift(batch, drift.draw(batch, rng))["drift"].value
    zero = torch.zeros(24, dtype=torch.float64)
    x = student(batch.x0, zero, torch.ones_like(zero), batch.cond)
    parts = [
        drift_field(a[None], b[None], a[None], RBF((0.7,)), Normalisation.SEPARATE, own=True)[0]
        for a, b in zip(x.detach().split(8), batch.data().split(8), strict=True)
    ]
    field = torch.cat(parts)
    assert torch.allclose(value, field.square().sum(1), atol=1e-12)
    found = torch.autograd.grad(value.sum(), student.c)[0]
    by_hand = torch.autograd.grad(-2.0 * (field * x).sum(), student.c)[0]
    assert float(by_hand.abs().max()) > 1e-2 and torch.allclose(found, by_hand, rtol=1e-9)
    with pytest.raises(ValueError, match="whole groups of 8"):
        drift.draw(batch.rows(torch.arange(12)), rng.rows(torch.arange(12)))
    with pytest.raises(ValueError, match="at least 2 rows"):
        Drift(student, group=1)


def test_fields_are_in_the_units_of_the_samples_and_levelled_ones_of_one_size() -> None:
    """Relative: distances count in mean distances, so in other units the field is the same picture. Levelled:
    each kernel adds a field of root mean square S = mean distance/sqrt(D)."""
    x, y = (streams(16, seed).normal("x", 2) for seed in range(2))

    def field(drift: Drift, scale: float = 1.0) -> Tensor:
        return drift._field(scale * x[None], scale * y[None])

    kernels = (Laplace((0.05,)), Laplace((0.5,)))
    made: Drift = Drift(Perturbed(gaussian().exact, C), kernels=kernels, group=16)
    for drift in (made, replace(made, levelled=False)):
        assert torch.allclose(field(drift, 7.0), 7.0 * field(drift), rtol=1e-9)
    both = torch.cat([x, y])
    size = float((x[:, None] - both[None]).norm(dim=-1).mean()) / math.sqrt(2.0)
    alone = [field(replace(made, kernels=(kernel,))) for kernel in kernels]
    for v in alone:
        assert float(v.square().mean().sqrt()) == pytest.approx(size, rel=1e-9)
    assert torch.allclose(field(made), alone[0] + alone[1])
    assert not torch.allclose(field(replace(made, relative=False, levelled=False), 7.0), 7.0 * field(made))


def test_features_say_where_the_field_is_taken() -> None:
    """phi = a linear map: the field is that of phi's points, and the gradient passes through phi."""
    system = gaussian()
    student = Perturbed(system.exact, C)
    matrix = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]], dtype=torch.float64)
    drift = Drift(student, group=8, features=lambda x: x @ matrix, **PLAIN)  # type: ignore[arg-type]
    batch, rng = pairs(system, 8)
    value = drift(batch, drift.draw(batch, rng))["drift"].value
    zero = torch.zeros(8, dtype=torch.float64)
    phi = student(batch.x0, zero, torch.ones_like(zero), batch.cond) @ matrix
    field = drift_field(
        phi.detach()[None], (batch.data() @ matrix)[None], phi.detach()[None], RBF((0.7,)),
        Normalisation.SEPARATE, own=True,
    )[0]
    assert torch.allclose(value, field.square().sum(1), atol=1e-12)
    found, by_hand = (
        torch.autograd.grad(v, student.c)[0] for v in (value.sum(), -2.0 * (field * phi).sum())
    )
    assert torch.allclose(found, by_hand, rtol=1e-9)


def test_at_the_law_of_the_data_the_field_has_mean_zero_whatever_the_pairing() -> None:
    """Samples of an exact student drift nowhere on average, within 5 standard errors over groups, though
    their map is not the flow's: -x0 has the law of x0. Samples of another law are pulled back."""
    system = gaussian()

    class Mirrored(Perturbed):
        """X_{0,1}(-x0) at the end of any jump from the prior: the right law, the wrong map."""

        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return super().forward(-x, s, t) + self.c[0]

    drift = Drift(Mirrored(system.exact, torch.zeros(8, dtype=torch.float64)), group=8, **PLAIN)  # type: ignore[arg-type]
    batch, rng = pairs(system, 8000)
    batch = Batch(batch.x0, batch.x1)
    draws = drift.draw(batch, rng)
    for shift, still in ((0.0, True), (0.2, False)):
        with torch.no_grad():
            drift.student.c.fill_(shift)  # type: ignore[attr-defined]
        zero = torch.zeros(8000, dtype=torch.float64)
        x = drift.student(batch.x0, zero, torch.ones_like(zero)).detach()
        v = drift._field(x.unflatten(0, (-1, 8)), batch.data().unflatten(0, (-1, 8))).mean(1)
        ratio = v.mean(0) / (v.std(0) / math.sqrt(len(v)))
        assert bool((ratio.abs() < 5.0).all()) is still, ratio
        assert still or bool((ratio < -5.0).all())
    assert "drift" in drift(batch, draws)


LABELS = torch.tensor([1, 0, 1, 2, 0, 1, 2, 1, 3, 0, 2, 1])
"""Of two groups of six, in which some are alone with theirs."""


def texts(rows: Tensor) -> Condition:
    """As many texts as labels."""
    return Condition(tokens=torch.stack([rows.double().cos(), rows.double().sin()], dim=1).unsqueeze(2))


@pytest.mark.parametrize("given", [lambda rows: Condition(label=rows), texts], ids=["labels", "texts"])
@pytest.mark.parametrize("options", [{}, PLAIN], ids=["own form", "plain"])
def test_rows_drift_by_those_of_their_label(
    given: Callable[[Tensor], Condition], options: dict[str, object]
) -> None:
    """As in groups of one label each; a row alone with its label stays. Rows without their labels are one
    more label."""
    student = Perturbed(gaussian().exact, C)
    drift = Drift(student, group=6, **options)  # type: ignore[arg-type]
    batch, rng = pairs(gaussian(), 12)
    dropped = torch.tensor([0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1]).bool()
    for null in (None, dropped):
        law = LABELS if null is None else LABELS.masked_fill(null, 9)
        cond = replace(given(LABELS), null=null)
        value = drift(replace(batch, cond=cond), drift.draw(batch, rng))["drift"].value
        zero = torch.zeros(12, dtype=torch.float64)
        x, y = student(batch.x0, zero, zero + 1.0).detach(), batch.data()
        for rows in torch.arange(12).split(6):
            for label in set(law[rows].tolist()):
                own = rows[law[rows] == label]
                alone = drift._field(x[own][None], y[own][None])[0] if len(own) > 1 else 0.0 * x[own]
                assert torch.allclose(value[own], alone.square().sum(1), rtol=1e-9)
        assert int((value > 0.0).sum()) == (9 if null is None else 6)
    same = drift(replace(batch, cond=given(0 * LABELS)), drift.draw(batch, rng))["drift"].value
    assert torch.equal(same, drift(replace(batch, cond=None), drift.draw(batch, rng))["drift"].value)


def test_labels_are_dropped_by_whole_groups() -> None:
    """A group without labels has the field of one of a single law."""
    drift = Drift(Perturbed(gaussian().exact, C), group=6, guidance=LabelDropout(0.5))
    batch, rng = pairs(gaussian(), 48)
    batch = replace(batch, cond=Condition(label=torch.arange(48) % 4))
    draws = drift.draw(batch, rng)
    free = draws["guidance"]
    assert isinstance(free, Tensor) and set(free.unflatten(0, (8, 6)).sum(1).tolist()) == {0, 6}
    value, plain, alone = (
        loss(z, {k: v for k, v in draws.items() if loss.guidance or k != "guidance"})["drift"].value
        for loss, z in (
            (drift, batch),
            (replace(drift, guidance=None), batch),
            (replace(drift, guidance=None), replace(batch, cond=None)),
        )
    )
    assert torch.equal(value, torch.where(free, alone, plain)) and not torch.equal(alone, plain)


def test_nothing_is_lost_of_a_field_under_autocast() -> None:
    """Where both crowds have nearly one law the field is a small difference of large means."""
    batch, rng = pairs(gaussian(), 32)

    class Near(Perturbed):
        """The data themselves, all but."""

        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return batch.data() + 1e-3 * x

    drift = Drift(Near(gaussian().exact, C), group=32, **PLAIN)  # type: ignore[arg-type]
    batch = replace(batch, x0=batch.x0.float(), x1=batch.data().float(), cond=None)
    draws = drift.draw(batch, rng)
    wanted = drift(batch, draws)["drift"].value
    with torch.autocast("cpu", torch.bfloat16):
        found = drift(batch, draws)["drift"].value
    assert torch.allclose(found, wanted, rtol=1e-3)
