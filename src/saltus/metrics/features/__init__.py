"""Feature networks for figures of images: 8-bit images in, one row of features each out.

Each says its name and a digest of its weights and preprocessing, which belong beside every figure: two
figures can be compared only if both agree.
"""

from saltus.metrics.features.classifier import own_features, own_from, own_tensors
from saltus.metrics.features.components import components_from, components_tensors
from saltus.metrics.features.network import FeatureNetwork, digest_of, eight_bits

__all__ = [
    "FeatureNetwork",
    "components_from",
    "components_tensors",
    "digest_of",
    "eight_bits",
    "own_features",
    "own_from",
    "own_tensors",
]
