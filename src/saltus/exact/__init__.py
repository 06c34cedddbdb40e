"""Systems whose velocities, scores and flow maps are known exactly, and a solver for the rest."""

from saltus.exact.gaussian import Gaussian, GaussianMap
from saltus.exact.images import ImageMixture
from saltus.exact.mixture import Mixture
from saltus.exact.problems import line_mixture, reference_mixture, ring
from saltus.exact.quantiles import MixtureMap1D
from saltus.exact.reference import ReferenceMap, divergence, reference_density, reference_map, warped_rk4

__all__ = [
    "Gaussian",
    "GaussianMap",
    "ImageMixture",
    "Mixture",
    "MixtureMap1D",
    "ReferenceMap",
    "divergence",
    "line_mixture",
    "reference_density",
    "reference_map",
    "reference_mixture",
    "ring",
    "warped_rk4",
]
