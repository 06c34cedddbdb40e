"""What several processes do in these tests, and one process as the truth: small runs in float64.

``torchrun cases.py FOLDER NAME:ACCUMULATE:REPLICAS...`` plays cases and writes what the first process saw.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from saltus import autodiff
from saltus.autodiff import recomputed
from saltus.games import Follow, Freeze, Game, Move, Project, as_game, reprojecting
from saltus.maps import AverageVelocity
from saltus.methods import load
from saltus.nn import EDM2, MLP, DiT
from saltus.objectives import Diagonal, Lagrangian, Part, Sum
from saltus.streams import Streams
from saltus.training import EMA, World, built, fit, gathered, initialised, piece, player, shard
from saltus.typing import Batch, Condition, Draws, FlowMap, Objective, Output, Term
from saltus.weights import LearnedLogVariance

ROWS, STEPS = 32, 3
CPU = torch.device("cpu")


def perturbed(module: nn.Module) -> nn.Module:
    """In float64, away from the zeros that networks begin with, where many gradients vanish."""
    module.double()
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.1 * torch.sin(torch.arange(p.numel(), dtype=p.dtype) + i).view_as(p))
    return module


def network(seed: int) -> AverageVelocity:
    """Widths that no number of processes divides, so that some hold less than others or nothing."""

    def build() -> AverageVelocity:
        module = perturbed(AverageVelocity(MLP((2,), width=9, depth=2)))
        assert isinstance(module, AverageVelocity)
        return module

    return initialised(seed, build)


def transformer(seed: int) -> AverageVelocity:
    """With attention, norms and labels."""

    def build() -> AverageVelocity:
        net = DiT((1, 4, 4), width=12, depth=2, attention_heads=2, patch=2, classes=3)
        module = perturbed(AverageVelocity(net))
        assert isinstance(module, AverageVelocity)
        return module

    return initialised(seed, build)


def plane(rng: Streams) -> Batch:
    x1 = torch.sign(rng.normal("corner", 2)) + 0.3 * rng.normal("x1", 2)
    return Batch(rng.normal("x0", 2), x1)


def pictures(rng: Streams) -> Batch:
    label = rng.integers("label", 3)
    x1 = torch.tanh(rng.normal("x1", 1, 4, 4) + label.reshape(-1, 1, 1, 1))
    return Batch(rng.normal("x0", 1, 4, 4), x1, Condition(label=label))


def teacher(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    return torch.sin(x) * (1.0 - t[:, None])


@dataclass(frozen=True, eq=False)
class Groups:
    """A term with one value for each group of four rows, weighed by a mean over the batch."""

    student: FlowMap

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {"s": rng.uniform("s")}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        s = draws["s"]
        assert isinstance(s, Tensor)
        u = self.student.average(batch.x0, s, torch.ones_like(s))
        groups = (u - batch.data()).reshape(-1, 4, 2).mean(1).square().sum(1)
        return {"groups": Term(groups, weight=0.5 / batch.mean(batch.x0.square()))}


class Witness(torch.optim.AdamW):
    """AdamW that remembers the gradients of its first step, whole."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(list(parameters), lr=0.01)
        self.seen: list[Tensor] = []

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if not self.seen:
            ours = [p.grad for group in self.param_groups for p in group["params"]]
            self.seen = [(g.full_tensor() if isinstance(g, DTensor) else g).clone() for g in ours]
        super().step()


Found = dict[str, Tensor]
Modules = dict[str, nn.Module]


def played(
    world: World,
    accumulate: int,
    modules: Modules,
    game: Callable[[Modules], Objective | Game],
    source: Callable[[Streams], Batch] = plane,
    compile: bool = False,
) -> Found:
    """What a run leaves: losses, norms and terms of every step, the first gradients, weights and averages."""
    student = modules["student"]
    before = EMA(student, 0.9)
    for module in (*modules.values(), before.module):
        shard(module, world)
    after = EMA(student, 0.9)
    witnesses: dict[str, list[Witness]] = {}

    def watched(move: Move) -> Move:
        def make(parameters: Iterable[nn.Parameter]) -> Witness:
            witnesses.setdefault(move.name, []).append(Witness(parameters))
            return witnesses[move.name][-1]

        return replace(move, optimizer=make)

    made = as_game(game(modules), student)
    made = replace(made, moves=tuple(watched(move) for move in made.moves))
    found: Found = {}
    with patch.object(player, "compiled", partial(autodiff.compiled, backend="aot_eager")):
        steps = fit(
            made,
            source,
            steps=STEPS,
            seed=3,
            batch=ROWS,
            clip=0.2,
            compile=compile,
            world=world,
            accumulate=accumulate,
        )
    for step in steps:
        before.update()
        after.update()
        for name, moved in step.moved.items():
            found[f"{name}/values/{step.index}"] = moved.values
    for name, several in witnesses.items():
        for k, gradient in enumerate(g for witness in several for g in witness.seen):
            found[f"{name}/gradient/{k}"] = gradient
    for name, module in {**modules, "before": before.module, "after": after.module}.items():
        found |= whole(name, module, world)
    return found


def whole(name: str, module: nn.Module, world: World) -> Found:
    """The weights in one piece, on the first process."""
    copy = gathered(module, world)
    return {} if copy is None else {f"{name}/{key}": value for key, value in copy.state_dict().items()}


def lsd(world: World, accumulate: int) -> Found:
    return played(world, accumulate, {"student": network(0)}, lambda m: load("lsd").wired(m["student"]))


def mean_flow(world: World, accumulate: int) -> Found:
    return played(world, accumulate, {"student": network(0)}, lambda m: load("mean_flow").wired(m["student"]))


def _freeflow(world: World, accumulate: int, factor: float | None) -> Found:
    def game(m: Modules) -> Game:
        made = load("freeflow").wired(
            m["student"], teacher=teacher, critic=m["critic"], factor=factor, critic_moves=2
        )
        assert isinstance(made, Game)
        return made

    return played(world, accumulate, {"student": network(0), "critic": network(1)}, game)


def freeflow(world: World, accumulate: int) -> Found:
    """The student's two terms are balanced by means over the batch."""
    return _freeflow(world, accumulate, None)


def freeflow_fixed(world: World, accumulate: int) -> Found:
    return _freeflow(world, accumulate, 0.7)


def uneven(world: World, accumulate: int) -> Found:
    """Two parts whose rows no process has in proportion."""

    def game(m: Modules) -> Objective:
        student = m["student"]
        assert isinstance(student, AverageVelocity)
        parts = (Part("d", Diagonal(student), SHARES[0], 1.3), Part("l", Lagrangian(student), SHARES[1], 0.4))
        return Sum(parts)

    return played(world, accumulate, {"student": network(0)}, game)


SHARES = [0.57, 0.43]


def groups(world: World, accumulate: int) -> Found:
    def game(m: Modules) -> Objective:
        student = m["student"]
        assert isinstance(student, AverageVelocity)
        return Groups(student)

    return played(world, accumulate, {"student": network(0)}, game)


def learned(world: World, accumulate: int) -> Found:
    """A learned weight of the loss, which every process holds whole, beside a sharded network."""
    weight = LearnedLogVariance(features=4).double()

    def game(m: Modules) -> Objective:
        made = load("lsd").wired(m["student"], weight=m["weight"])
        assert isinstance(made, Objective)
        return made

    return played(world, accumulate, {"student": network(0), "weight": weight}, game)


class Layers(nn.Module):
    """A network without a list of blocks: nothing of it is sharded."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 7), nn.SiLU(), nn.Linear(7, 2))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        return Output(self.layers(torch.cat([x, s[:, None], t[:, None]], dim=1)), {})


def whole_network(world: World, accumulate: int) -> Found:
    student = initialised(0, lambda: perturbed(AverageVelocity(Layers())))
    return played(world, accumulate, {"student": student}, lambda m: load("lsd").wired(m["student"]))


def attention(world: World, accumulate: int) -> Found:
    modules: Modules = {"student": transformer(0)}
    return played(world, accumulate, modules, lambda m: load("lsd").wired(m["student"]), pictures)


def magnitude(world: World, accumulate: int) -> Found:
    """Weights that are brought back to their spheres, row by row, where each process holds some rows."""

    def build() -> AverageVelocity:
        module = perturbed(AverageVelocity(EDM2((1, 4, 4), 6, (1, 2), depth=1, attention=(), classes=3)))
        assert isinstance(module, AverageVelocity)
        return module

    def game(m: Modules) -> Game:
        student = m["student"]
        return reprojecting(as_game(load("flow_matching").wired(student), student))

    return played(world, accumulate, {"student": initialised(0, build)}, game, pictures)


def recomputing(world: World, accumulate: int) -> Found:
    """Activations that several processes compute again in the backward pass, and one does not."""
    student = transformer(0)

    def game(m: Modules) -> Objective:
        if world.size > 1:
            recomputed(student.backbone)
        made = load("lsd").wired(student)
        assert isinstance(made, Objective)
        return made

    return played(world, accumulate, {"student": student}, game, pictures)


def compiling(world: World, accumulate: int) -> Found:
    """A compiled loss in several processes: whole weights, and a mean over the processes in the graph."""

    def game(m: Modules) -> Objective:
        student = m["student"]
        assert isinstance(student, AverageVelocity)
        return Groups(student)

    return played(
        replace(world, mesh=None), accumulate, {"student": network(0)}, game, compile=world.size > 1
    )


def initial(world: World, accumulate: int) -> Found:
    """Weights that the first process makes and hands out."""
    made = built(lambda: _only_first(world), world, outline=lambda: transformer(0))
    return whole("student", made, world) | whole("average", EMA(made, 0.5).module, world)


def _only_first(world: World) -> AverageVelocity:
    assert world.leads, "another process built the whole network"
    return transformer(0)


def targets(world: World, accumulate: int) -> Found:
    """A target network that follows, weights on a sphere and a frozen copy, of sharded and whole parts."""
    student = nn.ModuleList([network(0), LearnedLogVariance(features=4).double()])
    target = shard(deepcopy(student), world)
    shard(student, world)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.5)
    frozen = Freeze(student)()
    Project(student, lambda p: p / p.norm())()
    Follow(target, student, 0.75)()
    named = {"student": student, "target": target, "frozen": frozen}
    return {key: value for name, module in named.items() for key, value in whole(name, module, world).items()}


def agreements(world: World, accumulate: int) -> Found:
    """The world's own methods; what each process sees is asserted here."""
    assert world.collect({"rank": world.rank}) == [{"rank": r} for r in range(world.size)]
    assert world.tell([world.rank, "x" * (5 * world.rank)]) == [0, ""]
    last = world.rank == world.size - 1
    assert world.any(last) and not world.any(False)
    said = [world.agree(flag) for flag in (False, last, False, False)]
    assert said == ([False, True, False, False] if world.size == 1 else [False, False, True, False])
    rows = torch.cat(world.rows(ROWS, accumulate))
    mine = torch.zeros(ROWS, dtype=torch.float64).index_fill(0, rows, 1.0)
    numbers = torch.arange(ROWS, dtype=torch.float64).square()[rows]
    return {"rows": world.sum(mine), "mean": world.mean(numbers)}


def pieces(world: World, accumulate: int) -> Found:
    """Every number of a tensor is written by one process, where it belongs."""
    truth = dict(transformer(0).named_parameters())
    found: Found = {}
    for name, p in shard(transformer(0), world).named_parameters():
        mine = piece(p)
        assert mine.shape == tuple(truth[name].shape)
        total = torch.zeros(mine.shape, dtype=torch.float64)
        there = total
        for axis, (start, length) in enumerate(zip(mine.offsets, mine.local.shape, strict=True)):
            there = there.narrow(axis, start, length)
        if mine.writes:
            there.add_(mine.local)
        found[name] = world.sum(total)
    return found


CASES: dict[str, Callable[[World, int], Found]] = {
    case.__name__: case
    for case in (
        *(lsd, mean_flow, freeflow, freeflow_fixed, uneven, groups, learned, whole_network, attention),
        *(magnitude, recomputing, compiling, initial, targets, agreements, pieces),
    )
}


def main(folder: Path, wanted: list[str]) -> None:
    """Play cases as one of several processes."""
    joined = World.join(CPU, max(int(want.rpartition(":")[2]) for want in wanted))
    plain = replace(joined, mesh=init_device_mesh("cpu", (joined.size,)))
    for want in wanted:
        name, accumulate, replicas = want.split(":")
        world = joined if joined.replicas == int(replicas) else plain
        found = CASES[name](world, int(accumulate))
        if world.leads:
            save_file({key: value.detach().contiguous() for key, value in found.items()}, folder / want)
    joined.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
