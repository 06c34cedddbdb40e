"""DINOv2, a vision transformer that learned without labels, from the folder that transformers saves.

The folder holds config.json and model.safetensors; names of tensors of older and of newer versions are
both known. The network is written out here, so transformers itself is not needed. Features are the class
token after the last normalisation, of images resized to 224 x 224 (bicubic, with antialiasing) and
normalised by ImageNet's mean and deviation.

References:
    Oquab et al., "DINOv2: learning robust visual features without supervision", 2023, arXiv 2304.07193.
    Stein et al., "Exposing flaws of generative model evaluation metrics", 2023, arXiv 2306.04675.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.metrics.features.network import FeatureNetwork, digest_of
from saltus.metrics.features.stored import stored_tensors

__all__ = ["Dinov2", "Plan", "dinov2_from"]

SIDE = 224
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OLD = (
    ("attention.attention.query.", "attention.q_proj."),
    ("attention.attention.key.", "attention.k_proj."),
    ("attention.attention.value.", "attention.v_proj."),
    ("attention.output.dense.", "attention.o_proj."),
    ("encoder.layer.", "layer."),
)
"""Parts of names in published files, and ours."""


@dataclass(frozen=True)
class Plan:
    """Sizes, by the names of config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    image_size: int
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-6

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Of a config.json; a ValueError if it is not of DINOv2, or of a variant that is not built here."""
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            plan = cls(**{name: said[name] for name in cls.__dataclass_fields__ if name in said})
            plain = said.get("model_type") == "dinov2" and not said.get("use_swiglu_ffn", False)
        except (OSError, ValueError, TypeError, AttributeError) as wrong:
            raise ValueError(f"{path}: expected the configuration of a DINOv2, got {wrong}") from None
        numbers = (plan.hidden_size, plan.num_hidden_layers, plan.num_attention_heads, plan.patch_size)
        if not plain or not all(isinstance(n, int) and 0 < n < 10_000 for n in numbers):
            raise ValueError(f"{path}: expected a DINOv2 without gated layers (small, base or large)")
        return plan


class Attention(nn.Module):
    """Of all tokens to all, by heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[n, L, width] -> the same shape."""
        shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k, v = (p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        found: Tensor = self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


class Gain(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[n, L, width] -> the same shape."""
        return x * self.lambda1


class Layer(nn.Module):
    """Attention and two linear layers, each normalised before and scaled after."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        width, eps = plan.hidden_size, plan.layer_norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, plan.num_attention_heads)
        self.layer_scale1, self.layer_scale2 = Gain(width), Gain(width)
        inner = width * plan.mlp_ratio
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        """[n, L, width] -> the same shape."""
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        inner = F.gelu(self.mlp["fc1"](self.norm2(x)))
        result: Tensor = x + self.layer_scale2(self.mlp["fc2"](inner))
        return result


class Dinov2(nn.Module):
    """The transformer; its tensors are named as transformers names them, but for the prefix of its layers."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        width, patch = plan.hidden_size, plan.patch_size
        self.patch, self.grid = patch, plan.image_size // patch
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid**2 + 1, width))
        self.layer = nn.ModuleList(Layer(plan) for _ in range(plan.num_hidden_layers))
        self.layernorm = nn.LayerNorm(width, eps=plan.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0, 255], [n, 1 or 3, H, W] -> class tokens [n, width]."""
        if x.shape[1] not in (1, 3):
            raise ValueError(f"DINOv2: expected images of 1 or 3 channels, got {x.shape[1]}")
        size = (SIDE, SIDE)
        x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0.0, 255.0)
        mean, sd = (x.new_tensor(v).view(3, 1, 1) for v in (MEAN, SD))
        return self.tokens((x / 255.0 - mean) / sd)

    def tokens(self, x: Tensor) -> Tensor:
        """Normalised images [n, 3, H, W] -> class tokens [n, width]."""
        patches = self.patches(x)
        high, wide = patches.shape[2:]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(high, wide)
        for layer in self.layer:
            x = layer(x)
        found: Tensor = self.layernorm(x[:, 0])
        return found

    def _positions(self, high: int, wide: int) -> Tensor:
        """Learned for one grid; interpolated for another."""
        if (high, wide) == (self.grid, self.grid):
            return self.position_embeddings
        first, rest = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        square = rest.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(square, (high, wide), mode="bicubic", align_corners=False)
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], dim=1)


def _ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file under our names."""
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("dinov2.").removeprefix("embeddings.")
        for old, new in OLD:
            name = name.replace(old, new)
        name = name.removeprefix("encoder.").replace("patch_embeddings.projection.", "patches.")
        if name != "mask_token":
            found[name] = tensor.float()
    return found


def dinov2_from(folder: Path) -> FeatureNetwork:
    """The features of a local folder, as transformers saves a Dinov2Model.

    Raises:
        ValueError: for a folder of another model, or a damaged one.
    """
    plan = Plan.read(folder / "config.json")
    with torch.device("meta"):
        net = Dinov2(plan)
    given, wanted = _ours(stored_tensors(folder / "model.safetensors")), net.state_dict()
    wrong = sorted(wanted.keys() ^ given.keys())
    wrong += [k for k in wanted if k in given and wanted[k].shape != given[k].shape]
    if wrong:
        raise ValueError(f"{folder}: expected the weights of its configuration, got others (see {wrong[0]})")
    net.load_state_dict(given, assign=True)
    net.eval().requires_grad_(False)
    name = (
        f"DINOv2, {plan.num_hidden_layers} layers of width {plan.hidden_size}, class token, bicubic to "
        f"{SIDE} x {SIDE}"
    )
    return FeatureNetwork(name, digest_of(given, name, json.dumps(plan.__dict__, sort_keys=True)), net)
