"""A run read back: the map, and what sampling or teaching needs to know of it.

Nothing is believed before it is checked: a file's construction options are built without memory first and
held against the sizes in its header, and nothing in it is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.maps import NetworkMap
from saltus.methods import Card, Method
from saltus.methods import load as load_method
from saltus.recipes.averages import Choice, known_weights, said, snapshot_files
from saltus.recipes.folder import weights_of
from saltus.recipes.model import ModelSpec
from saltus.recipes.parts import interpolant_of
from saltus.recipes.prompts import PROMPTS, Prompts
from saltus.recipes.sampling import check_steps, draw
from saltus.recipes.system import asked
from saltus.recipes.unfinished import Unfinished, is_unfinished, newest
from saltus.samplers import batched, prior
from saltus.streams import Streams
from saltus.teachers.diffusers.plain import UnknownOrigin
from saltus.teachers.diffusers.student import DiffusersBackbone
from saltus.tensors import full_like_rows
from saltus.training import Header, initialised, load_weights, read_header, reconstruct_files, restore
from saltus.typing import Condition

__all__ = ["DEFAULT", "Finished", "open_run"]

ROWS = 4096
"""Samples that are drawn at a time."""
FEW = 8
"""The same of a network of diffusers, which may be a large one."""
NAME = 100
"""The longest name of a method or recipe that a file may give."""
DEFAULT = Choice()


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
        weights: the file, or the folder of the checkpoint.
        guidance: the largest strength of guidance that it learned; None if it learned none, or does not say.
        which: the weights in words: "ema 0.999", "raw", "power 0.13".
        facts: the decay or the width of the average, if it is one and the file says so.
        after: the steps behind the weights of a run that is not finished; None if it is.
        meta: what the file says of itself.
    """

    model: NetworkMap
    spec: ModelSpec
    method: Method
    interpolant: Interpolant
    recipe: str
    dropout: float
    weights: Path
    guidance: float | None = None
    which: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)
    after: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """SYSTEM-METHOD."""
        return f"{self.recipe}-{self.method.name}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.spec.shape

    @property
    def card(self) -> Card:
        """What sampling must know of the method: its sampler, and at how many steps it is meaningful."""
        return self.method.card

    def noise(self, n: int, seed: int = 0) -> Tensor:
        """The states at t = 0 where samples 0, ..., n - 1 of a seed start, [n, ...]."""
        return prior(self._rows(n, seed), self.shape, self.interpolant)

    def _rows(self, n: int, seed: int) -> Streams:
        device = next(self.model.parameters()).device
        return Streams(seed, index=torch.arange(n), device=device)

    def sample(
        self,
        n: int,
        steps: int = 1,
        seed: int = 0,
        label: int | None = None,
        w: float | None = None,
        given: Condition | None = None,
    ) -> Tensor:
        """Samples [n, ...] by the method's own sampler, on the device of the map.

        Sample i is a function of the seed, i and what is asked for, whatever n is.

        Args:
            n: how many.
            steps: of the sampler; the card says which counts are meaningful.
            seed: of the noise.
            label: the class of all samples; by default one after another, where the map knows classes.
            w: the strength of guidance, for maps that learned it.
            given: a condition of one row for all samples, such as a text, in place of a label.

        Raises:
            ValueError: for what the map cannot be asked.
        """
        if n < 1:
            raise ValueError(f"n: expected at least one sample, got {n}; ask for one or more")
        check_steps(self.card, self.method.name, steps)
        self.check_strength(w)
        labels = self.labels(n, label) if given is None else None
        self._check_texts(labels)

        def some(rng: Streams, places: Tensor) -> Tensor:
            x0 = prior(rng, self.shape, self.interpolant)
            chosen = None if labels is None else labels[places].to(x0.device)
            strength = None if w is None else full_like_rows(w, x0)
            cond = asked(chosen, strength)
            if given is not None:
                rows = torch.zeros(len(x0), dtype=torch.int64)
                cond = replace(given.rows(rows).to(x0.device), w=strength)
            return draw(self.model, self.card, x0, steps, cond, rng, self.interpolant)

        most = ROWS if self.spec.foreign is None else FEW
        return torch.cat(list(batched(some, self._rows(n, seed), most)))

    def _check_texts(self, labels: Tensor | None) -> None:
        """Raise a ValueError for labels that stand for texts which are not there."""
        backbone = self.model.backbone
        if not isinstance(backbone, DiffusersBackbone) or labels is None:
            return
        if backbone.textual and backbone.texts is None:
            raise ValueError(
                f"{self.weights}: expected the prompts of the run beside it ({PROMPTS}), found none; put "
                "them there, or say what to sample with --prompt"
            )

    def labels(self, n: int, label: int | None = None) -> Tensor | None:
        """The classes of samples 0, ..., n - 1: all the same, or one after another; None without classes."""
        classes = self.spec.classes
        if classes is None:
            if label is not None:
                raise ValueError(f"label {label}: {self.name} was trained without labels; drop the label")
            return None
        if label is None:
            return torch.arange(n) % classes
        if not 0 <= label < classes:
            raise ValueError(f"label: expected 0 to {classes - 1}, got {label}; choose one of these")
        return torch.full((n,), label)

    def check_strength(self, w: float | None) -> None:
        """Raise a ValueError for a strength of guidance that means nothing to the map."""
        if w is None:
            return
        if not self.spec.guidance:
            raise ValueError(f"w {w:g}: {self.name} was not trained with --guidance; drop w")
        if not math.isfinite(w):
            raise ValueError(f"w: expected a finite strength of guidance, got {w}; 1 is none")


def open_run(run: Path, choice: Choice = DEFAULT, unfinished: bool = False) -> Finished:
    """The map of a run folder, or of its weights file alone, in evaluation mode.

    Args:
        run: the folder or the file.
        choice: which of its weights.
        unfinished: take those of the newest whole checkpoint, if the run still trains or was stopped.

    Raises:
        ValueError: for a file that is damaged, of another kind, or does not hold what is asked for.
    """
    try:
        if unfinished and is_unfinished(run):
            return newest(run, partial(_checkpointed, run=run, choice=choice))
        path = weights_of(run)
    except OSError as wrong:  # a name that no file can have
        raise ValueError(f"run: expected a run folder or a weights file, got {wrong.strerror}") from None

    def tensors(name: str) -> Mapping[str, Tensor]:
        return load_weights(path, f"{name}.").tensors

    return _opened(path, path.parent, read_header(path), tensors, choice)


def _checkpointed(seen: Unfinished, run: Path, choice: Choice) -> Finished:
    """The map of a checkpoint of the run."""
    done = _opened(seen.saved.folder, run, seen.header, seen.tensors, choice)
    return replace(done, after=seen.saved.step)


def _opened(
    path: Path,
    run: Path,
    header: Header,
    tensors: Callable[[str], Mapping[str, Tensor]],
    choice: Choice,
) -> Finished:
    """The map of weights that lie at ``path`` in a run's folder; ``tensors`` reads those of a name."""
    meta = header.meta
    _check_meta(meta, path)
    known = known_weights(meta, path)
    spec = _spec(meta["model"], path)
    _check_sizes(spec, header, known, path)
    method = load_method(meta["method"])
    name = choice.name(known, path)
    model = initialised(0, spec.build)
    if name is not None:
        facts = known[name]
        restore({name: model}, tensors(name), path)
    else:
        assert choice.sigma_rel is not None
        facts = {"sigma_rel": choice.sigma_rel}
        state = reconstruct_files(snapshot_files(run), choice.sigma_rel)
        restore({"power": model}, {f"power.{key}": value for key, value in state.items()}, run)
    strength = meta.get("guidance")
    if isinstance(model.backbone, DiffusersBackbone):
        texts = Prompts.load(run)
        model.backbone.learn(None if texts is None else texts.cond)
    return Finished(
        model=model.eval().requires_grad_(False),
        spec=spec,
        method=method,
        interpolant=interpolant_of(method, meta["plain"]),
        recipe=meta["recipe"],
        dropout=float(meta.get("dropout", 0.0)),
        weights=path,
        meta=meta,
        guidance=None if strength is None else float(strength),
        which=said(name or "", facts),
        facts=facts,
    )


def _check_meta(meta: Mapping[str, Any], path: Path) -> None:
    """Raise a ValueError unless a file says what sampling needs."""
    if {"model", "method", "recipe", "plain"} - set(meta):
        raise ValueError(
            f"{path}: expected weights written by saltus run, got options {str(sorted(meta))[:200]}; "
            "give a run's model.safetensors"
        )

    def number(value: object) -> bool:
        return type(value) in (int, float) and math.isfinite(float(str(value)))

    fits: dict[str, Callable[[Any], bool]] = {
        "method": lambda v: isinstance(v, str) and len(v) <= NAME,
        "recipe": lambda v: isinstance(v, str) and len(v) <= NAME,
        "plain": lambda v: isinstance(v, bool),
        "dropout": number,
        "guidance": lambda v: v is None or number(v),
    }
    for name, fit in fits.items():
        if name in meta and not fit(meta[name]):
            raise ValueError(
                f"{path}: expected construction options, but {name} cannot be {str(meta[name])[:40]!r}; "
                "the file is damaged"
            )


def _spec(options: object, path: Path) -> ModelSpec:
    try:
        return ModelSpec.from_plain(options)
    except ValueError as wrong:
        raise ValueError(f"{path}: {wrong}") from None


def _check_sizes(spec: ModelSpec, header: Header, known: Mapping[str, object], path: Path) -> None:
    """Raise a ValueError unless a file's tensors are those of the network that it describes.

    The network is built without memory, so that absurd options cost nothing.
    """
    try:
        with torch.device("meta"):
            sizes = {key: tuple(t.shape) for key, t in spec.build().state_dict().items()}
    except UnknownOrigin as wrong:
        raise ValueError(f"{path}: {wrong}") from None
    except (ValueError, RuntimeError, OverflowError, TypeError, MemoryError) as wrong:
        raise ValueError(
            f"{path}: expected the options of a network, got ones that build none "
            f"({' '.join(str(wrong).split())[:200]}); the file is damaged"
        ) from None
    expected = {f"{name}.{key}": size for name in known for key, size in sizes.items()}
    found = header.shapes
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    unlike = [name for name, size in expected.items() if name in found and found[name] != size]
    told = [
        *(f"{len(missing)} are missing, the first {missing[0]}" for _ in missing[:1]),
        *(f"{len(extra)} are unknown, the first {extra[0][:100]}" for _ in extra[:1]),
        *(f"{name} is {list(found[name])} instead of {list(expected[name])}" for name in unlike[:1]),
    ]
    if told:
        raise ValueError(
            f"{path}: expected the {len(expected)} tensors of the network that it describes, but "
            f"{', '.join(told)}; the file is damaged, or was put together of two"
        )
