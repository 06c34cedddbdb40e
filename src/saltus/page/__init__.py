"""A run as one page: ``report.html``, a pure function of the files in the run's folder.

:func:`write_page` draws a run, while it trains and afterwards; :func:`write_comparison` draws several. A page is
one file that needs nothing else: its style, its few lines of script, its drawings (SVG) and its pictures (PNG as
data URIs) are in it. It reads what is there and is silent on what is not; it needs neither PyTorch nor matplotlib.
Everything on disk is text of a stranger: it is escaped, and what cannot be read is counted and left out.

What is read, beside ``options.json``, ``environment.json``, ``metrics.jsonl`` and ``model.safetensors`` (whose
presence says that the run is finished):

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

    A panel is a square of numbers, ``panel[i][j]`` at s = times[i] and t = times[j], null where there is none.
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
