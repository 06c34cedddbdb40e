"""Weights in pieces: every process holds a part of each tensor, by PyTorch's fully sharded data parallelism.

Each backbone is sharded for itself, block by block: a block's weights are put together when it is called and
let go after it, and its gradients are summed over the processes as they come. So a network can be called from
anybody's objective, under a derivative too; a student, its teacher, a critic and averages are each on their
own. What lies outside of backbones (learned weights of a loss, say) is small: every process holds it whole.

Weights are never cast here: half precision is the loss's own (:class:`saltus.training.Precision`), and times
keep their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.torch_version import TorchVersion

from saltus.training.parallel import World, piece

__all__ = ["built", "gathered", "is_sharded", "shard"]

M = TypeVar("M", bound=nn.Module)
_AS_THEY_ARE = MixedPrecisionPolicy(cast_forward_inputs=False)  # half-precision times would coincide
_OLDEST = "2.13"


def is_sharded(tensor: Tensor) -> bool:
    """Whether processes hold a tensor in pieces."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's piece of a tensor, in the same memory; a plain tensor is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard(module: M, world: World) -> M:
    """Put ``module`` on the world's device and shard its backbones over the processes, in place.

    A backbone is a submodule with a list of modules named ``blocks``. Its deep copies (a moving average, what
    a stage freezes) are sharded alike. A network that only teaches must require no gradient before.

    Do this before an optimiser is made of the parameters: they are new ones.

    Args:
        module: alike in all processes; or on "meta", and stays there (:func:`built`).
        world: all of its processes call this.

    Raises:
        ValueError: for several processes with PyTorch before 2.13, which cannot take a derivative through
            a sharded network.
    """
    elsewhere = [t for t in _tensors(module) if t.device != world.device]
    if elsewhere and not any(t.is_meta for t in elsewhere):
        module.to(world.device)
    if world.mesh is None:
        return module
    if TorchVersion(torch.__version__) < TorchVersion(_OLDEST):
        raise ValueError(
            f"{world.size} processes: expected PyTorch 2.13 or later, got {torch.__version__}, which cannot "
            "take a derivative through a sharded network; update torch, or use one process"
        )
    for backbone in _backbones(module):
        if not isinstance(backbone, FSDPModule):
            _shard(backbone, world.mesh)
    return module


def _backbones(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost submodules that have a list of ``blocks``."""
    if isinstance(dict(module.named_children()).get("blocks"), nn.ModuleList):
        yield module
        return
    for child in module.children():
        yield from _backbones(child)


def _shard(backbone: nn.Module, mesh: DeviceMesh) -> None:
    # Outputs may be views, which PyTorch warns must not be changed in place: no loss of this package does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    outline = _outline(backbone)
    blocks = dict(backbone.named_children())["blocks"]
    for part in (*blocks.children(), backbone):
        # whole in its own calls only, so that parameters() are the pieces whenever somebody asks
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=_AS_THEY_ARE)
    vars(backbone)["__deepcopy__"] = _Copier(backbone, outline, mesh)  # PyTorch's own refuses


def _outline(module: M) -> M:
    """A copy of a module whose parameters have no memory."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    return deepcopy(module, empty)


@dataclass(frozen=True, eq=False)
class _Copier:
    """Makes copies of a sharded module.

    Attributes:
        source: the module.
        outline: what it was before, without memory.
        mesh: the processes over which it is sharded.
    """

    source: nn.Module
    outline: nn.Module
    mesh: DeviceMesh

    @torch.no_grad()
    def __call__(self, memo: dict[int, Any]) -> nn.Module:
        """A deep copy, sharded alike; no process waits for another."""
        made = deepcopy(self.outline)
        _shard(made, self.mesh)
        made.to_empty(device=next(self.source.parameters()).device)
        for mine, theirs in zip(_tensors(made), _tensors(self.source), strict=True):
            local(mine).copy_(local(theirs))
        return self._alike(made)

    @torch.no_grad()
    def whole(self, device: torch.device, keep: bool) -> nn.Module | None:
        """A copy in one piece, tensor by tensor, on those processes that ``keep`` it; all call this."""
        made = deepcopy(self.outline).to_empty(device=device) if keep else None
        mine = _tensors(made) if made is not None else repeat(None)
        for target, source in zip(mine, _tensors(self.source), strict=False):
            full = source.full_tensor() if isinstance(source, DTensor) else source
            if target is not None:
                target.copy_(full)
        return None if made is None else self._alike(made)

    def _alike(self, made: nn.Module) -> nn.Module:
        for mine, theirs in zip(made.modules(), self.source.modules(), strict=True):
            mine.training = theirs.training
        for parameter, original in zip(made.parameters(), self.source.parameters(), strict=True):
            parameter.requires_grad_(original.requires_grad)
        return made


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def gathered(module: M, world: World, device: torch.device | None = None) -> M | None:
    """A copy of ``module`` in one piece on the first process, None on the others; all of them call this.

    One tensor at a time is put together, so that the others never hold the whole.

    Args:
        module: sharded or not; it stays as it is.
        world: its processes.
        device: where the copy goes; None is the world's.
    """
    device = world.device if device is None else device
    memo: dict[int, Any] = {}
    for backbone in _backbones(module):
        copier = vars(backbone).get("__deepcopy__")
        if isinstance(copier, _Copier):
            memo[id(backbone)] = copier.whole(device, world.leads)
    return deepcopy(module, memo).to(device) if world.leads else None


def built(build: Callable[[], M], world: World, outline: Callable[[], nn.Module] | None = None) -> M:
    """The module that ``build`` makes, on the world's device and sharded, with the first process's weights.

    The other processes build it without memory, and it is handed out tensor by tensor: the whole of it is in
    the memory of the first process only, and on the others is what they keep.

    Args:
        build: makes the module in one piece, weights included.
        world: all of its processes call this.
        outline: makes a module of the same structure, whose weights do not count; None is ``build``.
    """
    if world.size == 1:
        return shard(build(), world)
    whole = build() if world.leads else None
    with torch.device("meta"):
        made = build() if outline is None else outline()
    shard(made, world).to_empty(device=world.device)
    sources = _tensors(whole) if whole is not None else repeat(None)
    with torch.no_grad():
        for target, source in zip(_tensors(made), sources, strict=False):
            full = torch.empty(target.shape, dtype=target.dtype, device=world.device)
            if source is not None:
                full.copy_(source)
            dist.broadcast(full, src=0)
            mine = piece(target)
            for axis, (start, length) in enumerate(zip(mine.offsets, mine.local.shape, strict=True)):
                full = full.narrow(axis, start, length)
            mine.local.copy_(full)
    return made  # type: ignore[return-value]  # an outline is of the same type


def synchronise(module: nn.Module, yes: bool) -> None:
    """Whether the next backward pass sums the gradients of the sharded parts of ``module`` over the
    processes, or leaves it to a later one."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(yes, recurse=False)


def average_replicated(parameters: Iterable[Tensor], world: World) -> None:
    """Average the gradients of those parameters that every process holds whole."""
    if world.size == 1:
        return
    gradients = [p.grad for p in parameters if not isinstance(p, DTensor) and p.grad is not None]
    for dtype in dict.fromkeys(g.dtype for g in gradients):
        ours = [g for g in gradients if g.dtype == dtype]
        flat = world.sum(torch.cat([g.flatten() for g in ours])) / world.size
        for gradient, mean in zip(ours, torch.split(flat, [g.numel() for g in ours]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def square_norm(gradients: Sequence[Tensor], world: World) -> Tensor:
    """This process's share of the squared norm of all gradients together, 0-d; :meth:`World.sum` adds them.

    A number that several processes hold counts once.
    """
    total = torch.zeros((), device=world.device)
    for kind, copies in ((True, world.replicas), (False, world.size)):
        ours = [local(g) for g in gradients if is_sharded(g) is kind]
        if ours:
            total = total + torch.stack(torch._foreach_norm(ours)).square().sum() / copies
    return total
