"""A Gaussian in the plane: the one system whose flow map is a formula."""

from __future__ import annotations

import torch

from saltus.exact import Gaussian
from saltus.recipes.assemble import assemble
from saltus.recipes.experiment import Experiment
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.planar import planar

__all__ = ["RECIPE", "gaussian"]

RECIPE = "a correlated Gaussian in the plane; its flow map is a formula (seconds)"


def gaussian(
    method: str = "lsd",
    plain: bool = True,
    network: Network = Network(size="tiny"),
    training: Training = Training(steps=500, batch=512),
    output: Output = Output(),
) -> Experiment:
    """Learn the flow map of N(mean, C) with mean (1, -0.5) and a correlation of 0.7.

    Every figure is against the exact map X_{0,1}(x) = mean + C^(1/2) x.

    examples:
      saltus run gaussian-lsd
      saltus run gaussian-psd --steps 200 --out runs/quick

    Args:
        method: Any method that saltus methods lists.
        plain: Take the method's squared-error form, whose fixed point is the exact map.
        network: The network.
        training: How it is trained.
        output: Where results go.
    """
    cov = torch.tensor([[0.64, 0.42], [0.42, 0.5625]], dtype=torch.float64)
    law = Gaussian(torch.tensor([1.0, -0.5], dtype=torch.float64), cov)
    system = planar("gaussian", law.sample, sigma_data=0.8, exact=law.flow_map(), count=2048, velocity=law)
    return assemble(system, method, plain, network, training, output, {})
