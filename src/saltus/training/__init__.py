"""Training: the loop, precision, moving averages, weights on disk, logs.

It knows the Objective protocol and games, and no particular objective, network or data set.
"""

from saltus.training.ema import EMA, Profile
from saltus.training.log import Log, numbers
from saltus.training.loop import Fit, LossModule, Player, Source, fit
from saltus.training.optimizers import AdamW, Joint, Muon, OptimizerFactory, RAdam, describe, described, is_matrix
from saltus.training.posthoc import (
    Blend,
    PowerEMA,
    PowerProfile,
    Snapshot,
    blend,
    load_snapshots,
    reconstruct,
    save_snapshots,
)
from saltus.training.precision import Precision, has_bf16
from saltus.training.schedules import Constant, Cosine, InverseSqrt
from saltus.training.seed import initialised
from saltus.training.single_file import Weights, load_weights, restore, save_weights
from saltus.training.stages import artifact_tensors, restore_artifacts
from saltus.training.step import Moved, NonFiniteLoss, Reading, Step
from saltus.training.writers import (
    TensorBoard,
    WeightsAndBiases,
    Writer,
    Writers,
    check_tensorboard,
    check_wandb,
)

__all__ = [
    "EMA",
    "AdamW",
    "Blend",
    "Constant",
    "Cosine",
    "Fit",
    "InverseSqrt",
    "Joint",
    "Log",
    "LossModule",
    "Moved",
    "Muon",
    "NonFiniteLoss",
    "OptimizerFactory",
    "Player",
    "PowerEMA",
    "PowerProfile",
    "Precision",
    "Profile",
    "RAdam",
    "Reading",
    "Snapshot",
    "Source",
    "Step",
    "TensorBoard",
    "Weights",
    "WeightsAndBiases",
    "Writer",
    "Writers",
    "artifact_tensors",
    "blend",
    "check_tensorboard",
    "check_wandb",
    "describe",
    "described",
    "fit",
    "has_bf16",
    "initialised",
    "is_matrix",
    "load_snapshots",
    "load_weights",
    "numbers",
    "reconstruct",
    "restore",
    "restore_artifacts",
    "save_snapshots",
    "save_weights",
]
