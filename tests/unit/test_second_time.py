"""A student that starts as its teacher, over all backbones and parametrisations."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from saltus.maps import EDM, AverageVelocity, NetworkMap, Trigonometric
from saltus.nn import BACKBONES, EDM2, build
from saltus.teachers import from_teacher
from saltus.typing import Condition

SHAPE, ROWS = (1, 4, 4), 6
MAPS: dict[str, Callable[[nn.Module], NetworkMap]] = {
    "average": AverageVelocity,
    "edm": lambda net: EDM(net, 0.7),
    "trigonometric": lambda net: Trigonometric(net, 0.7),
}
every = pytest.mark.parametrize(("name", "kind"), [*product(BACKBONES, MAPS)])


def randomise(net: nn.Module, seed: int) -> None:
    """Every weight random and none zero, the output layers' and the gates' included."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            centre = 1.0 if p.ndim == 1 and name.endswith("weight") else 0.0
            p.copy_(centre + 0.2 * torch.randn(p.shape, generator=rng))


def make(
    name: str,
    kind: str,
    seed: int,
    dtype: torch.dtype = torch.float64,
    classes: int | None = None,
    heads: tuple[str, ...] = (),
    guidance: bool = False,
) -> NetworkMap:
    net = build(name, "tiny", SHAPE, classes=classes, heads=heads, guidance=guidance).to(dtype)
    randomise(net, seed)
    return MAPS[kind](net)


def points(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, *SHAPE, generator=rng, dtype=torch.float64)
    s = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
    t = torch.tensor([1.0, 0.7, 0.3, 0.1, 1.0, 1.0])
    return x.to(dtype), s.to(dtype), t.to(dtype)


def jump(b: Tensor, x: Tensor, s: Tensor, t: Tensor, kind: str) -> Tensor:
    """One step of the teacher: Euler's, or the rotation of the trigonometric map."""
    h = (t - s).reshape(-1, 1, 1, 1)
    if kind != "trigonometric":
        return x + h * b
    a = math.pi / 2 * h
    return torch.cos(a) * x + torch.sin(a) * (2 / math.pi) * b


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_student_is_its_teacher_for_every_end(name: str, kind: str, dtype: torch.dtype) -> None:
    teacher, student = make(name, kind, 0, dtype, classes=3), make(name, kind, 5, dtype, classes=3)
    x, s, t = points(dtype)
    cond = Condition(label=torch.tensor([0, 1, 2, 0, 1, 2]), null=torch.arange(ROWS) == 4)
    from_teacher(student, teacher)
    b = teacher.velocity(x, s, cond)
    size = float(b.detach().abs().max())
    assert size > 0.1
    allowed = (1e-12 if dtype == torch.float64 else 2e-6) * max(1.0, size)
    assert float((teacher.average(x, s, t, cond) - b).detach().abs()[:2].max()) > 100 * allowed, "it can fail"
    assert float((student.velocity(x, s, cond) - b).detach().abs().max()) < allowed
    assert float((student(x, s, t, cond) - jump(b, x, s, t, kind)).detach().abs().max()) < allowed
    if kind != "trigonometric":
        assert float((student.average(x, s, t, cond) - b).detach().abs().max()) < allowed
    outputs = [student.backbone(x, s, end, cond).u for end in (s, t, s + 2.0)]
    assert all(float((u - outputs[0]).detach().abs().max()) < allowed for u in outputs), "F is constant in t"


@every
def test_new_inputs_and_heads_start_without_influence(name: str, kind: str) -> None:
    """Strength of guidance, labels and a second head, each alone and all at once."""
    x, s, t = points()
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    w = torch.linspace(1.0, 6.0, ROWS, dtype=torch.float64)
    plain, labelled = make(name, kind, 0), make(name, kind, 1, classes=3)
    cases: list[tuple[NetworkMap, dict[str, object], Condition | None]] = [
        (plain, {"guidance": True}, Condition(w=w)),
        (plain, {"classes": 3}, Condition(label=label)),
        (plain, {"heads": ("v",)}, None),
        (plain, {"classes": 3, "heads": ("v",), "guidance": True}, Condition(label=label, w=w)),
        (labelled, {"classes": 3, "heads": ("v",), "guidance": True}, Condition(label=label, w=w)),
    ]
    for teacher, more, cond in cases:
        student = make(name, kind, 5, **more)  # type: ignore[arg-type]
        from_teacher(student, teacher)
        own = Condition(label=label) if teacher is labelled else None
        b = teacher.velocity(x, s, own)
        for asked in (cond, own):
            found = student(x, s, t, asked)
            assert float((found - jump(b, x, s, t, kind)).detach().abs().max()) < 1e-11, more
        for head in student.evaluate(x, s, t, cond).heads.values():
            assert float((head - b).detach().abs().max()) < 1e-11, "a second head is the velocity at first"
        learns(student, x, s, t, cond)


def learns(student: NetworkMap, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None) -> None:
    """A loss that depends on t, w and label moves every one of their weights."""
    student.zero_grad()
    target = 1.0 + t + (0.0 if cond is None or cond.w is None else cond.w)
    if cond is not None and cond.label is not None:
        target = target + cond.label
    loss = (student.average(x, s, t, cond).mean(dim=(1, 2, 3)) - target).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    net = student.backbone
    if "blocks.0.linear.weight" in dict(net.named_parameters()):
        first = dict(net.named_parameters())["blocks.0.linear.weight"]
        new = [first[:, 22:28], *([first[:, 28:]] if first.shape[1] > 28 else [])]
        assert float(first[:, 22:28].detach().abs().max()) == 0.0
        assert first.grad is not None and float(first.grad[:, 22:].abs().max(dim=0).values.min()) > 0.0, new
        return
    if isinstance(net, EDM2):  # gains and balances stand before what is new
        gains = [net.gap_gain, *net.balance.values()]
        assert all(p.grad is not None and float(p.grad.abs().max()) > 0.0 for p in gains)
        assert float(net.gap_gain.detach()) == 0.0
        return
    own = {k: p for k, p in net.named_parameters() if k.startswith("conditioning.")}
    times = own["conditioning.times.weight"]
    gap = slice(times.shape[1] // 2, None)
    assert float(times[:, gap].detach().abs().max()) == 0.0
    assert times.grad is not None and float(times.grad[:, gap].abs().sum(0).min()) > 0.0
    for key in ("conditioning.w.weight", "conditioning.label.table.weight"):
        grad = own[key].grad if key in own else None
        assert key not in own or grad is not None and float(grad.abs().max()) > 0.0, key


def test_teacher_and_student_share_nothing() -> None:
    teacher, student = make("mlp", "average", 0), make("mlp", "average", 1)
    x, s, t = points()
    before = teacher.average(x, s, t).detach()
    from_teacher(student, teacher)
    assert torch.equal(teacher.average(x, s, t), before)
    randomise(student, 3)
    assert torch.equal(teacher.average(x, s, t), before)


def test_starting_twice_is_starting_once() -> None:
    for name in BACKBONES:
        teacher, student = make(name, "average", 0), make(name, "average", 1)
        from_teacher(student, teacher)
        x, s, t = points()
        once = student.average(x, s, t).detach()
        from_teacher(student, student)
        assert torch.allclose(student.average(x, s, t), once, atol=1e-13)


def test_networks_that_do_not_fit_are_named() -> None:
    small = AverageVelocity(build("mlp", "small", SHAPE))
    cases = {
        "one parametrisation, got AverageVelocity and EDM of sigma_data 0.7": (
            make("mlp", "average", 0),
            make("mlp", "edm", 0),
        ),
        "got EDM of sigma_data 0.5 and EDM of sigma_data 0.7": (
            EDM(build("mlp", "tiny", SHAPE)),
            make("mlp", "edm", 0),
        ),
        "expected one backbone, got UNet in the student and MLP in the teacher": (
            make("unet", "average", 0),
            make("mlp", "average", 0),
        ),
        r"equal weights blocks.0.linear.weight, got \[128, 28\] in the student and \[64, 28\]": (
            small,
            make("mlp", "average", 0),
        ),
        r"every input of the teacher.*got x, s, t in the student and x, s, t, label, w": (
            make("mlp", "average", 0),
            make("mlp", "average", 0, classes=3, guidance=True),
        ),
        r"every input of the teacher \(strength of guidance\), got none in the student": (
            make("unet", "average", 0),
            make("unet", "average", 0, guidance=True),
        ),
        r"every input of the teacher \(label\), got none in the student": (
            make("dit", "average", 0),
            make("dit", "average", 0, classes=3),
        ),
        r"label.table.weight, got \[6, 32\] in the student and \[4, 32\] in the teacher": (
            make("residual-mlp", "average", 0, classes=5),
            make("residual-mlp", "average", 0, classes=3),
        ),
        r"backbone with a method inherit\(teacher\).*got Linear": (
            AverageVelocity(nn.Linear(2, 2)),
            AverageVelocity(nn.Linear(2, 2)),
        ),
    }
    for words, (student, teacher) in cases.items():
        before = {k: v.clone() for k, v in student.state_dict().items()}
        with pytest.raises(ValueError, match=words):
            from_teacher(student, teacher)
        assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items()), "nothing is changed"


def test_a_head_that_only_the_teacher_has_is_dropped() -> None:
    teacher, student = make("unet", "average", 0, heads=("v",)), make("unet", "average", 1)
    from_teacher(student, teacher)
    x, s, t = points()
    assert torch.allclose(student.average(x, s, t), teacher.velocity(x, s), atol=1e-12)
