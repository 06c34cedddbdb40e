"""Saltus learns flow maps: networks that jump along the trajectories of a flow or diffusion model.

    digits = saltus.load("runs/digits-lsd")  # a run folder, or a weights file
    x = digits.sample(16, steps=1, label=3)  # [16, 1, 8, 8]
    y = digits.model(digits.noise(16), s, t)  # the map X_{s,t} itself
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saltus.recipes.opened import Finished

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(
    path: str | PathLike[str],
    *,
    ema: float | None = None,
    raw: bool = False,
    sigma_rel: float | None = None,
) -> Finished:
    """A trained flow map, ready to sample: from a run folder, or from a weights file alone.

    It needs neither the recipe nor its data, runs nothing that is in the file, and reads it strictly. By
    default the weights are the average that the run evaluated; at most one of the options chooses others. Of
    a run that still trains or was stopped they are those of its newest whole checkpoint.

    Args:
        path: of the folder or the file (``saltus export`` writes the smallest).
        ema: the decay of another average that the run kept.
        raw: the last weights instead of an average.
        sigma_rel: the width of a power-function average to form from what a run with ``--power-ema`` stored.

    Returns:
        The map in evaluation mode on the CPU, ``.model``, with ``.sample(n, steps, seed, label, w)``,
        ``.noise(n, seed)``, ``.shape``, ``.interpolant``, the method's ``.card``, and ``.after``, the steps
        done so far by a run that is not finished, None for others. Move it with ``.model.to(device)``;
        samples and noise follow.

    Raises:
        ValueError: for a file that is absent, damaged, of another kind, or without these weights.

    >>> import tempfile
    >>> from saltus.cli import main
    >>> with tempfile.TemporaryDirectory() as place:
    ...     run = f"{place}/run"
    ...     done = main(f"run gaussian-lsd --steps 5 --batch 8 --quiet --skip-evaluation --out {run}".split())
    ...     gaussian = load(run)
    >>> gaussian.sample(3, steps=2).shape
    torch.Size([3, 2])
    """
    from pathlib import Path

    from saltus.recipes.averages import Choice
    from saltus.recipes.opened import open_run

    return open_run(Path(path), Choice(ema, raw, sigma_rel), unfinished=True)
