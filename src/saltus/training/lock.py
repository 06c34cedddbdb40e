"""One process at a time in a run's folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["LOCK", "locked"]

LOCK = ".lock"


@contextmanager
def locked(folder: Path, work: str = "training") -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it however the process ends.

    Args:
        folder: of a run, or of other work that goes on when it is interrupted.
        work: what is done in it, for messages.

    Raises:
        ValueError: if another process holds it, or the folder cannot be written to.
    """
    path = folder / LOCK
    handle = _held(folder, path, work)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()  # while it is held: who waits for it opens a new one
    finally:
        os.close(handle)


def _held(folder: Path, path: Path, work: str) -> int:
    """An open file that this process has locked, and that is still the one at its path: who ended a moment
    ago may have removed it between our opening and our locking."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as wrong:
            why = wrong.strerror or wrong
            raise ValueError(
                f"{folder}: expected to write here, got {why}; choose another with --out"
            ) from wrong
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:
                return handle
            os.close(handle)
        except BlockingIOError:
            who = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise ValueError(
                f"run folder {folder}: expected it free, but {who} is {work} in it; wait for that, end it, "
                "or choose another folder with --out"
            ) from None
        except OSError as wrong:
            os.close(handle)
            raise ValueError(
                f"{path}: expected to lock it, got {wrong.strerror}; choose a folder on a disk that has "
                "locks, with --out"
            ) from wrong
