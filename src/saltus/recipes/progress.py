"""Progress of what takes long and is no training: how much is done, how fast, and how long it will take."""

from __future__ import annotations

import sys
import time

from saltus.page.axes import clock

__all__ = ["Progress"]

TOLD = 30.0
"""Seconds between two lines of progress."""


class Progress:
    """Things done, their rate and the time left, on standard error: a line that is renewed on a terminal,
    and one every half minute elsewhere."""

    def __init__(self, total: int, things: str, quiet: bool = False) -> None:
        self._total, self._done, self._things, self._quiet = total, 0, things, quiet
        self._begin = self._told = time.monotonic()
        self._skipped = 0

    def skip(self, count: int) -> None:
        """So many were done before."""
        self._done += count
        self._skipped += count

    def more(self, count: int) -> None:
        """So many are done now."""
        self._done += count
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if self._quiet or now - self._told < (1.0 if terminal else TOLD):
            return
        self._told = now
        rate = (self._done - self._skipped) / max(now - self._begin, 1e-9)
        left = clock((self._total - self._done) / max(rate, 1e-9))
        words = f"{self._done:,} of {self._total:,} {self._things}, {rate:.3g} a second, {left} left"
        sys.stderr.write(f"\r{words}   " if terminal else f"{words}\n")
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *args: object) -> None:
        self.end()

    def end(self) -> None:
        """Leave the line that was renewed."""
        if not self._quiet and sys.stderr.isatty():
            sys.stderr.write("\r" + " " * 78 + "\r")
