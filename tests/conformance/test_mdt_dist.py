"""Velocity matching and velocity distillation (MDT-dist) against what they are made of, by hand."""

from __future__ import annotations

import pytest
import torch
from systems import Perturbed, gaussian, mixture, pairs, unfold
from torch import Tensor, nn

from saltus.interpolants import Linear, path
from saltus.legs import EULER
from saltus.maps import AverageVelocity
from saltus.methods import load
from saltus.nn import MLP
from saltus.slots import Implied
from saltus.tensors import like
from saltus.times import Constant, Fraction, Ramp, Uniform
from saltus.training.seed import initialised
from saltus.typing import Objective
from saltus.weights import InStates, Squared

SYSTEM = gaussian()
C = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
D = 0.01


def built(student: Perturbed, **options: object) -> Objective:
    return load("mdt_dist").build(student, teacher=SYSTEM.velocity, **options)  # type: ignore[no-any-return]


def test_velocity_matching_in_states_is_consistency_distillation() -> None:
    """With one phase, an Euler step of the same length and a target that is the student's copy."""
    student = Perturbed(SYSTEM.exact, C)
    ours = built(student, distil=0.0, weight=InStates(Squared()), times=Uniform())
    game = load("consistency_distillation").build(
        student, teacher=SYSTEM.velocity, tableau=EULER, step=Constant(D), times=Uniform()
    )
    theirs = game.moves[0].objective
    batch, rng = pairs(SYSTEM, 64)
    draws = ours.draw(batch, rng)
    (mine,), (other,) = (loss(batch, draws).values() for loss in (ours, theirs))
    assert torch.equal(mine.value, other.value)
    by = [torch.autograd.grad(term.value.mean(), student.c)[0] for term in (mine, other)]
    assert torch.equal(by[0], by[1]) and float(by[0].norm()) > 1e-4


def residual(student: Perturbed, x: Tensor, t: Tensor, batch: object) -> Tensor:
    """u - y of velocity matching, by hand."""
    one, b, cond = torch.ones_like(t), SYSTEM.velocity(x, t), batch.cond  # type: ignore[attr-defined]
    d = torch.clamp(1.0 - t, max=D)
    u = student.average(x, t, one, cond)
    later = student.average(x + like(d, x) * b, t + d, one, cond)
    return u - (b + like((1.0 - t - d) / d, x) * (later - u))


def test_velocity_distillation_moves_samples_against_the_residual_of_velocity_matching() -> None:
    """The loss is |r|^2 at the re-noised sample and its gradient 2 r . dX: through the sample alone."""
    student = Perturbed(SYSTEM.exact, C)
    loss = built(student)
    batch, rng = pairs(SYSTEM, 64)
    match, move = unfold(loss, batch, loss.draw(batch, rng))
    assert len(match.rows) == len(move.rows) == 32
    t, n = move.draws["t"], move.draws["noise"]
    assert isinstance(t, Tensor) and isinstance(n, Tensor)
    zero = torch.zeros_like(t)
    sample = student(move.batch.x0, zero, zero + 1.0, move.batch.cond)
    x, _ = path(Linear(), n, sample.detach(), t)
    r = residual(student, x, t, move.batch).detach()
    (term,) = move.objective(move.batch, move.draws).values()
    assert torch.allclose(term.value, r.square().sum(1), rtol=1e-8)
    (mine,) = torch.autograd.grad(term.value.sum(), student.c)
    (wanted,) = torch.autograd.grad(2.0 * (r * sample).sum(), student.c)
    assert torch.allclose(mine, wanted, rtol=1e-8) and float(mine.norm()) > 1e-2
    s = match.draws["s"]
    assert isinstance(s, Tensor)
    y, _ = path(Linear(), match.batch.x0, match.batch.data(), s)
    (of_data,) = match.objective(match.batch, match.draws).values()
    assert torch.allclose(of_data.value, residual(student, y, s, match.batch).square().sum(1), rtol=1e-8)


@pytest.mark.parametrize("system", [gaussian(), mixture(spread=0.5)], ids=["gaussian", "mixture"])
def test_the_exact_map_implies_the_teacher_s_velocity(system: object) -> None:
    """Up to O(d): the distance halves with d, so velocity distillation stands still there."""
    batch, rng = pairs(system, 60)  # type: ignore[arg-type]
    t = 0.9 * rng.uniform("t")
    x, _ = path(Linear(), batch.x0, batch.data(), t)
    b, found = system.velocity(x, t), []  # type: ignore[attr-defined]
    for d in (0.02, 0.01):
        own = Implied(system.exact, system.velocity, Constant(d))  # type: ignore[attr-defined]
        found.append(float((own.velocity(x, t) - b).square().mean().sqrt()))
    assert found[1] < 0.05 and found[0] / found[1] == pytest.approx(2.0, rel=0.1), found


def test_what_does_not_go_together_is_refused() -> None:
    for options in ({"distil": 1.0}, {"step": None}):
        with pytest.raises(ValueError, match="velocity matching alone"):
            built(Perturbed(SYSTEM.exact, C), **options)
    built(Perturbed(SYSTEM.exact, C), step=None, distil=0.0)
    changes = Fraction(Ramp())
    with pytest.raises(ValueError, match="stays the same in a run"):
        built(Perturbed(SYSTEM.exact, C), step=changes)
    built(Perturbed(SYSTEM.exact, C), step=changes, distil=0.0)


def test_an_implied_velocity_is_not_taken_in_half_precision() -> None:
    """A difference over d = 0.01 of what autocast rounds would be off by as much as the velocity."""
    net = initialised(0, lambda: MLP((2,), width=16, depth=2))
    for k, p in enumerate(net.parameters()):
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(k))
    own = Implied(AverageVelocity(net), lambda x, t, cond=None: -x, Constant(D))
    x, t = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), torch.full((16,), 0.3)
    with torch.no_grad():
        wanted = own.velocity(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(own.velocity(x, t), wanted)
