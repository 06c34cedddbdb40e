"""The magnitude-preserving parts and the EDM2 network that is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from seeded import numbers, randomise
from torch import Tensor, nn

from saltus.games import Game, Move, Project, Projected, Reproject, Stage, Stages, as_game, reprojecting
from saltus.maps import AverageVelocity
from saltus.methods import load
from saltus.nn import EDM2, GuidanceAdapters, build
from saltus.nn.magnitude import MPConv, MPLayer, MPLinear, mp_cat, mp_silu, mp_sum, positional, unit
from saltus.streams import Streams
from saltus.teachers import from_teacher
from saltus.training import fit, initialised
from saltus.typing import Batch, Condition

ROWS = 4


def test_parts_preserve_the_mean_square() -> None:
    h = numbers(64, 32, 8, 8)
    torch.manual_seed(0)
    for layer in (MPConv(32, 48, 1).double(), MPConv(32, 48, 3).double()):
        inner = layer(h)[..., 1:-1, 1:-1]  # at the border the kernel sees zeros
        assert float(inner.detach().square().mean()) == pytest.approx(1.0, abs=0.03)
        assert torch.allclose(layer(h, gain=3.0), 3.0 * layer(h), rtol=1e-12)
    flat = numbers(4096, 32)
    assert float(MPLinear(32, 64).double()(flat).detach().square().mean()) == pytest.approx(1.0, abs=0.03)
    assert float(mp_silu(numbers(10**6)).square().mean()) == pytest.approx(1.0, abs=0.01)
    for balance in (0.3, torch.tensor([0.3], dtype=torch.float64)):
        joined = mp_sum(numbers(10**6), numbers(10**6, seed=1), balance)
        assert float(joined.square().mean()) == pytest.approx(1.0, abs=0.01)
        want = (0.7 * 3.0 + 0.3 * 5.0) / math.hypot(0.7, 0.3)
        assert float(mp_sum(torch.tensor(3.0), torch.tensor(5.0), balance)) == pytest.approx(want)
    a, b = numbers(1000, 4, 2, 2), numbers(1000, 12, 2, 2, seed=1)
    both = mp_cat(a, b)
    assert float(both.square().mean()) == pytest.approx(1.0, abs=0.03)
    shares = [float(part.square().sum()) for part in both.split([4, 12], dim=1)]
    assert shares[0] == pytest.approx(shares[1], rel=0.05), "both contribute alike"
    assert torch.allclose(unit(h, (1,)).square().mean(1), torch.ones(()).double())


def test_columns_are_the_layer_at_unit_vectors() -> None:
    torch.manual_seed(0)
    layer, index = MPLinear(5, 7).double(), torch.tensor([4, 0, 2])
    want = layer(math.sqrt(5.0) * F.one_hot(index, 5).double())
    assert torch.allclose(layer.column(index), want, rtol=1e-12)


def test_time_embedding_of_edm2_is_the_published_formula() -> None:
    """emb = mp_silu(mp_sum(mp_sum(N P(s), N P(t - s)), label)), P = sqrt 2 (cos, sin) at 10000^(-i/half)."""
    torch.manual_seed(0)
    net = EDM2((1, 4, 4), channels=16, depth=1, attention=(4,), classes=3).double()
    s, t = torch.tensor([0.1, 0.6]).double(), torch.tensor([0.9, 0.7]).double()
    cond = Condition(label=torch.tensor([2, 0]), null=torch.tensor([False, True]))

    def layer(weight: Tensor, h: Tensor) -> Tensor:
        rows = weight / weight.square().sum(1, keepdim=True).sqrt()
        return h @ rows.T

    def wave(a: Tensor) -> Tensor:
        f = torch.exp(-math.log(1e4) * torch.arange(8).double() / 8)
        return math.sqrt(2.0) * torch.cat([(a[:, None] * f).cos(), (a[:, None] * f).sin()], 1)

    half = 1.0 / math.sqrt(2.0)
    want = half * (layer(net.start.weight, wave(s)) + layer(net.gap.weight, wave(t - s)))
    assert net.label is not None
    label = math.sqrt(4.0) * F.one_hot(torch.tensor([2, 3]), 4).double()
    want = F.silu(half * (want + layer(net.label.weight, label))) / 0.596
    assert torch.allclose(net.embedding(numbers(2, 1, 4, 4), s, t, cond), want, rtol=1e-6)
    assert torch.allclose(positional(s, 16), wave(s), rtol=1e-12)


def magnitudes(net: EDM2, rows: int) -> list[float]:
    """The root mean square after the stem and after each block, at the start of training."""
    seen: list[float] = []

    def look(part: nn.Module, given: object, h: Tensor) -> None:
        seen.append(float(h.detach().square().mean().sqrt()))

    for part in (net.stem, *net.blocks):
        part.register_forward_hook(look)
    x = numbers(rows, *net.shape, dtype=torch.float32)
    net(x, torch.linspace(0.1, 0.5, rows), torch.linspace(0.9, 0.6, rows))
    return seen


def test_magnitudes_stay_through_depth() -> None:
    """At the start, over four draws of the weights, every block of EDM2 leaves with a root mean square within
    10 percent of one. It has attention once: the mean of many values is small, so that attention, also as
    published, takes up to 8 percent (0.7/hypot(0.7, 0.3) stays)."""
    square = torch.zeros(19)
    for seed in range(4):
        net = initialised(seed, lambda: EDM2((3, 32, 32), 32, (1, 2), depth=3, attention=()))
        with torch.no_grad():
            square += torch.tensor(magnitudes(net, rows=2)).square() / 4
    assert float(square.sqrt().min()) > 0.9 and float(square.sqrt().max()) < 1.1, square.sqrt()


def test_weights_are_brought_back_to_their_spheres() -> None:
    net = initialised(0, lambda: build("edm2", "tiny", (1, 4, 4), classes=3, guidance=True, heads=("v",)))
    net = net.double()
    randomise(net, std=0.7)
    assert isinstance(net, EDM2) and isinstance(net, Projected)
    x, s, t = numbers(ROWS, 1, 4, 4), numbers(ROWS, seed=1).sigmoid(), numbers(ROWS, seed=2).sigmoid()
    before, out = {k: p.clone() for k, p in net.named_parameters()}, net(x, s, t)
    net.project()
    again = net(x, s, t)
    assert torch.allclose(again.u, out.u, rtol=1e-6) and torch.allclose(again.heads["v"], out.heads["v"])
    layers = {name for name, m in net.named_modules() if isinstance(m, MPLayer)}
    for name, p in net.named_parameters():
        if name.rpartition(".")[0] in layers and name.endswith("weight"):
            norms = p.detach().flatten(1).norm(dim=1) / math.sqrt(p[0].numel())
            assert float((norms - 1.0).abs().max()) < 1e-6, name
            assert not torch.equal(p, before[name])
        else:
            assert torch.equal(p, before[name]), name
    frozen = GuidanceAdapters(net, rank=1)
    randomise(frozen, std=0.7)
    kept = {k: p.clone() for k, p in frozen.named_parameters()}
    Reproject(frozen)()
    assert all(torch.equal(p, kept[k]) for k, p in frozen.named_parameters()), "frozen weights stay"


def source(rng: Streams) -> Batch:
    return Batch(rng.normal("x0", 1, 4, 4), rng.normal("x1", 1, 4, 4))


def test_training_projects_after_every_step() -> None:
    """Of players that are projected alone, before the rest that is done after a move; in stages too."""
    student = AverageVelocity(initialised(0, lambda: build("edm2", "tiny", (1, 4, 4))))
    objective = load("flow_matching").wired(student)
    game = reprojecting(as_game(objective, student))
    layer = student.backbone.stem
    assert isinstance(layer, MPConv)

    def norms() -> Iterator[Tensor]:
        for part in student.modules():
            if isinstance(part, MPLayer):
                yield (part.weight.detach().flatten(1).square().mean(1).sqrt() - 1.0).abs().max()

    start = layer.weight.detach().clone()
    assert max(norms()) > 0.01
    for _ in fit(game, source, steps=2, seed=0, batch=8):
        assert max(norms()) < 1e-5
    assert float((layer.weight.detach() - unit(start, (1, 2, 3))).abs().max()) > 1e-6, "and it learns"
    plain = nn.Linear(2, 2)
    other = Project(plain, lambda p: p)
    moves = (Move("a", student, objective, after=(other,)), Move("b", plain, objective, after=(other,)))
    for made in (
        reprojecting(Game(moves)),
        reprojecting(Stages((Stage("one", lambda _: Game(moves)),))).stages[0].build({}),
    ):
        assert isinstance(made, Game)
        assert [type(a) for a in made.moves[0].after] == [Reproject, Project]
        assert made.moves[1].after == (other,)
    with pytest.raises(ValueError, match="expected stages that build games, got"):
        reprojecting(Stages((Stage("one", lambda _: objective),))).stages[0].build({})


def test_a_new_student_of_edm2_has_the_magnitude_of_its_teacher() -> None:
    """Its embedding at (s, t) is the teacher's at (s, s), and not one that has lost the part of the gap."""
    teacher, student = (
        AverageVelocity(initialised(k, lambda: build("edm2", "tiny", (1, 4, 4))).double()) for k in (0, 1)
    )
    randomise(teacher.backbone, std=0.7)
    from_teacher(student, teacher)
    one, two = teacher.backbone, student.backbone
    assert isinstance(one, EDM2) and isinstance(two, EDM2)
    x, s = numbers(3, 1, 4, 4), torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64)
    t = torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)
    for end in (t, s, s + 3.0):
        assert torch.allclose(two.embedding(x, s, end, None), one.embedding(x, s, s, None), rtol=1e-12)
    assert not torch.allclose(one.embedding(x, s, t, None), one.embedding(x, s, s, None), rtol=1e-3)
