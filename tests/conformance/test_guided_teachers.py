"""How guidance reaches a teacher, the same for every method: with ``guidance`` the method itself guides the
teacher it is given, each row at the strength that its student is told.
"""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from systems import Perturbed, Undecided, first, gaussian, objective_of, unfold
from torch import Tensor

from saltus.exact import reference_mixture
from saltus.games import Game
from saltus.guidance import CFG, AutoGuidance, GuidanceInput, LabelDropout, guided
from saltus.methods import Need, discover
from saltus.streams import Streams
from saltus.tensors import like
from saltus.typing import Batch, Condition, Velocity

LAW = reference_mixture()
METHODS = discover()


def guides(name: str) -> bool:
    method = METHODS[name]
    taken = inspect.signature(method.build).parameters
    strengths = "guidance" in taken and LabelDropout.__name__ not in str(taken["guidance"].annotation)
    return strengths and Need.TEACHER in method.card.needs


NAMES = [name for name in METHODS if guides(name)]


@dataclass(frozen=True)
class Always(GuidanceInput):
    """Every row at the strength ``high``."""

    def draw(self, rng: Streams) -> Tensor:
        """w, [B]."""
        return torch.full_like(rng.uniform("w"), self.high)


def closed_form(w: float) -> Velocity:
    """b(x) + w (b(x; c) - b(x)) of the labelled mixture, and b(x) where the label is dropped."""

    def velocity(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        assert cond is not None and cond.label is not None
        free, own = LAW(x, t), LAW(x, t, Condition(label=cond.label))
        guided = free + w * (own - free)
        return guided if cond.null is None else torch.where(like(cond.null, x), free, guided)

    return velocity


def values(name: str, teacher: Velocity, w: float) -> list[Tensor]:
    """Every part's losses where the student's strengths are all w."""
    method = METHODS[name]
    taken = inspect.signature(method.build).parameters
    options = {**method.card.plain, **{k: None for k in taken if k.endswith("_interval")}}
    student = Perturbed(gaussian().exact, torch.linspace(-0.2, 0.3, 8, dtype=torch.float64))
    critic = deepcopy(student)
    others = {"critic": critic, "discriminator": Undecided()}
    built = first(method.wired(student, teacher=teacher, **others, guidance=Always(w), **options))
    rng = Streams(0, index=torch.arange(32), dtype=torch.float64)
    x1, label = LAW.sample(rng)
    batch = Batch(rng.normal("x0", 2), x1, Condition(label=label), torch.tensor(0.3).double())
    if isinstance(built, Game) and built.prepare is not None:
        batch = built.prepare(batch)
    objective = objective_of(built)
    seen = unfold(objective, batch, objective.draw(batch, rng))
    terms = [part.objective(part.batch, part.draws) for part in seen]
    return [term.value.detach() for of_part in terms for term in of_part.values()]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_guides_its_teacher_by_itself(name: str) -> None:
    """The losses are those of a teacher that is the guided velocity in closed form, and move with w."""
    plain = values(name, LAW, 1.0)
    for w in (1.0, 2.0, 4.0):
        found, wanted = values(name, LAW, w), values(name, closed_form(w), 1.0)
        assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found, wanted, strict=True))
        moved = max(float((a - b).abs().max()) for a, b in zip(found, plain, strict=True))
        assert (moved > 0.05) == (w > 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_takes_the_strength_of_rows_is_not_guided_again(name: str) -> None:
    """One guided by labels is what the method would make of it; one guided by a weaker model stays that."""

    def weak(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return 0.5 * LAW(x, t)

    def away(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        assert cond is not None and cond.label is not None and cond.null is None
        return 3.0 * LAW(x, t, cond) - 2.0 * weak(x, t)

    for mine, same in ((CFG(LAW), LAW), (AutoGuidance(LAW, weak), None)):
        found = values(name, mine, 3.0)
        wanted = values(name, AutoGuidance(away, away), 1.0) if same is None else values(name, same, 3.0)
        assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found, wanted, strict=True))


def test_the_methods_are_those_that_have_a_teacher_to_guide() -> None:
    """All with a teacher, but for AnyFlow, whose teacher comes guided: its first stage learns from data."""
    taught = {n for n, m in METHODS.items() if Need.TEACHER in m.card.needs}
    assert set(NAMES) == taught - {"anyflow"}


def test_whom_a_student_learns_from() -> None:
    fixed, rows, other = CFG(LAW, 3.0), CFG(LAW), AutoGuidance(LAW, LAW)
    drawn = GuidanceInput(4.0)
    for teacher in (LAW, fixed, rows, other):
        assert guided(teacher, None) is teacher and guided(teacher, None, (0.1, 0.2)) is teacher
    assert guided(rows, drawn) is rows and guided(other, drawn) is other
    with pytest.raises(ValueError, match="not guided yet"):  # the strengths would multiply
        guided(fixed, drawn)
    for teacher in (LAW, AutoGuidance(LAW, LAW, 2.0)):
        found = guided(teacher, drawn, (0.2, 0.9))
        assert isinstance(found, CFG) and found.velocity is teacher and found.interval == (0.2, 0.9)
    narrowed = guided(rows, drawn, (0.2, 0.9))
    assert isinstance(narrowed, CFG) and narrowed.velocity is LAW and narrowed.interval == (0.2, 0.9)
    for teacher in (other, CFG(LAW, interval=(0.0, 0.5))):
        with pytest.raises(ValueError, match=f"got {type(teacher).__name__} with guidance of its own"):
            guided(teacher, drawn, (0.2, 0.9))


@pytest.mark.parametrize("name", ["lsd", "esd"])
def test_guidance_of_the_own_velocity_needs_one_that_learns_without_labels(name: str) -> None:
    student = Perturbed(gaussian().exact, torch.zeros(8, dtype=torch.float64))
    with pytest.raises(ValueError, match=f"{name}: expected dropout"):
        METHODS[name].build(student, guidance=GuidanceInput(3.0))
    METHODS[name].build(student, guidance=GuidanceInput(3.0), dropout=LabelDropout(0.1))


def test_an_interval_that_nothing_reads_is_refused() -> None:
    student = Perturbed(gaussian().exact, torch.zeros(8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected none without guidance, got \(0.2, 0.5\)"):
        METHODS["freeflow_prediction"].build(student, teacher=LAW, prediction_interval=(0.2, 0.5))
