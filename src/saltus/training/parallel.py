"""Several processes as one: who is here, which rows are whose, and the pieces of a sharded tensor.

``torchrun`` starts the processes and says in the environment who is who; :meth:`World.join` reads it. One
process is a world of its own (:meth:`World.alone`), so that there is one path for one and many.

The rows of a step are those of the global batch, 0, ..., B - 1, whoever computes them: process r takes a
run of B / size of them, in ``accumulate`` micro-batches. With random streams that are a function of the
row's number (:mod:`saltus.streams`) the numbers of a step are those of one process.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

__all__ = ["Piece", "World", "piece"]

_LETTING_GO = 0.2  # seconds
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True, eq=False)
class World:
    """The processes of a run, as one of them sees it.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        device: where this process computes.
        mesh: the processes as torch.distributed arranges them: [size], or [replicas, size / replicas] where
            weights are sharded within each row and repeated over the rows; None for one process.
        control: a group for agreements between hosts, on the CPU; None for one process.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None = None
    control: dist.ProcessGroup | None = None
    _asked: list[tuple[dist.Work, Tensor]] = field(default_factory=list, repr=False)

    @classmethod
    def alone(cls, device: torch.device | None = None) -> World:
        """One process on ``device``, by default the CPU."""
        return cls(rank=0, size=1, device=device or torch.device("cpu"))

    @classmethod
    def join(cls, device: torch.device, replicas: int = 1) -> World:
        """The processes that ``torchrun`` started, of which this is one; alone where it did not.

        Processes on CUDA take the device of their number on the host and talk by NCCL, those on the CPU by
        Gloo. Every process must call this, once; :meth:`leave` ends it.

        Args:
            device: its type counts.
            replicas: how many times the weights are held. 1 shards them over all processes; more shards
                them over size / replicas neighbours (those of one host, say) and averages gradients over
                the replicas.

        Raises:
            ValueError: if the number of processes is not a multiple of ``replicas``, the environment is
                not whole, or there are more processes on this host than devices.
        """
        rank, size, local = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if replicas < 1 or size % replicas:
            raise ValueError(
                f"replicas: expected a divisor of the {size} processes, got {replicas}; "
                "1 shards the weights over all of them"
            )
        if size == 1:
            return cls.alone(device)
        if device.type != "cpu":
            if local >= torch.cuda.device_count():
                raise ValueError(
                    f"device cuda: expected one device for each process, got {torch.cuda.device_count()} "
                    f"and a process number {local} here; lower --nproc-per-node"
                )
            device = torch.device(device.type, local)
            torch.cuda.set_device(device)
        store, _, _ = next(dist.rendezvous("env://", rank, size))  # type: ignore[attr-defined]
        # torchrun keeps one store over its restarts: the addresses in it are those of processes that are gone
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"saltus-{attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group(_BACKENDS[device.type], store=store, rank=rank, world_size=size)
        shape = (size,) if replicas == 1 else (replicas, size // replicas)
        names = ("replicate", "shard")[-len(shape) :]
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        return cls(rank, size, device, mesh, dist.new_group(backend="gloo"))

    @property
    def leads(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """How many times sharded weights are held."""
        return self.mesh.size(0) if self.mesh is not None and self.mesh.ndim > 1 else 1

    def rows(self, batch: int, accumulate: int = 1) -> tuple[Tensor, ...]:
        """The rows of the global batch that each micro-batch of this process has, int64 each.

        >>> World(rank=1, size=2, device=torch.device("cpu")).rows(8, accumulate=2)
        (tensor([4, 5]), tensor([6, 7]))

        Raises:
            ValueError: unless all micro-batches of all processes have the same number of rows.
        """
        if accumulate < 1 or batch % (self.size * accumulate):
            raise ValueError(
                f"batch {batch}: expected a multiple of {self.size * accumulate} (processes times "
                f"micro-batches: {self.size} x {accumulate}); change the batch or --accumulate"
            )
        each = batch // self.size
        mine = torch.arange(self.rank * each, (self.rank + 1) * each)
        return mine.reshape(accumulate, -1).unbind()

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the processes, without gradient; nobody waits on the host."""
        total = x.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def mean(self, x: Tensor) -> Tensor:
        """The mean of all numbers that the processes have, 0-d, without gradient."""
        if self.size == 1:
            return x.detach().mean()
        x = x.detach()
        total, count = self.sum(torch.stack([x.sum(), torch.full_like(x[:1].sum(), x.numel())])).unbind()
        return total / count

    def agree(self, flag: bool) -> bool:
        """Whether some process said yes in the call before this one; the same answer on all of them.

        For what need not be at once, such as the wish to stop: nobody waits for anybody, since the answer to
        this call is handed out by the next. One process answers itself at once.
        """
        if self.control is None:
            return flag
        said = False
        if self._asked:
            work, answer = self._asked.pop()
            work.wait()
            said = bool(answer.item())
        answer = torch.tensor(int(flag))
        work = dist.all_reduce(answer, dist.ReduceOp.MAX, group=self.control, async_op=True)
        self._asked.append((work, answer))
        return said

    def any(self, flag: bool) -> bool:
        """Whether some process says yes now; waits for all."""
        if self.control is None:
            return flag
        answer = torch.tensor(int(flag))
        dist.all_reduce(answer, dist.ReduceOp.MAX, group=self.control)
        return bool(answer.item())

    def tell(self, value: Any) -> Any:  # noqa: ANN401 - any JSON
        """The first process's value, which JSON can hold, on every process; waits for all."""
        return self.collect(value if self.leads else None)[0]

    def collect(self, value: Any) -> list[Any]:  # noqa: ANN401 - any JSON
        """Every process's value, which JSON can hold, on every process; waits for all."""
        text = json.dumps(value).encode()
        if self.control is None:
            return [json.loads(text)]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(text)]), group=self.control)
        longest = max(int(size) for size in sizes)
        mine = torch.zeros(longest, dtype=torch.uint8)
        mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        texts = [torch.zeros_like(mine) for _ in range(self.size)]
        dist.all_gather(texts, mine, group=self.control)
        pairs = zip(texts, sizes, strict=True)
        return [json.loads(bytes(theirs[: int(size)].tolist())) for theirs, size in pairs]

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    def leave(self) -> None:
        """End the processes' connection, after what is under way; nothing for one process."""
        if self.control is None:
            return
        while self._asked:
            self._asked.pop()[0].wait()
        # Gloo's threads let go of a tensor a moment after its collective is over, and need Python for that:
        # one that asks for it while the interpreter ends aborts the process (seen once in ten ends of four).
        time.sleep(_LETTING_GO)
        dist.destroy_process_group()


def _number(name: str) -> int:
    """A number that torchrun left in the environment: the world of one process without."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    here = {key: os.environ[key] for key in alone if key in os.environ}
    given = {"LOCAL_RANK": here.get("RANK", "0"), **here} if "WORLD_SIZE" in here else alone
    if not given.get(name, "").isdigit():
        raise ValueError(
            f"environment: expected a number in {name} beside the others that torchrun sets, got "
            f"{given.get(name)!r}; start with torchrun, or unset RANK, WORLD_SIZE and LOCAL_RANK"
        )
    return int(given[name])


class Piece(NamedTuple):
    """What one process holds of a tensor.

    Attributes:
        local: its numbers here; they share memory with the tensor, and may be none.
        shape: of the whole tensor.
        offsets: where the piece begins in the whole, one number a dimension.
        writes: whether this process is the one that saves these numbers.
    """

    local: Tensor
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    writes: bool


@torch.no_grad()
def piece(tensor: Tensor) -> Piece:
    """What this process holds of a tensor, sharded or plain; without communication.

    Of a plain tensor every process holds the whole, and the first saves it. Of a sharded one each process
    holds a run of the first dimension, and in a world of replicas the first replica saves.

    >>> piece(torch.zeros(3, 2)).offsets
    (0, 0)
    """
    if not isinstance(tensor, DTensor):
        first = not dist.is_initialized() or dist.get_rank() == 0
        return Piece(tensor.detach(), tuple(tensor.shape), (0,) * tensor.ndim, first)
    local = tensor.to_local().detach()
    offsets, writes = [0] * tensor.ndim, True
    place = tensor.device_mesh.get_coordinate()
    assert place is not None  # every process is in the mesh
    for at, placement, count in zip(place, tensor.placements, tensor.device_mesh.shape, strict=True):
        if isinstance(placement, Shard):
            length = tensor.shape[placement.dim]
            offsets[placement.dim] = min(length, at * -(-length // count))
        else:
            writes = writes and at == 0
    return Piece(local, tuple(tensor.shape), tuple(offsets), writes and local.numel() > 0)
