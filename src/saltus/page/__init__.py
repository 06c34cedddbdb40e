"""A run as one page: ``report.html``, a pure function of the files in the run's folder.

:func:`write_page` draws a run, while it trains and afterwards; :func:`write_comparison` draws several. A page
is one file that needs nothing else: its style, its few lines of script, its drawings (SVG) and its pictures
(PNG as data URIs) are in it. What is not there is not shown, and neither PyTorch nor matplotlib is needed.
Everything on disk is text of a stranger: it is escaped, and what cannot be read is counted and left out.

Read are, beside ``options.json``, ``environment.json``, ``metrics.jsonl`` and ``model.safetensors``, which
says by being there that the run is finished:

``evaluations.jsonl``
    One object a line: ``{"step": 500, "weights": "ema 0.999", "lines": [line, ...]}``; a line is
    ``{"label": "1 jump", "group": "own", "steps": 1, "figures": {"map RMSE": 0.5}, "ms": 0.01}``.
``evaluation.json``
    The last one: ``{"lines": [line, ...]}``.
``grids/000500.png``
    Samples by the averaged weights after 500 steps.
``residuals.json``
    How far the map is from agreeing with itself, over s <= t::

        {"step": 500, "weights": "ema 0.999", "times": [0.0, 0.1, ..., 1.0],
         "panels": {"Lagrangian": [[0.1, 0.2, ...], ...], "Eulerian": ..., "semigroup": ...}}

    A panel is a square of numbers, ``panel[i][j]`` at s = times[i] and t = times[j], null for none.
``trajectories.json``
    Samples in the plane and the ways of some of them::

        {"step": 500, "weights": "ema 0.999", "reach": 4.0,
         "panels": [{"name": "1 jump", "points": [[x, y], ...], "ways": [[[x, y], ...], ...]}, ...,
                    {"name": "data", "points": [[x, y], ...]}]}

    A way goes from the noise to the sample; all panels show [-reach, reach]^2. Three decimals and some 1,500
    points a panel are enough; more are thinned.
``samples.png``, ``points.png``, ``residuals.png``
    Pictures; the last two are left out where the files above say the same.
``teacher/``
    The run of its own teacher, which has a page of its own there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from saltus.page.comparison import comparison
from saltus.page.files import PAGE, is_run, read_run
from saltus.page.sections import header, sections
from saltus.page.sheet import document, put

__all__ = ["write_comparison", "write_page"]


def write_page(folder: Path, training: bool | None = None) -> Path:
    """Draw the run in ``folder`` into its ``report.html``, and return that path.

    Cheap enough for a training loop: about a tenth of a second, some more for a log of 100,000 lines.

    Args:
        folder: of a run, finished or not.
        training: whether it trains now; None tells it by the process that ``.lock`` names.
            The browser reads the page of a run that trains again every 20 s.

    Raises:
        ValueError: if the folder holds no run.
        OSError: if the page cannot be written; a loop that draws it on the way may leave it at that.
    """
    if not is_run(folder):
        got = "a folder without options.json and metrics.jsonl" if folder.is_dir() else "nothing there"
        raise ValueError(f"report: expected a run folder, got {folder}, {got}; saltus run makes one")
    run = read_run(folder, training)
    text = document(run.title, header(run), *sections(run), live=run.state.training)
    return put(folder / PAGE, text)


def write_comparison(runs: Mapping[str, Path], path: Path, picture: Path | None = None) -> Path:
    """Draw several runs on one page at ``path``, and return that path.

    Args:
        runs: their folders, by the names that the page gives them.
        path: of the page, in a folder that exists.
        picture: a PNG of samples of all of them, which the page takes in.

    Raises:
        ValueError: if a folder holds no run.
        OSError: if the page cannot be written.
    """
    for folder in runs.values():
        if not is_run(folder):
            raise ValueError(f"compare: expected run folders, got {folder}; saltus run makes one")
    title, parts = comparison(runs, picture)
    return put(path, document(title, *parts))
