"""The optional packages, imported when first needed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["part", "quietly"]


def part(name: str) -> Any:  # noqa: ANN401
    """A class of diffusers by its name, or a ValueError that says what to install or to upgrade."""
    try:
        import diffusers
    except ImportError as missing:
        raise ValueError(
            f"diffusers: expected the packages of the extra, got {missing}; "
            'install them with pip install "saltus[diffusers]"'
        ) from missing
    found = getattr(diffusers, name, None)
    if not isinstance(found, type):
        raise ValueError(
            f"diffusers: expected a version that has {name}, got {diffusers.__version__}; upgrade diffusers"
        )
    return found


@contextmanager
def quietly() -> Iterator[None]:
    """Without the notes and progress bars of diffusers and transformers."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    told = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in told]
    bars = [which for which in (ours, theirs) if which.is_progress_bar_enabled()]
    for logger in told:
        logger.setLevel(logging.ERROR)
    for bar in bars:
        bar.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(told, levels, strict=True):
            logger.setLevel(level)
        for bar in bars:
            bar.enable_progress_bar()
