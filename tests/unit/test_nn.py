"""Parts of the networks: features, embeddings, norms, sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from saltus.autodiff import derivative
from saltus.nn import BACKBONES, MLP, DiT, UNet, build, parameter_count
from saltus.nn.attention import SelfAttention
from saltus.nn.embeddings import Conditioning, RMSNorm, guidance_features, sinusoidal, small_features
from saltus.typing import Condition


def test_features_are_what_they_say() -> None:
    a = torch.tensor([0.3], dtype=torch.float64)
    pi = math.pi
    want = [0.3, 0.09, math.sin(0.3 * pi), math.cos(0.3 * pi), math.sin(0.6 * pi), math.cos(0.6 * pi)]
    assert torch.allclose(small_features(a)[0], torch.tensor(want, dtype=torch.float64), rtol=1e-14)
    waves = sinusoidal(a, 6, max_frequency=4.0)[0]
    want = [f(2 * pi * r * 0.3) for f in (math.sin, math.cos) for r in (0.25, 1.0, 4.0)]
    assert torch.allclose(waves, torch.tensor(want, dtype=torch.float64), rtol=1e-12)


def test_slowest_and_fastest_wave_suit_the_unit_interval() -> None:
    """All times in [0, 1] stay apart, and a derivative in time is at most 2 pi times the top frequency."""
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for features in (small_features(t), sinusoidal(t, 64)):
        distance = torch.cdist(features, features)
        distance.fill_diagonal_(math.inf)
        assert float(distance.min()) > 1e-3
    _, slope = derivative(lambda t: sinusoidal(t, 64, max_frequency=8.0), (t,), (torch.ones_like(t),))
    assert 0.95 * 16 * math.pi < float(slope.abs().max()) <= 16 * math.pi * (1 + 1e-12)


def test_guidance_one_and_none_are_the_same() -> None:
    x = torch.zeros(3, 2)
    one = guidance_features(x, Condition(w=torch.ones(3)))
    assert torch.equal(one, guidance_features(x, None))
    eight = guidance_features(x, Condition(w=torch.full((3,), 8.0)))[0, 0]
    assert abs(float(eight) - math.asinh(7.0) / 4.0) < 1e-6


def test_times_keep_their_precision_under_autocast() -> None:
    torch.manual_seed(0)
    part = Conditioning(32, classes=3, guidance=True)
    x, s = torch.zeros(2, 2), torch.tensor([0.5, 0.5])
    t = torch.tensor([0.7, 0.7001])
    exact = part(x, s, t, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(part(x, s, t, None), exact)
    assert float((exact[0] - exact[1]).detach().abs().max()) > 0.0


def test_rms_norm() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = RMSNorm(8).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 9.0))
    want = nn.functional.rms_norm(x, (8,), norm.weight, eps=1e-6)
    assert torch.allclose(norm(x), want, rtol=1e-12)
    half = RMSNorm(8)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert list(RMSNorm(8, learned=False).parameters()) == []


def test_attention_equals_its_definition() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(12, 3).double()
    h = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = layer.qkv(h).chunk(3, dim=-1)
    want = []
    for i in range(3):
        one = slice(4 * i, 4 * i + 4)
        scores = layer.q_norm(q[..., one]) @ layer.k_norm(k[..., one]).mT / 2.0
        want.append(scores.softmax(-1) @ v[..., one])
    assert torch.allclose(layer(h), layer.leave(torch.cat(want, -1)), rtol=1e-12, atol=1e-14)


def test_patches_come_back_in_place() -> None:
    x = torch.arange(2 * 3 * 8 * 4.0).reshape(2, 3, 8, 4)
    net = DiT((3, 8, 4), width=8, depth=1, attention_heads=1, patch=2)
    patches = net._patches(x)
    assert patches.shape == (2, 8, 12)
    assert torch.equal(patches[0, 1].reshape(3, 2, 2), x[0, :, :2, 2:])
    assert torch.equal(net._image(patches), x)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_sizes_grow(name: str) -> None:
    """Those of the package, and the published ones after them, each in its order."""
    sizes = list(BACKBONES[name].SIZES)
    assert sizes[:2] == ["tiny", "small"]
    ours = [size for size in ("tiny", "small", "base", "large") if size in sizes]
    with torch.device("meta"):
        counts = [parameter_count(build(name, size, (1, 8, 8))) for size in ours]
    assert all(2 * a < b for a, b in zip(counts, counts[1:], strict=False)), counts


def test_reference_network() -> None:
    """Three hidden layers of 128 on x and twelve time features: the network of the reference figures."""
    net = build("mlp", "small", (2,))
    assert isinstance(net, MLP)
    assert parameter_count(net) == (14 * 128 + 128) + 2 * (128 * 128 + 128) + (128 * 2 + 2)
    net.blocks[0].requires_grad_(False)
    assert parameter_count(net) == 2 * (128 * 128 + 128) + (128 * 2 + 2)


def test_plain_network_sees_the_start_and_the_length_of_a_jump() -> None:
    net, seen = MLP((2,), guidance=True), []
    net.blocks[0].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    x, s, t, w = torch.randn(3, 2), torch.rand(3), torch.rand(3), torch.rand(3)
    net(x, s, t, Condition(w=w))
    parts = [x, small_features(s), small_features(t - s), small_features(torch.asinh(w - 1.0) / 4.0)]
    assert torch.equal(seen[0], torch.cat(parts, -1))


@pytest.mark.parametrize("name", list(BACKBONES))
def test_bad_conditions_are_named(name: str) -> None:
    net = build(name, "tiny", (1, 4, 4), classes=3, guidance=True)
    x, t, zero = torch.randn(2, 1, 4, 4), torch.rand(2), torch.zeros(2, dtype=torch.int64)
    wrong = {
        "label: expected classes from 0 to 2, got 4": Condition(label=zero + 4),
        "label: expected classes from 0 to 2, got -1": Condition(label=zero - 1),
        r"label: expected int64 classes, got torch.float32": Condition(label=torch.zeros(2)),
        r"label: expected shape \[2\]": Condition(label=zero[:1]),
        r"w: expected shape \[2\]": Condition(label=zero, w=torch.ones(3)),
        r"w: expected a tensor of shape \[2\], got float": Condition(label=zero, w=2.0),  # type: ignore[arg-type]
    }
    for words, cond in wrong.items():
        with pytest.raises(ValueError, match=words):
            net(x, t, t, cond)
    dropped = Condition(label=zero + 9, null=torch.tensor([True, True]))
    assert torch.equal(net(x, t, t, dropped).u, net(x, t, t).u)
    with pytest.raises(ValueError, match="network input: expected floating point, got torch.int64"):
        net(x.long(), t, t)
    with pytest.raises(ValueError, match="classes: expected at least 1, got 0"):
        build(name, "tiny", (1, 4, 4), classes=0)


def test_bad_construction_is_named() -> None:
    with pytest.raises(ValueError, match="network: expected one of mlp, .* got 'unte'; did you mean 'unet'"):
        build("unte", "tiny", (1, 8, 8))
    with pytest.raises(ValueError, match="size of dit: expected one of tiny, small, .*, xl, got 'huge'"):
        build("dit", "huge", (1, 8, 8))
    with pytest.raises(ValueError, match=r"UNet: expected a shape \(C, H, W\) with H and W divisible by 2"):
        UNet((1, 7, 8))
    with pytest.raises(ValueError, match="DiT: expected a shape"):
        DiT((2,))
    with pytest.raises(ValueError, match="attention: expected a width divisible by 3 heads, got 8"):
        SelfAttention(8, 3)
