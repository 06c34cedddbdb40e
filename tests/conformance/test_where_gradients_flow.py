"""Where gradients flow, away from the truth: at a perturbed map the value and gradient of every objective are
those of its formula (:mod:`formulas`) with the stopped factors held fixed, by finite differences in the
live ones alone.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from formulas import CASES, PROGRESS, Model, P, T, rows
from systems import Perturbed, System, gaussian, loss, mixture, pairs
from test_method_equalities import assert_same, parts, student_of
from torch import Tensor, nn

from saltus.methods.lsd import lsd
from saltus.objectives import Composition, Diagonal, Eulerian, Part, Sum
from saltus.weights import LearnedLogVariance, PseudoHuber, Scaled, Squared

ROWS = 24


def students(system: System) -> tuple[Perturbed, Perturbed]:
    target = Perturbed(system.exact, T[:8], T[8:]).requires_grad_(False)
    return Perturbed(system.exact, P[:8], P[8:]), target


def gradient(student: Perturbed, value: Tensor) -> Tensor:
    grads = torch.autograd.grad(value, (student.c, student.of_head), allow_unused=True)
    return torch.cat([torch.zeros_like(student.c) if g is None else g for g in grads])


def directions(count: int) -> Tensor:
    """Orthonormal random directions in the space of (c, k), [count, 16]."""
    square = torch.randn(16, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(square).Q.T


def difference(f: Callable[[Tensor], Tensor], p: Tensor, along: Tensor, eps: float = 3e-3) -> Tensor:
    """The derivatives of f at p by central differences of fourth order: exact for a square of something
    linear in p, 1e-10 for what is not."""
    found = []
    for e in eps * along:
        near, far = f(p + e) - f(p - e), f(p + 2.0 * e) - f(p - 2.0 * e)
        found.append((8.0 * near - far) / (12.0 * eps))
    return torch.stack(found)


@pytest.mark.parametrize("system", [gaussian(), mixture(spread=0.2)], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_the_formula(case: str, system: System) -> None:
    build, reference = CASES[case]
    student, target = students(system)
    objective = build(student, target, system)
    batch, rng = pairs(system, ROWS, progress=PROGRESS)
    draws = objective.draw(batch, rng)
    terms = objective(batch, draws)
    model, r = Model(system), rows(batch, draws)
    wanted = {k: e.square().sum(1) for k, e in reference(model, P, P, r).items()}
    assert list(terms) == list(wanted)
    for name, term in terms.items():
        assert float((term.value.detach() - wanted[name]).abs().max()) <= 1e-9, name
    ways = directions(3)
    with torch.no_grad():
        moved = difference(lambda p: sum_of(reference(model, p, P, r)), P, ways)
    found = ways @ gradient(student, loss(terms))
    assert float(found.abs().max()) > 1e-3
    assert float((found - moved).abs().max()) <= 1e-9, (found, moved)


def sum_of(errors: dict[str, Tensor]) -> Tensor:
    return torch.stack([e.square().sum(1).mean() for e in errors.values()]).sum()


def test_no_parameter_of_a_target_or_teacher_is_touched() -> None:
    """Stopped parts stay stopped although their parameters could take a gradient. (Through a push the
    gradient must pass: there they are frozen, as the objective says.)"""
    system = gaussian()
    for build, _ in CASES.values():
        student, target = students(system)
        objective = build(student, target, system)
        target.requires_grad_(not (isinstance(objective, Composition) and objective.push is not None))
        batch, rng = pairs(system, ROWS, progress=PROGRESS)
        loss(objective(batch, objective.draw(batch, rng))).backward()
        assert target.c.grad is None and target.of_head.grad is None


def test_sum_adds_weighted_parts_on_their_own_rows() -> None:
    """Value and gradient of a sum are those of its parts alone, on the rows that the shares give them."""
    system = gaussian()
    student, _ = students(system)
    diagonal, jump = Diagonal(student), Composition(student)
    half = Scaled(PseudoHuber(0.3), factor=lambda span: span.t)
    everyone = Eulerian(student, weight=half)
    total = Sum((Part("a", diagonal, 0.75, 2.0), Part("b", jump, 0.25, 0.5), Part("c", everyone, None, 3.0)))
    batch, rng = pairs(system, ROWS)
    draws = total.draw(batch, rng)
    terms = total(batch, draws)
    assert {k: t.value.shape[0] for k, t in terms.items()} == {
        "diagonal": 18,
        "composition": 6,
        "eulerian": ROWS,
    }
    quarter = torch.arange(ROWS) % 4 == 3
    by_hand = {}
    for name, part, where in (
        ("a", diagonal, ~quarter),
        ("b", jump, quarter),
        ("c", everyone, quarter | True),
    ):
        index = where.nonzero().flatten()
        alone = batch.rows(index)
        own = part.draw(alone, rng.rows(index).named(name))  # type: ignore[attr-defined]
        by_hand[name] = loss(part(alone, own))  # type: ignore[operator]
    wanted = 2.0 * by_hand["a"] + 0.5 * by_hand["b"] + 3.0 * by_hand["c"]
    assert loss(terms).item() == pytest.approx(wanted.item(), abs=1e-12)
    assert float((gradient(student, loss(terms)) - gradient(student, wanted)).abs().max()) <= 1e-12


def test_a_share_of_nothing_is_left_out_and_an_impossible_one_is_refused() -> None:
    student, _ = students(gaussian())
    first, second = Diagonal(student), Composition(student)
    total = Sum((Part("a", first, 0.3 + 0.6 + 0.1), Part("b", second, 1.0 - (0.3 + 0.6 + 0.1), 2.0)))
    assert [part.name for part in total.parts] == ["a"]
    with pytest.raises(ValueError, match=r"share of rows in \[0, 1\] for part 'b', got -0.2"):
        Sum((Part("b", second, -0.2), Part("a", first, 1.2)))
    with pytest.raises(ValueError, match="add to 1"):
        Sum((Part("a", first, 0.5), Part("b", second, 0.3)))


def test_two_parts_with_terms_of_one_name_keep_both() -> None:
    system = gaussian()
    student, _ = students(system)
    total = Sum((Part("first", Diagonal(student)), Part("second", Diagonal(student, weight=Squared()))))
    batch, rng = pairs(system, ROWS)
    terms = total(batch, total.draw(batch, rng))
    assert list(terms) == ["diagonal", "second_diagonal"]
    assert not torch.equal(terms["diagonal"].value, terms["second_diagonal"].value)  # times of their own


def test_learned_log_variance_leaves_the_exact_map_stationary_and_weighs_by_its_exponential() -> None:
    student = student_of()
    weight = LearnedLogVariance().double()
    nn.init.normal_(weight.linear.weight, std=0.2)
    seen = parts(lsd(student, weight=weight))["lagrangian"]
    plain = parts(lsd(student))["lagrangian"]
    s, t = seen.times()
    w = weight.log_variance(s, t)
    of_plain = plain.objective(plain.batch, plain.draws)["lagrangian"].value
    assert_same(seen, torch.exp(-w.detach()) * of_plain + w.detach(), student, "lagrangian")
