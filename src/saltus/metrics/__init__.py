"""Metrics: pure functions of samples, or of a map and its reference; each in a file of its own.

``TWO_SAMPLE`` lists those that compare any two samples [n, ...] and [m, ...] and return one number
that is zero, up to the noise of sampling, exactly when the laws (for ``frechet``, their first two
moments) agree.
"""

from saltus.metrics.bootstrap import Interval, bootstrap, from_seeds, resamples
from saltus.metrics.energy import energy_distance
from saltus.metrics.frechet import Moments, frechet, frechet_at_infinity, frechet_of_moments
from saltus.metrics.histogram import HistogramKL, bin_masses, histogram_kl
from saltus.metrics.kid import KID, kernel_mean, kid, kid_by_subsets
from saltus.metrics.map_error import rmse
from saltus.metrics.mmd import RBF, Laplace, mmd, scaled
from saltus.metrics.neighbours import Nearest, nearest
from saltus.metrics.precision_recall import PrecisionRecall, precision_recall
from saltus.metrics.residuals import Residuals, residuals
from saltus.metrics.wasserstein import directions, sliced_wasserstein, wasserstein

TWO_SAMPLE = (energy_distance, mmd, sliced_wasserstein, wasserstein, frechet)

__all__ = [
    "RBF",
    "TWO_SAMPLE",
    "HistogramKL",
    "Interval",
    "KID",
    "Laplace",
    "Moments",
    "Nearest",
    "PrecisionRecall",
    "Residuals",
    "bin_masses",
    "bootstrap",
    "directions",
    "energy_distance",
    "frechet",
    "frechet_at_infinity",
    "frechet_of_moments",
    "from_seeds",
    "histogram_kl",
    "kernel_mean",
    "kid",
    "kid_by_subsets",
    "mmd",
    "nearest",
    "precision_recall",
    "resamples",
    "residuals",
    "rmse",
    "scaled",
    "sliced_wasserstein",
    "wasserstein",
]
