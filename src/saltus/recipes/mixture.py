"""The reference mixture: four Gaussians in the plane, the problem that the project's figures refer to."""

from __future__ import annotations

from torch import Tensor

from saltus.exact import ReferenceMap, reference_mixture
from saltus.recipes.assemble import assemble
from saltus.recipes.experiment import Experiment
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.planar import planar
from saltus.recipes.system import System
from saltus.streams import Streams

__all__ = ["RECIPE", "mixture", "system"]

RECIPE = "four Gaussians of different weight in the plane, judged by the exact flow map (a minute)"


def system() -> System:
    """The reference problem: data, and the exact map that judges."""
    law = reference_mixture()

    def data(rng: Streams) -> Tensor:
        return law.sample(rng)[0]

    return planar("mixture", data, sigma_data=1.5, exact=ReferenceMap(law, 1e-8), velocity=law)


def mixture(
    method: str = "lsd",
    plain: bool = True,
    network: Network = Network(),
    training: Training = Training(steps=2500, batch=512),
    output: Output = Output(),
) -> Experiment:
    """Learn the flow map of the reference mixture at the reference budget.

    Four Gaussians of weights 0.4, 0.3, 0.2, 0.1. The map RMSE is the root of the mean squared
    distance to where the exact flow map sends the same noise; the data's own spread is 1.98.

    examples:
      saltus run mixture-lsd
      saltus run mixture-mean_flow --steps 500 --seed 1
      saltus run mixture --method shortcut --out runs/shortcut

    Args:
        method: Any method that saltus methods lists.
        plain: Take the method's squared-error form, whose fixed point is the exact map.
        network: The network.
        training: How it is trained.
        output: Where results go.
    """
    return assemble(system(), method, plain, network, training, output, {})
