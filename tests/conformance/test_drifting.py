"""Drifting: its field against integrals, loops and its paper, and rest at the law of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from systems import Perturbed, gaussian, pairs, streams
from torch import Tensor

from saltus.guidance import LabelDropout
from saltus.objectives import Drift, Normalisation
from saltus.objectives.drift import drift_field
from saltus.radial import RBF, Laplace
from saltus.typing import Batch, Condition

C = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
ONE = (0.4, 0.6)
OTHER = (-0.5, 0.9)
"""Mean and s.d. of two Gaussian laws on the line."""


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
