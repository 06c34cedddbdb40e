"""A small network of one's own, trained on the data that it is to judge.

It needs no weights from elsewhere and takes a minute or two on two cores. Its features know the data's
classes and little else; figures in it compare models of one data set, and mean nothing beside tables in
print.

References:
    Gidaris, Singh and Komodakis, "Unsupervised representation learning by predicting image rotations",
    2018, arXiv 1803.07728 (for data without labels).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.metrics.features.network import FeatureNetwork, digest_of, eight_bits
from saltus.streams import Streams
from saltus.tensors import like

__all__ = ["own_features", "own_from", "own_tensors"]

SIDE = 32
"""Larger images are averaged down to at most this many pixels a side."""
WIDTH = 32
BATCH, RATE = 128, 2e-3
NOISE = 4.0
"""The largest standard deviation of noise in training, of 255; each image draws its own, from none on."""
TURNS = 4


class Pixels(nn.Module):
    """Whole numbers of [0, 255] to [-1, 1], and large images averaged down."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, C, h, w] with h, w <= SIDE."""
        height, width = x.shape[2:]
        if max(height, width) > SIDE:
            scale = SIDE / max(height, width)
            x = F.adaptive_avg_pool2d(x, (max(1, round(height * scale)), max(1, round(width * scale))))
        return x / 127.5 - 1.0


def _stage(inner: int, outer: int) -> list[nn.Module]:
    return [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]


def _layers(channels: int) -> nn.Sequential:
    """Three stages at full, half and a quarter of the resolution, and the mean over pixels: [n, 4 WIDTH]."""
    pool = nn.MaxPool2d(2, ceil_mode=True)
    return nn.Sequential(
        Pixels(),
        *_stage(channels, WIDTH),
        pool,
        *_stage(WIDTH, 2 * WIDTH),
        pool,
        *_stage(2 * WIDTH, 4 * WIDTH),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _network(channels: int, classes: int) -> nn.ModuleDict:
    return nn.ModuleDict({"features": _layers(channels), "head": nn.Linear(4 * WIDTH, classes)})


@torch.enable_grad()  # type: ignore[untyped-decorator]
def own_tensors(
    images: Callable[[Tensor], Tensor],
    labels: Tensor | None,
    count: int,
    classes: int | None,
    steps: int = 600,
    seed: int = 0,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Train the network; its weights by name, on the CPU.

    A function of the data, the steps and the seed on one machine; another device or another number of threads
    rounds otherwise, and the digest tells them apart.

    Args:
        images: rows of the data, int64 [n] -> images in whole numbers of [0, 255], float32 [n, C, H, W].
        labels: int64 [count]; without, it learns by which quarter turn an image was rotated.
        count: rows of the data.
        classes: their number; not read without labels.
        steps: of the optimiser.
        seed: of weights, batches and noise.
        device: to train on; by default the CPU.
    """
    place = device or torch.device("cpu")
    channels = images(torch.zeros(1, dtype=torch.int64)).shape[1]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        net = _network(channels, TURNS if labels is None else int(classes or 0)).to(place).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-2)
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1.0 - k / steps)
        rng = Streams(seed, step=k, index=torch.arange(BATCH), device=place)
        rows = rng.integers("rows", count).cpu()
        x = images(rows).to(place)
        if labels is None:
            asked = rng.integers("turn", TURNS)
            turned = torch.stack([torch.rot90(x, turn, (2, 3)) for turn in range(TURNS)])
            x = turned[asked, torch.arange(len(x), device=place)]
        else:
            asked = labels[rows].to(place)
        size = NOISE * like(rng.uniform("size"), x)
        logits = net["head"](net["features"](x + size * rng.normal_like("noise", x)))
        loss = F.cross_entropy(logits, asked)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: t.detach().cpu() for name, t in net.state_dict().items()}


def own_from(tensors: Mapping[str, Tensor], labelled: bool) -> FeatureNetwork:
    """The feature network of :func:`own_tensors`: the mean over pixels of its last stage, 128 features.

    Raises:
        RuntimeError: for weights of another network.
    """
    channels, classes = tensors["features.1.weight"].shape[1], len(tensors["head.bias"])
    net = _network(channels, classes)
    net.load_state_dict(tensors)
    net.eval().requires_grad_(False)
    what = "labels" if labelled else "quarter turns"
    name = f"a small classifier trained on the data's {what}, {4 * WIDTH} features"
    return FeatureNetwork(name, digest_of(tensors, name), net["features"], net["head"] if labelled else None)


def own_features(x: Tensor, labels: Tensor | None = None, steps: int = 600, seed: int = 0) -> FeatureNetwork:
    """The network trained on images x [N, C, H, W] in [-1, 1] that fit into memory.

    Args:
        x: images.
        labels: int64 [N], or None.
        steps, seed: see :func:`own_tensors`.
    """
    classes = None if labels is None else int(labels.max()) + 1
    return own_from(
        own_tensors(lambda rows: eight_bits(x[rows]), labels, len(x), classes, steps, seed),
        labels is not None,
    )
