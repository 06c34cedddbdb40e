"""Run folders that tests make: what a run would write, with numbers that are known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["HOSTILE", "options", "rich", "row", "write_log"]

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=2">&\'\u2028'
"""A name that would run, were it not escaped."""


def options(**training: object) -> dict[str, Any]:
    """What ``options.json`` holds."""
    groups = {
        "recipe": {"plain": True},
        "network": {"backbone": "mlp", "size": "small"},
        "training": {"steps": 400, "batch": 64, "lr": 1e-3, "seed": 3, "clip": None} | training,
    }
    return {"recipe": "mixture", "method": "lsd", "options": groups, "saltus": "0.1.0"}


def row(step: int, **more: object) -> dict[str, Any]:
    """One line of a log with a lone player."""
    p = step / 400
    return {
        "step": step,
        "seconds": round(0.5 * step, 3),
        "steps_per_second": 2.0,
        "samples_per_second": 128.0,
        "loss": 3.0 - p,
        "lr": 1e-3 * (1 - p) + 1e-6,
        "grad_norm": 1.0 + p * p,
        "terms": {"diagonal": 2.0 * math.exp(-p), "lagrangian": 1e-3 + math.exp(-9 * p)},
    } | more


def write_log(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``metrics.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _lines(scale: float, said: str) -> list[dict[str, Any]]:
    own = [
        {
            "label": f"{k} jump{'s' * (k > 1)}",
            "group": "own",
            "steps": k,
            "figures": {f"map RMSE{said}": scale / k, "energy": scale / k**2},
            "ms": 0.01 * k,
        }
        for k in (1, 2, 4, 8)
    ]
    real = {"label": f"real data{said}", "group": "real", "steps": 0, "figures": {"energy": 0.01}, "ms": None}
    return [*own, real]


def rich(folder: Path, said: str = "", finished: bool = False) -> Path:
    """A run of two players in two stages with everything that a page can show; ``said`` is in every name."""
    folder.mkdir(parents=True, exist_ok=True)
    about = options()
    about["method"] += said
    about["options"]["training"][f"note{said}"] = said or "none"
    about["options"]["training"]["machine"] = {"device": "cpu", "accumulate": 2}
    _write(folder / "options.json", about)
    command = f"saltus run mixture-lsd --out {'a-long-name-' * 12}{said}"
    _write(folder / "environment.json", {"python": "3.11", f"commit{said}": said, "command": command})
    rows = []
    for step in range(2, 302, 2):
        base = row(step, stage=("warm" if step < 100 else "distil") + said)
        wave = 1.0 + 0.3 * math.sin(step)
        student = {k: base.pop(k) for k in ("loss", "lr", "grad_norm", "terms")}
        student["terms"][f"correction{said}"] = 0.4 * wave
        critic = {"loss": wave, "lr": 2e-3, "grad_norm": 3 * wave, "terms": {f"diagonal{said}": wave}}
        rows.append(base | {"moves": {"student": student, f"critic{said}": critic}})
    write_log(folder, rows)
    evaluations = [
        {"step": 100 * k, "weights": weights + said, "lines": _lines(1.0 / k, said)}
        for k in (1, 2, 3)
        for weights in ("ema 0.999", "ema 0.9999")
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(e) + "\n" for e in evaluations))
    (folder / "grids").mkdir(exist_ok=True)
    for k in (1, 2, 3):
        picture(folder / "grids" / f"{100 * k:06d}.png", 80 * k)
    picture(folder / "samples.png", 40)
    times = [0.0, 0.5, 1.0]
    cells: list[list[float | None]] = [[0.0, 0.5, 1.0], [None, 0.0, 0.25], [None, None, 0.0]]
    _write(folder / "residuals.json", {"step": 300, "times": times, "panels": {f"Eulerian{said}": cells}})
    panel: Mapping[str, Any] = {
        "name": f"2 jumps{said}",
        "points": [[0.0, 0.0], [1.0, -1.0], [2.0, 2.0]],
        "ways": [[[0.0, 0.0], [0.5, 0.5], [1.0, -1.0]]],
    }
    _write(folder / "trajectories.json", {"step": 300, "reach": 2.0, "panels": [panel]})
    if finished:
        (folder / "model.safetensors").write_bytes(b"")
    return folder


def picture(path: Path, level: int) -> None:
    """A PNG, wider than a phone."""
    Image.fromarray(np.full((40, 900, 3), level, dtype=np.uint8)).save(path)
