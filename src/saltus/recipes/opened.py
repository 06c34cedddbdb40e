"""A finished run read back: the map, and what sampling or teaching needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saltus.interpolants import Interpolant
from saltus.maps import NetworkMap
from saltus.methods import Method
from saltus.methods import load as load_method
from saltus.recipes.folder import weights_of
from saltus.recipes.model import ModelSpec
from saltus.recipes.parts import interpolant_of
from saltus.training import load_weights, restore

__all__ = ["Finished", "open_run"]


@dataclass(frozen=True, eq=False)
class Finished:
    """A trained map with what sampling and teaching need to know of it.

    Attributes:
        model: in evaluation mode, without gradients.
        spec: how it was built.
        method: that trained it.
        interpolant: the path that it was trained on.
        recipe: whose data it learned.
        dropout: the rate at which labels were dropped in training.
        weights: the file.
        guidance: the largest strength of guidance that it learned; None if it learned none, or does not say.
    """

    model: NetworkMap
    spec: ModelSpec
    method: Method
    interpolant: Interpolant
    recipe: str
    dropout: float
    weights: Path
    guidance: float | None = None

    @property
    def name(self) -> str:
        """SYSTEM-METHOD."""
        return f"{self.recipe}-{self.method.name}"


def open_run(run: Path, raw: bool = False) -> Finished:
    """The map of a run folder, or of its weights file alone, in evaluation mode.

    Args:
        run: the folder or the file.
        raw: take the last weights instead of their moving average.
    """
    path = weights_of(run)
    tensors, meta = load_weights(path)
    if {"model", "method", "recipe", "plain"} - set(meta):
        raise ValueError(f"{path}: expected weights written by saltus run, got options {sorted(meta)}")
    spec = ModelSpec.from_plain(meta["model"])
    model = spec.build()
    name = "raw" if raw else "ema"
    restore({name: model}, {k: v for k, v in tensors.items() if k.startswith(f"{name}.")}, path)
    method = load_method(str(meta["method"]))
    interpolant = interpolant_of(method, bool(meta["plain"]))
    model = model.eval().requires_grad_(False)
    recipe, dropout = str(meta["recipe"]), float(meta.get("dropout", 0.0))
    strength = meta.get("guidance")
    high = float(strength) if isinstance(strength, int | float) else None
    return Finished(model, spec, method, interpolant, recipe, dropout, path, high)
