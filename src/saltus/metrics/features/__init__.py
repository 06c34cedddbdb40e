"""Feature networks for figures of images: 8-bit images in, one row of features each out.

Each says its name and a digest of its weights and preprocessing, which belong beside every figure: two
figures can be compared only if both agree.
"""

from saltus.metrics.features.classifier import own_features, own_from, own_tensors
from saltus.metrics.features.components import PrincipalComponents, components_from, components_tensors
from saltus.metrics.features.dinov2 import Dinov2, dinov2_from
from saltus.metrics.features.graph import graph_from
from saltus.metrics.features.inception import GRAPH, PORT, Inception, inception_from, resized_as_the_graph
from saltus.metrics.features.network import FeatureNetwork, digest_of, eight_bits
from saltus.metrics.features.stored import stored_tensors

__all__ = [
    "GRAPH",
    "PORT",
    "Dinov2",
    "FeatureNetwork",
    "Inception",
    "PrincipalComponents",
    "components_from",
    "components_tensors",
    "digest_of",
    "dinov2_from",
    "eight_bits",
    "graph_from",
    "inception_from",
    "own_features",
    "own_from",
    "own_tensors",
    "resized_as_the_graph",
    "stored_tensors",
]
