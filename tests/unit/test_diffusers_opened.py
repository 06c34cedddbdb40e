"""Folders of diffusers: what they are opened as, their conditions, and what is said of wrong ones."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZE, condition, network, noise, save_pipeline, scheduler
from torch import Tensor, nn

from saltus.guidance import CFG
from saltus.interpolants import Linear
from saltus.predictions import Prediction
from saltus.teachers.diffusers import (
    DiffusersModel,
    family_of,
    filled,
    forward_function,
    open_diffusers,
    path_of,
)
from saltus.teachers.diffusers import Path as ModelPath
from saltus.typing import Condition


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: save_pipeline(name, root / name) for name in ("SD1.5", "SDXL", "DiT", "PixArt", "Flux")}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A DiT that a test may damage."""
    return Path(shutil.copytree(folders["DiT"], tmp_path / "dit"))


def test_what_is_opened(folders: dict[str, Path]) -> None:
    model = open_diffusers(folders["DiT"], dtype=torch.float64)
    assert (model.shape, model.classes, model.dtype) == ((4, SIZE, SIZE), 1000, torch.float64)
    assert not model.module.training and not any(p.requires_grad for p in model.module.parameters())
    flux = open_diffusers(folders["Flux"], shape=(4, 4, 6))
    assert flux.strength == 3.5 and flux.family.patch_channels == 4
    assert open_diffusers(folders["Flux"]).shape == (4, 128, 128)
    assert flux.path.clock(torch.zeros(1)) == 1.0  # it counts to 1, not to 1000
    y = flux.velocity()(torch.randn(2, 4, 4, 6), torch.tensor([0.2, 0.9]), condition("Flux"))
    assert y.shape == (2, 4, 4, 6)


def test_half_precision_is_near(folders: dict[str, Path]) -> None:
    x, t, cond = noise("DiT"), torch.tensor([0.4, 0.8]), condition("DiT")
    full, half = (open_diffusers(folders["DiT"], dtype=d) for d in (torch.float32, torch.bfloat16))
    one, other = (m.velocity()(x, t, cond) for m in (full, half))
    assert other.dtype == torch.float32
    assert 0.0 < float((one - other).norm() / one.norm()) < 0.03


def test_a_bare_network_and_a_scheduler(folders: dict[str, Path]) -> None:
    x, t, cond = noise("DiT"), torch.tensor([0.4, 0.8]), condition("DiT")
    expected = open_diffusers(folders["DiT"]).velocity()(x, t, cond)
    bare, configs = folders["DiT"] / "transformer", folders["DiT"] / "scheduler"
    config = json.loads((configs / "scheduler_config.json").read_text())
    for given in (configs, configs / "scheduler_config.json", config):
        assert torch.equal(open_diffusers(bare, scheduler=given).velocity()(x, t, cond), expected)
    with pytest.raises(ValueError, match="expected .*scheduler_config.json to say what the network predicts"):
        open_diffusers(bare)
    other = open_diffusers(bare, scheduler={**config, "prediction_type": "v_prediction"})
    assert float((other.velocity()(x, t, cond) - expected).abs().max()) > 0.1


def test_dropped_rows_have_the_null_condition(folders: dict[str, Path]) -> None:
    """Guidance by ``cond.nulled()`` is that by the class 1000, or by the empty text, row by row."""
    x, t = noise("DiT"), torch.tensor([0.4, 0.8])
    dit = open_diffusers(folders["DiT"])
    b, cond = dit.velocity(), dit.condition(labels=[1, 2])
    null = Condition(label=torch.tensor([1000, 1000]))
    free, full = b(x, t, null), b(x, t, cond)
    assert torch.equal(b(x, t, cond.nulled()), free) and torch.equal(b(x, t), free)
    mixed = b(x, t, cond.drop(torch.tensor([True, False])))
    assert torch.allclose(mixed[0], free[0], atol=1e-5) and torch.allclose(mixed[1], full[1], atol=1e-5)
    assert torch.allclose(CFG(b, 3.0)(x, t, cond), free + 3.0 * (full - free), atol=1e-4)
    assert float((full - free).abs().max()) > 0.1
    pixart = open_diffusers(folders["PixArt"], length=12)
    b, cond = pixart.velocity(), pixart.condition(["a cat", "photo of a dog"])
    none = pixart.condition(["", ""])
    assert cond.tokens is not None and cond.tokens.shape == (2, 12, 16)
    assert torch.allclose(b(x, t, cond.nulled()), b(x, t, none), atol=1e-4)
    assert float((b(x, t, cond) - b(x, t, none)).abs().max()) > 1e-3


def test_texts_of_pixart_are_cleaned_as_its_pipeline_cleans_them(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of the pipeline asks for it, its encode_prompt alone does not."""
    from diffusers import PixArtSigmaPipeline

    asked: list[bool] = []

    def preprocessed(self: object, text: list[str], clean_caption: bool = False) -> list[str]:
        asked.append(clean_caption)
        return [t.lower() for t in text]

    monkeypatch.setattr(PixArtSigmaPipeline, "_text_preprocessing", preprocessed)
    model = open_diffusers(folders["PixArt"], length=12)
    assert model.condition(["a cat"]).tokens is not None and model.nothing is not None
    assert asked == [True, True]


def test_an_empty_negative_of_the_large_network_is_zero(folders: dict[str, Path]) -> None:
    model = open_diffusers(folders["SDXL"])
    nothing, empty = model.nothing, model.condition([""])
    assert nothing is not None and nothing.tokens is not None and nothing.pooled is not None
    assert not nothing.tokens.any() and not nothing.pooled.any()
    assert empty.tokens is not None and bool(empty.tokens.any())


def test_text_encoders_are_let_go(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    alive: list[weakref.ref[nn.Module]] = []
    plain = transformers.CLIPTextModel.forward

    def watched(self: nn.Module, *args: object, **kwargs: object) -> object:
        alive.append(weakref.ref(self))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(transformers.CLIPTextModel, "forward", watched)
    model = open_diffusers(folders["SD1.5"])
    assert not alive  # nothing is encoded before it is needed
    model.condition(["a cat"])
    gc.collect()
    assert alive and all(ref() is None for ref in alive)


def test_lengths_of_texts_are_made_one() -> None:
    def text(rows: int, length: int, masked: bool) -> Condition:
        mask = torch.ones(rows, length, dtype=torch.bool) if masked else None
        return Condition(tokens=torch.ones(rows, length, 3), mask=mask)

    found = filled(text(2, 4, True).drop(torch.tensor([True, False])), text(1, 6, True), 2)
    assert found is not None and found.mask is not None and found.null is None
    assert found.mask.sum(1).tolist() == [6, 4]
    with pytest.raises(ValueError, match="got 4 and 6 without masks"):
        filled(text(2, 4, False).nulled(), text(1, 6, False), 2)
    with pytest.raises(ValueError, match="expected no dropped labels or texts"):
        filled(Condition(label=torch.zeros(2, dtype=torch.int64)).nulled(), None, 2)
    with pytest.raises(ValueError, match="expected tokens in the null condition"):
        filled(text(2, 4, True).nulled(), Condition(label=torch.tensor([3])), 2)


def test_digests_tell_models_apart(folders: dict[str, Path]) -> None:
    one, same = open_diffusers(folders["DiT"]), open_diffusers(str(folders["DiT"]))
    assert one.digest == same.digest and len(one.digest) == 64
    config = {**scheduler("DiT").config, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    other = open_diffusers(folders["DiT"], scheduler=config)
    changed = open_diffusers(folders["DiT"])
    with torch.no_grad():
        next(changed.module.parameters()).view(-1)[0] += 1e-3
    assert len({one.digest, other.digest, changed.digest}) == 3


def test_any_network_by_a_function_that_calls_it() -> None:
    """A network of one's own with its own clock: v = noise - data at t' = 1 - t, in percent."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, percent: Tensor, picture: Tensor) -> Tensor:
            return self.scale * picture + percent.reshape(-1, 1, 1, 1)

    family = forward_function(lambda net, x, time, cond: net(time, x))
    path = ModelPath(
        Linear(),
        Prediction.VELOCITY,
        clock=lambda t: 100.0 * (1.0 - t),
        when=lambda time: 1.0 - time / 100.0,
    )
    model = DiffusersModel(Own().requires_grad_(False), family, path, (1, 2, 2))
    x, t = torch.ones(2, 1, 2, 2), torch.tensor([0.25, 0.5])
    assert model.velocity()(x, t).flatten(1)[:, 0].tolist() == [75.5, 50.5]
    with pytest.raises(ValueError, match="expected a module that embeds its time"):
        family.embeddings(model.module)


def test_networks_that_are_not_known() -> None:
    with pytest.raises(ValueError, match="expected one of DiTTransformer2DModel, .* got Linear"):
        family_of(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="got UNet2DConditionModel"):  # it wants an image, too
        family_of(network("SD1.5", addition_embed_type="image", encoder_hid_dim=4, cross_attention_dim=16))
    with pytest.raises(ValueError, match="got UNet2DConditionModel"):  # it wants an image, too
        family_of(network("SD1.5", num_class_embeds=4))
    module = network("SDXL")
    family = family_of(module)
    text = condition("SDXL")
    assert text is not None
    time = torch.tensor([10.0, 20.0])
    with pytest.raises(ValueError, match="expected a condition with tokens and pooled, got none of pooled"):
        family.call(module, noise("SDXL"), time, replace(text, pooled=None))
    with pytest.raises(ValueError, match="without dropped rows"):
        family.call(module, noise("SDXL"), time, text.nulled())
    wide = network("SD1.5", in_channels=9)  # as those that fill in parts of an image
    cond = condition("SD1.5")
    with pytest.raises(ValueError, match="models that take an image beside the state"):
        family_of(wide).call(wide, torch.randn(2, 9, SIZE, SIZE), time, cond)


def test_wrong_conditions(folders: dict[str, Path]) -> None:
    dit = open_diffusers(folders["DiT"])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"prompts": ["a cat"]}, "expected a pipeline with text encoders"),
        ({"labels": [1000, 0]}, "expected labels from 0 to 999, got 0 to 1000"),
        ({"labels": [0.5]}, "expected labels"),
        ({}, "both or neither"),
    ]
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            dit.condition(**given)
    with pytest.raises(ValueError, match="expected texts, got labels"):
        open_diffusers(folders["SD1.5"]).condition(labels=[1])
    with pytest.raises(ValueError, match="expected a list of texts"):
        open_diffusers(folders["SD1.5"]).condition([])


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_folders_that_are_damaged(copied: Path, tmp_path: Path) -> None:
    weights = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ValueError, match="found nothing; nothing is downloaded"):
        open_diffusers("owner/model")
    with pytest.raises(ValueError, match="expected a folder, found a file"):
        open_diffusers(weights)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found neither"):
        open_diffusers(tmp_path / "empty")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="expected a whole DiTTransformer2DModel in safetensors"):
        open_diffusers(copied)
    weights.write_bytes(whole)
    change(copied / "transformer" / "config.json", num_layers=3)
    with pytest.raises(ValueError, match="expected the weights that its configuration describes|whole"):
        open_diffusers(copied)
    change(copied / "transformer" / "config.json", num_layers=2, _class_name="Own")
    with pytest.raises(ValueError, match="got 'Own'"):
        open_diffusers(copied)
    (copied / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="model_index.json: expected a JSON file"):
        open_diffusers(copied)


def test_nothing_is_unpickled_and_no_code_of_the_folder_runs(copied: Path, tmp_path: Path) -> None:
    part = copied / "transformer"
    weights = part / "diffusion_pytorch_model.safetensors"
    mark = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    for place in (copied / "pipeline.py", part / "own.py", copied / "transformer.py"):
        place.write_text(code)
    change(copied / "model_index.json", _class_name=["pipeline", "Own"], transformer=["own", "Own"])
    assert open_diffusers(copied).classes == 1000
    torch.save(torch.nn.Linear(1, 1).state_dict(), part / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match="in safetensors"):
        open_diffusers(copied)
    assert not mark.exists()


def test_an_unconditional_network_has_no_condition() -> None:
    module = network("U-Net").requires_grad_(False)
    model = DiffusersModel(module, family_of(module), path_of(scheduler("U-Net")), (3, SIZE, SIZE))
    y = model.velocity()(noise("U-Net"), torch.tensor([0.1, 0.9]))
    assert y.shape == (2, 3, SIZE, SIZE) and model.nothing is None
    with pytest.raises(ValueError, match="expected no condition, got labels"):
        model.condition(labels=[1])
