"""Systems whose velocities, scores and flow maps are known exactly, and a solver for the rest."""

from saltus.exact.gaussian import Gaussian, GaussianMap
from saltus.exact.mixture import Mixture, line_mixture, reference_mixture, ring
from saltus.exact.quantiles import MixtureMap1D

__all__ = [
    "Gaussian",
    "GaussianMap",
    "Mixture",
    "MixtureMap1D",
    "line_mixture",
    "reference_mixture",
    "ring",
]
