"""Optimisers as values: who trains which parameter, at which rate, and one step against PyTorch's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from saltus.games import Move, as_game
from saltus.streams import Streams
from saltus.training import (
    AdamW,
    Cosine,
    Joint,
    Muon,
    OptimizerFactory,
    Player,
    Precision,
    RAdam,
    describe,
    fit,
    initialised,
    is_matrix,
)
from saltus.typing import Batch, Draws, Term


class Net(nn.Module):
    """A table, two matrices, a norm, a kernel of a convolution and a row."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6)
        self.inner = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.kernel = nn.Parameter(torch.randn(4, 8, 3))
        self.outer = nn.Linear(8, 6, bias=False)
        self.row = nn.Linear(6, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.tanh(self.inner(x + self.table.weight[0])))
        return self.row(self.outer(h + self.kernel.mean((0, 2)))).squeeze(1)


def net() -> Net:
    return initialised(0, Net)


def differentiate(module: Net) -> None:
    """The same gradients for equal weights."""
    module.zero_grad()
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(2))
    ((module(x) - x.sum(1)) ** 2).mean().backward()


def steps(module: Net, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        differentiate(module)
        optimizer.step()


def names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[set[str]]:
    """The parameters of each group by name."""
    known = {id(p): name for name, p in module.named_parameters()}
    return [{known[id(p)] for p in group["params"]} for group in optimizer.param_groups]


def test_muon_takes_the_matrices_and_each_parameter_is_trained_once() -> None:
    module = net()
    optimizer = Muon(weight_decay=0.1)(module.parameters())
    assert isinstance(optimizer, Joint)
    assert [type(part) for part in optimizer.parts] == [torch.optim.Muon, torch.optim.AdamW]
    groups = names(module, optimizer)
    assert groups == [
        {"table.weight", "inner.weight", "outer.weight"},
        {"kernel", "row.weight"},
        {"inner.bias", "norm.weight", "norm.bias"},
    ]
    everyone = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(everyone) == len({id(p) for p in everyone}) == len(list(module.parameters()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    chosen = Muon(takes=lambda p: is_matrix(p) and p is not module.table.weight)
    assert names(module, chosen(module.parameters()))[0] == {"inner.weight", "outer.weight"}
    before = [p.detach().clone() for p in module.parameters()]
    steps(module, optimizer, 1)
    assert all(not torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_muon_alone_and_the_rest_alone_are_plain_optimisers() -> None:
    module = net()
    assert type(Muon()([module.inner.weight])) is torch.optim.Muon
    assert type(Muon()([module.inner.bias])) is torch.optim.AdamW
    assert type(Muon(others=RAdam())([module.inner.bias])) is torch.optim.RAdam
    with pytest.raises(ValueError, match="two dimensions, got \\[4, 8, 3\\]"):
        Muon(takes=lambda p: p.ndim > 1)(module.parameters())


def test_a_joint_step_is_that_of_pytorchs_own() -> None:
    ours, theirs = net(), net()
    joint = Muon(lr=0.02, weight_decay=0.1, momentum=0.9)(ours.parameters())
    matrices = [p for p in theirs.parameters() if is_matrix(p)]
    rest = [p for p in theirs.parameters() if not is_matrix(p)]
    muon = torch.optim.Muon(matrices, 0.02, 0.1, 0.9, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1]},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.02,
        weight_decay=0.1,
        fused=True,
    )
    for _ in range(3):
        steps(ours, joint, 1)
        differentiate(theirs)
        muon.step()
        adam.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p, q)


def test_the_first_step_of_muon_is_the_orthogonal_factor_of_the_gradient() -> None:
    """-0.2 lr sqrt(max(m, n)) U V^T of G = U S V^T, to what five iterations leave: S between 0.6 and 1.3."""
    w = nn.Parameter(torch.zeros(12, 7))
    w.grad = torch.randn(12, 7, generator=torch.Generator().manual_seed(4))
    Muon(lr=0.03)([w]).step()
    o = -w.detach() / (0.2 * 0.03 * math.sqrt(12))
    u, _, v = torch.linalg.svd(w.grad, full_matrices=False)
    inner = u.T @ o @ v.T
    assert torch.allclose(inner, inner.diagonal().diag(), atol=0.03)
    assert 0.6 < float(inner.diagonal().min()) <= float(inner.diagonal().max()) < 1.3


def test_the_state_of_a_joint_optimiser_comes_back_bit_for_bit() -> None:
    whole, first = net(), net()
    optimizer, begun = Muon(0.02)(whole.parameters()), Muon(0.02)(first.parameters())
    steps(whole, optimizer, 7)
    steps(first, begun, 4)
    saved = copy.deepcopy(begun.state_dict())
    assert len(saved["state"]) == len(list(first.parameters()))
    second = net()
    second.load_state_dict(first.state_dict())
    resumed = Muon(0.5)(second.parameters())  # its own rate is replaced by the saved one
    resumed.load_state_dict(saved)
    steps(second, resumed, 3)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))
    second.zero_grad()
    resumed.zero_grad()
    assert resumed.step(lambda: 3.5) == 3.5


class Regression:
    """(net(x0) - sum x0)^2."""

    def __init__(self, student: Net) -> None:
        self.student = student

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        return {"fit": Term((self.student(batch.x0) - batch.x0.sum(1)) ** 2)}


@pytest.mark.parametrize(
    "factory", [AdamW(0.1), RAdam(0.1), AdamW(0.1, weight_decay=0.5, decay_vectors=False), Muon(0.1)]
)
def test_a_player_scales_the_rate_of_every_group_and_part(factory: OptimizerFactory) -> None:
    module = net()
    player = Player(Move("net", module, Regression(module)), factory, Precision.FLOAT32, compile=False)
    player.scale_rates(0.25)
    assert [group["lr"] for group in player.optimizer.param_groups] == [0.025] * len(
        player.optimizer.param_groups
    )
    player.scale_rates(0.0)
    before = [p.detach().clone() for p in module.parameters()]
    steps(module, player.optimizer, 1)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    player.optimizer.load_state_dict(player.optimizer.state_dict())
    player.scale_rates(1.0)
    steps(module, player.optimizer, 1)
    assert not any(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_muon_trains_in_the_loop() -> None:
    module = net()

    def source(rng: Streams) -> Batch:
        return Batch(rng.normal("x0", 6))

    game = as_game(Regression(module), module)
    losses = [
        float(step.loss)
        for step in fit(
            game, source, steps=150, seed=0, batch=64, optimizer=Muon(0.02), schedule=Cosine(), clip=10.0
        )
    ]
    assert sum(losses[-10:]) < 0.15 * sum(losses[:10])


@pytest.mark.parametrize("make", [AdamW, RAdam])
def test_decay_can_spare_vectors(make: Callable[..., OptimizerFactory]) -> None:
    """Without gradient a weight shrinks by lr * weight_decay in a step, a bias not at all."""
    for decay_vectors in (True, False):
        module = nn.Linear(3, 3, dtype=torch.float64)
        weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
        optimizer = make(lr=0.5, weight_decay=0.1, decay_vectors=decay_vectors)(module.parameters())
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        torch.testing.assert_close(module.weight.data, 0.95 * weight, rtol=1e-14, atol=0.0)
        torch.testing.assert_close(
            module.bias.data, (0.95 if decay_vectors else 1.0) * bias, rtol=1e-14, atol=0
        )


def test_description_is_read_off_the_optimiser() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    text = describe(Muon(0.02, weight_decay=0.1)(module.parameters()), Cosine(), clip=1.5)
    assert text == (
        "Muon of 36 numbers in 2 tensors (lr 0.02, momentum 0.95, eps 1e-07, weight_decay 0.1) and "
        "AdamW of 8 numbers in 2 tensors (lr 0.02, betas 0.9 0.999, eps 1e-08, weight_decay 0); "
        "rate times 1 at the start, 0.854, 0.5, 0.146, 0 at the end (Cosine(warmup=0.0, floor=0.0)); "
        "gradients are clipped to norm 1.5"
    )
    first = module[0]
    groups = torch.optim.SGD([{"params": [first.weight], "lr": 0.1}, {"params": [first.bias], "lr": 0.4}])
    text = describe(groups, Cosine(warmup=0.5), None)
    assert "SGD of 24 numbers in 1 tensors (lr 0.1, momentum 0, weight_decay 0) and SGD of 6" in text
    assert "rate times 0 at the start, 0.5, 1, 0.5, 0 at the end" in text and "not clipped" in text


def test_refusals() -> None:
    p = nn.Parameter(torch.zeros(2))
    for words, call in (
        ("lr", lambda: Muon(lr=-1.0)),
        ("betas", lambda: Muon(momentum=1.0)),
        ("betas", lambda: AdamW(betas=(0.9, 1.0))),
        ("eps", lambda: RAdam(eps=-1.0)),
        ("weight_decay", lambda: Muon(weight_decay=math.nan)),
        ("parts", lambda: Joint(())),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "expected" in str(caught.value)
    with pytest.raises(ValueError, match="more than one"):
        Joint((torch.optim.SGD([p]), torch.optim.SGD([p])))
