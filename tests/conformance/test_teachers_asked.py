"""What distillation methods ask their teacher: at which state and time, how strongly guided; and that
its parameters get no gradient but where the gradient passes through it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from systems import Perturbed, gaussian, loss, objective_of, pairs, unfold
from test_distillation_equalities import NAMES, ROWS, B, heun
from test_method_equalities import SYSTEM, Net, drawn, parts, student_of
from torch import Tensor

from saltus.guidance import CFG, AutoGuidance, GuidanceInput
from saltus.maps import AverageVelocity
from saltus.methods import Need, load
from saltus.tensors import like
from saltus.typing import Condition, Gradient, Velocity


@dataclass
class Asked:
    """A teacher that keeps its questions."""

    at: list[tuple[Tensor, Tensor, Condition | None]] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        self.at.append((x.detach(), t, cond))
        return B(x, t)


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_is_asked_at_the_right_state_and_time(name: str) -> None:
    """At the end of the jump (Lagrangian), at the state (Eulerian), and along its own steps (finite legs)."""
    student, teacher = student_of(), Asked()
    built = load(name).wired(student, teacher=teacher, **load(name).card.plain)
    seen = list(parts(built).values())[-1]
    seen.objective(seen.batch, seen.draws)
    x, _, s, t = drawn(seen)
    if name == "lmd":
        wanted = [(student(x, s, t), t)]
    elif name in ("emd", "align_your_flow", "scd"):
        wanted = [(x, s)]
    else:
        gamma = seen.draws.get("gamma")
        if isinstance(gamma, Tensor):
            d, steps = gamma * (t - s) / 4, 4
        else:
            d, steps = seen.objective.step(s, t, seen.batch.progress), 1  # type: ignore[attr-defined]
        wanted, y = [], x
        for k in range(steps):
            here = s + k * d
            wanted += [(y, here), (y + like(d, y) * B(y, here), here + d)]
            y = heun(B, y, here, here + d)
    assert len(teacher.at) == len(wanted)
    for (x_, t_, _), (of_x, of_t) in zip(teacher.at, wanted, strict=True):
        assert torch.allclose(x_, of_x.detach(), atol=1e-12) and torch.allclose(t_, of_t, atol=1e-12)


def labelled(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    """A teacher with labels; asked at unit strength only."""
    assert cond is not None and cond.label is not None and (cond.w is None or bool((cond.w == 1.0).all()))
    known = like(1.0 + 0.1 * cond.label, x) if cond.null is None else 1.0
    return known * torch.tanh(x) + like(t, x)


def weaker(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    """A weaker one."""
    assert cond is not None and (cond.w is None or bool((cond.w == 1.0).all()))
    return 0.4 * torch.sin(x)


@pytest.mark.parametrize("name", [*NAMES, "align_your_flow, weak"])
def test_the_strength_of_guidance_is_an_input_of_the_student_and_of_the_teacher(name: str) -> None:
    """Each row learns from the teacher guided at the strength that its student is told."""
    method = load(name.split(",")[0])
    options = {**method.card.plain, "guidance": GuidanceInput(3.0)}
    guided: Velocity = CFG(labelled)
    teacher: Velocity = labelled
    if "weak" in name:
        guided = teacher = AutoGuidance(labelled, weaker)
    told: list[Tensor | None] = []

    class Told(Perturbed):
        def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
            told.append(None if cond is None else cond.w)
            return super().average(x, s, t)

    student = Told(SYSTEM.exact, student_of().c.detach())
    batch, rng = pairs(SYSTEM, ROWS, progress=0.3)
    batch = replace(batch, cond=Condition(label=torch.arange(ROWS) % 4))
    objective = objective_of(method.wired(student, teacher=teacher, **options))
    seen = unfold(objective, batch, objective.draw(batch, rng))[-1]
    ours = seen.objective(seen.batch, seen.draws)
    w = seen.draws["guidance"]
    assert isinstance(w, Tensor) and float(w.min()) >= 1.0 and float(w.max()) > 2.0
    assert told and all(torch.equal(w, seen_) for seen_ in told if seen_ is not None) and None not in told

    def by_hand(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return guided(x, t, replace(batch.cond, w=w))  # type: ignore[type-var]

    plain = objective_of(method.wired(student, teacher=by_hand, **method.card.plain))
    other = unfold(plain, batch, plain.draw(batch, rng))[-1].objective
    for key, term in other(seen.batch, seen.draws).items():
        assert torch.allclose(ours[key].value, term.value, rtol=1e-12)


def test_auto_guidance_with_strengths_of_rows_is_that_with_a_fixed_one() -> None:
    x = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).reshape(3, 2)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    label = torch.arange(3)
    rows = AutoGuidance(labelled, weaker)(x, t, Condition(label=label, w=torch.full_like(t, 2.5)))
    assert torch.equal(rows, AutoGuidance(labelled, weaker, 2.5)(x, t, Condition(label=label)))
    with pytest.raises(ValueError, match="guidance strength"):
        AutoGuidance(labelled, weaker)(x, t, Condition(label=label))


@pytest.mark.parametrize("name", [*NAMES, "lmd, full"])
def test_a_teacher_s_parameters_get_no_gradient(name: str) -> None:
    """None that is frozen ever; one that is not only where the gradient passes through it, and the student's
    gradient is the same."""
    method = load(name.split(",")[0])
    full = "full" in name
    options = {**method.card.plain, **({"gradient": Gradient.FULL} if full else {})}
    found = []
    for live in (False, True):
        student = student_of()
        torch.manual_seed(0)
        teacher = AverageVelocity(Net()).requires_grad_(live)
        objective = objective_of(method.wired(student, teacher=teacher.velocity, **options))
        batch, rng = pairs(gaussian(), ROWS, progress=0.3)
        loss(objective(batch, objective.draw(batch, rng))).backward()
        assert any(p.grad is not None for p in teacher.parameters()) == (live and full)
        assert student.c.grad is not None
        found.append(student.c.grad)
    assert torch.equal(found[0], found[1]) and float(found[0].norm()) > 1e-3


def test_a_distillation_method_asks_for_its_teacher() -> None:
    for name in NAMES:
        assert {Need.DATA, Need.TEACHER} <= load(name).card.needs
        with pytest.raises(ValueError, match="expected a teacher"):
            load(name).wired(student_of())
