"""Where and with what a run was made: what its figures may depend on beside its options."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from saltus import __version__

__all__ = ["environment"]


def environment(device: torch.device, processes: int) -> dict[str, object]:
    """What ``environment.json`` says of one start of a run, as JSON values."""
    found: dict[str, object] = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "saltus": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
    }
    return {key: value for key, value in found.items() if value is not None}


def _commit() -> str | None:
    """The commit of this package where it is used from a checkout; "+" if files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        said = [
            subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=5)
            for args in (("rev-parse", "--show-toplevel", "HEAD"), ("status", "--porcelain", "--", str(here)))
        ]
    except (OSError, subprocess.TimeoutExpired):
        return None
    if said[0].returncode:
        return None
    top, commit = said[0].stdout.splitlines()  # blanks may be in the folder's name
    place = Path(top).resolve()
    if not here.is_relative_to(place) or "src" not in here.relative_to(place).parts:
        return None  # installed, perhaps below somebody else's checkout
    return commit + ("+" if said[1].stdout.strip() else "")


def _processor() -> str:
    """The processor's name and the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count()
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {cores} cores"
