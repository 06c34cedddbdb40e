"""Adapters beside a diffusers model: one copy of its weights, and files that diffusers reads."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import condition, network, noise, pipeline, scheduler
from torch import Tensor, nn

from saltus.games import as_game
from saltus.maps import AverageVelocity
from saltus.methods import load as load_method
from saltus.streams import Streams
from saltus.teachers.diffusers import DiffusersModel, family_of, path_of
from saltus.teachers.diffusers.lora import ADAPTERS, SECOND_TIME, AdaptedBackbone, LoRA, save_lora
from saltus.teachers.diffusers.student import DiffusersBackbone
from saltus.training import EMA, fit
from saltus.typing import Batch, Condition

NAMES = ("DiT", "SD1.5", "SD3", "Flux", "Sana")
RANK = 2


def opened(name: str) -> DiffusersModel:
    module = network(name).requires_grad_(False)
    family = family_of(module)
    strength = 2.0 if name == "Flux" else None
    null = condition(name, rows=1, seed=9)
    path = path_of(scheduler(name)).per_step(family.per_step)
    return DiffusersModel(module, family, path, tuple(noise(name).shape[1:]), null=null, strength=strength)


def pair(name: str) -> tuple[AverageVelocity, AverageVelocity]:
    """A teacher and a student with adapters on the same weights."""
    model = opened(name)
    teacher = AverageVelocity(DiffusersBackbone(model))
    return teacher.requires_grad_(False), AverageVelocity(AdaptedBackbone(model, lora=LoRA(RANK)))


def adapted(flow_map: AverageVelocity) -> AdaptedBackbone:
    assert isinstance(flow_map.backbone, AdaptedBackbone)
    return flow_map.backbone


def places(module: nn.Module) -> set[int]:
    """Where the weights of a network are."""
    return {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers()) if t.numel()}


def times() -> tuple[Tensor, Tensor]:
    return torch.tensor([0.3, 0.6]), torch.tensor([0.9, 0.7])


@pytest.mark.parametrize("name", NAMES)
def test_one_copy_and_an_untouched_teacher(name: str) -> None:
    """At first the student is the teacher; steps of Lagrangian distillation move it, while the teacher in the
    same loss, the averages of the weights and a critic hold the same base, bit for bit as it was."""
    teacher, student = pair(name)
    cond, x, (s, t) = condition(name), noise(name), times()
    with torch.no_grad():
        before = teacher.average(x, s, s, cond)
        assert torch.equal(student.average(x, s, t, cond), before)
    average, critic = EMA(student, 0.9), copy.deepcopy(student)
    base = places(teacher.backbone.module)
    bytes_before = {n: p.clone() for n, p in teacher.backbone.module.state_dict().items()}

    def batch(rng: Streams) -> Batch:
        whole = None if cond is None else cond.rows(rng.integers("row", 2))
        return Batch(rng.normal("x0", *x.shape[1:]), rng.normal("x1", *x.shape[1:]), whole)

    objective = load_method("lmd").wired(student, teacher=teacher.velocity)

    def optimizer(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401
        return torch.optim.AdamW(parameters, lr=1e-2)

    for _ in fit(as_game(objective, student), batch, steps=3, seed=0, batch=2, optimizer=optimizer):
        average.update()
    networks = [student, average.module, critic]
    for one in networks:
        assert base <= places(one)
        own = [n for n, _ in one.named_parameters()]
        assert all(".lora_" in n or n.startswith("backbone.gap.") for n in own) and len(own) > 2
        assert not (places(one) - base) & (places(teacher) - base)
    apart = [places(one) - base for one in networks]
    assert not apart[0] & apart[1] and not apart[0] & apart[2]
    for n, p in teacher.backbone.module.state_dict().items():
        assert torch.equal(p, bytes_before[n]), n
    with torch.no_grad():
        assert torch.equal(teacher.average(x, s, s, cond), before)
        assert torch.equal(critic.average(x, s, t, cond), before)
        for one in (student, average.module):
            assert float((one.average(x, s, t, cond) - before).abs().max()) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_and_what_is_not(name: str) -> None:
    """The state of a student is its adapters, its second time and what stands for no condition."""
    _, student = pair(name)
    kinds = {n.split(".")[1].partition("_")[0] for n in student.state_dict() if ".lora_" not in n}
    assert kinds == {"gap", "null"}
    whole = sum(p.numel() for p in network(name).parameters())
    assert sum(p.numel() for n, p in student.named_parameters() if ".lora_" in n) < whole


@pytest.mark.parametrize("name", ["SD1.5", "SD3", "Flux", "Sana"])
def test_files_load_with_diffusers_own_loader(name: str, tmp_path: Path) -> None:
    """pipeline.load_lora_weights gives the same velocity; the second time is beside it, and is not in it."""
    _, student = pair(name)
    for seed, p in enumerate(student.parameters()):
        nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(seed))
    backbone = adapted(student)
    assert [path.name for path in save_lora(backbone, tmp_path)] == [ADAPTERS, SECOND_TIME]
    pipe = pipeline(name)
    model = opened(name)
    part = "unet" if name == "SD1.5" else "transformer"
    vars(pipe)[part].load_state_dict(model.module.state_dict())
    pipe.load_lora_weights(tmp_path)
    cond, x, (s, _) = condition(name), noise(name), times()
    with torch.no_grad():
        wanted, plain = student.velocity(x, s, cond), model.velocity()(x, s, cond)
        found = replace(model, module=vars(pipe)[part]).velocity()(x, s, cond)
    size = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) <= 1e-5 * size
    assert float((plain - wanted).abs().max()) > 1e-3 * size
    second = load_file(tmp_path / SECOND_TIME)
    backbone.gap.load_state_dict(second)
    assert not any("gap" in n for n in load_file(tmp_path / ADAPTERS))


@pytest.mark.parametrize("name", ["SD1.5", "SDXL", "SD3", "Flux", "Sana"])
def test_adapters_for_one_jump(name: str, tmp_path: Path) -> None:
    """What diffusers makes of them at t = 0 is u_{0,1} of the student, whose alpha is not its rank."""
    model = opened(name)
    backbone = AdaptedBackbone(model, lora=LoRA(RANK, 3.0 * RANK), guidance=True)
    for seed, p in enumerate(backbone.parameters()):
        nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(seed))
    save_lora(backbone, tmp_path, jump=True, w=2.5)
    pipe = pipeline(name)
    part = "unet" if name.startswith("SD1") or name == "SDXL" else "transformer"
    vars(pipe)[part].load_state_dict(model.module.state_dict())
    pipe.load_lora_weights(tmp_path)
    cond, x, zero = condition(name), noise(name), torch.zeros(2)
    guided = replace(cond or Condition(), w=zero + 2.5)
    with torch.no_grad():
        wanted, still = (backbone(x, zero, t, guided).u for t in (zero + 1.0, zero))
        found = replace(model, module=vars(pipe)[part]).velocity()(x, zero, cond)
    size = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) <= 1e-5 * size
    assert float((still - wanted).abs().max()) > 1e-3 * size


def test_alpha_is_a_factor_and_is_in_the_file(tmp_path: Path) -> None:
    """Adapters of alpha = 2 r count twice, in the student and in diffusers."""
    model = opened("SD1.5")
    one, two = (AdaptedBackbone(model, lora=LoRA(RANK, alpha, ("to_q",))) for alpha in (None, 2.0 * RANK))
    for backbone, factor in ((one, 2.0), (two, 1.0)):
        for seed, (n, p) in enumerate(backbone.module.named_parameters()):
            nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(seed))
            if ".lora_B." in n:
                p.data *= factor
    cond, x, (s, _) = condition("SD1.5"), noise("SD1.5"), times()
    with torch.no_grad():
        wanted = one(x, s, s, cond).u
        assert torch.allclose(two(x, s, s, cond).u, wanted, rtol=1e-5, atol=1e-5)
        save_lora(two, tmp_path)
        pipe = pipeline("SD1.5")
        pipe.unet.load_state_dict(model.module.state_dict())
        pipe.load_lora_weights(tmp_path)
        found = replace(model, module=pipe.unet).velocity()(x, s, cond)
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_adapters_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="expected a rank of at least 1, got 0"):
        LoRA(0)
    with pytest.raises(ValueError, match="expected layers nowhere in a DiTTransformer2DModel"):
        AdaptedBackbone(opened("DiT"), lora=LoRA(RANK, targets=("to_q", "nowhere")))
