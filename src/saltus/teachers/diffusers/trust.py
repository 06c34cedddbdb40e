"""Folders whose code is known may be loaded by diffusers without its consent being asked again."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["trust_folders"]


def trust_folders(known: Callable[[Path], bool]) -> None:
    """Let ``DiffusionPipeline.from_pretrained`` run the code of local folders for which ``known`` is true.

    What the caller says of ``trust_remote_code`` is left alone, and so is everything else; a
    ``custom_pipeline`` is code from elsewhere.

    Args:
        known: whether the code of a folder is one's own.

    Raises:
        ImportError: without diffusers.
    """
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ImportError("this needs diffusers; pip install 'saltus[diffusers]'") from error
    pipeline: Any = DiffusionPipeline
    original = pipeline.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(cls: Any, folder: str | os.PathLike[str], **options: Any) -> Any:  # noqa: ANN401
        if "custom_pipeline" not in options and os.path.isdir(folder) and known(Path(folder)):
            options.setdefault("trust_remote_code", True)
        return original(cls, folder, **options)

    pipeline.from_pretrained = classmethod(from_pretrained)  # type: ignore[arg-type]
