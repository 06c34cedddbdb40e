"""Tensors that cost something to make and are kept under what they were made of.

They lie in $SALTUS_CACHE, or else in the folder saltus of $XDG_CACHE_HOME, or else in ~/.cache/saltus, as
safetensors files. A file's name is the hash of its key, which holds digests of everything that its tensors
depend on: other data, another network or another count give another file, and nothing is ever out of date.
A file is believed only if its key and the hash of its tensors are what it says; else it is made again.
The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saltus.metrics.features import digest_of

__all__ = ["cache_folder", "cached"]

SAID = "saltus"


def cache_folder() -> Path:
    """Where cached tensors lie; see above."""
    own = os.environ.get("SALTUS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saltus"


def cached(
    what: str, key: Mapping[str, object], make: Callable[[], dict[str, Tensor]], quiet: bool = False
) -> dict[str, Tensor]:
    """The tensors of the key, read if they are there and whole, or else made and kept.

    Args:
        what: they are, in a few words, for the name of the file and for messages.
        key: JSON-able; names everything that they depend on.
        make: them, on any device.
        quiet: do not say that they are made.
    """
    text = json.dumps(dict(key), sort_keys=True)
    name = f"{what.replace(' ', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"
    path = cache_folder() / name
    if path.exists():
        try:
            return _read(path, text)
        except (SafetensorError, OSError, ValueError) as wrong:
            print(f"{path}: {wrong}; the {what} are made again", file=sys.stderr)
    elif not quiet:
        print(f"making the {what}, once: {path}", file=sys.stderr)
    tensors = {n: t.detach().cpu().contiguous() for n, t in make().items()}
    beside = path.with_name(f".{uuid.uuid4().hex[:8]}-{name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, beside, {SAID: _said(text, tensors)})
        beside.replace(path)
    except (OSError, SafetensorError) as wrong:
        print(f"{path}: cannot keep {what} ({wrong}); $SALTUS_CACHE names another folder", file=sys.stderr)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return tensors


def _said(text: str, tensors: Mapping[str, Tensor]) -> str:
    """What a file says of itself; one entry, since several have no fixed order."""
    return json.dumps({"key": json.loads(text), "digest": digest_of(tensors)}, sort_keys=True)


def _read(path: Path, text: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        said = (file.metadata() or {}).get(SAID)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if said != _said(text, tensors):
        raise ValueError("expected what its key and its hash say, got other tensors")
    return tensors
