"""A diffusers model as a two-time network: its own code, and a second time beside its first.

The model F(x, tau, c) embeds one time. Its student embeds the gap t - s too: what an :class:`Addition`, a
small network of our own, makes of it is added to the output of the model's time embedding,

    e(tau) -> e(tau) + g(t - s),     g = W2 silu(W1 f(t - s)),  f(0) = 0,  W2 = 0 at first,

and nothing else of the model changes: no code is copied, no weight gets another name. So the student starts
as its teacher, u_{s,t}(x) = b_s(x) for every t, on whatever path it is asked; W2 has a gradient from the
first step and W1 from the second. As g(0) = 0 always, the velocity u_{t,t} is that of the model alone; and
for steps of one length g is one vector, which :meth:`DiffusersBackbone.fixed` adds to a bias, for a plain
diffusers model that makes such steps. A strength of guidance enters g in the same way, with f(w = 1) = 0.

f are sines and cosines of a few low frequencies in our own unit of time, not of a thousand times it: a
derivative in t multiplies by the frequency, and the average velocity is smooth at t = s.

How g reaches the embedding: modules that embed time get a class of their own that is a subclass of theirs and
adds the value of an :class:`saltus.autodiff.Aside`, which is set for the time of a call. So g is an ordinary
tensor of the call for derivatives, for compilation, and for blocks that recompute their activations; copies
of the network have asides of their own.

References:
    Frans et al., "One step diffusion via shortcut models", 2024, arXiv 2410.12557 (a zero-initialised d).
    Sabour, Fidler and Kreis, "Align your flow", 2025, arXiv 2506.14603 (a second time added to the first).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from saltus.autodiff import Aside, Beside
from saltus.interpolants import Interpolant, Linear
from saltus.teachers.diffusers.conditions import filled
from saltus.teachers.diffusers.opened import DiffusersModel
from saltus.tensors import check_times
from saltus.typing import Condition, Output, Velocity

__all__ = ["Addition", "DiffusersBackbone"]

FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the waves in the gap, in periods from noise to data."""
FIELDS = ("label", "tokens", "mask", "pooled")
"""Of a condition, what a network of diffusers takes."""
_BLOCKS = ("transformer_blocks", "single_transformer_blocks", "down_blocks", "mid_block", "up_blocks")


def _features(a: Tensor) -> Tensor:
    """(a, sin 2 pi f a, cos 2 pi f a - 1) for each f above: [B] -> [B, 11], zero at a = 0."""
    angles = [2.0 * math.pi * f * a for f in FREQUENCIES]
    waves = [wave for angle in angles for wave in (torch.sin(angle), torch.cos(angle) - 1.0)]
    return torch.stack([a, *waves], dim=-1)


class Addition(nn.Module):
    """g(t - s, w) [B, width]: what is added to the embedding of the time; zero at first.

    Args:
        width: of the embedding.
        guidance: whether a strength of guidance w is an input; None stands for w = 1, no guidance.
        like: a tensor with the device and the dtype of the weights; None is PyTorch's own.
    """

    def __init__(self, width: int, guidance: bool = False, like: Tensor | None = None) -> None:
        super().__init__()
        size = 1 + 2 * len(FREQUENCIES)
        self.guidance = guidance
        kind = (None, None) if like is None else (like.device, like.dtype)
        self.first = nn.Linear(size * (2 if guidance else 1), width, False, *kind)
        self.last = nn.Linear(width, width, False, *kind)
        nn.init.zeros_(self.last.weight)

    def forward(self, gap: Tensor, w: Tensor | None = None) -> Tensor:
        """Of gaps [B] and strengths [B], in the precision of the weights, never in that of autocast."""
        seen = _features(gap)
        if self.guidance:
            strength = torch.ones_like(gap) if w is None else w.to(gap.dtype)
            seen = torch.cat([seen, _features(torch.asinh(strength - 1.0) / 4.0)], dim=-1)
        with torch.autocast(gap.device.type, enabled=False):
            h = F.silu(self.first(seen.to(self.first.weight.dtype)))
            added: Tensor = self.last(h)
        return added


class _Added(Beside):
    """The mark of a module to whose output an aside is added."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {}


def _added(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of modules like ``kind`` whose output has their aside added. A class, unlike a hook or a
    module around it, leaves the names of the weights as they are, and is kept by copies."""

    def forward(self: Any, *args: object, **kwargs: object) -> Tensor:  # noqa: ANN401
        embedding: Tensor = kind.forward(self, *args, **kwargs)
        added = self.aside.value
        return embedding if added is None else embedding + added.to(embedding.dtype)

    if kind not in _KINDS:
        _KINDS[kind] = type(f"TwoTime{kind.__name__}", (_Added, kind), {"forward": forward})
    return _KINDS[kind]


def plainly(module: nn.Module) -> nn.Module:
    """The same model with one time: its time embeddings have their own classes again. In place."""
    for part in module.modules():
        if isinstance(part, _Added):
            part.__class__ = type(part).__bases__[1]
            del vars(part)["aside"]
    return module


@contextmanager
def actually() -> Iterator[None]:
    """Within it tensors are real and on the CPU, also where a network is built without memory."""
    with torch.device("cpu"), unset_fake_temporarily():
        yield


def _velocity(model: DiffusersModel, onto: Interpolant) -> Velocity:
    with actually():  # it looks at its path's ends
        return model.velocity(onto)


class DiffusersBackbone(nn.Module):
    """A diffusers model with two times, of protocol :class:`saltus.typing.Backbone`.

    With :class:`saltus.maps.AverageVelocity` it is a flow map on the path ``onto``. The model stays in
    evaluation mode: its dropouts would make it another function in every call.

    What stands for no condition is a part of the network and is saved with its weights. A network of texts
    may know some by number (:meth:`learn`): then labels 0, 1, ... ask for them.

    Args:
        model: the teacher; its network becomes the student's and has two times from now on.
        onto: the path that the flow map is of.
        guidance: whether a strength of guidance ``cond.w`` is an input of the second time's embedding.

    Attributes:
        module: the network of diffusers.
        gap: the embedding of the second time.
        onto: see above.

    Raises:
        ValueError: for a network with a second time already, or of a family without a place for it.
    """

    def __init__(
        self, model: DiffusersModel, onto: Interpolant = Linear(), guidance: bool = False
    ) -> None:
        super().__init__()
        module, self.onto, self._aside = model.module, onto, Aside()
        parts: list[Any] = [module.get_submodule(name) for name in model.family.embeddings(module)]
        for part in parts:
            if isinstance(part, _Added):
                raise ValueError(
                    f"student of a {type(module).__name__}: expected a model of one time, got one that has "
                    "a second already; make a copy before, or use the student that it belongs to"
                )
            part.__class__ = _added(type(part))
            part.aside = self._aside
        self.module = module.eval()
        last = parts[0].linear_2
        self.gap = Addition(last.out_features, guidance, last.weight)
        nothing = model.nothing
        for name in FIELDS:
            null = None if nothing is None else vars(nothing)[name]
            self.register_buffer(f"null_{name}", None if null is None else null.clone())
            self.register_buffer(f"text_{name}", None, persistent=False)
        # what is left of the teacher: how its network is called, and nothing that a copy should not copy
        self.model = replace(model, null=None, folder=None, pipeline="")
        self._b = _velocity(self.model, onto)

    @property
    def blocks(self) -> nn.ModuleList:
        """The model's blocks in the order of its layers."""
        found = [child for name, child in self.module.named_children() if name in _BLOCKS]
        lists = [list(child) if isinstance(child, nn.ModuleList) else [child] for child in found]
        return nn.ModuleList([block for blocks in lists for block in blocks])

    def train(self, mode: bool = True) -> DiffusersBackbone:
        """Everything but the model is set to training."""
        super().train(mode)
        self.module.eval()
        return self

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x): x [B, C, H, W], s and t [B], in x's dtype; no second heads."""
        check_times(x, s=s, t=t)
        w = None
        if self.gap.guidance and cond is not None:
            w, cond = cond.w, replace(cond, w=None)
        full = filled(self._said(cond), self._kept("null"), len(x))
        with self._aside.holding(self.gap(t - s, w)):
            return Output(self._b(x, s, full), {})

    def learn(self, texts: Condition | None) -> None:
        """Know texts by number from now on, those of the rows of ``texts``; None forgets them. They are in
        memory once, whatever copies are made, and are not saved with the weights."""
        like = self.gap.first.weight
        for name in FIELDS:
            value = None if texts is None or name == "label" else vars(texts)[name]
            if value is not None:
                value = value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
            setattr(self, f"text_{name}", value)

    @property
    def textual(self) -> bool:
        """Whether it is a network of texts."""
        return "tokens" in self.model.family.takes

    @property
    def texts(self) -> Condition | None:
        """Those known by number."""
        return self._kept("text")

    def _kept(self, name: str) -> Condition | None:
        """The condition that buffers of a name hold."""
        held: dict[str, Any] = {field: getattr(self, f"{name}_{field}") for field in FIELDS}
        return None if all(value is None for value in held.values()) else Condition(**held)

    def _said(self, cond: Condition | None) -> Condition | None:
        """The condition with texts in place of their numbers."""
        texts = self.texts
        if texts is None or cond is None or cond.label is None or cond.tokens is not None:
            return cond
        asked = texts.rows(cond.label)
        return replace(cond, label=None, tokens=asked.tokens, mask=asked.mask, pooled=asked.pooled)

    def on(self, onto: Interpolant) -> DiffusersBackbone:
        """The same network, weights and all, asked for the flow map of another path."""
        made = copy.copy(self)
        made.onto, made._b = onto, _velocity(self.model, onto)
        return made

    def shared(self) -> list[Tensor]:
        """What copies have in common."""
        return [] if self.texts is None else [v for v in vars(self.texts).values() if v is not None]

    def __deepcopy__(self, memo: dict[int, Any]) -> DiffusersBackbone:
        """A copy with weights of its own, but for what is shared."""
        memo |= {id(tensor): tensor for tensor in self.shared()}
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    @torch.no_grad()
    def inherit(self, teacher: nn.Module) -> None:
        """Copy the teacher's weights and silence the second time: u_{s,t}(x) = b_s(x)."""
        if not isinstance(teacher, DiffusersBackbone):
            raise ValueError(
                f"student from its teacher: expected a diffusers model as teacher, got "
                f"{type(teacher).__name__}; start at random with --scratch"
            )
        self.module.load_state_dict(teacher.module.state_dict())
        self.start(teacher)

    @torch.no_grad()
    def start(self, teacher: DiffusersBackbone) -> None:
        """Take over what the teacher has beside its network, and silence the second time."""
        for name in FIELDS:
            mine, theirs = (getattr(b, f"null_{name}") for b in (self, teacher))
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        if teacher.texts is not None:
            self.learn(teacher.texts)
        self.gap.last.weight.zero_()

    @torch.no_grad()
    def fixed(self, gap: float, w: float | None = None) -> nn.Module:
        """A plain diffusers model, of one time, for jumps of the length ``gap`` alone (and one strength of
        guidance): a copy in which g is a part of the bias of the time embedding.

        Raises:
            ValueError: for a model whose time embedding ends in something else than a layer with a bias.
        """
        like = self.gap.first.weight
        strength = None if w is None else like.new_full((1,), w)
        added = self.gap(like.new_full((1,), gap), strength)[0]
        made = plainly(copy.deepcopy(self.module))
        for name in self.model.family.embeddings(made):
            last: Any = made.get_submodule(name)
            if last.post_act is not None or last.linear_2.bias is None:
                raise ValueError(
                    f"fixed: expected a time embedding that ends in a layer with a bias, got one of a "
                    f"{type(made).__name__} that does not; keep the student's two times"
                )
            last.linear_2.bias += added.to(last.linear_2.bias.dtype)
        return made
