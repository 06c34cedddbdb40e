"""A student's network as diffusers knows it: one time, adapters folded into the weights that they adapt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saltus.teachers.diffusers.lora import AdaptedBackbone
from saltus.teachers.diffusers.student import DiffusersBackbone

__all__ = ["plain_weights"]

_BASE, _NAME = ".base_layer.", "default"


@torch.no_grad()
def plain_weights(backbone: DiffusersBackbone) -> dict[str, Tensor]:
    """The weights of the network by diffusers' own names, on the CPU.

    With adapters W + (alpha/r) B A takes the place of W.
    """
    if not isinstance(backbone, AdaptedBackbone):
        return {name: value.cpu().contiguous() for name, value in backbone.module.state_dict().items()}
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = {**dict(backbone.module.named_parameters()), **dict(backbone.module.named_buffers())}
    found = {name: value for name, value in named.items() if ".lora_" not in name}
    for name, part in backbone.module.named_modules():
        if isinstance(part, BaseTunerLayer):
            layer: Any = part
            key = f"{name}{_BASE}weight"
            found[key] = found[key] + layer.get_delta_weight(_NAME).to(found[key])
    return {name.replace(_BASE, "."): value.cpu().contiguous() for name, value in found.items()}
