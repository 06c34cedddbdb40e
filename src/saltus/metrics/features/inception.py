"""Inception v3 as the Frechet Inception distance has it: the classification graph of December 2015.

It differs from the network of the paper's later releases in three things. Average pools divide by the
number of pixels that they cover, so the zeros of the padding do not count; the last of the three blocks
with split kernels pools by maximum, not by mean; and there are 1,008 logits. Features are the means over
pixels of the last block, 2,048 of them ("pool3").

Weights come from a file: the published PyTorch port of the graph, pt_inception-2015-12-05-6726825d.pth, or
the same tensors as safetensors. Names of tensors here are the port's
(``Mixed_5b.branch5x5_1.conv.weight``), so nothing is converted; its counters ``num_batches_tracked`` are
left out. Other weights, torchvision's with 1,000 classes above all, give other features and are refused by
their shapes.

Two conventions of the input are in use. Figures of the two cannot be compared:

* the graph's own (:data:`GRAPH`; the original code, torch-fidelity, and NVIDIA's): bilinear to 299 x 299
  without antialiasing at the points j * size / 299, then (x - 128) / 128;
* pytorch-fid's (:data:`PORT`): bilinear without antialiasing at the points (j + 1/2) * size / 299 - 1/2, then
  2 x / 255 - 1.

References:
    Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, 2015, arXiv 1512.00567.
    Heusel et al., "GANs trained by a two time-scale update rule", 2017, arXiv 1706.08500.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.metrics.features.network import FeatureNetwork, digest_of

__all__ = ["GRAPH", "PORT", "Inception", "Input", "inception_from", "resized_as_the_graph"]

SIDE = 299


def resized_as_the_graph(x: Tensor, side: int = SIDE) -> Tensor:
    """Bilinear interpolation at the points j * size / side, [n, C, H, W] -> [n, C, side, side].

    >>> resized_as_the_graph(torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]]), 4)[0, 0, 0]
    tensor([0., 1., 2., 2.])
    """

    def along(size: int) -> Tensor:
        place = torch.arange(side, dtype=torch.float64) * (size / side)
        low = place.floor().long()
        part = (place - low).unsqueeze(1)
        eye = torch.eye(size, dtype=torch.float64)
        return ((1.0 - part) * eye[low] + part * eye[(low + 1).clamp(max=size - 1)]).to(x)

    return along(x.shape[2]) @ x @ along(x.shape[3]).T


@dataclass(frozen=True)
class Input:
    """How images reach the network.

    Attributes:
        name: in words.
        graph: whether points of interpolation are the graph's.
        middle, half: x -> (x - middle) / half for x in [0, 255].
    """

    name: str
    graph: bool
    middle: float
    half: float

    def __call__(self, x: Tensor) -> Tensor:
        """[n, 1 or 3, H, W] in [0, 255] -> [n, 3, 299, 299]; grey images fill all three channels."""
        if x.shape[1] not in (1, 3):
            raise ValueError(f"Inception: expected images of 1 or 3 channels, got {x.shape[1]}")
        x = x.expand(-1, 3, -1, -1)
        if self.graph:
            x = resized_as_the_graph(x)
        else:
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return (x - self.middle) / self.half


GRAPH = Input("resized and scaled as in the 2015 graph", True, 128.0, 128.0)
PORT = Input("resized and scaled as in pytorch-fid", False, 127.5, 127.5)


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inner, H, W] -> [n, outer, h, w]."""
        return F.relu(self.bn(self.conv(x)))


def _mean(x: Tensor) -> Tensor:
    """The mean over 3 x 3 pixels; beyond the edge there are none."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """At 35 x 35."""

    def __init__(self, inner: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(inner, 64, 1)
        self.branch5x5_1 = Unit(inner, 48, 1)
        self.branch5x5_2 = Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Unit(inner, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
        self.branch_pool = Unit(inner, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inner, 35, 35] -> [n, 224 + pooled, 35, 35]."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean(x))], dim=1)


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3 = Unit(inner, 384, 3, stride=2)
        self.branch3x3dbl_1 = Unit(inner, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inner, 35, 35] -> [n, 480 + inner, 17, 17]."""
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """At 17 x 17, with kernels of 7 split into rows and columns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        row, column = ((1, 7), (0, 3)), ((7, 1), (3, 0))

        def unit(inner: int, outer: int, shape: tuple[tuple[int, int], tuple[int, int]]) -> Unit:
            return Unit(inner, outer, shape[0], padding=shape[1])

        self.branch1x1 = Unit(768, 192, 1)
        self.branch7x7_1 = Unit(768, width, 1)
        self.branch7x7_2 = unit(width, width, row)
        self.branch7x7_3 = unit(width, 192, column)
        self.branch7x7dbl_1 = Unit(768, width, 1)
        self.branch7x7dbl_2 = unit(width, width, column)
        self.branch7x7dbl_3 = unit(width, width, row)
        self.branch7x7dbl_4 = unit(width, width, column)
        self.branch7x7dbl_5 = unit(width, 192, row)
        self.branch_pool = Unit(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 768, 17, 17] -> the same shape."""
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_mean(x))], dim=1)


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Unit(768, 192, 1)
        self.branch3x3_2 = Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Unit(768, 192, 1)
        self.branch7x7x3_2 = Unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Unit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Unit(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 768, 17, 17] -> [n, 1280, 8, 8]."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """At 8 x 8; the last one pools by maximum."""

    def __init__(self, inner: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Unit(inner, 320, 1)
        self.branch3x3_1 = Unit(inner, 384, 1)
        self.branch3x3_2a = Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Unit(inner, 448, 1)
        self.branch3x3dbl_2 = Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Unit(inner, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inner, 8, 8] -> [n, 2048, 8, 8]."""
        one = self.branch3x3_1(x)
        two = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _mean(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(one), self.branch3x3_2b(one)]
        parts += [self.branch3x3dbl_3a(two), self.branch3x3dbl_3b(two), self.branch_pool(pooled)]
        return torch.cat(parts, dim=1)


class Inception(nn.Module):
    """The graph, with its 1,008 logits: 23,850,960 parameters.

    Args:
        entry: the convention of the input.
    """

    def __init__(self, entry: Input = GRAPH) -> None:
        super().__init__()
        self.entry = entry
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(BlockC, (128, 160, 160, 192))
        self.Mixed_7a = BlockD()
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, maximum=False), BlockE(2048, maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0, 255], [n, 1 or 3, H, W] -> the 2,048 features of pool3."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(self.entry(x))))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


def inception_from(
    tensors: Mapping[str, Tensor], entry: Input = GRAPH, origin: str = "weights"
) -> FeatureNetwork:
    """The features of pool3 under weights of the published port.

    Args:
        tensors: by the port's names; see above.
        entry: :data:`GRAPH` or :data:`PORT`.
        origin: the file, for messages.

    Raises:
        ValueError: for weights of another network.
    """
    with torch.device("meta"):
        net = Inception(entry)
    counters = "num_batches_tracked"
    wanted = {k: t for k, t in net.state_dict().items() if not k.endswith(counters)}
    given = {k: t.float() for k, t in tensors.items() if not k.endswith(counters)}
    wrong = sorted(wanted.keys() ^ given.keys())
    wrong += [k for k in wanted if k in given and wanted[k].shape != given[k].shape]
    if wrong:
        raise ValueError(
            f"{origin}: expected the {len(wanted)} tensors of the 2015 Inception graph with 1,008 logits, "
            f"got another network (see {wrong[0]}); the port is pt_inception-2015-12-05-6726825d.pth"
        )
    zeros = {k: torch.zeros((), dtype=torch.int64) for k in net.state_dict() if k.endswith(counters)}
    net.load_state_dict(given | zeros, assign=True)
    net.eval().requires_grad_(False)
    name = f"Inception v3 of 2015, pool3, {entry.name}"
    return FeatureNetwork(name, digest_of(given, name), net)
