"""``saltus export`` and ``saltus ema``: one file with one set of a run's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro import conf

from saltus.recipes.averages import EVALUATED, RAW, Choice, known_weights, said, snapshot_files
from saltus.recipes.finished import RunPath, check_out
from saltus.recipes.folder import WEIGHTS, weights_of
from saltus.recipes.opened import Finished, open_run
from saltus.training import blend, read_header, save_weights, stored_in

__all__ = ["ema", "export", "write"]

SUFFIX = Path(WEIGHTS).suffix
WIDTHS = (0.02, 0.03, 0.05, 0.075, 0.1, 0.13, 0.16, 0.2, 0.25)
"""Widths of which ``saltus ema`` says whether they can be formed."""
MOST = 0.1
"""The largest mismatch of a profile that is formed."""

OutFile = Annotated[Path, conf.arg(metavar="OUT")]


def export(run: conf.Positional[RunPath], out: conf.Positional[OutFile], weights: Choice = Choice()) -> None:
    """Write one set of a run's weights to a file of its own, with what it takes to build the network.

    saltus.load, saltus sample and saltus distill take the file in place of the run folder. Of a run that is
    not finished the weights are those of its newest checkpoint.

    examples:
      saltus export runs/digits-lsd digits.safetensors
      saltus export runs/digits-lsd last.safetensors --raw

    Args:
        run: Run folder, or a weights file.
        out: A name that ends in .safetensors.
        weights: Which of the weights that the run kept.
    """
    write(open_run(run, weights, unfinished=True), out)


def ema(
    run: conf.Positional[RunPath],
    *,
    sigma_rel: float | None = None,
    out: Annotated[Path | None, conf.arg(metavar="FILE")] = None,
) -> None:
    """Form an average of any length after training, of what a run with --power-ema stored.

    The power-function average of width W over a run of N steps weighs its steps with a profile whose
    standard deviation is W N. Without a width, say which weights there are and which widths can be formed.

    examples:
      saltus run digits-lsd --power-ema 0.05 0.1
      saltus ema runs/digits-lsd
      saltus ema runs/digits-lsd --sigma-rel 0.13
      saltus evaluate runs/digits-lsd --sigma-rel 0.13

    Args:
        run: Run folder.
        sigma_rel: Width, from 0.02 to 0.28.
        out: A name that ends in .safetensors; by default power-W.safetensors in the run folder.
    """
    if sigma_rel is None:
        if out is not None:
            raise ValueError(f"out {out}: expected a width with it, got none; give --sigma-rel 0.1, say")
        _list(run)
        return
    path = out or weights_of(run).parent / f"power-{sigma_rel:g}{SUFFIX}"
    write(open_run(run, Choice(sigma_rel=sigma_rel)), path)


def write(done: Finished, out: Path) -> None:
    """Write the weights of an opened run, and what it takes to open them, to a file."""
    check_out(out, (SUFFIX,))
    if out.resolve() == done.weights.resolve():
        raise ValueError(f"out {out}: expected another file than the run's own; choose another name")
    name = RAW if done.which == RAW else EVALUATED
    save_weights(out, {name: done.model}, {**done.meta, "weights": {name: dict(done.facts)}})
    early = "" if done.after is None else f" after {done.after:,} steps of an unfinished run"
    print(f"weights  {out}: {done.name}, {done.which}{early}, {out.stat().st_size / 1e6:.3g} MB")


def _list(run: Path) -> None:
    path = weights_of(run)
    known = known_weights(read_header(path).meta, path)
    print(f"in {path}: {', '.join(said(name, facts) for name, facts in known.items())}")
    stored = stored_in(snapshot_files(path.parent))
    last = max(step for _, step in stored)
    times = len({step for _, step in stored})
    widths = sorted({width for width, _ in stored})
    print(f"stored {times} times: power {', '.join(f'{width:g}' for width in widths)}")
    print("can be formed, and by how much the profile is missed:")
    for width in WIDTHS:
        missed = blend(stored, width, last).mismatch
        fits = f"{missed:.1%}" if missed <= MOST else f"{missed:.0%}, too much"
        print(f"  --sigma-rel {width:<6g} {fits}")
