"""Feature networks against explicit arithmetic, other implementations and their own files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from saltus.data import digits
from saltus.metrics.features import (
    GRAPH,
    PORT,
    Inception,
    components_from,
    components_tensors,
    digest_of,
    dinov2_from,
    eight_bits,
    graph_from,
    inception_from,
    own_features,
    resized_as_the_graph,
    stored_tensors,
)
from saltus.metrics.features.inception import BlockE, _mean


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float()


@pytest.fixture(scope="module")
def inception() -> Inception:
    """With random weights: no published ones are at hand, so values of the real network are not compared."""
    torch.manual_seed(0)
    net = Inception().eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return net


def test_inception_has_the_parameters_of_the_published_network() -> None:
    with torch.device("meta"):
        net = Inception()
    count = sum(p.numel() for p in net.parameters())
    scales = sum(m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    # Keras prints 23,851,784 for 1,000 classes: without scales of normalisation, with its two running moments
    assert count - 8 * 2049 - scales + 2 * scales == 23_851_784
    assert count == 23_850_960


def test_inception_has_the_names_and_sizes_of_the_published_file() -> None:
    with torch.device("meta"):
        found = {name: list(t.shape) for name, t in Inception().state_dict().items()}
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": [32, 3, 3, 3],
        "Conv2d_4a_3x3.bn.running_var": [192],
        "Mixed_5b.branch5x5_2.conv.weight": [64, 48, 5, 5],
        "Mixed_5d.branch_pool.conv.weight": [64, 288, 1, 1],
        "Mixed_6a.branch3x3.conv.weight": [384, 288, 3, 3],
        "Mixed_6b.branch7x7_2.conv.weight": [128, 128, 1, 7],
        "Mixed_6e.branch7x7dbl_2.conv.weight": [192, 192, 7, 1],
        "Mixed_7a.branch7x7x3_4.conv.weight": [192, 192, 3, 3],
        "Mixed_7b.branch3x3_2a.conv.weight": [384, 384, 1, 3],
        "Mixed_7c.branch3x3dbl_1.conv.weight": [448, 2048, 1, 1],
        "fc.weight": [1008, 2048],
    }.items():
        assert found[name] == shape, name
    assert len([n for n in found if n.endswith("conv.weight")]) == 94


def test_inception_at_299(inception: Inception) -> None:
    seen = {}
    for name in ("Conv2d_1a_3x3", "Mixed_5d", "Mixed_6a", "Mixed_6e", "Mixed_7a", "Mixed_7c"):
        inception.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: seen.__setitem__(name, list(o.shape[1:]))
        )
    found = inception(pixels(2, 3, 40, 32))
    assert seen == {
        "Conv2d_1a_3x3": [32, 149, 149],
        "Mixed_5d": [288, 35, 35],
        "Mixed_6a": [768, 17, 17],
        "Mixed_6e": [768, 17, 17],
        "Mixed_7a": [1280, 8, 8],
        "Mixed_7c": [2048, 8, 8],
    }
    assert found.shape == (2, 2048) and float(found.std()) > 0.01


def test_the_average_pool_leaves_the_padding_out() -> None:
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    total = F.conv2d(x.flatten(0, 1).unsqueeze(1), ones, padding=1).view_as(x)
    covered = F.conv2d(torch.ones(1, 1, 5, 4, dtype=torch.float64), ones, padding=1)
    assert covered.unique().tolist() == [4.0, 6.0, 9.0]
    assert torch.allclose(_mean(x), total / covered, atol=1e-14)


def test_the_last_block_alone_pools_by_maximum(inception: Inception) -> None:
    assert (inception.Mixed_7b.maximum, inception.Mixed_7c.maximum) == (False, True)
    x = torch.rand(1, 192, 8, 8)
    for maximum in (False, True):
        block = BlockE(192, maximum).eval().requires_grad_(False)
        block.branch_pool.conv.weight.copy_(torch.eye(192).view(192, 192, 1, 1))
        padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
        windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
        wanted = windows.amax(4) if maximum else windows.clamp(min=0).sum(4) / (windows >= 0).sum(4)
        found = block(x)[:, -192:]
        assert torch.allclose(found, wanted / (1 + 1e-3) ** 0.5, atol=1e-5), maximum


def test_the_graph_resizes_from_the_corner() -> None:
    x = pixels(1, 2, 5, 7)
    found = resized_as_the_graph(x, 9)
    for row in range(9):
        for column in range(9):
            y, z = row * 5 / 9, column * 7 / 9
            i, j = int(y), int(z)
            below, right = min(i + 1, 4), min(j + 1, 6)
            p, q = y - i, z - j
            top = (1 - q) * x[0, :, i, j] + q * x[0, :, i, right]
            bottom = (1 - q) * x[0, :, below, j] + q * x[0, :, below, right]
            assert torch.allclose(found[0, :, row, column], (1 - p) * top + p * bottom, atol=1e-3)


def test_two_conventions_of_the_input() -> None:
    x = torch.tensor([0.0, 128.0, 255.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    assert GRAPH(x)[:, 2, 7, 9].tolist() == [-1.0, 0.0, 127 / 128]
    assert torch.allclose(PORT(x)[:, 2, 7, 9], 2 * torch.tensor([0.0, 128.0, 255.0]) / 255 - 1, atol=1e-6)
    ramp = pixels(1, 3, 32, 32)
    assert torch.equal(GRAPH(ramp)[0, :, 0, 0], (ramp[0, :, 0, 0] - 128) / 128)
    assert not torch.allclose(GRAPH(ramp), PORT(ramp), atol=0.05)
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        GRAPH(pixels(1, 2, 4, 4))


def test_inception_weights_from_both_kinds_of_file(inception: Inception, tmp_path: Path) -> None:
    state = {k: t for k, t in inception.state_dict().items() if not k.endswith("tracked")}
    torch.save(inception.state_dict(), tmp_path / "port.pth")  # with its counters
    save_file(state, tmp_path / "port.safetensors")
    one = inception_from(stored_tensors(tmp_path / "port.pth"))
    two = inception_from(stored_tensors(tmp_path / "port.safetensors"))
    assert one.digest == two.digest != inception_from(state, PORT).digest
    x = torch.rand(1, 1, 8, 8) * 2 - 1
    assert torch.equal(one(x), inception(eight_bits(x)))
    (tmp_path / "port.pth").unlink()
    with pytest.raises(ValueError, match=r"1,008 logits.*fc\.weight"):
        inception_from(state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)})
    with pytest.raises(ValueError, match=r"AuxLogits"):
        inception_from(state | {"AuxLogits.fc.bias": torch.zeros(1000)})


class Trap:
    """What a pickle may hold: a call."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path("trapped"),)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Trap()}, "trap.pth")
    with pytest.raises(ValueError, match=r"trap\.pth: expected weights"):
        stored_tensors(Path("trap.pth"))
    assert not Path("trapped").exists()
    torch.save({"step": 3}, "numbers.pth")
    with pytest.raises(ValueError, match="expected tensors by name"):
        stored_tensors(Path("numbers.pth"))
    Path("half.safetensors").write_bytes(b"\x10")
    for name in ("half.safetensors", "absent.pth"):
        with pytest.raises(ValueError, match=name):
            stored_tensors(Path(name))


def test_dinov2_is_that_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    theirs = Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14)).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.3)
    theirs.config.save_pretrained(tmp_path)
    save_file(dict(theirs.state_dict()), tmp_path / "model.safetensors")
    ours = dinov2_from(tmp_path)
    theirs.save_pretrained(tmp_path)  # under the names of published files
    names = stored_tensors(tmp_path / "model.safetensors")
    assert names.keys() != theirs.state_dict().keys()
    assert dinov2_from(tmp_path).digest == ours.digest
    for side in (56, 70):  # the grid that it learned, and another
        x = torch.randn(2, 3, side, side)
        with torch.no_grad():
            assert torch.allclose(ours.module.tokens(x), theirs(x).pooler_output, atol=1e-6)  # type: ignore
    x = pixels(1, 3, 20, 20)
    mean, sd = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    large = F.interpolate(x, (224, 224), mode="bicubic", antialias=True).clamp(0, 255) / 255
    with torch.no_grad():
        wanted = theirs((large - mean.view(3, 1, 1)) / sd.view(3, 1, 1)).pooler_output
    assert torch.allclose(ours(x / 127.5 - 1), wanted, atol=1e-5)
    save_file({k: t for k, t in names.items() if "norm1" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layer\.0\.norm1\.bias"):
        dinov2_from(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="DINOv2"):
        dinov2_from(tmp_path)


def test_an_onnx_graph_gives_features(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    x = h.make_tensor_value_info("x", kind, ["n", 3, 4, 4])
    y = h.make_tensor_value_info("y", kind, ["n", 3, 1, 1])

    def write(inputs: list[object]) -> Path:
        node = h.make_node("GlobalAveragePool", ["x"], ["y"])
        opset = [h.make_opsetid("", 17)]
        model = h.make_model(h.make_graph([node], "mean", inputs, [y]), opset_imports=opset, ir_version=9)
        path = tmp_path / "net.onnx"
        onnx.save(model, path)
        return path

    path = write([x])
    found = graph_from(path)
    images = pixels(5, 3, 4, 4)
    assert torch.allclose(found(images / 127.5 - 1), images.mean((2, 3)), atol=1e-3)
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    with pytest.raises(ValueError, match="one input"):
        graph_from(write([x, h.make_tensor_value_info("z", kind, [1])]))
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="whole ONNX graph"):
        graph_from(path)


def test_the_small_classifier_is_a_function_of_data_and_seed() -> None:
    x, label = digits()
    learned, unseen = slice(400, None), slice(0, 400)
    net = own_features(x[learned], label[learned], steps=100)
    f = net(x[unseen])
    assert f.shape == (400, 128)
    assert float((net.classes(f) == label[unseen]).double().mean()) > 0.93
    few = [own_features(x[:300], label[:300], steps=3, seed=seed).digest for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


def test_the_small_classifier_without_labels_tells_turns() -> None:
    x, _ = digits()
    net = own_features(x[400:], steps=60)
    assert net.head is None
    with pytest.raises(ValueError, match="knows none"):
        net.classes(net(x[:2]))
    plain = net(x[:400])
    gap = (net(x[:400].rot90(1, (2, 3))).mean(0) - plain.mean(0)).norm()
    assert float(gap) > 5 * float((plain[:200].mean(0) - plain[200:].mean(0)).norm())


def test_components_are_those_of_the_singular_values() -> None:
    x, _ = digits()
    small = eight_bits(x)
    net = components_from(components_tensors(small))
    flat = small.flatten(1).double() / 127.5 - 1
    _, s, axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    found = net(x).double()
    assert torch.allclose(found.std(0)[:20] * (len(x) - 1) ** 0.5, s[:20], rtol=1e-3)
    wanted = (flat - flat.mean(0)) @ axes[:8].T
    cosine = F.cosine_similarity(found[:, :8], wanted, dim=0).abs()
    assert float(cosine.min()) > 0.999


def test_digests_know_names_types_and_values() -> None:
    a = {"w": torch.arange(4.0)}
    others = [{"v": torch.arange(4.0)}, {"w": torch.arange(4.0).double()}, {"w": torch.arange(4.0) + 1e-6}]
    assert len({digest_of(t) for t in (a, *others)} | {digest_of(a, "words")}) == 5
    assert digest_of({"b": a["w"], "a": a["w"]}) == digest_of({"a": a["w"], "b": a["w"]})
