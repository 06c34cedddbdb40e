"""Training: the loop, precision, moving averages, weights on disk, logs.

It knows the Objective protocol and games, and no particular objective, network or data set.
"""

from saltus.training.checkpoint import Weights, load_weights, restore, save_weights
from saltus.training.ema import EMA
from saltus.training.log import Log
from saltus.training.loop import Fit, LossModule, Player, Source, fit
from saltus.training.optimizers import AdamW, OptimizerFactory, RAdam
from saltus.training.precision import Precision, has_bf16
from saltus.training.schedules import Constant, Cosine, InverseSqrt
from saltus.training.seed import initialised
from saltus.training.stages import artifact_tensors, restore_artifacts
from saltus.training.step import Moved, NonFiniteLoss, Reading, Step

__all__ = [
    "EMA",
    "AdamW",
    "Constant",
    "Cosine",
    "Fit",
    "InverseSqrt",
    "Log",
    "LossModule",
    "Moved",
    "NonFiniteLoss",
    "OptimizerFactory",
    "Player",
    "Precision",
    "RAdam",
    "Reading",
    "Source",
    "Step",
    "Weights",
    "artifact_tensors",
    "fit",
    "has_bf16",
    "initialised",
    "load_weights",
    "restore",
    "restore_artifacts",
    "save_weights",
]
