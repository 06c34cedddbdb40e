"""The checkerboard: a density with edges, and the published figures of self-distillation on it."""

from __future__ import annotations

import math

from torch import Tensor

from saltus.data import Checkerboard
from saltus.metrics import histogram_kl
from saltus.recipes.assemble import Experiment, assemble
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.planar import planar
from saltus.streams import Streams

__all__ = ["RECIPE", "checkerboard"]

RECIPE = "a checkerboard in the plane, with the published protocol of its divergence (minutes)"

SCALE = math.sqrt(3.0)
"""The board is learned at unit variance, the prior's, and judged on [-1, 1]^2."""


def checkerboard(
    method: str = "lsd",
    plain: bool = True,
    network: Network = Network(size="base"),
    training: Training = Training(steps=8000, batch=2048),
    output: Output = Output(),
) -> Experiment:
    """Learn the checkerboard on [-1, 1]^2.

    KL is the divergence of 64,000 samples on 50 x 50 cells from the board's exact probabilities, the
    protocol of arXiv 2505.18825, which has 0.086, 0.077, 0.071, 0.070 at 1, 2, 4, 8 steps for lsd after
    150,000 steps of batch 100,000 on a GPU.

    examples:
      saltus run checkerboard-lsd
      saltus run checkerboard-psd --steps 2000 --out runs/board-psd

    Args:
        method: Any method that saltus methods lists.
        plain: Take the method's squared-error form, whose fixed point is the exact map.
        network: The network.
        training: How it is trained.
        output: Where results go.
    """
    board = Checkerboard()

    def data(rng: Streams) -> Tensor:
        return SCALE * board(rng)

    def divergence(x: Tensor) -> dict[str, float]:
        return {"KL": float(histogram_kl(x / SCALE, board.cells(50)).value)}

    system = planar("checkerboard", data, sigma_data=1.0, further=divergence, count=64_000)
    return assemble(system, method, plain, network, training, output, {})
