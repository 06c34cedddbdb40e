"""The checkerboard: a density with edges, and the published figures of self-distillation on it."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from saltus.data import Checkerboard
from saltus.metrics import histogram_kl
from saltus.recipes.assemble import assemble
from saltus.recipes.experiment import Experiment
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.planar import planar
from saltus.streams import Streams

__all__ = ["RECIPE", "checkerboard"]

RECIPE = "a checkerboard in the plane, with the published protocol of its divergence (minutes)"

SCALE = math.sqrt(3.0)
"""The board is learned at unit variance, the prior's, and judged on [-1, 1]^2."""

COUNTS = (1, 2, 4, 8, 16)
PUBLISHED = {
    "lsd": (0.086, 0.077, 0.071, 0.070, 0.071),
    "esd": (0.098, 0.092, 0.083, 0.082, 0.075),
    "psd": (0.111, 0.107, 0.075, 0.073, 0.068),
    "psd_midpoint": (0.146, 0.089, 0.081, 0.072, 0.069),
}
"""KL of arXiv 2505.18825, table 1, at these step counts: 150,000 steps of batch 100,000 on a GPU."""


def checkerboard(
    method: str = "lsd",
    plain: bool = True,
    teacher_steps: int = 20_000,
    network: Network = Network(size="base"),
    training: Training = Training(steps=20_000, batch=2048),
    output: Output = Output(),
) -> Experiment:
    """Learn the checkerboard on [-1, 1]^2.

    KL is the divergence of 64,000 samples on 50 x 50 cells from the board's exact probabilities, the
    protocol of arXiv 2505.18825, whose figures stand below ours in the table: 150,000 steps of batch
    100,000 on a GPU, beside the 20,000 steps of batch 2,048 that are the default here.

    examples:
      saltus run checkerboard-lsd
      saltus run checkerboard-psd --steps 2000 --out runs/board-psd

    Args:
        method: Any method that saltus methods lists.
        plain: Take the method's squared-error form, whose fixed point is the exact map.
        teacher_steps: For methods that need a teacher: steps that train it first.
        network: The network.
        training: How it is trained.
        output: Where results go.
    """
    board = Checkerboard()

    def data(rng: Streams) -> Tensor:
        return SCALE * board(rng)

    def divergence(x: Tensor) -> dict[str, float]:
        return {"KL": float(histogram_kl(x / SCALE, board.cells(50)).value)}

    printed = {k: {"KL": v} for k, v in zip(COUNTS, PUBLISHED.get(method, ()), strict=False)}
    system = planar("checkerboard", data, 1.0, None, divergence, 64_000, COUNTS, printed)
    own: dict[str, object] = {"teacher_steps": teacher_steps}
    lesson = replace(training, steps=teacher_steps)
    return assemble(system, method, plain, network, training, output, own, lesson=lesson)
