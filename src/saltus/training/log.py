"""What a run says while it runs: a line of JSON and a line on the terminal, every so many steps."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from saltus.training.step import Reading, Step
from saltus.training.writers import Writer

__all__ = ["Log", "Screen", "numbers"]

_PLAIN_SECONDS = 10.0  # between two lines where no bar can be drawn
_WIDE = 100  # columns that hold the rate of samples too
_SMOOTH = 0.8  # share of the past in a displayed term


class Screen(Console):
    """A terminal, or where standard output goes. When nobody reads it any more it is silent: a run does not
    end because ``| head`` has seen enough."""

    def on_broken_pipe(self) -> None:
        """Write nothing from now on."""
        self.quiet = True
        with suppress(OSError, ValueError):  # a stream without a file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)


class Log:
    """Writes ``metrics.jsonl`` and the terminal's progress; reads a step only when it logs it.

    Every ``every`` steps, and at the last, one JSON object is appended to the file: ``step`` (how many are
    done), ``seconds`` since the start, ``steps_per_second`` and ``samples_per_second`` since the line before,
    ``loss``, ``lr``, ``grad_norm`` and ``terms``; in a game of several players ``moves`` holds the last four
    of each player in their place; in a run of stages ``stage`` names the present one; where moves were
    skipped ``skipped`` counts them, and a move that was has no numbers. The terminal gets a bar, or where it
    is none a plain line every 10 s: rates, time left, the stage and each term, smoothed. A writer gets the
    numbers of each line, named as :func:`numbers` does.

    Rates are those of training: the time spent :meth:`aside` is not in them, but in ``seconds`` and in the
    time left.

    Attributes:
        seconds: that logging itself has taken, without the wait for the device.
        waited: seconds of that wait.

    >>> from rich.console import Console
    >>> with Log(None, steps=10, batch=4, every=5, console=Console(quiet=True)) as log:
    ...     pass

    Raises:
        ValueError: from the constructor if the file cannot be written.
    """

    def __init__(
        self,
        folder: str | Path | None,
        *,
        steps: int,
        batch: int,
        every: int = 50,
        terms: Collection[str] | None = None,
        start: int = 0,
        earlier: float = 0.0,
        console: Console | None = None,
        writer: Writer | None = None,
    ) -> None:
        """Begin to measure time.

        Args:
            folder: where ``metrics.jsonl`` goes; None writes no file.
            steps: of the whole run.
            batch: rows a step.
            every: steps from one line to the next.
            terms: those that the terminal shows; None shows all.
            start: the first step.
            earlier: seconds that the steps before took, as :func:`cut_back` returns them.
            console: where the progress goes; standard output by default.
            writer: gets every number that the file gets; whoever made it closes it.
        """
        if every < 1:
            raise ValueError(f"every: expected at least 1 step between two lines, got {every}; 50 is usual")
        self._steps, self._batch, self._every, self._terms = steps, batch, every, terms
        self._console = console if console is not None else Screen(highlight=False)
        self._writer = writer
        self.seconds = self.waited = 0.0
        self._file: TextIO | None = None
        if folder is not None:
            path = Path(folder) / "metrics.jsonl"
            try:
                self._file = path.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise ValueError(
                    f"{path}: expected to write here, got {error.strerror}; "
                    "choose an existing folder with write permission"
                ) from None
        self._began = self._last_time = time.monotonic()
        self._last_plain, self._earlier = self._began, earlier
        self._start = self._done = start
        self._shown: dict[str, float] = {}
        columns = (BarColumn(), TextColumn("{task.description}", markup=False))
        self._progress = Progress(
            *columns, console=self._console, disable=not self._console.is_terminal, refresh_per_second=4
        )
        self._task = self._progress.add_task("", total=steps, completed=start)

    def __enter__(self) -> Log:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except ValueError:
            if error is None:  # one fault is told at a time
                raise

    def close(self) -> None:
        """Leave the terminal as it was and close the file.

        Raises:
            ValueError: if its last lines could not be written.
        """
        self._progress.stop()
        if self._file is not None:
            try:
                self._file.close()
            except OSError as wrong:
                raise _unwritten(wrong) from None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done within is no training: an evaluation, a picture. Its time is left out of the rates."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._last_time += time.monotonic() - begin

    def __call__(self, step: Step) -> None:
        """Log this step if it is its turn; otherwise return at once, without waiting for the device.

        Raises:
            NonFiniteLoss: if a value of this step or an earlier one was not finite.
            ValueError: if the file can no longer be written.
        """
        done = step.index + 1
        if done % self._every and done != self._steps:
            return
        began = time.monotonic()
        readings = step.fetch()
        now = time.monotonic()
        self.waited += now - began
        rate = (done - self._done) / max(now - self._last_time, 1e-9)
        self._done, self._last_time = done, now
        self._write(step, self._earlier + now - self._began, rate, readings)
        self._smooth(readings)
        self._show(step, now, rate)
        self.seconds += time.monotonic() - now

    def _write(self, step: Step, seconds: float, rate: float, readings: dict[str, Reading]) -> None:
        if self._file is None and self._writer is None:
            return
        row: dict[str, object] = {
            "step": step.index + 1,
            "seconds": round(seconds, 3),
            "steps_per_second": round(rate, 3),
            "samples_per_second": round(rate * self._batch, 1),
        }
        if step.stage:
            row["stage"] = step.stage
        if step.skipped:
            row["skipped"] = step.skipped
        parts = {
            player: {"loss": r.loss, "lr": r.lr, "grad_norm": r.grad_norm, "terms": r.terms}
            for player, r in readings.items()
        }
        alone = len(parts) == 1 and step.complete
        row |= next(iter(parts.values())) if alone else {"moves": parts}
        if self._file is not None:
            try:
                self._file.write(json.dumps(row, allow_nan=False) + "\n")
            except OSError as error:
                raise _unwritten(error) from None
        if self._writer is not None:
            self._writer.scalars(step.index + 1, numbers(row))

    def _smooth(self, readings: dict[str, Reading]) -> None:
        for player, reading in readings.items():
            for name, value in reading.terms.items():
                if self._terms is None or name in self._terms:
                    label = f"{player}/{name}" if len(readings) > 1 else name
                    self._shown[label] = _SMOOTH * self._shown.get(label, value) + (1 - _SMOOTH) * value

    def _show(self, step: Step, now: float, rate: float) -> None:
        done, stage = step.index + 1, step.stage
        left = (self._steps - done) * (now - self._began) / max(done - self._start, 1)
        terms = "  ".join([stage] * bool(stage) + [f"{k} {value:.4g}" for k, value in self._shown.items()])
        terms += f"  {step.skipped:,} skipped" * bool(step.skipped)
        narrow = self._console.is_terminal and self._console.width < _WIDE
        samples = "" if narrow else f"{_count(rate * self._batch)} samples/s  "
        line = (
            f"{done:,}/{self._steps:,} ({100 * done // self._steps} %)  {rate:,.3g} steps/s  "
            f"{samples}{_clock(left)} left  {terms}"
        )
        if self._console.is_terminal:
            self._progress.update(self._task, completed=done, description=line)
        elif now - self._last_plain >= _PLAIN_SECONDS or done == self._steps:
            self._last_plain = now
            self._console.print(line, markup=False, soft_wrap=True)


def _unwritten(error: OSError) -> ValueError:
    return ValueError(
        f"metrics.jsonl: expected to append a line, got {error.strerror}; free some room and resume"
    )


def numbers(row: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a line of ``metrics.jsonl`` but for its step: names within names are joined by slashes.

    >>> numbers({"step": 5, "loss": 0.25, "stage": "first", "terms": {"diagonal": 0.5}})
    {'loss': 0.25, 'terms/diagonal': 0.5}
    """
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{inner}": number for inner, number in numbers(value).items()}
        elif isinstance(value, int | float) and name != "step":
            found[name] = float(value)
    return found


def cut_back(path: Path, step: int) -> float:
    """Keep the lines of a file of JSON objects that were written in the first ``step`` steps.

    A resumed run writes the later ones again. A line that is no JSON, such as one that was cut off when the
    process was killed, goes too, and so does what follows it. The file is replaced whole.

    Args:
        path: of the file; nothing happens if there is none.
        step: how many steps are done.

    Returns:
        The ``seconds`` of the last line kept, 0 if it has none.

    Raises:
        ValueError: if the file cannot be replaced.
    """
    if not path.exists():
        return 0.0
    kept, seconds = [], 0.0
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                row = json.loads(line)
                if row["step"] > step:
                    break
                seconds = float(row.get("seconds", 0.0))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
                break
            kept.append(line if line.endswith("\n") else line + "\n")
        beside = path.with_name(f".{path.name}.part")
        beside.write_text("".join(kept), encoding="utf-8")
        beside.replace(path)
    except OSError as wrong:
        raise ValueError(f"{path}: expected to replace it, got {wrong.strerror}; check permissions") from None
    return seconds


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(75), _clock(3600)
    ('1:15', '1:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _count(number: float) -> str:
    """A whole number to three digits, with thousands set apart.

    >>> _count(123456.0), _count(87.6)
    ('123,000', '88')
    """
    return f"{float(f'{number:.3g}'):,.0f}"
