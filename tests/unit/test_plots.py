"""Plots: what is written on them is on them."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from saltus.plots import Series, lines


@pytest.mark.parametrize(
    "labels",
    [
        ["student/lagrangian", "student/distribution", "critic/diagonal"],
        ["a", "b", "c", "d"],
        ["teacher, ODE, 64 steps of a long name"],
    ],
)
def test_the_legend_fits_the_picture(
    labels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: made.append(figure))
    lines({"loss": [Series(name, [1, 2], [2.0, 1.0]) for name in labels]}, tmp_path / "x.png", "step")
    (figure,) = made
    figure.draw_without_rendering()
    box, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1
    assert page.y0 <= box.y0 and box.y1 <= page.y1
