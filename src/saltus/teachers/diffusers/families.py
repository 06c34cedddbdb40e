"""One row for each class of networks of diffusers: how it is called, where its time goes in.

==============================  ==================================  =================================
class                           models                              condition
==============================  ==================================  =================================
``UNet2DModel``                 DDPM, DDIM                          none, or label
``UNet2DConditionModel``        Stable Diffusion 1 and 2, LCM       tokens
``UNet2DConditionModel``        Stable Diffusion XL                 tokens and pooled
``DiTTransformer2DModel``       DiT                                 label
``SD3Transformer2DModel``       Stable Diffusion 3                  tokens and pooled
``FluxTransformer2DModel``      Flux.1                              tokens and pooled; w if distilled
``SanaTransformer2DModel``      Sana                                tokens and mask
``PixArtTransformer2DModel``    PixArt-alpha, PixArt-sigma          tokens and mask
==============================  ==================================  =================================

Any other network is a :class:`Family` of one's own around a function: see :func:`forward_function`.

Every one of them turns its time into sinusoids and those into a vector by a ``TimestepEmbedding``; the dotted
paths of these modules are :meth:`Family.embeddings`, and that is where a second time goes in.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from saltus.typing import Condition

__all__ = ["Call", "Family", "family_of", "forward_function", "known_families"]

Call = Callable[[nn.Module, Tensor, Tensor, Condition, int], Tensor]
"""(module, x [B, C, H, W], timestep [B], condition, pixels) -> [B, C or 2 C, H, W]."""


@dataclass(frozen=True)
class Family:
    """How the networks of a class are asked.

    Attributes:
        name: for messages.
        classes: the names of the classes of diffusers.
        asks: the call itself.
        takes: the fields of a :class:`saltus.typing.Condition` that it cannot do without.
        time: dotted path of the modules that embed its time, a pattern in which ``*`` may stand for a number.
        per_step: its own time for one unit of the scheduler's: 0.001 for Flux, which counts to 1.
        patch: how many latent pixels of an edge make one token where the scheduler shifts by their number.
        from_one: whether its pipeline gives the levels 1, ..., 1/steps to the scheduler.
        pixels: the width of a latent pixel in the image, for networks that are told the image's size.
        patch_channels: its channels over those of the latents, where it takes them in patches.
    """

    name: str
    classes: tuple[str, ...]
    asks: Call
    takes: tuple[str, ...] = ()
    time: str = ""
    per_step: float = 1.0
    patch: int = 2
    from_one: bool = False
    pixels: int = 8
    patch_channels: int = 1

    def call(self, module: nn.Module, x: Tensor, timestep: Tensor, cond: Condition | None = None) -> Tensor:
        """What the network says, [B, C, H, W]; channels of a learned variance are left out.

        Args:
            module: of this family.
            x: the state that the network sees, [B, C, H, W].
            timestep: in the network's own units, [B].
            cond: with no dropped rows left (:func:`saltus.teachers.diffusers.conditions.filled`).

        Raises:
            ValueError: if a part of the condition is missing, or the output has another number of channels.
        """
        given = Condition() if cond is None else cond
        if given.null is not None:
            raise ValueError(
                f"{self.name}: expected a condition without dropped rows, got some; call filled() first"
            )
        missing = [field for field in self.takes if _part(given, field) is None]
        if missing:
            raise ValueError(
                f"{self.name}: expected a condition with {' and '.join(self.takes)}, got none of "
                f"{' and '.join(missing)}; make it by the model's condition(...)"
            )
        answer = self.asks(module, x, timestep, given, self.pixels)
        channels = x.shape[1]
        if answer.shape[1] not in (channels, 2 * channels) or answer.shape[2:] != x.shape[2:]:
            raise ValueError(
                f"{self.name}: expected an answer of shape {list(x.shape)}, like its states, got "
                f"{list(answer.shape)}; models that take an image beside the state are not supported"
            )
        return answer[:, :channels]

    def embeddings(self, module: nn.Module) -> tuple[str, ...]:
        """The dotted paths, in this module, of what embeds its time."""
        names = [name for name, _ in module.named_modules()]
        found = tuple(n for n in names if n and fnmatch.fnmatchcase(n, self.time))
        if not found:
            raise ValueError(
                f"{self.name}: expected a module {self.time or 'that embeds its time'}, got "
                f"none in {type(module).__name__}; name it in a Family of your own"
            )
        return found


def _part(cond: Condition, field: str) -> Tensor | None:
    value: Tensor | None = getattr(cond, field)
    return value


def forward_function(
    call: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor],
    *,
    name: str = "a forward function",
    takes: tuple[str, ...] = (),
    time: str = "",
    per_step: float = 1.0,
) -> Family:
    """The family of any network, by a function that calls it.

    Args:
        call: (module, x [B, ...], timestep [B], condition) -> [B, ...].
        name, takes, time, per_step: as in :class:`Family`.
    """

    def asks(module: nn.Module, x: Tensor, timestep: Tensor, cond: Condition, pixels: int) -> Tensor:
        return call(module, x, timestep, cond)

    return Family(name, (), asks, takes, time, per_step)


def known_families() -> tuple[Family, ...]:
    """Every row of the table."""
    return _FAMILIES


def family_of(module: nn.Module) -> Family:
    """The family of a network, by its class and configuration.

    Raises:
        ValueError: for a class that is not known, or one whose configuration asks for more than a text.
    """
    names = {c.__name__ for c in type(module).__mro__}
    for family in _FAMILIES:
        if names & set(family.classes) and _fits(family, module):
            return _told(family, module)
    known = ", ".join(sorted({c for f in _FAMILIES for c in f.classes}))
    raise ValueError(
        f"network: expected one of {known}, conditioned on classes or texts alone, got "
        f"{type(module).__name__}; give family=forward_function(...) with a function that calls it"
    )


def _setting(module: nn.Module, name: str, default: Any = None) -> Any:  # noqa: ANN401
    config: Any = module.config
    return config.get(name, default)


_XL = frozenset({"text_time"})
_PLAIN_TIME = frozenset({None, "positional"})


def _fits(family: Family, module: nn.Module) -> bool:
    """Which of the rows of one class it is, if any."""
    if "UNet2DModel" in family.classes:
        return _setting(module, "time_embedding_type", "positional") in _PLAIN_TIME
    if "UNet2DConditionModel" in family.classes:
        more = _setting(module, "addition_embed_type")
        kind = more in _XL if "pooled" in family.takes else more is None
        unlabelled = all(_setting(module, name) is None for name in ("class_embed_type", "num_class_embeds"))
        return kind and unlabelled
    if "SanaTransformer2DModel" in family.classes:
        return not _setting(module, "guidance_embeds", False)
    return True


def _told(family: Family, module: nn.Module) -> Family:
    """The family with what the module's configuration adds: labels, a scale of its time."""
    labelled = any(_setting(module, name) is not None for name in ("num_class_embeds", "class_embed_type"))
    if "UNet2DModel" in family.classes and labelled:
        return replace(family, takes=("label",))
    scale = float(_setting(module, "timestep_scale", 1.0))
    return replace(family, per_step=family.per_step * scale)


def _first(answer: Any) -> Tensor:  # noqa: ANN401
    value: Tensor = answer[0]
    return value


def _unet(module: nn.Module, x: Tensor, timestep: Tensor, cond: Condition, pixels: int) -> Tensor:
    labels = {} if cond.label is None else {"class_labels": cond.label}
    return _first(module(x, timestep, return_dict=False, **labels))


def strength_features(w: Tensor, width: int) -> Tensor:
    """The sinusoids of 1000 (w - 1) that a U-Net with ``time_cond_proj_dim`` takes its strength of guidance
    by: w [B] -> [B, width]. (Luo et al., 2023, arXiv 2310.04378.)"""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=w.device) * (-torch.log(torch.tensor(10000.0)) / (half - 1)))
    phases = 1000.0 * (w.float() - 1.0)[:, None] * rates[None]
    both = torch.cat([phases.sin(), phases.cos()], dim=1)
    return both if width % 2 == 0 else nn.functional.pad(both, (0, 1))


def _text_unet(module: nn.Module, x: Tensor, timestep: Tensor, cond: Condition, pixels: int) -> Tensor:
    more: dict[str, Any] = {}
    width = _setting(module, "time_cond_proj_dim")
    if width is not None:
        w = torch.ones(len(x), device=x.device) if cond.w is None else cond.w
        more["timestep_cond"] = strength_features(w, int(width)).to(x.dtype)
    if cond.pooled is not None and _setting(module, "addition_embed_type") in _XL:
        height, width_ = pixels * x.shape[2], pixels * x.shape[3]
        size = torch.tensor([height, width_, 0, 0, height, width_], dtype=x.dtype, device=x.device)
        more["added_cond_kwargs"] = {"text_embeds": cond.pooled, "time_ids": size.expand(len(x), 6)}
    return _first(module(x, timestep, encoder_hidden_states=cond.tokens, return_dict=False, **more))


def _dit(module: nn.Module, x: Tensor, timestep: Tensor, cond: Condition, pixels: int) -> Tensor:
    return _first(module(x, timestep=timestep, class_labels=cond.label, return_dict=False))


def _sd3(module: nn.Module, x: Tensor, timestep: Tensor, cond: Condition, pixels: int) -> Tensor:
    text = {"encoder_hidden_states": cond.tokens, "pooled_projections": cond.pooled}
    return _first(module(hidden_states=x, timestep=timestep, return_dict=False, **text))


def _flux(module: nn.Module, x: Tensor, timestep: Tensor, cond: Condition, pixels: int) -> Tensor:
    """The state in patches of 2 x 2, with the place of each; the text has no place."""
    rows, channels, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"Flux: expected latents of even height and width, got {height} x {width}; crop")
    assert cond.tokens is not None
    h, w = height // 2, width // 2
    packed = x.reshape(rows, channels, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5)
    down, across = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([torch.zeros_like(down), down, across], dim=-1).reshape(h * w, 3)
    strength = None
    if _setting(module, "guidance_embeds", False):
        strength = torch.ones(rows, device=x.device) if cond.w is None else cond.w.float()
    answer = _first(
        module(
            hidden_states=packed.reshape(rows, h * w, 4 * channels),
            timestep=timestep,
            guidance=strength,
            encoder_hidden_states=cond.tokens,
            pooled_projections=cond.pooled,
            img_ids=places.to(device=x.device, dtype=x.dtype),
            txt_ids=torch.zeros(cond.tokens.shape[1], 3, device=x.device, dtype=x.dtype),
            return_dict=False,
        )
    )
    unpacked = answer.reshape(rows, h, w, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return unpacked.reshape(rows, -1, height, width)


def _sana(module: nn.Module, x: Tensor, timestep: Tensor, cond: Condition, pixels: int) -> Tensor:
    text = {"encoder_hidden_states": cond.tokens, "encoder_attention_mask": cond.mask}
    return _first(module(x, timestep=timestep, return_dict=False, **text))


def _pixart(module: nn.Module, x: Tensor, timestep: Tensor, cond: Condition, pixels: int) -> Tensor:
    rows, _, height, width = x.shape
    more: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if module.use_additional_conditions:
        size = torch.tensor([pixels * height, pixels * width], dtype=x.dtype, device=x.device)
        ratio = torch.full((rows, 1), height / width, dtype=x.dtype, device=x.device)
        more = {"resolution": size.expand(rows, 2), "aspect_ratio": ratio}
    text = {"encoder_hidden_states": cond.tokens, "encoder_attention_mask": cond.mask}
    return _first(module(x, timestep=timestep, added_cond_kwargs=more, return_dict=False, **text))


_FAMILIES = (
    Family("U-Net", ("UNet2DModel",), _unet, (), "time_embedding"),
    Family("text U-Net", ("UNet2DConditionModel",), _text_unet, ("tokens",), "time_embedding"),
    Family(
        "text U-Net (XL)",
        ("UNet2DConditionModel",),
        _text_unet,
        ("tokens", "pooled"),
        "time_embedding",
    ),
    Family(
        "DiT",
        ("DiTTransformer2DModel",),
        _dit,
        ("label",),
        "transformer_blocks.*.norm1.emb.timestep_embedder",
    ),
    Family(
        "SD3",
        ("SD3Transformer2DModel",),
        _sd3,
        ("tokens", "pooled"),
        "time_text_embed.timestep_embedder",
    ),
    Family(
        "Flux",
        ("FluxTransformer2DModel",),
        _flux,
        ("tokens", "pooled"),
        "time_text_embed.timestep_embedder",
        per_step=0.001,
        from_one=True,
        patch_channels=4,
    ),
    Family(
        "Sana",
        ("SanaTransformer2DModel",),
        _sana,
        ("tokens",),
        "time_embed.emb.timestep_embedder",
    ),
    Family(
        "PixArt",
        ("PixArtTransformer2DModel",),
        _pixart,
        ("tokens",),
        "adaln_single.emb.timestep_embedder",
    ),
)
