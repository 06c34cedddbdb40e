"""The published networks: their sizes, the formulas that they promise, texts and positions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from seeded import numbers, randomise
from torch import Tensor

from saltus.autodiff import Forward, derivative
from saltus.maps import AverageVelocity
from saltus.nn import EDM2, DDPMpp, DiT, build, parameter_count
from saltus.nn.attention import SelfAttention, attention, rotary, turned
from saltus.nn.embeddings import LayerNorm, rows_of_table
from saltus.recipes.model import ModelSpec
from saltus.teachers import from_teacher
from saltus.typing import Condition

ROWS = 4
SECOND_TIME = 256
"""Features of a time in the published DiT, each of which a second time adds a column for."""


# Sizes


@pytest.mark.parametrize(
    ("size", "patch", "published", "exact"),
    [
        ("s", 2, "32.96", None),
        ("b", 2, "130.51", None),
        ("l", 2, "458.10", None),
        ("xl", 2, "675.13", 675_129_632),
    ],
)
def test_parameters_of_the_dit(size: str, patch: int, published: str, exact: int | None) -> None:
    """Those of the released DiT for latents of 4 x 32 x 32 and 1,000 classes, its fixed positions included
    (facebookresearch/DiT; Peebles and Xie, 2022, round them to 33, 130, 458 and 675 M)."""
    with torch.device("meta"):
        net = build("dit", size, (4, 32, 32), classes=1000, patch=patch)
    assert isinstance(net, DiT)
    width, depth = net.stem.out_features, len(net.blocks)
    attention = net.blocks[0].attention
    assert isinstance(attention, SelfAttention)
    second_time = SECOND_TIME * width
    normalised = 2 * depth * width // attention.heads
    variance = 4 * patch**2 * (width + 1)  # theirs has a second output for the variance
    count = parameter_count(net) - second_time - normalised + variance
    assert f"{count / 1e6:.2f}" == published
    assert exact is None or count == exact


@pytest.mark.parametrize(
    ("size", "published"),
    [("xs", 124.7), ("s", 280.2), ("m", 497.8), ("l", 777.5), ("xl", 1119.3), ("xxl", 1523.2)],
)
def test_parameters_of_edm2(size: str, published: float) -> None:
    """Millions, for latents of 4 x 64 x 64 and 1,000 classes (NVlabs/edm2; Karras et al., 2023, Table 2, have
    rounded 125, 280, 498, 778, 1119 and 1523)."""
    with torch.device("meta"):
        net = build("edm2", size, (4, 64, 64), classes=1000)
    assert isinstance(net, EDM2) and net.label is not None
    second_time = net.gap.weight.numel() + net.gap_gain.numel()
    no_label = net.label.out_features  # a vector of its own for rows without
    balance = sum(p.numel() for p in net.balance.parameters())
    count = parameter_count(net) - second_time - no_label - balance
    assert round(count / 1e6, 1) == published


def test_parameters_of_ddpmpp() -> None:
    """55.7 million on CIFAR-10 (Karras et al., 2022, Table 7; NVlabs/edm)."""
    with torch.device("meta"):
        net = build("ddpmpp", "cifar10", (3, 32, 32))
    second_time = 128 * 512
    assert f"{(parameter_count(net) - second_time) / 1e6:.1f}" == "55.7"


def test_blocks_of_the_cifar_u_nets() -> None:
    """Depth, attention and resolutions as published: 4 and 5 blocks at 32, 16, 8, attention at 16 and between
    the ways."""
    with torch.device("meta"):
        one, two = build("ddpmpp", "cifar10", (3, 32, 32)), build("edm2", "cifar10", (3, 32, 32))
    assert isinstance(one, DDPMpp) and isinstance(two, EDM2)
    assert len(one.blocks) == len(two.blocks) == (4 + 1 + 4 + 1 + 4) + 2 + (5 + 1 + 5 + 1 + 5)
    assert one.turn == two.turn == 14 and sum(one.joins) == sum(two.joins) == 15
    places = [[i for i, b in enumerate(n.blocks) if b.attention is not None] for n in (one, two)]
    assert places[0] == [5, 6, 7, 8, 14, 26]
    assert places[1] == [5, 6, 7, 8, 14, 22, 23, 24, 25, 26]


# Attention


@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_derivative(masked: bool) -> None:
    """The fused kernel outside of a derivative, the formula inside, in safe mode and without it."""
    q, k, v, dq = (numbers(2, 3, 5, 4, seed=i) for i in range(4))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril() if masked else None

    def f(q: Tensor) -> Tensor:
        return attention(q, k, v, mask)

    score, e = q @ k.mT / 2.0, 1e-6
    want = (score if mask is None else score.masked_fill(~mask, -math.inf)).softmax(-1) @ v
    value, slope = derivative(f, (q,), (dq,))
    _, unsafe = derivative(f, (q,), (dq,), Forward(safe=False))
    assert torch.allclose(f(q), want, rtol=1e-12) and torch.allclose(value, want, rtol=1e-12)
    assert torch.allclose(slope, (f(q + e * dq) - f(q - e * dq)) / (2 * e), atol=1e-8)
    assert torch.allclose(unsafe, slope, rtol=1e-10)


def test_logits_with_rotary_positions_depend_on_the_shift_alone() -> None:
    """A grid of 6 x 7: q at (i, j) and k at (i + a, j + b) give one logit for every i, j; and another one for
    another shift, along rows and columns alike."""
    angle = rotary(6, 7, 8, numbers(1)).reshape(6, 7, 4)
    q, k = numbers(8, seed=1), numbers(8, seed=2)
    queries, keys = turned(q.expand(6, 7, 8), angle), turned(k.expand(6, 7, 8), angle)
    assert torch.allclose(queries.norm(dim=-1), q.norm().expand(6, 7), rtol=1e-12)
    logits = {}
    for a in range(3):
        for b in range(3):
            found = (queries[: 6 - a, : 7 - b] * keys[a:, b:]).sum(-1)
            assert float(found.max() - found.min()) < 1e-12
            logits[a, b] = float(found[0, 0])
    assert len({round(value, 6) for value in logits.values()}) == 9
    assert turned(q.bfloat16().expand(6, 7, 8), angle.float()).dtype == torch.bfloat16


def test_layer_norm_is_the_plain_one() -> None:
    x = 3.0 + numbers(4, 8)
    assert torch.allclose(LayerNorm()(x), F.layer_norm(x, (8,), eps=1e-6), rtol=1e-12)


# Texts and other options of the transformer


def texts(length: int = 5) -> Condition:
    mask = torch.tensor([[True, True, True, False, False], [True] * 5, [True] * 5, [False] * 5])
    null = torch.tensor([False, False, True, False])
    return Condition(
        label=torch.tensor([0, 1, 2, 1]),
        null=null,
        tokens=numbers(ROWS, length, 6, seed=7),
        mask=mask,
        pooled=numbers(ROWS, 4, seed=8),
    )


@pytest.fixture(scope="module")
def reader() -> DiT:
    net = DiT((1, 4, 4), 16, 2, 2, classes=3, tokens=6, pooled=4, positions="rotary", published=True).double()
    randomise(net)
    return net


def test_tokens_that_do_not_count_do_not_count(reader: DiT) -> None:
    x, s, t = numbers(ROWS, 1, 4, 4), numbers(ROWS, seed=1).sigmoid(), numbers(ROWS, seed=2).sigmoid()
    cond = texts()
    assert cond.tokens is not None and cond.mask is not None
    u = reader(x, s, t, cond).u
    other = torch.where(cond.mask.unsqueeze(-1), cond.tokens, numbers(ROWS, 5, 6, seed=9))
    assert torch.allclose(reader(x, s, t, replace(cond, tokens=other)).u, u, rtol=1e-12)
    moved = replace(cond, tokens=cond.tokens[:, [2, 0, 1, 4, 3]])
    assert torch.allclose(reader(x, s, t, moved).u, u, rtol=1e-10), "and a text is a set of tokens"
    longer = replace(
        cond,
        tokens=torch.cat([cond.tokens, numbers(ROWS, 3, 6, seed=3)], 1),
        mask=torch.cat([cond.mask, torch.zeros(ROWS, 3, dtype=torch.bool)], 1),
    )
    assert torch.allclose(reader(x, s, t, longer).u, u, rtol=1e-10)
    changed = replace(cond, tokens=cond.tokens + 1.0)
    difference = (reader(x, s, t, changed).u - u).detach().flatten(1).abs().amax(1) > 1e-4
    assert difference.tolist() == [True, True, False, False], "only texts that are there are read"


def test_rows_without_a_text_see_the_networks_own(reader: DiT) -> None:
    x, s, t = numbers(ROWS, 1, 4, 4), numbers(ROWS, seed=1).sigmoid(), numbers(ROWS, seed=2).sigmoid()
    cond, nothing = texts(), reader(x, s, t).u
    assert torch.allclose(reader(x, s, t, cond.nulled()).u, nothing, rtol=1e-10)
    assert torch.allclose(reader(x, s, t, cond).u[2], nothing[2], rtol=1e-10), "a row that is dropped"
    assert not torch.allclose(reader(x, s, t, cond).u[:2], nothing[:2], rtol=1e-3)
    own = reader.text
    assert own is not None
    alone = Condition(tokens=own.null.detach().expand(ROWS, 1, -1))
    assert torch.allclose(reader(x, s, t, alone).u, nothing, rtol=1e-12)
    pooled = Condition(pooled=texts().pooled)
    assert float((reader(x, s, t, pooled).u - nothing).detach().flatten(1).abs().amax(1).min()) > 1e-4


def test_derivative_through_text_and_rotary_positions(reader: DiT) -> None:
    """And the gradient of a loss on it for every parameter, in float64, against differences."""
    x, s, t = numbers(ROWS, 1, 4, 4), numbers(ROWS, seed=1).sigmoid(), numbers(ROWS, seed=2).sigmoid()
    cond, dx, dt = texts(), numbers(ROWS, 1, 4, 4, seed=4), numbers(ROWS, seed=5)

    def loss() -> Tensor:
        value, slope = derivative(lambda x, t: reader(x, s, t, cond).u, (x, t), (dx, dt))
        return (value.sin() + slope.square()).mean()

    names, parameters = zip(*reader.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(), parameters)
    way = [numbers(*p.shape, seed=k) for k, p in enumerate(parameters)]
    floor = 1e-3 * max(float(g.norm()) for g in gradients)
    for name, p, g, d in zip(names, parameters, gradients, way, strict=True):
        d, start, ends = d / d.norm(), p.detach().clone(), []
        for e in (-2e-5, 2e-5):
            with torch.no_grad():
                p.copy_(start + e * d)
                ends.append(float(loss()))
        with torch.no_grad():
            p.copy_(start)
        exact = float((g * d).sum())
        assert abs((ends[1] - ends[0]) / 4e-5 - exact) < 1e-6 * (abs(exact) + floor), name


def test_a_student_may_learn_to_read() -> None:
    """A teacher without texts gives its weights to a student with them: no influence yet, but gradients."""
    small = {"width": 16, "depth": 1, "attention_heads": 2, "published": True}
    teacher = AverageVelocity(DiT((1, 4, 4), **small).double())  # type: ignore[arg-type]
    student = AverageVelocity(DiT((1, 4, 4), **small, tokens=6, pooled=4).double())  # type: ignore[arg-type]
    randomise(teacher.backbone)
    randomise(student.backbone, seed=1)
    from_teacher(student, teacher)
    x, s, t = numbers(ROWS, 1, 4, 4), numbers(ROWS, seed=1).sigmoid(), numbers(ROWS, seed=2).sigmoid()
    cond = Condition(tokens=numbers(ROWS, 5, 6), pooled=numbers(ROWS, 4))
    assert torch.allclose(student.average(x, s, t, cond), teacher.velocity(x, s), rtol=1e-12)
    student.average(x, s, t, cond).sum().backward()
    named = dict(student.backbone.named_parameters())
    for name in ("blocks.0.cross.leave.weight", "conditioning.pooled.enter.weight"):
        grad = named[name].grad
        assert grad is not None and float(grad.abs().max()) > 0.0, name
    back = AverageVelocity(DiT((1, 4, 4), **small).double())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"every input of the teacher \(embedding of a whole text\)"):
        from_teacher(back, student)


def test_wrong_options_and_texts_are_named(reader: DiT) -> None:
    shape = (1, 4, 4)
    cases = {
        "patch 4: edm2 has no such option; drop it, or use dit": {"name": "edm2", "patch": 4},
        "positions rotary: unet has no such option": {"name": "unet", "positions": "rotary"},
        "tokens 8: ddpmpp has no such option": {"name": "ddpmpp", "tokens": 8},
        "positions: expected one of learned, rotary, got 'fixed'": {"name": "dit", "positions": "fixed"},
        "divisible by the patch 3": {"name": "dit", "patch": 3},
        "divisible by the patch 0": {"name": "dit", "patch": 0},
    }
    for words, options in cases.items():
        with pytest.raises(ValueError, match=words):
            build(size="tiny", shape=shape, **options)  # type: ignore[arg-type]
    for name in ("EDM2", "DDPM++"):
        kind = EDM2 if name == "EDM2" else DDPMpp
        with pytest.raises(ValueError, match=r"expected a shape \(C, H, W\) with H and W divisible by 4"):
            kind((1, 6, 8), multipliers=(1, 2, 2))
    with pytest.raises(ValueError, match="heads of a size divisible by 4, got a width of 12 in 2"):
        DiT(shape, 12, 1, 2, positions="rotary")
    x, t = numbers(ROWS, *shape), numbers(ROWS)
    wrong = {
        r"tokens: expected shape \[4, L, 6\], got \[4, 5, 7\]": Condition(tokens=numbers(ROWS, 5, 7)),
        r"mask: expected bool \[4, 5\]": Condition(tokens=numbers(ROWS, 5, 6), mask=torch.ones(ROWS, 5)),
        r"pooled: expected shape \[4, 4\]": Condition(pooled=numbers(ROWS, 5)),
    }
    for words, cond in wrong.items():
        with pytest.raises(ValueError, match=words):
            reader(x, t, t, cond)
    with pytest.raises(ValueError, match="expected no tokens, because the network was built without tokens"):
        build("edm2", "tiny", shape).double()(x, t, t, Condition(tokens=numbers(ROWS, 5, 6)))
    with pytest.raises(ValueError, match="expected no pooled"):
        build("mlp", "tiny", shape).double()(x, t, t, Condition(pooled=numbers(ROWS, 5)))
    assert rows_of_table(x, None, 3).tolist() == [3] * ROWS


def test_options_go_through_the_weights_file() -> None:
    spec = ModelSpec((1, 8, 8), "dit", "tiny", patch=4, positions="rotary", tokens=6, pooled=4)
    again = ModelSpec.from_plain({**spec.plain(), "shape": [1, 8, 8]})
    assert again == spec
    network = again.build().backbone
    assert isinstance(network, DiT) and network.patch == 4 and network.position is None
    assert network.text is not None and network.conditioning.pooled is not None
    old = {k: v for k, v in spec.plain().items() if k not in ("patch", "positions", "tokens", "pooled")}
    assert ModelSpec.from_plain({**old, "shape": [1, 8, 8]}) == ModelSpec((1, 8, 8), "dit", "tiny")
    for field, bad in {"patch": 0, "positions": 3, "tokens": -1, "pooled": "x"}.items():
        with pytest.raises(ValueError, match=f"{field} cannot be"):
            ModelSpec.from_plain({**spec.plain(), "shape": [1, 8, 8], field: bad})
