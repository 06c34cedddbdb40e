"""TwinFlow against its authors' code, and the twin that a network holds beyond the data's time."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from systems import pairs, points, unfold
from test_method_equalities import Net, assert_same_gradient
from test_one_network_maps import SYSTEM, recursive_target, student_of
from test_student_samples import ROWS, played
from torch import Tensor

from saltus.interpolants import Linear, path
from saltus.maps import AverageVelocity, Twin
from saltus.methods.twinflow import twinflow
from saltus.tensors import like
from saltus.typing import Batch, Draws, Objective
from saltus.weights import Squared


def test_twinflow_is_the_official_loss_part_by_part() -> None:
    """In the code's time: barron(F, F - clamp(R)) (tan((1 - h) pi/2.5) + 1) for jumps, of which the R of two
    jumps is RCGM's; barron(F(x, -t, -t), e - x_fake) for the twin; barron(F, F - clamp(F_fake - F_real)) for
    samples, with the student's own velocity as the real one."""
    student = student_of()
    game = twinflow(student)  # type: ignore[arg-type]
    batch, draws = played(game, rows=160)
    found = {seen.name: seen for seen in unfold(game.moves[0].objective, batch, draws)}
    assert {name: (len(p.rows), p.weight) for name, p in found.items()} == {
        "at_once": (40, 0.25),
        "any": (30, 0.25),
        "near": (30, 0.25),
        "twin": (30, 0.25),
        "rectify": (30, 0.5),
    }

    def barron(e: Tensor) -> Tensor:
        mean = e.square().mean(1)
        return 2.0 * mean / (mean.detach() + 1e-6).sqrt()  # D times the code's

    for name, longest in (("any", 1.0), ("at_once", 1.0), ("near", 0.05)):
        seen = found[name]
        s, t = seen.times()
        far = t - s > 0.011
        assert bool((t - s <= longest * (1.0 - s) + 1e-12).all())
        assert name != "at_once" or (bool((s == 0.0).all()) and bool((t == 1.0).all()))
        x, v = path(Linear(), seen.batch.x0, seen.batch.data(), s)
        target = -recursive_target(student, x, -v, 1.0 - s, 1.0 - t, 2, 1.0)
        time = torch.tan((1.0 - (t - s)) * math.pi / 2.5) + 1.0
        wanted = barron(student.average(x, s, t) - target) * time
        value = seen.objective(seen.batch, seen.draws)["eulerian"].value
        assert torch.allclose(value[far], wanted[far], rtol=1e-6)
        assert_same_gradient(value[far].mean(), wanted[far].mean(), student)

    seen = found["twin"]
    of, noise = seen.draws["of"], seen.draws["noise"]
    assert isinstance(of, dict) and isinstance(noise, Tensor)
    r, one = of["t"], torch.ones(30, dtype=torch.float64)
    assert isinstance(r, Tensor)
    made = student(seen.batch.x0, 0.0 * one, one).detach()
    x, v = path(Linear(), noise, made, r)
    wanted = barron(student.velocity(x, 2.0 - r) - v)
    value = seen.objective(seen.batch, seen.draws)["diagonal"].value
    assert torch.allclose(value, wanted, rtol=1e-8)
    assert_same_gradient(value.mean(), wanted.mean(), student)

    seen = found["rectify"]
    r, noise = seen.draws["t"], seen.draws["noise"]
    assert isinstance(r, Tensor) and isinstance(noise, Tensor)
    u = student.average(seen.batch.x0, 0.0 * one, one)
    x, _ = path(Linear(), noise, (seen.batch.x0 + u).detach(), r)
    pull = (student.velocity(x, 2.0 - r) - student.velocity(x, r)).detach()
    value = seen.objective(seen.batch, seen.draws)["distribution"].value
    wanted = barron(u - (u - pull.clamp(-1.0, 1.0)).detach())
    assert torch.allclose(value, wanted, rtol=1e-8, atol=1e-12)
    assert float(pull.abs().max()) < 1e-12  # at the perturbed map the twin is displaced like the student


def test_a_twin_is_another_map_of_the_same_network() -> None:
    """u'_{s,t} = u_{2-s,2-t}: the student's own times are not asked, and nothing else has parameters."""
    student = AverageVelocity(Net())
    twin = Twin(student)
    x, s, _, t = points(SYSTEM, ROWS)
    assert torch.equal(twin.average(x, s, t), student.average(x, 2.0 - s, 2.0 - t))
    assert torch.equal(twin.velocity(x, t), student.velocity(x, 2.0 - t))
    assert torch.allclose(twin(x, s, t), x + like(t - s, x) * twin.average(x, s, t))
    assert float((twin.velocity(x, s) - student.velocity(x, s)).detach().norm()) > 1e-2


def test_twinflow_moves_samples_by_what_its_twin_knows() -> None:
    """With a network whose twin differs from its velocity: gradient 2 E[(u' - u) . dX] for the
    squared error."""
    student = AverageVelocity(Net())
    seen = unfold(*_begun(student))[-1]
    r, noise = seen.draws["t"], seen.draws["noise"]
    assert seen.name == "rectify" and isinstance(r, Tensor) and isinstance(noise, Tensor)
    one = torch.ones_like(r)
    end = student(seen.batch.x0, 0.0 * one, one)
    x, _ = path(Linear(), noise, end.detach(), r)
    pull = (student.velocity(x, 2.0 - r) - student.velocity(x, r)).detach()
    assert float(pull.norm()) > 0.1
    value = seen.objective(seen.batch, seen.draws)["distribution"].value
    assert_same_gradient(value.mean(), 2.0 * (pull * end).sum(1).mean(), student)


def _begun(student: AverageVelocity) -> tuple[Objective, Batch, Draws]:
    objective = twinflow(student, weight=Squared()).moves[0].objective
    batch, rng = pairs(SYSTEM, 160)
    batch = replace(batch, cond=None)
    return objective, batch, objective.draw(batch, rng)
