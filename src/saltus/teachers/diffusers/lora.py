"""Students that train a few numbers beside the weights of their teacher: low-rank adapters, by PEFT.

A layer W of the model becomes W + (alpha/r) B A with A [r, in] and B [out, r], B = 0 at first. Student,
critic, averages and teacher are networks of their own in everything but W: its numbers are in memory once,
whoever holds them, and nothing is ever switched on or off. So a loss may ask the student and its teacher in
one breath, within a derivative or compiled.

W is no parameter of the student: it is not trained, averaged, saved with it or sent anywhere. A run's weights
hold A, B and the second time (:mod:`saltus.teachers.diffusers.student`), and the name of the folder that W
is in.

:func:`save_lora` writes A and B as diffusers reads them (``pipeline.load_lora_weights``). Such a file has no
place for the second time, which is written beside it; what diffusers makes of the adapters alone is u_{t,t},
the velocity. But for one jump, from noise to data, the network is asked at one time only: there the second
time is a constant c, and where h is what the last layer of the time's embedding gets, an adapter of rank one
of that layer, c h^T / |h|^2, adds just that. So adapters for one jump are ordinary ones.

References:
    Hu et al., "LoRA: low-rank adaptation of large language models", 2021, arXiv 2106.09685.
    Luo et al., "LCM-LoRA", 2023, arXiv 2311.05556 (adapters for few steps; the layers of a U-Net).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor, nn

from saltus.interpolants import Interpolant, Linear
from saltus.teachers.diffusers.opened import DiffusersModel
from saltus.teachers.diffusers.student import DiffusersBackbone, actually, plainly
from saltus.typing import Condition

__all__ = ["ADAPTERS", "SECOND_TIME", "AdaptedBackbone", "LoRA", "save_lora"]

ADAPTERS, SECOND_TIME = "pytorch_lora_weights.safetensors", "second_time.safetensors"
"""The files of :func:`save_lora`: diffusers' own name, and what it does not know."""
_NAME = "default"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_JOINT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out")
_UNET: tuple[str, ...] = ("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj")
_UNET += ("downsamplers.0.conv", "upsamplers.0.conv", "ff.net.0.proj", "ff.net.2")
_SANA = ("conv_inverted", "conv_point")


@dataclass(frozen=True)
class LoRA:
    """The size of adapters.

    Attributes:
        rank: r.
        alpha: their factor is alpha/r; None is r.
        targets: the ends of the names of adapted layers; empty takes the family's.
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora: expected a rank of at least 1, got {self.rank}; 16 or 64 are usual")

    def layers(self, module: nn.Module) -> tuple[str, ...]:
        """The ends of names, of those asked for, that the model has.

        Raises:
            ValueError: if it has none.
        """
        unet = type(module).__name__.startswith("UNet")
        usual = (*_ATTENTION, *_UNET) if unet else (*_ATTENTION, *_JOINT, *_FORWARD, *_SANA)
        names = [n for n, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        asked = self.targets or usual
        found = tuple(end for end in asked if any(n == end or n.endswith(f".{end}") for n in names))
        if not found or (self.targets and len(found) < len(asked)):
            absent = ", ".join(end for end in asked if end not in found)
            raise ValueError(
                f"lora: expected layers {absent} in a {type(module).__name__}, found none; name others, such "
                f"as {names[-1]}"
            )
        return found


class AdaptedBackbone(DiffusersBackbone):
    """A model with adapters and a second time; its other weights are those of the model that it was made of.

    Args:
        model: whose network stays as it is and shares its weights; they must not be trained.
        onto: the path that the flow map is of.
        guidance: whether a strength of guidance is an input.
        lora: the size of the adapters.
    """

    def __init__(
        self,
        model: DiffusersModel,
        onto: Interpolant = Linear(),
        guidance: bool = False,
        lora: LoRA = LoRA(),
    ) -> None:
        super().__init__(replace(model, module=_sharing(model.module)), onto, guidance)
        self.lora = lora
        with actually():
            inject(self.module, lora)
        _hold(self.module)

    def shared(self) -> list[Tensor]:
        """The weights that belong to the base, and the texts."""
        return [*self.module.buffers(), *super().shared()]

    @torch.no_grad()
    def inherit(self, teacher: nn.Module) -> None:
        """Start as the teacher: the base's weights are its own, the adapters and the second time silent."""
        if not isinstance(teacher, DiffusersBackbone):
            raise ValueError(
                f"student from its teacher: expected the diffusers model that is adapted, got "
                f"{type(teacher).__name__}; leave out --lora"
            )
        for name, value in self.module.named_parameters():
            if ".lora_B." in name:
                value.zero_()
        self.start(teacher)


def _sharing(module: nn.Module) -> nn.Module:
    """A copy of the modules alone, with one time: parameters and buffers are the same tensors."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return plainly(copy.deepcopy(module, memo))


def inject(module: nn.Module, lora: LoRA) -> None:
    """Put adapters into a model, in place.

    Raises:
        ImportError: without PEFT.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as absent:
        raise ImportError("adapters need PEFT: pip install 'saltus[lora]'") from absent
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # type: ignore[arg-type]
        target_modules=list(lora.layers(module)),
        lora_dropout=0.0,
        init_lora_weights=True,
    )
    inject_adapter_in_model(config, module, _NAME)


def _hold(module: nn.Module) -> None:
    """Make every weight but the adapters' a buffer that is not saved. Where a network is built without
    memory, PEFT could not move the adapters, which get none here."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            if value.requires_grad:
                part._parameters[name] = nn.Parameter(value.detach().clone())
                continue
            del part._parameters[name]
            part.register_buffer(name, value.detach(), persistent=False)
        part._non_persistent_buffers_set.update(part._buffers)


def adapters(backbone: AdaptedBackbone) -> dict[str, Tensor]:
    """The adapters' weights by the names that PEFT and diffusers know them by."""
    from peft.utils import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(backbone.module, adapter_name=_NAME)
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def save_lora(
    backbone: AdaptedBackbone, folder: File, jump: bool = False, w: float | None = None
) -> list[File]:
    """Write the adapters as diffusers reads them, and the second time beside them.

    Args:
        backbone: of a student.
        folder: is there; files of these names in it are replaced.
        jump: make the adapters those of one jump from t = 0 to t = 1, u_{0,1} where the network is asked for
            u_{0,0}; at other times they are of no use. Else they give u_{t,t}.
        w: the strength of guidance of that jump, for students that learned it; None is 1.

    Returns:
        The two files.
    """
    from diffusers.loaders.lora_base import LoraBaseMixin
    from safetensors.torch import save_file

    prefix = "unet" if type(backbone.module).__name__.startswith("UNet") else "transformer"
    config = backbone.module.peft_config[_NAME].to_dict()  # type: ignore[union-attr,index,operator]
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    weights = adapters(backbone)
    if jump:
        more = _of_one_jump(backbone, w)
        weights |= {f"{name}.{end}.weight": value for name, of in more.items() for end, value in of.items()}
        plain["target_modules"] = sorted([*plain["target_modules"], *more])
    LoraBaseMixin.write_lora_layers(
        {f"{prefix}.{name}": value for name, value in weights.items()},
        str(folder),
        is_main_process=True,
        weight_name=ADAPTERS,
        save_function=None,  # type: ignore[arg-type]
        safe_serialization=True,
        lora_adapter_metadata={f"{prefix}.{key}": value for key, value in plain.items()},
    )
    second = {name: value.detach().cpu().contiguous() for name, value in backbone.gap.state_dict().items()}
    says = {"path": type(backbone.onto).__name__, "about": "g(t - s), added to what embeds the time"}
    save_file(second, str(folder / SECOND_TIME), says)
    return [folder / ADAPTERS, folder / SECOND_TIME]


@torch.no_grad()
def _of_one_jump(backbone: AdaptedBackbone, w: float | None) -> dict[str, dict[str, Tensor]]:
    """By the names of the layers that embed the time, A and B that add the second time of a jump from t = 0
    to t = 1 there."""
    like = backbone.gap.first.weight
    one = like.new_ones(1)
    added = backbone.gap(one, None if w is None else w * one)[0]
    seen: dict[str, Tensor] = {}
    hooks = []
    for name in backbone.model.family.embeddings(backbone.module):
        last: Any = backbone.module.get_submodule(name)
        if last.post_act is not None or not isinstance(last.linear_2, nn.Linear):
            raise ValueError(
                f"lora: expected a time embedding that ends in a plain layer, got one of a "
                f"{type(backbone.module).__name__} that does not; export the student --to diffusers"
            )

        def look(layer: nn.Module, given: tuple[Tensor], name: str = f"{name}.linear_2") -> None:
            seen[name] = given[0][0]

        hooks.append(last.linear_2.register_forward_pre_hook(look))
    x = like.new_zeros(1, *backbone.model.shape)
    try:
        backbone(x, 0.0 * one, one, Condition(w=None))
    finally:
        for hook in hooks:
            hook.remove()
    factor = backbone.lora.rank / (backbone.lora.alpha or backbone.lora.rank)
    found = {}
    for name, h in seen.items():
        a, b = h.new_zeros(backbone.lora.rank, len(h)), h.new_zeros(len(added), backbone.lora.rank)
        a[0] = h / h.norm()
        b[:, 0] = factor * added.to(h) / h.norm()
        found[name] = {"lora_A": a.cpu(), "lora_B": b.cpu()}
    return found
