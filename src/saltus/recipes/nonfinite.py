"""What to do when a number of a run was not finite: where it was, and what to change."""

from __future__ import annotations

import sys
from pathlib import Path

from saltus.recipes.averages import averages
from saltus.recipes.experiment import Experiment
from saltus.recipes.folder import CHECKPOINTS
from saltus.training import Fit, NonFiniteLoss, Precision, Run
from saltus.training.replay import Cause, cause

__all__ = ["explained"]

SKIP = 10
"""The number of moves that a message proposes to leave out."""


def explained(made: Experiment, folder: Path, fault: NonFiniteLoss) -> NonFiniteLoss:
    """The error for a run whose numbers were not finite: the term, the times, the rows, the last checkpoint,
    and what to change. The steps since that checkpoint are played again; Ctrl-C does without.

    All processes of the run call this, after their networks have been let go.

    Args:
        made: what was trained.
        folder: of the run.
        fault: as it was told.
    """
    world = made.world
    student = made.model()
    kept, fit = averages(made.training, student), made.fit(student)
    done = Run(folder / CHECKPOINTS, world=world, say=lambda line: None).resume(fit, kept)
    why = Cause(f"step {fault.step:,}: {fault.what} of move {fault.player!r} is not finite", False)
    if world.leads and not made.output.quiet:
        again = f"{fault.step - done:,} steps before it" if fault.step > done else "that step"
        print(f"{why.words}; playing {again} again to find its rows (Ctrl-C does without)", file=sys.stderr)
    try:
        why = cause(fit, fault, world)
    except KeyboardInterrupt:
        pass
    place = f"the last good checkpoint is after {done:,} steps" if done else "no checkpoint came before it"
    message = f"{why.words}; {place}; {_fix(made, fit, why, done)}"
    return NonFiniteLoss(message, fault.step, fault.player, fault.what)


def _fix(made: Experiment, fit: Fit, why: Cause, done: int) -> str:
    """What to change."""
    t = made.training
    other = ["a lower --lr"]
    if t.clip is None:
        other.append("--clip 1")
    if any(player.precision is not Precision.FLOAT32 for player in fit.players):
        other.append("--precision float32")
    anew = f"begin anew with {' or '.join(other)}"
    skip = t.machine.skip_nonfinite
    if skip:
        before = f"{skip:,} such moves were" if skip > 1 else "1 such move was"
        return f"{before} skipped already; {anew}"
    if why.weights:
        return anew
    again = "goes on from there without" if done else "does without"
    return f"the same command with --skip-nonfinite {SKIP} {again} such moves; or {anew}"
