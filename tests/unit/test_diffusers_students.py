"""Students of diffusers models: the teacher at first, two times afterwards, and right derivatives."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from tiny_models import FAMILIES, WIDE, Wide, condition, network, noise, scheduler
from torch import Tensor, nn

from saltus.autodiff import compiled, derivative, recomputed
from saltus.interpolants import Linear, Trigonometric
from saltus.maps import AverageVelocity
from saltus.teachers import from_teacher
from saltus.teachers.diffusers import DiffusersModel, family_of, path_of
from saltus.teachers.diffusers.plain import build, described
from saltus.teachers.diffusers.student import Addition, DiffusersBackbone
from saltus.typing import Condition

ASKED = ("DiT", "SD1.5", "SD3", "Flux", "Sana")


def opened(name: str, dtype: torch.dtype = WIDE) -> DiffusersModel:
    """A model with an embedding that stands for no condition, where its family has one."""
    module = network(name, dtype)
    family, cond = family_of(module), condition(name, rows=1, seed=9)
    path = path_of(scheduler(name)).per_step(family.per_step)
    strength = 2.0 if name == "Flux" else None
    shape = tuple(noise(name).shape[1:])
    return DiffusersModel(module, family, path, shape, null=cond, strength=strength)


def moved(name: str, seed: int = 5) -> AverageVelocity:
    """A student away from its beginning."""
    student = AverageVelocity(DiffusersBackbone(opened(name)))
    assert isinstance(student.backbone, DiffusersBackbone)
    nn.init.normal_(student.backbone.gap.last.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    return student


def times(dtype: torch.dtype = WIDE) -> tuple[Tensor, Tensor]:
    return torch.tensor([0.31, 0.62], dtype=dtype), torch.tensor([0.87, 0.7], dtype=dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, WIDE], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_starts_as_its_teacher(name: str, dtype: torch.dtype) -> None:
    """On any path, at any second time, with and without the condition; and so does one that is built from a
    description and takes the weights over."""
    model = opened(name, dtype)
    cond, x, (s, t) = condition(name, dtype=dtype), noise(name, dtype=dtype), times(dtype)
    conds = [cond] if cond is None else [cond, cond.nulled(), cond.drop(torch.tensor([False, True]))]
    truths = [[model.velocity(onto)(x, s, c) for c in conds] for onto in (Linear(), Trigonometric())]
    teacher = AverageVelocity(DiffusersBackbone(model))
    student = AverageVelocity(build(json.loads(json.dumps(described(model, Trigonometric()))))).to(dtype)
    nn.init.normal_(student.backbone.gap.last.weight)
    from_teacher(student, teacher)
    for one, wanted in zip((teacher, student), truths, strict=True):
        for c, truth in zip(conds, wanted, strict=True):
            for end in (s, t, torch.ones_like(s)):
                worst = (one.average(x, s, end, c) - truth).abs().max() / truth.abs().max()
                assert float(worst) <= (1e-12 if dtype == WIDE else 1e-6)
    nn.init.normal_(student.backbone.gap.last.weight)
    assert float((student.average(x, s, t, cond) - truths[1][0]).abs().max()) > 1e-3
    assert torch.equal(student.velocity(x, s, cond), truths[1][0])


def test_what_is_added_is_zero_without_a_gap_and_without_guidance() -> None:
    g = Addition(6, guidance=True).double()
    nn.init.normal_(g.last.weight)
    none, some = torch.zeros(2, dtype=WIDE), torch.tensor([0.3, -0.4], dtype=WIDE)
    assert not g(none).any() and not g(none, 1.0 + none).any()
    assert g(some).all() and g(none, 1.0 - some).all()
    assert torch.equal(g(some), g(some, 1.0 + none))
    _, slope = derivative(lambda a: g(a), (none,), (torch.ones_like(none),))
    eps = 1e-6
    assert torch.allclose(slope, (g(none + eps) - g(none - eps)) / (2 * eps), rtol=1e-8)


@pytest.mark.parametrize("name", ASKED)
def test_the_gradient_through_the_derivative(name: str) -> None:
    """Of a loss with value, derivative in t (Lagrangian) and along the flow (Eulerian), against finite
    differences in all weights at once and in the second time's own."""
    student, cond = moved(name), condition(name, dtype=WIDE)
    x, dx, weight = (noise(name, dtype=WIDE, seed=seed) for seed in (1, 2, 3))
    s, t = times()
    one = torch.ones_like(s)

    def loss() -> Tensor:
        def u(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            return student.average(x, s, t, cond)

        value, late = derivative(u, (x, s, t), (None, None, one))
        _, early = derivative(u, (x, s, t), (dx, one, None))
        return (weight * (value + late)).sum() + (weight * early).sum()

    def directional(parameters: list[nn.Parameter], seed: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(seed)
        directions = [torch.randn(p.shape, generator=rng, dtype=WIDE) for p in parameters]
        pairs = zip(parameters, directions, strict=True)
        found = torch.stack([(p.grad * v).sum() for p, v in pairs if p.grad is not None]).sum()
        starts = [p.detach().clone() for p in parameters]

        def at(eps: float) -> Tensor:
            with torch.no_grad():
                for p, start, v in zip(parameters, starts, directions, strict=True):
                    p.copy_(start + eps * v)
            return loss().detach()

        eps = 1e-6  # at 1e-5 a ReLU of Sana's attention changes its side, and finite differences see the kink
        truth = (8.0 * (at(eps) - at(-eps)) - (at(2.0 * eps) - at(-2.0 * eps))) / (12.0 * eps)
        at(0.0)
        return found, truth

    with Wide():
        loss().backward()
        assert all(p.grad is not None for p in student.parameters())
        for parameters in (list(student.parameters()), list(student.backbone.gap.parameters())):
            found, truth = directional(parameters, 7)
            assert float((found - truth).abs()) < 1e-6 * float(truth.abs())


@pytest.mark.parametrize("name", ASKED)
def test_the_derivative_in_the_gap(name: str) -> None:
    student, cond, x, (s, t) = moved(name), condition(name, dtype=WIDE), noise(name, dtype=WIDE), times()
    with Wide(), torch.no_grad():
        _, found = derivative(
            lambda t: student.average(x, s, t, cond), (t,), (torch.ones_like(t),)
        )
        eps = 1e-5
        truth = (student.average(x, s, t + eps, cond) - student.average(x, s, t - eps, cond)) / (2.0 * eps)
    assert float(truth.abs().max()) > 1e-3
    assert float((found - truth).abs().max()) < 1e-6 * float(truth.abs().max())


@pytest.mark.parametrize("name", ["DiT", "SD1.5"])
def test_blocks_that_recompute_give_the_same_gradients(name: str) -> None:
    """The time is embedded inside DiT's blocks, outside of the U-Net's: the second one reaches both."""
    plain, cond, x, (s, t) = moved(name), condition(name, dtype=WIDE), noise(name, dtype=WIDE), times()
    again = copy.deepcopy(plain)
    recomputed(again.backbone)
    for one in (plain, again):
        u = derivative(lambda t, one=one: one.average(x, s, t, cond), (t,), (torch.ones_like(t),))
        sum(v.square().sum() for v in u).backward()
    names = [n for n, _ in plain.named_parameters()]
    for n, p, q in zip(names, plain.parameters(), again.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-10, atol=1e-12), n
    assert float(again.backbone.gap.first.weight.grad.abs().max()) > 0.0


@torch.no_grad()
@pytest.mark.parametrize("name", ["DiT", "SD1.5"])
def test_one_step_length_is_a_plain_model(name: str) -> None:
    """The second time of a fixed gap is a part of a bias: any diffusers program can make such steps."""
    student, cond, x, (s, _) = moved(name), condition(name, dtype=WIDE), noise(name, dtype=WIDE), times()
    backbone = student.backbone
    assert isinstance(backbone, DiffusersBackbone)
    module, pattern = backbone.fixed(0.25), network(name)
    assert {type(m) for m in module.modules()} == {type(m) for m in pattern.modules()}
    assert module.state_dict().keys() == pattern.state_dict().keys()
    plain = replace(backbone.model, module=module).velocity()
    found, wanted = plain(x, s, cond), student.average(x, s, s + 0.25, cond)
    assert float((found - wanted).abs().max()) < 1e-12 * float(wanted.abs().max())
    assert not torch.allclose(plain(x, s, cond), student.velocity(x, s, cond))


def test_names_of_weights_are_those_of_diffusers() -> None:
    backbone = DiffusersBackbone(opened("SD3"))
    assert backbone.module.state_dict().keys() == network("SD3").state_dict().keys()
    assert sum(len(list(b.parameters())) for b in backbone.blocks) > 0.5 * len(list(backbone.parameters()))


def test_threads_do_not_see_each_others_gap() -> None:
    student, cond = moved("SD1.5"), condition("SD1.5", dtype=WIDE)
    x, (s, t) = noise("SD1.5", dtype=WIDE), times()
    ends = [t - 0.05 * k for k in range(4)]
    with torch.no_grad():
        wanted = [student.average(x, s, end, cond) for end in ends]

        def ask(k: int) -> bool:
            with torch.no_grad():
                return torch.equal(student.average(x, s, ends[k % 4], cond), wanted[k % 4])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(24)))


def test_texts_by_number() -> None:
    """Labels stand for texts that were learned, dropped ones for no text; copies hold them in common."""
    student, texts = moved("SD3"), condition("SD3", rows=3, dtype=WIDE)
    backbone, x, (s, t) = student.backbone, noise("SD3", dtype=WIDE), times()
    assert isinstance(backbone, DiffusersBackbone) and texts is not None
    names = set(student.state_dict())
    backbone.learn(texts)
    chosen = torch.tensor([2, 0])
    said, meant = Condition(label=chosen), texts.rows(chosen)
    for one in (student, copy.deepcopy(student)):
        for a, b in ((said, meant), (said.nulled(), meant.nulled())):
            assert torch.equal(one.average(x, s, t, a), one.average(x, s, t, b))
        assert one.backbone.text_tokens is backbone.text_tokens
    assert set(student.state_dict()) == names
    assert not torch.equal(student.average(x, s, t, said), student.average(x, s, t, said.nulled()))


def test_a_second_second_time_is_refused() -> None:
    model = opened("DiT", torch.float32)
    DiffusersBackbone(model)
    with pytest.raises(ValueError, match="has a second already"):
        DiffusersBackbone(model)


class Loss(nn.Module):
    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        cond = Condition(label=label)

        def u(t: Tensor) -> Tensor:
            return self.student.average(x, s, t, cond)

        value, slope = derivative(u, (t,), (torch.ones_like(t),))
        return (value + slope).square().mean()


@pytest.mark.all
def test_a_compiled_loss() -> None:
    student, x, (s, t), label = moved("DiT"), noise("DiT", dtype=WIDE), times(), torch.tensor([3, 4])
    found = []
    for loss in (Loss(student), compiled(Loss(student), backend="aot_eager")):
        student.zero_grad()
        value = loss(x, s, t, label)
        value.backward()
        found.append([value, *(p.grad for p in student.parameters())])
    for plain, traced in zip(*found, strict=True):
        assert torch.allclose(plain, traced, rtol=1e-9, atol=1e-12)
