"""How much memory a step takes: counted without allocating it, and read off the process that ran.

:class:`Tracker` follows the life of every storage that operations make while it is open. It does so for real
tensors and for those of :func:`unallocated`, which have shapes but no data, so the peak of a step is known
before the memory is there for it. On the CPU the count equals that of PyTorch's allocator.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saltus.autodiff.under_way import differentiating

__all__ = [
    "BACKWARD",
    "DERIVATIVE",
    "FORWARD",
    "Tracker",
    "forget_peak",
    "free_memory",
    "is_out_of_memory",
    "memory_now",
    "memory_peak",
    "on_cuda",
    "unallocated",
]

FORWARD, DERIVATIVE, BACKWARD = "forward", "derivative", "backward"
"""Labels of what a step makes: in plain passes, within forward-mode derivatives, on the way back."""
_CUDA = torch.device("cuda").type
_CUDA_BLOCK = 512  # bytes; the caching allocator hands out multiples


class _Unallocated(FakeTensorMode):  # type: ignore[no-untyped-call]
    """The mode of tensors without data. Each of them refers to it, so a copy of a network would copy it too,
    with its table of weak references to storages, of which PyTorch then frees both: a fault of memory long
    after. Copies of such tensors stay in the same mode."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unallocated:
        return self


def unallocated() -> FakeTensorMode:
    """A context in which new tensors have a shape, a type and a device, but no memory.

    They keep these manners outside of it: operations of theirs with each other and with real tensors
    allocate nothing either. Their numbers cannot be read.

    >>> with unallocated():
    ...     large = torch.nn.Linear(10**6, 10**6)
    >>> large(torch.zeros(2, 10**6)).shape
    torch.Size([2, 1000000])
    """
    return _Unallocated(allow_non_fake_inputs=True)


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live storages that were made while it was open.

    Each has a label: ``label`` where that is set, otherwise one of FORWARD, DERIVATIVE, BACKWARD. What
    existed before does not count. Memory that an operation takes and gives back within itself (the
    workspace of a convolution) is not seen.

    Attributes:
        label: of the storages made next; None finds out.
        peak: the most bytes that were alive at once.
        at_peak: the bytes of each label at that moment.

    >>> with Tracker() as tracker:
    ...     x = torch.zeros(100)
    ...     y = (x + 1.0) * 2.0
    >>> tracker.live, tracker.peak
    (800, 1200)
    """

    label: str | None
    peak: int
    at_peak: Mapping[str, int]

    def __init__(self, label: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.label = label
        self._seen: dict[int, tuple[weakref.ref[torch.UntypedStorage], int, str]] = {}
        self._bytes: Counter[str] = Counter()
        self.live = 0
        self.forget()

    def forget(self) -> None:
        """Begin a new peak at what is alive now."""
        self.peak, self.at_peak = self.live, dict(self._bytes)

    def relabel(self, tensors: Iterable[Tensor], label: str) -> None:
        """Call the storages of these tensors, where they are counted, by another label."""
        for tensor in tensors:
            for storage in _storages(tensor):
                key = id(storage)
                if key in self._seen:
                    reference, size, before = self._seen[key]
                    self._seen[key] = (reference, size, label)
                    self._bytes[before] -= size
                    self._bytes[label] += size

    @property
    def by_label(self) -> dict[str, int]:
        """The bytes alive now under each label."""
        return {label: size for label, size in self._bytes.items() if size}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                self._see(x, old=True)
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._see(x, old=False)
        return result

    def _see(self, tensor: Tensor, old: bool) -> None:
        for storage in _storages(tensor):
            key = id(storage)
            if key in self._seen:
                continue
            size = 0 if old else _size(tensor, storage)
            label = self._label()
            self._seen[key] = (weakref.ref(storage, self._gone(key)), size, label)
            self._bytes[label] += size
            self.live += size
            if self.live > self.peak:
                self.peak, self.at_peak = self.live, dict(self._bytes)

    def _gone(self, key: int) -> Callable[[object], None]:
        def drop(_: object) -> None:
            _, size, label = self._seen.pop(key)
            self._bytes[label] -= size
            self.live -= size

        return drop

    def _label(self) -> str:
        if self.label is not None:
            return self.label
        if torch._C._current_graph_task_id() != -1:
            return BACKWARD
        return DERIVATIVE if differentiating() else FORWARD


def _storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """The storage of a plain tensor, none of one that has no memory of its own."""
    if tensor.layout is torch.strided and not torch._is_zerotensor(tensor):
        yield tensor.untyped_storage()


def _size(tensor: Tensor, storage: torch.UntypedStorage) -> int:
    size = storage.nbytes()
    return -(-size // _CUDA_BLOCK) * _CUDA_BLOCK if on_cuda(tensor.device) else size


def on_cuda(device: torch.device) -> bool:
    """Whether memory is counted by the allocator of a CUDA device."""
    return device.type == _CUDA


def memory_now(device: torch.device) -> int:
    """Bytes that are in use: of tensors on a CUDA device, of the whole process in main memory on the CPU."""
    if on_cuda(device):
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return memory_peak(device)


def memory_peak(device: torch.device) -> int:
    """The most bytes in use since :func:`forget_peak`, or the start: of tensors on a CUDA device, of the
    whole process in main memory on the CPU. 0 where the system does not say."""
    if on_cuda(device):
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Begin a new peak at what is in use now, where the system can: CUDA, and the CPU under Linux."""
    if on_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another system, or not allowed: the old peak stays
        return


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process could still take on a device; None where the system does not say.

    On the CPU the least of what the machine has available, what the container allows and what the
    process may still address (``ulimit -v``).
    """
    if on_cuda(device):
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [room for room in (_available(), _contained(), _addressable()) if room is not None]
    return min(found, default=None)


def _available() -> int | None:
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _contained() -> int | None:
    """What the limit of a container leaves (cgroup, version 2 or 1); file caches count as free."""
    for folder, limit, used, cache in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    ):
        try:
            most = (Path(folder) / limit).read_text().strip()
            now = int((Path(folder) / used).read_text())
            lines = (Path(folder) / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue
        spare = next((int(line.split()[1]) for line in lines if line.startswith(cache)), 0)
        if most.isdigit():
            return max(0, int(most) - now + spare)
    return None


def _addressable() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    status = Path("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not status.exists():
        return None
    return max(0, limit - int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or in main memory."""
    said = str(error)
    cpu = "DefaultCPUAllocator" in said and ("allocate memory" in said or "not enough memory" in said)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or isinstance(error, RuntimeError) and cpu


@contextmanager
def gradients_labelled(tracker: Tracker, parameters: Iterable[Tensor], label: str) -> Iterator[None]:
    """A context in which the gradients that reach these parameters get a label of their own."""

    def arrived(parameter: Tensor) -> None:
        if parameter.grad is not None:
            tracker.relabel([parameter.grad], label)

    hooks = [p.register_post_accumulate_grad_hook(arrived) for p in parameters]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
