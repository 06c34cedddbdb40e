"""Training: the loop, precision, moving averages, weights on disk, logs.

It knows the Objective protocol and games, and no particular objective, network or data set.
"""

from saltus.training.checkpoint import Checkpoints, Saved
from saltus.training.ema import EMA, Profile
from saltus.training.lock import LOCK, locked
from saltus.training.log import Log, Screen, cut_back, numbers
from saltus.training.loop import Fit, Source, fit
from saltus.training.optimizers import (
    AdamW,
    Joint,
    Muon,
    OptimizerFactory,
    RAdam,
    describe,
    described,
    is_matrix,
)
from saltus.training.parallel import Piece, World, piece
from saltus.training.player import LossModule, Player
from saltus.training.posthoc import (
    Blend,
    PowerEMA,
    PowerProfile,
    Snapshot,
    blend,
    load_snapshots,
    reconstruct,
    reconstruct_files,
    save_snapshots,
    stored_in,
)
from saltus.training.precision import Precision, has_bf16
from saltus.training.run import Run, Stopped
from saltus.training.schedules import Constant, Cosine, InverseSqrt
from saltus.training.seed import initialised
from saltus.training.sharding import built, gathered, shard
from saltus.training.single_file import Header, Weights, load_weights, read_header, restore, save_weights
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
    "LOCK",
    "AdamW",
    "Blend",
    "Checkpoints",
    "Constant",
    "Cosine",
    "Fit",
    "Header",
    "InverseSqrt",
    "Joint",
    "Log",
    "LossModule",
    "Moved",
    "Muon",
    "NonFiniteLoss",
    "OptimizerFactory",
    "Piece",
    "Player",
    "PowerEMA",
    "PowerProfile",
    "Precision",
    "Profile",
    "RAdam",
    "Reading",
    "Run",
    "Saved",
    "Screen",
    "Snapshot",
    "Source",
    "Step",
    "TensorBoard",
    "Stopped",
    "Weights",
    "WeightsAndBiases",
    "Writer",
    "Writers",
    "World",
    "artifact_tensors",
    "blend",
    "check_tensorboard",
    "check_wandb",
    "built",
    "cut_back",
    "describe",
    "described",
    "fit",
    "gathered",
    "has_bf16",
    "initialised",
    "is_matrix",
    "load_snapshots",
    "load_weights",
    "locked",
    "numbers",
    "piece",
    "read_header",
    "reconstruct",
    "reconstruct_files",
    "restore",
    "restore_artifacts",
    "save_snapshots",
    "save_weights",
    "shard",
    "stored_in",
]
