"""What is kept between commands (statistics of real images, classifiers) lies in a folder of the session's
own, which all its processes share: no test reads or writes a user's cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

CACHE = "SALTUS_CACHE"
MADE = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Workers of xdist and commands that tests start inherit the folder of the process that began."""
    if not hasattr(config, "workerinput"):
        config.stash[MADE] = Path(tempfile.mkdtemp(prefix="saltus-cache-"))
        os.environ[CACHE] = str(config.stash[MADE])


def pytest_unconfigure(config: pytest.Config) -> None:
    """The process that began removes it."""
    if MADE in config.stash:
        shutil.rmtree(config.stash[MADE], ignore_errors=True)
