"""Who computes a run: the processes and the device that its options ask for."""

from __future__ import annotations

import atexit
from dataclasses import replace
from functools import cache

import torch

from saltus.recipes.options import Machine
from saltus.training import World

__all__ = ["device_of", "joined"]


def joined(machine: Machine) -> World:
    """The processes of this run, of which this is one; the same at every call.

    With a compiled loss every process holds the weights whole: what gathers sharded ones cannot be traced.

    Raises:
        ValueError: if there is no such device, or the processes cannot be arranged so.
    """
    world = _joined(machine.device, machine.replicas)
    return replace(world, mesh=None) if machine.compile else world


def device_of(name: str) -> torch.device:
    """The device that an option names.

    Raises:
        ValueError: if there is no such device.
    """
    there = torch.cuda.is_available()
    kind = torch.device({"auto": "cuda" if there else "cpu"}.get(name, name))
    if kind.type != "cpu" and not there:
        raise ValueError(f"device {name}: expected a CUDA device here, found none; use --device cpu")
    return kind


@cache
def _joined(device: str, replicas: int) -> World:
    world = World.join(device_of(device), replicas)
    atexit.register(world.leave)
    return world
