"""Where each stage of a run begins and ends, and the way of artifacts to disk and back.

A run of N steps is divided among its stages in proportion to their shares: with c_k the sum of the first
k shares, stage k plays the steps round(N c_k / c_K), ..., round(N c_{k+1} / c_K) - 1, so no step is lost or
played twice. What the finished stages produced is part of a checkpoint: :func:`artifact_tensors` names its
numbers and :func:`restore_artifacts` makes it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saltus.games import Artifact, Stage, Stages
from saltus.training.parallel import piece
from saltus.training.shards import box_of

__all__ = ["Span", "artifact_tensors", "restore_artifacts", "spans"]


class Span(NamedTuple):
    """The steps first, ..., last - 1 of a stage."""

    stage: Stage
    first: int
    last: int


def spans(stages: Stages, steps: int) -> tuple[Span, ...]:
    """The steps of each stage, in order.

    >>> halves = Stages(tuple(Stage(name, lambda artifacts: None) for name in "ab"))
    >>> [(span.first, span.last) for span in spans(halves, 5)]
    [(0, 2), (2, 5)]

    Raises:
        ValueError: if several stages cannot have a step each.
    """
    sums = list(accumulate((stage.share for stage in stages.stages), initial=0.0))
    edges = [round(steps * part / sums[-1]) for part in sums]
    found = tuple(Span(stage, *edge) for stage, edge in zip(stages.stages, pairwise(edges), strict=True))
    empty = [span.stage.name for span in found if span.first == span.last]
    if empty and len(found) > 1:
        raise ValueError(
            f"stages: expected at least one step in each of {len(found)}, got none for {', '.join(empty)} "
            f"in a run of {steps} steps; ask for more steps or fewer stages"
        )
    return found


def earlier(span: Span, stages: Stages) -> dict[str, Stage]:
    """Artifacts that exist when a stage begins: name -> the stage that made it last."""
    before = stages.stages[: stages.stages.index(span.stage)]
    return {name: stage for stage in before for name in stage.produce}


def at(found: tuple[Span, ...], step: int) -> Span:
    """The span of a step; of the step after the last, the last one."""
    return next((span for span in found if span.first <= step < span.last), found[-1])


def artifact_tensors(artifacts: Mapping[str, Artifact]) -> dict[str, Tensor]:
    """Everything needed to make the artifacts again: a tensor under its name, a module's state as
    "name.entry".

    >>> list(artifact_tensors({"teacher": nn.Linear(1, 1)}))
    ['teacher.weight', 'teacher.bias']
    """
    found = {}
    for name, artifact in artifacts.items():
        if isinstance(artifact, Tensor):
            found[name] = artifact
        else:
            found |= {f"{name}.{entry}": value for entry, value in artifact.state_dict().items()}
    return found


def restore_artifacts(
    stages: Stages, steps: int, start: int, saved: Mapping[str, Tensor]
) -> dict[str, Artifact]:
    """The artifacts with which a run of ``steps`` goes on at ``start``, from :func:`artifact_tensors`.

    A module is produced as it would be now and given the saved state; a saved tensor is taken as it is.

    Raises:
        ValueError: if an artifact that the stages before ``start`` produce was not saved, or not whole.
    """
    restored: dict[str, Artifact] = {}
    for name, stage in earlier(at(spans(stages, steps), start), stages).items():
        if name in saved:
            restored[name] = saved[name]
            continue
        state = {k.removeprefix(f"{name}."): v for k, v in saved.items() if k.startswith(f"{name}.")}
        artifact = stage.produce[name]() if state else None
        if not isinstance(artifact, nn.Module) or set(artifact.state_dict()) != set(state):
            raise ValueError(
                f"artifact {name!r} of stage {stage.name!r}: expected its tensors among those saved, got "
                f"{sorted(state) or 'none'}; begin at step 0 or use another checkpoint"
            )
        _copy(name, artifact, state)
        restored[name] = artifact
    return restored


@torch.no_grad()
def _copy(name: str, artifact: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into a module, of which this process may hold pieces."""
    for entry, mine in artifact.state_dict(keep_vars=True).items():
        theirs, here = state[entry], piece(mine)
        if tuple(theirs.shape) != here.shape or theirs.dtype != mine.dtype:
            raise ValueError(
                f"artifact {name!r}: tensor {entry}: expected {list(here.shape)} of {mine.dtype}, got "
                f"{list(theirs.shape)} of {theirs.dtype}; begin at step 0 or use another checkpoint"
            )
        here.local.copy_(theirs[box_of(here.offsets, here.local.shape)])
