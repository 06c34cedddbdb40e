"""A run that survives: it saves on a schedule and when it is told to end, and goes on where it was.

    with Run(folder / "checkpoints", save_every=500) as run:
        run.resume(fit, averages)
        for step in fit:
            for average in averages.values():
                average.update()
            log(step)
            run.after(step)

Saving waits for a copy of the state; a thread writes it. Ctrl-C, SIGTERM and the end of the terminal (SIGHUP,
unless it is ignored, as nohup does) are obeyed between two steps: the state is saved whole, then
:class:`Stopped` leaves with the status that the shell expects. A second signal leaves at once.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from saltus.training.checkpoint import Checkpoints
from saltus.training.ema import EMA
from saltus.training.loop import Fit
from saltus.training.parallel import World
from saltus.training.state import restore, state_of
from saltus.training.step import Step

__all__ = ["Run", "Stopped"]

_ALONE = World.alone()
_NOTHING: Mapping[str, Any] = {}


class Stopped(SystemExit):
    """A run was told to end, and has saved itself; the status is 128 and the signal's number."""

    def __init__(self, number: int, step: int) -> None:
        """By this signal, with this many steps done."""
        super().__init__(128 + number)
        self.step = step


class Run:
    """The saving of one training: when, where, and from where to go on.

    Attributes:
        checkpoints: on disk.
    """

    def __init__(
        self,
        folder: Path,
        *,
        save_every: int = 500,
        keep_last: int = 2,
        keep_best: int = 1,
        meta: Mapping[str, Any] = _NOTHING,
        world: World = _ALONE,
        say: Callable[[str], None] = print,
    ) -> None:
        """Of a training whose checkpoints are in ``folder``.

        Args:
            folder: made when the first one is saved.
            save_every: steps from one to the next; 0 saves only when told to end.
            keep_last: so many of the newest stay.
            keep_best: and so many of those with the smallest score.
            meta: plain data that every checkpoint carries, such as how to build the networks.
            world: the processes that train together; they share the folder.
            say: is told from where the run goes on, and which damaged checkpoints it passed over.
        """
        if save_every < 0:
            raise ValueError(f"save every: expected a number of steps, or 0 for never, got {save_every}")
        attempt = str(world.tell(uuid.uuid4().hex[:8]))
        self.checkpoints = Checkpoints(
            folder,
            rank=world.rank,
            size=world.size,
            attempt=attempt,
            keep_last=keep_last,
            keep_best=keep_best,
        )
        self._every, self._meta, self._world, self._say = save_every, dict(meta), world, say
        self._best = keep_best
        self._number: int | None = None
        self._before: dict[int, Any] = {}
        self._screens: list[int] = []
        self._fit: Fit | None = None
        self._averages: Mapping[str, EMA] = {}

    def __enter__(self) -> Run:
        self._screens = [stream for stream in (1, 2) if os.isatty(stream)]
        with suppress(ValueError):  # only the main thread is told of signals
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
        if error is None:
            self.checkpoints.wait()
            if self._number is not None:  # it came after the last step
                raise Stopped(self._number, self._fit.index if self._fit is not None else 0)
        else:
            with suppress(ValueError):  # one fault is told at a time
                self.checkpoints.wait()

    def _asked(self, number: int, frame: FrameType | None) -> None:
        """A signal: note it for the end of the step; a second one does not wait for that."""
        if number == signal.SIGHUP:
            _mute(self._screens)
        if self._number is not None:
            before = self._before.get(number)
            if callable(before):
                before(number, frame)
            raise KeyboardInterrupt
        self._number = number

    def resume(self, fit: Fit, averages: Mapping[str, EMA]) -> int:
        """Go on from the newest whole checkpoint, if there is one.

        Args:
            fit: stands before its first step; stands then before the next one.
            averages: by name; they belong to the state from now on.

        Returns:
            How many steps are done.

        Raises:
            ValueError: if all checkpoints are damaged, or the newest is of another run.
        """
        self._fit, self._averages = fit, averages
        step: int | None = None
        if self._world.leads:
            self.checkpoints.clear_drafts()
            newest = self.checkpoints.newest(self._say)
            step = None if newest is None else newest.step
        step = self._world.tell(step)
        if step is not None:
            saved = self.checkpoints.open(step, verified=self._world.leads)
            restore(fit, averages, saved)
        return fit.index

    def after(self, step: Step, score: float | None = None, measured: bool = False) -> None:
        """What is to be done between two steps: save if it is time, and leave if somebody asked.

        Args:
            step: that was made.
            score: of the weights as they are now, smaller is better; decides which checkpoints stay. The
                first process's counts.
            measured: whether they have been measured; then it is time to save them, where the best stay.

        Raises:
            Stopped: after saving, when a signal came.
            NonFiniteLoss: rather than save numbers that are not finite.
            ValueError: if the save before could not be written.
        """
        fit = self._fit
        assert fit is not None, "resume comes first"
        leave = self._world.agree(self._number is not None)
        regular = self._every and fit.index % self._every == 0
        if leave or regular or (measured and self._best):
            step.fetch()
            self.save(score)
        if leave:
            self.checkpoints.wait()
            raise Stopped(self._number or signal.SIGTERM, fit.index)

    def save(self, score: float | None = None) -> None:
        """Save the state as it is now; returns when it has been copied."""
        assert self._fit is not None, "resume comes first"
        state = state_of(self._fit, self._averages)
        meta = {**self._meta, "state": state.plain}
        self.checkpoints.save(self._fit.index, state.tensors, meta, score)


def _mute(streams: Sequence[int]) -> None:
    """What is printed from now on goes nowhere: the terminal is gone, and writing to it is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream)
    os.close(nowhere)
