"""Who computes a run: the processes and the device that its options ask for."""

from __future__ import annotations

import atexit
from functools import cache

import torch

from saltus.recipes.options import Machine
from saltus.training import World

__all__ = ["joined"]


def joined(machine: Machine) -> World:
    """The processes of this run, of which this is one; the same at every call.

    Raises:
        ValueError: if there is no such device, or the processes cannot be arranged so.
    """
    return _joined(machine.device, machine.replicas)


@cache
def _joined(device: str, replicas: int) -> World:
    there = torch.cuda.is_available()
    kind = torch.device({"auto": "cuda" if there else "cpu"}.get(device, device))
    if kind.type != "cpu" and not there:
        raise ValueError(f"device {device}: expected a CUDA device here, found none; use --device cpu")
    world = World.join(kind, replicas)
    atexit.register(world.leave)
    return world
