"""The table of axes is what the methods are made of: another argument makes another row."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial

import pytest

from saltus.cli import main
from saltus.couplings import MinibatchOT
from saltus.guidance import LabelDropout
from saltus.interpolants import Trigonometric
from saltus.legs import HEUN, Along
from saltus.methods import Method, discover
from saltus.recipes.axes import ALSO, AXES, Stand, axes, described
from saltus.slots import Teacher
from saltus.times import Fraction, Karras, SigmoidAnneal, ToEnd, Triangle, Uniform
from saltus.typing import Gradient
from saltus.weights import AdaptivePower, LearnedLogVariance, PseudoHuber, Scaled, Squared

METHODS = discover()
OTHER = {
    "interpolant": Trigonometric(),
    "coupling": MinibatchOT(),
    "weight": PseudoHuber(0.123),
    "dropout": LabelDropout(0.123),
    "gradient": Gradient.FULL,
}


def test_values_are_shown_by_their_names() -> None:
    """What is its default is left out; flags stand alone; players have their names."""
    assert described(ToEnd(Karras(rho=5.0), stratified=True)) == "ToEnd(Karras(rho 5), stratified)"
    assert described(Along(Teacher(Stand("teacher")), HEUN, 4)) == "Along(Teacher(teacher), HEUN, 4)"
    assert described(Triangle(Uniform())) == "Triangle"
    assert described(Fraction(SigmoidAnneal(floor=0.03))) == "Fraction(SigmoidAnneal(floor 0.03))"
    scaled = Scaled(AdaptivePower(0.5), factor=described)  # type: ignore[arg-type]
    assert described(scaled) == "Scaled(AdaptivePower(0.5), factor described)"
    assert described(LearnedLogVariance(Squared())) == "LearnedLogVariance(Squared)"
    assert described(Stand("teacher").velocity) == "teacher"
    assert described((1, 0.25)) == "(1, 0.25)"


def test_rows_of_some_methods() -> None:
    """Against the equations in their files."""
    diagonal, jump = axes(METHODS["lsd"])
    assert (diagonal.term, diagonal.share) == ("Diagonal", "0.75")
    assert (jump.term, jump.share) == ("Lagrangian", "0.25")
    assert (diagonal.cells["velocities"], jump.cells["velocities"]) == ("velocity Data", "end Own")
    assert (jump.cells["gradient"], jump.cells["split"], jump.cells["legs"]) == ("time", "near Forward", "")
    (cd,) = axes(METHODS["consistency_distillation"])
    assert cd.cells["legs"] == "Along(Teacher(teacher), HEUN)" and cd.cells["target"] == "average 0.95"
    assert cd.cells["split"] == "step KarrasGap(first 40, last 39)"
    assert [row.term for row in axes(METHODS["progressive"])][1] == "4 steps (12 %): Composition"
    last = axes(METHODS["freeflow"])[-1]
    assert last.term == "critic: OnSamples: Diagonal"
    assert axes(METHODS["rcm"])[-1].term == "critic × 4: OnSamples: Diagonal"


def changed(method: Method, name: str) -> Method:
    return replace(method, build=partial(method.build, **{name: OTHER[name]}))


@pytest.mark.parametrize("name", METHODS)
def test_another_argument_makes_another_row(name: str) -> None:
    """Whatever a method's function lets one choose is seen in the table, in its own column."""
    method = METHODS[name]
    rows = axes(method)
    assert rows and all(list(row.cells) == [*AXES, ALSO] and row.term for row in rows)
    column = {field: axis for axis, group in AXES.items() for field in group}
    for option in OTHER.keys() & inspect.signature(method.build).parameters.keys():
        if inspect.signature(method.build).parameters[option].default == OTHER[option]:
            continue
        other = axes(changed(method, option))
        both = zip(rows, other, strict=True)
        differ = {key for a, b in both for key in a.cells if a.cells[key] != b.cells[key]}
        assert column.get(option, ALSO) in differ, (option, differ)
        text = described(OTHER[option])
        assert any(text in cell for row in other for cell in row.cells.values()), option


def test_the_command_prints_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "lsd", "boot", "--table", "--markdown"]) == 0
    said = capsys.readouterr().out
    assert "| lsd | Diagonal | 0.75 | Linear | DataStates | Uniform |" in said
    assert "| boot | teacher | 2.875 | law, map | jumps: 1 |" in said and "the loss; d = 0.04" in said
    assert main(["methods", "lsd", "--table"]) == 0
    assert "times: Triangle; split: near Forward" in " ".join(capsys.readouterr().out.split())
    assert main(["methods", "lds", "--table"]) == 2
    assert "did you mean lsd" in capsys.readouterr().err
