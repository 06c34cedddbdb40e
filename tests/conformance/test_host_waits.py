"""No step waits for the device: nothing is read back from it, and nothing is sent to it but without blocking.

The device of these tests is "meta", where tensors have shapes and no numbers: whoever wants a number of one
(``item``, ``bool``, a copy to the host, a boolean mask as an index, ``nonzero``) gets an error. What it
does not refuse, a copy to the device that blocks and an index that lies on the host, is counted by
:class:`Waits`. It cannot see what CUDA's own kernels wait for; the last test, on a machine with CUDA,
does, by PyTorch's own check of synchronisation.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from systems import Undecided, few
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saltus.data import ArrayData
from saltus.games import Game, Stages, as_game
from saltus.guidance import CFG
from saltus.maps import AverageVelocity
from saltus.methods import Need, discover
from saltus.nn import MLP, GuidanceAdapters
from saltus.streams import Streams
from saltus.training import EMA, AdamW, Fit, PowerProfile, fit, initialised
from saltus.typing import Batch, Condition, Draws, Term

ROWS = 32
META = torch.device("meta")


class Made(TorchFunctionMode):
    """Notes tensors of Python's numbers on the device: they are copied there, which blocks, but are no
    operation on "meta"."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
            there = result.device.type == self.waits.device
            if there and not (func is torch.as_tensor and isinstance(args[0], Tensor)):
                self.waits.note(func.__name__)
        return result


class Waits(TorchDispatchMode):
    """Notes every operation at which the host would wait for the device, as PyTorch's own check on CUDA
    counts: copies between host and device that are not ``non_blocking``, and indices on the host.

    Attributes:
        seen: their names, and where the package asked for them.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.seen: list[str] = []
        self._made = Made(self)

    def __enter__(self) -> Waits:
        self._made.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)

    def note(self, name: str) -> None:
        ours = [f for f in traceback.extract_stack() if "/saltus/" in f.filename]
        where = f" {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        self.seen.append(name + where)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = [x for x in tensors if x.device.type == self.device]
        if name.startswith(("aten._to_copy", "aten.copy_", "aten._foreach_copy_")):
            outcome = [x for x in tree_leaves(result) if isinstance(x, Tensor)] or tensors[:1]
            across = len({x.device.type for x in (*tensors, *outcome)}) > 1
            blocks = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if across and (blocks or outcome[0].device.type != self.device):
                self.note(name)
        elif name.startswith(("aten.index", "aten._index_put")) and ours:
            if any(x.device.type != self.device and x.ndim for x in tensors):
                self.note(name)
        return result


@pytest.fixture(autouse=True)
def autocast_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch has no autocast for "meta"; the CPU's, which does not touch it, stands in."""
    real = torch.autocast

    def autocast(kind: str, **options: Any) -> torch.autocast:  # noqa: ANN401
        return real("cpu" if kind == "meta" else kind, **options)

    monkeypatch.setattr(torch, "autocast", autocast)


def labelled(rng: Streams) -> Batch:
    condition = Condition(label=rng.integers("label", 3), null=rng.uniform("null") < 0.2)
    return Batch(rng.normal("x0", 2), 1.0 + 0.5 * rng.normal("x1", 2), condition)


def game(name: str, device: torch.device) -> tuple[nn.Module, Game | Stages]:
    """A method's game with everybody on the device."""
    method = discover()[name]
    heads = ("v",) if Need.HEAD in method.card.needs else ()
    guided = Need.LABELS in method.card.needs

    def make() -> AverageVelocity:
        net = MLP((2,), width=16, depth=2, classes=3, heads=heads, guidance=guided)
        return AverageVelocity(GuidanceAdapters(MLP((2,), width=16, depth=2, classes=3)) if adapted else net)

    adapted = name == "guidance_adapters"
    student = initialised(0, make).to(device)
    teacher, critic = (deepcopy(student).requires_grad_(k > 0) for k in range(2))
    return student, as_game(
        method.wired(
            student,
            teacher=teacher.velocity,
            critic=critic,
            discriminator=Undecided().to(device),
            **few(method),
        ),
        student,
    )


def second_step(run: Fit, ema: tuple[EMA, ...] = ()) -> list[str]:
    """What waits in the step after the first, moving averages included."""
    next(run)
    with Waits() as waits:
        step = next(run)
        for average in ema:
            average.update()
        step.terms  # noqa: B018 - names them without reading them
    return waits.seen


@pytest.mark.parametrize("name", discover())
def test_no_method_waits(name: str) -> None:
    student, played = game(name, META)
    run = fit(played, labelled, steps=100, seed=0, batch=ROWS, optimizer=AdamW(1e-3), clip=1.0)
    averages = (EMA(student, 0.99), EMA(student, PowerProfile(0.1)))
    assert second_step(run, averages) == []


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8], ids=str)
def test_data_are_sent_without_waiting(kind: torch.dtype) -> None:
    """From the host's memory, and from the device's."""
    student, played = game("lsd", META)
    x, labels = torch.randint(0, 2, (64, 2)).to(kind), torch.randint(0, 3, (64,))
    for data in (ArrayData(x, ROWS, labels), ArrayData(x, ROWS)):
        assert second_step(fit(played, data, steps=100, seed=0, batch=ROWS)) == []


def test_micro_batches_do_not_wait() -> None:
    student, played = game("freeflow_prediction", META)
    assert second_step(fit(played, labelled, steps=100, seed=0, batch=ROWS, accumulate=2)) == []


def test_guidance_does_not_wait() -> None:
    student, _ = game("flow_matching", META)
    batch = labelled(Streams(0, index=torch.arange(ROWS), device=META))
    t = torch.rand(ROWS, device=META)
    with Waits() as waits:
        CFG(student.velocity, 3.0, interval=(0.2, 0.8))(batch.x0, t, batch.cond)
    assert waits.seen == []


Plant = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Planted:
    """An objective that does something forbidden to (u, s)."""

    student: AverageVelocity
    plant: Plant

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {"s": rng.uniform("s")}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        s = draws["s"]
        assert isinstance(s, Tensor)
        u = self.student.average(batch.x0, s, torch.ones_like(s), batch.cond)
        return {"planted": Term(self.plant(u, s).square().flatten(1).sum(1))}


READS: dict[str, Plant] = {
    "item": lambda u, s: u * s.mean().item(),
    "float": lambda u, s: u * float(s[0]),
    "bool": lambda u, s: u if s.max() > 0.5 else 2.0 * u,
    "mask as an index": lambda u, s: u[s > 0.5],
    "masked_select": lambda u, s: u.masked_select(s[:, None] > 0.5)[:, None],
    "nonzero": lambda u, s: u[(s > 0.5).nonzero().flatten()],
    "unique": lambda u, s: u * torch.unique(s).sum(),
    "equal": lambda u, s: u if torch.equal(s, s + 1.0) else -u,
    "to the host": lambda u, s: u * s.cpu().mean(),
    "to the host, without blocking": lambda u, s: u * s.to("cpu", non_blocking=True).mean(),
    "tolist": lambda u, s: u * s.tolist()[0],
    "repeats": lambda u, s: u.repeat_interleave((s > 0.5).long(), dim=0),
}
SENDS: dict[str, Plant] = {
    "a new tensor": lambda u, s: u * torch.ones(2).to(u.device),
    "a number": lambda u, s: u * torch.tensor([1.0, 2.0], device=u.device),
    "a copy": lambda u, s: u * torch.empty_like(s).copy_(torch.ones(ROWS))[:, None],
    "an index on the host": lambda u, s: u[torch.arange(ROWS - 1)],
}


def planted(plant: Plant) -> Fit:
    student, _ = game("lsd", META)
    return fit(as_game(Planted(student, plant), student), labelled, steps=9, seed=0, batch=ROWS)


@pytest.mark.parametrize("name", READS)
def test_a_planted_read_is_caught(name: str) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta|data-dependent"):
        second_step(planted(READS[name]))


@pytest.mark.parametrize("name", SENDS)
def test_a_planted_blocking_copy_is_caught(name: str) -> None:
    assert len(second_step(planted(SENDS[name]))) >= 1
    assert second_step(planted(lambda u, s: u * torch.ones(2).to(u.device, non_blocking=True))) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", discover())
def test_cuda_agrees(name: str) -> None:
    """By PyTorch's own check, which sees the waits of CUDA's kernels too."""
    student, played = game(name, torch.device("cuda"))
    run, ema = fit(played, labelled, steps=100, seed=0, batch=ROWS, clip=1.0), EMA(student, 0.99)
    for _ in range(3):
        next(run)
        ema.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(run)
        ema.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
