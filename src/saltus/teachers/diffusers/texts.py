"""The text encoders of a pipeline: loaded, asked, and let go.

A text encoder may be larger than the network that it serves, and is needed once for each text: so it is held
no longer than one call of :func:`encode` takes. The pipeline's own ``encode_prompt`` does the work.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch

from saltus.teachers.diffusers.packages import part, quietly
from saltus.typing import Condition

__all__ = ["PIPELINES", "encode"]

_LEFT_OUT = {"transformer", "unet", "vae", "scheduler"}
_LEFT_OUT |= {"safety_checker", "feature_extractor", "image_encoder"}


def encode(
    folder: Folder,
    pipeline: str,
    prompts: Sequence[str],
    *,
    negative: bool = False,
    device: torch.device,
    dtype: torch.dtype,
    variant: str | None = None,
    length: int | None = None,
) -> Condition:
    """The condition of some texts, one row each, on ``device`` in ``dtype``.

    Args:
        folder: the pipeline's.
        pipeline: the name of its class, one of :data:`PIPELINES`.
        prompts: the texts.
        negative: whether they are what guidance leads away from, which some pipelines encode in another way.
        device: where the encoders run.
        dtype: of the encoders.
        variant: of the weights' file names, such as "fp16".
        length: of the sequence, for encoders without a fixed one; None is the pipeline's own.

    Raises:
        ValueError: for a folder whose encoders cannot be loaded.
    """
    row = PIPELINES[pipeline]
    without = {name: None for name in _LEFT_OUT & _parts_of(pipeline)}
    with quietly():
        try:
            pipe = part(pipeline).from_pretrained(
                str(folder),
                **without,
                local_files_only=True,
                use_safetensors=True,
                dtype=dtype,
                variant=variant,
            )
        except Exception as wrong:  # whatever diffusers and transformers make of it
            why = f"{type(wrong).__name__}: {' '.join(str(wrong).split())[:300]}"
            raise ValueError(
                f"{folder}: expected text encoders and tokenizers that load from safetensors, got {why}; "
                "save the pipeline again with save_pretrained(FOLDER)"
            ) from None
        pipe.to(device)
        more: dict[str, Any] = {} if length is None else {"max_sequence_length": length}
        with torch.no_grad():
            found = row(_Texts(pipe, list(prompts), negative, {"device": device}, more))
    del pipe
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found.each(lambda v: v.detach().clone())


def _parts_of(pipeline: str) -> set[str]:
    """The names of a pipeline's parts."""
    return set(inspect.signature(part(pipeline).__init__).parameters)


@dataclass(frozen=True)
class _Texts:
    """What an encoding is asked.

    Attributes:
        pipe: the pipeline, without its network.
        prompts: the texts.
        negative: whether guidance leads away from them.
        place: the device, as an argument.
        more: the length of the sequence, as an argument, if it was given.
    """

    pipe: Any
    prompts: list[str]
    negative: bool
    place: dict[str, Any]
    more: dict[str, Any]


Encoding = Callable[[_Texts], Condition]


def _sd(asked: _Texts) -> Condition:
    tokens, _ = asked.pipe.encode_prompt(asked.prompts, asked.place["device"], 1, False)
    return Condition(tokens=tokens)


def _sdxl(asked: _Texts) -> Condition:
    pipe = asked.pipe
    tokens, _, pooled, _ = pipe.encode_prompt(asked.prompts, do_classifier_free_guidance=False, **asked.place)
    if asked.negative and pipe.config.force_zeros_for_empty_prompt and not any(asked.prompts):
        tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
    return Condition(tokens=tokens, pooled=pooled)


def _sd3(asked: _Texts) -> Condition:
    tokens, _, pooled, _ = asked.pipe.encode_prompt(
        asked.prompts, None, None, do_classifier_free_guidance=False, **asked.place, **asked.more
    )
    return Condition(tokens=tokens, pooled=pooled)


def _flux(asked: _Texts) -> Condition:
    tokens, pooled, _ = asked.pipe.encode_prompt(asked.prompts, **asked.place, **asked.more)
    return Condition(tokens=tokens, pooled=pooled)


def _masked(asked: _Texts, **more: object) -> Condition:
    tokens, mask, _, _ = asked.pipe.encode_prompt(asked.prompts, False, **asked.place, **asked.more, **more)
    return Condition(tokens=tokens, mask=mask.bool())


def _usual(asked: _Texts, name: str) -> dict[str, object]:
    """What a call of the pipeline gives for an argument of which nothing is said."""
    return {name: inspect.signature(type(asked.pipe).__call__).parameters[name].default}


def _pixart(asked: _Texts) -> Condition:
    """PixArt's pipelines clean texts, where the packages for it are installed."""
    return _masked(asked, **_usual(asked, "clean_caption"))


def _sana(asked: _Texts) -> Condition:
    """By default Sana's pipeline puts an instruction before a prompt, and none before a negative one."""
    return _masked(asked, **({} if asked.negative else _usual(asked, "complex_human_instruction")))


PIPELINES: dict[str, Encoding] = {
    "StableDiffusionPipeline": _sd,
    "LatentConsistencyModelPipeline": _sd,
    "StableDiffusionXLPipeline": _sdxl,
    "StableDiffusion3Pipeline": _sd3,
    "FluxPipeline": _flux,
    "SanaPipeline": _sana,
    "PixArtAlphaPipeline": _pixart,
    "PixArtSigmaPipeline": _pixart,
}
"""How the texts of each pipeline are encoded."""
