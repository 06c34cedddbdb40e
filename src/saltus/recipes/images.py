"""Real images whose flow is known exactly: 500 digits as the means of a mixture."""

from __future__ import annotations

from torch import Tensor

from saltus.data import digits, from_density
from saltus.exact import ImageMixture, ReferenceMap
from saltus.recipes.assemble import assemble
from saltus.recipes.experiment import Experiment
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.planar import PlanarTruth
from saltus.recipes.system import Judge, System
from saltus.streams import Streams

__all__ = ["RECIPE", "images", "system"]

RECIPE = "500 digits as a mixture of Gaussians, judged by its exact flow map (two minutes)"

COUNT, SIGMA = 500, 0.1


def system() -> System:
    """The first 500 digits, each with noise of s.d. 0.1 a pixel: data, and the exact map that judges."""
    law = ImageMixture(digits()[0][:COUNT], SIGMA)
    exact = ReferenceMap(law, 1e-5)

    def data(rng: Streams) -> Tensor:
        return law.sample(rng)[0]

    def judge() -> Judge:
        truth = PlanarTruth(data, 1024, exact)
        return Judge(1024, None, truth.figures, truth.real)

    shape, spread = tuple(law.images.shape[1:]), float(law.images.std())
    return System("images", shape, spread, None, from_density(data), judge, velocity=law)


def images(
    method: str = "lsd",
    plain: bool = True,
    network: Network = Network(backbone="residual-mlp"),
    training: Training = Training(steps=1500, batch=256),
    output: Output = Output(),
) -> Experiment:
    """Learn the flow map of 500 handwritten digits, 8 x 8 pixels, as a mixture of 500 Gaussians.

    Its velocity is known in closed form, so it is a teacher for methods that need one, and the map
    RMSE is the distance to where the exact flow sends the same noise; the data's spread is 4.36.

    examples:
      saltus run images-lmd
      saltus run images-freeflow --steps 3000

    Args:
        method: Any method that saltus methods lists.
        plain: Take the method's squared-error form, whose fixed point is the exact map.
        network: The network.
        training: How it is trained.
        output: Where results go.
    """
    return assemble(system(), method, plain, network, training, output, {})
