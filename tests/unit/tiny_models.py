"""Models of diffusers with random weights, small enough for a test, built without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saltus.typing import Condition

__all__ = [
    "FAMILIES",
    "PIPELINES",
    "SIZE",
    "WIDE",
    "Wide",
    "condition",
    "network",
    "noise",
    "save_pipeline",
    "scheduler",
]

WIDE = torch.float64
SIZE = 8
"""Of a latent's edge."""
WIDTH, LENGTH, POOLED, CLASSES = 16, 5, 6, 1000
LABELLED = frozenset({"DiT"})
NORMS = {"norm_num_groups": 4, "cross_attention_dim": WIDTH, "attention_head_dim": 2}
LEVELS = {"block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": SIZE}
DOWN, UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
TEXT_UNET = {**LEVELS, **NORMS, "down_block_types": DOWN, "up_block_types": UP}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 4, "sample_size": SIZE}
TEXTS = {"joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED}

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "U-Net": (
        "UNet2DModel",
        {
            **LEVELS,
            "in_channels": 3,
            "out_channels": 3,
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "SD1.5": ("UNet2DConditionModel", TEXT_UNET),
    "SDXL": (
        "UNet2DConditionModel",
        {
            **TEXT_UNET,
            "cross_attention_dim": 2 * WIDTH,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": WIDTH + 24,
        },
    ),
    "DiT": ("DiTTransformer2DModel", {**HEADS, "out_channels": 8, "num_layers": 2, "norm_num_groups": 4}),
    "SD3": (
        "SD3Transformer2DModel",
        {
            **HEADS,
            "joint_attention_dim": 2 * WIDTH,
            "pooled_projection_dim": 2 * WIDTH,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "caption_projection_dim": 8,
            "pos_embed_max_size": SIZE,
            "qk_norm": "rms_norm",
        },
    ),
    "Flux": (
        "FluxTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "joint_attention_dim": WIDTH,
            "pooled_projection_dim": WIDTH,
            "axes_dims_rope": (2, 2, 4),
            "guidance_embeds": True,
        },
    ),
    "Sana": (
        "SanaTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 4,
            "cross_attention_dim": 8,
            "caption_channels": WIDTH,
        },
    ),
    "PixArt": (
        "PixArtTransformer2DModel",
        {
            **HEADS,
            "num_layers": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 8,
            "caption_channels": WIDTH,
            "use_additional_conditions": False,
        },
    ),
}
FAMILIES = tuple(NETWORKS)
"""The names that the functions below know."""
TIED = {"SDXL": (2 * WIDTH, WIDTH), "SD3": (2 * WIDTH, 2 * WIDTH), "Flux": (WIDTH, WIDTH)}
"""Widths of the tokens and of the pooled embedding, where there is one."""
MASKED = frozenset({"Sana", "PixArt"})

DISCRETE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "U-Net": ("DDPMScheduler", {"clip_sample": False}),
    "SD1.5": (
        "DDIMScheduler",
        {**DISCRETE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    ),
    "SDXL": ("EulerDiscreteScheduler", {**DISCRETE, "timestep_spacing": "leading", "steps_offset": 1}),
    "DiT": ("DDIMScheduler", {"clip_sample": False}),
    "SD3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "Flux": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    "Sana": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "PixArt": ("DDIMScheduler", {"clip_sample": False}),
}


class Wide(TorchFunctionMode):
    """diffusers computes sinusoids, root mean squares and some attention in float32 whatever comes in; finite
    differences need them in float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        narrow = func in (Tensor.float, Tensor.to) and args[1:] in ((), (torch.float32,)) and not kwargs
        return args[0] if narrow and args[0].dtype == WIDE else func(*args, **(kwargs or {}))


def network(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **settings: object) -> Any:  # noqa: ANN401
    """A network with random weights, none of them zero, in evaluation mode."""
    import diffusers

    kind, defaults = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = getattr(diffusers, kind)(**{**defaults, **settings})
        for p in module.parameters():  # biases and tables that start at zero would hide mistakes
            if float(p.detach().abs().max()) == 0.0:
                nn.init.normal_(p, std=0.1)
    return module.to(dtype).eval()


def scheduler(name: str, **settings: object) -> Any:  # noqa: ANN401
    """The scheduler that such a model is published with."""
    import diffusers

    kind, defaults = SCHEDULERS[name]
    return getattr(diffusers, kind)(**{**defaults, **settings})


def channels(name: str) -> int:
    """Of the states of the model."""
    return 3 if name == "U-Net" else 4


def noise(name: str, rows: int = 2, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """A state, [rows, C, 8, 8]."""
    drawn = torch.randn(rows, channels(name), SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return drawn.to(dtype)


def condition(
    name: str, rows: int = 2, dtype: torch.dtype = torch.float32, seed: int = 2
) -> Condition | None:
    """Labels, or embeddings of no particular text; None for a network without a condition."""
    rng = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=rng).to(dtype)

    if name in LABELLED:
        return Condition(label=torch.arange(rows) * 7 % CLASSES)
    if name == "U-Net":
        return None
    width, pooled = TIED.get(name, (WIDTH, None))
    mask = torch.arange(LENGTH).expand(rows, -1) < LENGTH - 1 - torch.arange(rows)[:, None] % 2
    return Condition(
        tokens=drawn(LENGTH, width),
        pooled=None if pooled is None else drawn(pooled),
        mask=mask if name in MASKED else None,
    )


def _autoencoder() -> Any:  # noqa: ANN401
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(5)
        return AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=2 * SIZE,
            shift_factor=0.0,
        ).eval()


def _deep_autoencoder() -> Any:  # noqa: ANN401
    from diffusers import AutoencoderDC

    two = {"block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8)}
    two |= {"qkv_multiscales": ((), (5,)), "layers_per_block": (1, 1)}
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        **{f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in two.items()},
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    ).eval()


WORDS = ("a", "cat", "dog", "of", "photo")


def _clip(projected: bool = False) -> tuple[Any, Any]:
    """A CLIP tokenizer that knows letters and the words above, and its encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = {c: i for i, c in enumerate([*letters, *(f"{c}</w>" for c in letters)])}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=12)
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=WIDTH,
        bos_token_id=len(vocab) - 2,
        eos_token_id=len(vocab) - 1,
        pad_token_id=len(vocab) - 1,
    )
    return tokenizer, (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _t5(width: int = WIDTH) -> tuple[Any, Any]:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{w}" for w in WORDS), *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5Tokenizer(vocab=[(p, -float(i)) for i, p in enumerate(pieces)], extra_ids=0)
    config = T5Config(
        vocab_size=len(pieces),
        d_model=width,
        d_kv=4,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=2,
        is_gated_act=False,
    )
    return tokenizer, T5EncoderModel(config).eval()


def _gemma() -> tuple[Any, Any]:
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = GemmaTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[])
    config = Gemma2Config(
        vocab_size=len(pieces),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    return tokenizer, Gemma2Model(config).eval()


def _sd15_texts() -> dict[str, Any]:
    tokenizer, encoder = _clip()
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {"tokenizer": tokenizer, "text_encoder": encoder, **rest}


def _sdxl_texts() -> dict[str, Any]:
    (one, first), (two, second) = _clip(), _clip(projected=True)
    return {"tokenizer": one, "text_encoder": first, "tokenizer_2": two, "text_encoder_2": second}


def _sd3_texts() -> dict[str, Any]:
    (one, first), (two, second), (three, third) = _clip(projected=True), _clip(projected=True), _t5(2 * WIDTH)
    encoders = {"text_encoder": first, "text_encoder_2": second, "text_encoder_3": third}
    return {"tokenizer": one, "tokenizer_2": two, "tokenizer_3": three, **encoders}


def _flux_texts() -> dict[str, Any]:
    (one, first), (two, second) = _clip(), _t5()
    return {"tokenizer": one, "text_encoder": first, "tokenizer_2": two, "text_encoder_2": second}


def _pair(of: Callable[[], tuple[Any, Any]]) -> Callable[[], dict[str, Any]]:
    def texts() -> dict[str, Any]:
        tokenizer, encoder = of()
        return {"tokenizer": tokenizer, "text_encoder": encoder}

    return texts


PIPELINES: dict[str, tuple[str, str, Callable[[], dict[str, Any]]]] = {
    "SD1.5": ("StableDiffusionPipeline", "unet", _sd15_texts),
    "SDXL": ("StableDiffusionXLPipeline", "unet", _sdxl_texts),
    "DiT": ("DiTPipeline", "transformer", dict),
    "SD3": ("StableDiffusion3Pipeline", "transformer", _sd3_texts),
    "Flux": ("FluxPipeline", "transformer", _flux_texts),
    "Sana": ("SanaPipeline", "transformer", _pair(_gemma)),
    "PixArt": ("PixArtSigmaPipeline", "transformer", _pair(_t5)),
}
"""The class of the pipeline, the name of its network, and its text encoders."""


def pipeline(name: str, **settings: object) -> Any:  # noqa: ANN401
    """A pipeline around :func:`network` and :func:`scheduler`; settings are the network's."""
    import diffusers

    kind, part, texts = PIPELINES[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        vae = _deep_autoencoder() if name == "Sana" else _autoencoder()
        parts = {part: network(name, **settings), "scheduler": scheduler(name), "vae": vae, **texts()}
    made = getattr(diffusers, kind)(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def save_pipeline(name: str, folder: Path, **settings: object) -> Path:
    """A folder as ``save_pretrained`` leaves it."""
    pipeline(name, **settings).save_pretrained(folder, safe_serialization=True)
    return folder


def names(only: Sequence[str] = FAMILIES) -> list[str]:
    """Identifiers of parametrised tests."""
    return list(only)
