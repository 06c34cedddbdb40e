"""States on a teacher's trajectory and on the student's own: where they are, what they know and cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from saltus.data import ArrayData, Pairs
from saltus.exact import Gaussian, MixtureMap1D, line_mixture
from saltus.games import Game
from saltus.guidance import CFG, GuidanceInput
from saltus.interpolants import Linear, Trigonometric
from saltus.legs import EULER, HEUN, RK4, Tableau, ddim
from saltus.maps import AverageVelocity
from saltus.methods import load
from saltus.nn import MLP
from saltus.states import locate
from saltus.streams import Streams
from saltus.tensors import like
from saltus.times import Triangle
from saltus.trajectories import Nodes, RollOut, Started, TrajectoryStates, share
from saltus.typing import Batch, Condition

LINE = line_mixture(Linear())
MAP = MixtureMap1D(LINE)


def b(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    return LINE(x, t)


def noise(groups: int, group: int, dim: int = 1) -> tuple[Batch, Streams]:
    rng = Streams(0, index=torch.arange(groups * group), dtype=torch.float64)
    return Batch(rng.normal("x0", dim)), rng


def grid(groups: int, n: int) -> Tensor:
    """0, 1/n, ..., (n - 1)/n for each group."""
    return (torch.arange(n, dtype=torch.float64) / n).repeat(groups)


@pytest.mark.parametrize(
    ("tableau", "order"), [(None, 1), (EULER, 1), (HEUN, 2), (RK4, 4)], ids=["ddim", "euler", "heun", "rk4"]
)
def test_states_follow_the_exact_map_from_the_same_noise(tableau: Tableau | None, order: int) -> None:
    """So their law is that of I_s up to the solver: the error falls with the method's order."""

    def error(n: int) -> float:
        batch, _ = noise(50, n)
        first = torch.arange(0, 50 * n, n)
        batch = replace(batch, x0=noise(50, 1)[0].x0.repeat_interleave(n, 0))
        s = grid(50, n)
        state = TrajectoryStates(b, n, tableau)(batch, Linear(), s, None)
        exact = MAP(batch.x0, torch.zeros_like(s), s)
        assert torch.equal(state.x[first], batch.x0[first])
        half = slice(n // 2, None, n)  # the middle node is t = 1/2 for every n
        return float((state.x - exact)[half].square().mean().sqrt())

    coarse, fine = (32, 64) if order < 4 else (64, 128)
    assert error(coarse) / error(fine) == pytest.approx(2.0**order, rel=0.15)


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])
def test_a_step_between_states_is_ddim_and_the_velocity_is_the_teachers(path: Linear | Trigonometric) -> None:
    plane = Gaussian(torch.tensor([0.7, -0.5]).double(), torch.eye(2).double() * 0.4, path)
    batch, rng = noise(5, 4, 2)
    s, _ = Nodes(4)(rng)
    state = TrajectoryStates(plane, 4)(batch, path, s, None)
    assert state.velocity is not None and torch.equal(state.velocity, plane(state.x, s))
    x = state.x.reshape(5, 4, 2)
    times = s.reshape(5, 4)
    assert torch.equal(x[:, 0], batch.x0[::4])
    for k in range(3):
        wanted = ddim(plane, x[:, k], times[:, k], times[:, k + 1], path)
        assert torch.allclose(x[:, k + 1], wanted, atol=1e-12)


@pytest.mark.parametrize(("tableau", "calls"), [(None, 1.0), (EULER, 1.0), (HEUN, 2.0 - 1.0 / 8.0)])
def test_the_teacher_is_asked_once_a_row(tableau: Tableau | None, calls: float) -> None:
    """And without gradient; a stage after the first is asked once a step."""
    asked = 0
    scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def counted(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        nonlocal asked
        asked += x.shape[0]
        return scale * LINE(x, t)

    batch, rng = noise(6, 8)
    state = TrajectoryStates(counted, 8, tableau)(batch, Linear(), Nodes(8)(rng)[0], None)
    assert asked == calls * 48
    assert not state.x.requires_grad and state.velocity is not None and not state.velocity.requires_grad


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_nodes_ascend_from_zero_and_fill_their_cells(shift: float) -> None:
    n = 16
    rng = Streams(0, index=torch.arange(n * 2000), dtype=torch.float64)
    s, t = Nodes(n, shift)(rng)
    nodes = s.reshape(-1, n)
    assert bool((t == 1.0).all()) and bool((nodes[:, 0] == 0.0).all())
    assert bool((nodes.diff(dim=1) > 0.0).all()) and bool((nodes < 1.0).all())
    sigma = 1.0 - nodes
    w = sigma / (shift - (shift - 1.0) * sigma)  # sigma = shift w/(1 + (shift - 1) w), solved for w
    jitter = (1.0 - w[:, 1:]) * n - torch.arange(1, n)
    assert float(jitter.min()) >= -0.5 - 1e-9 and float(jitter.max()) <= 0.5 + 1e-9
    assert float(jitter.mean(0).abs().max()) < 5.0 * (1.0 / 12.0 / 2000) ** 0.5
    assert torch.allclose(jitter.std(0), torch.full((n - 1,), 12.0**-0.5).double(), rtol=0.05)


def test_nodes_know_their_place_in_the_run_and_refuse_part_of_a_trajectory() -> None:
    everyone = Streams(3, index=torch.arange(64), dtype=torch.float64)
    second = everyone.rows(torch.arange(32, 64))
    assert torch.equal(Nodes(16)(everyone)[0][32:], Nodes(16)(second)[0])
    for rows in (torch.arange(24), torch.arange(8, 40)):
        with pytest.raises(ValueError, match="multiple of 16"):
            Nodes(16)(everyone.rows(rows))
    with pytest.raises(ValueError, match="groups of 16, got 24"):
        TrajectoryStates(b, 16)(noise(3, 8)[0], Linear(), torch.zeros(24).double(), None)


def test_trigonometric_nodes_are_the_same_noise_levels() -> None:
    from saltus.times import trigonometric_time

    rng = Streams(0, index=torch.arange(64), dtype=torch.float64)
    linear, turned = Nodes(8, 2.5)(rng)[0], Nodes(8, 2.5, trigonometric_time)(rng)[0]
    ratio = Trigonometric()(turned)
    assert torch.allclose((1.0 - linear) * ratio.beta, linear * ratio.alpha, atol=1e-12)


def test_a_share_of_pairs_starts_at_zero() -> None:
    rng = Streams(0, index=torch.arange(4000), dtype=torch.float64)
    s, t = Started(Triangle(), 0.25)(rng)
    plain_s, plain_t = Triangle()(rng)
    zero = s == 0.0
    assert float(zero.double().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(s[~zero], plain_s[~zero]) and torch.equal(t, plain_t)


def test_a_group_shares_noise_condition_and_strength() -> None:
    """The game shares noise and labels, the guidance its strength, and the teacher is asked with both."""
    student = AverageVelocity(MLP((2,), width=8, depth=1, classes=5, guidance=True)).double()
    seen: list[Condition] = []

    def labelled(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        assert cond is not None and cond.label is not None
        return x * like(cond.label.to(x) if cond.null is None else torch.zeros_like(t), x)

    class Watched(CFG):
        def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
            assert cond is not None
            seen.append(cond)
            return super().__call__(x, t, cond)

    game = load("tbcm").wired(student, teacher=Watched(labelled), nodes=4, guidance=GuidanceInput(3.0))
    assert isinstance(game, Game) and game.prepare is not None
    rng = Streams(0, index=torch.arange(24), dtype=torch.float64)
    batch = game.prepare(Batch(rng.normal("x0", 2), None, Condition(label=rng.integers("label", 5))))
    assert batch.cond is not None and batch.cond.label is not None
    for z in (batch.x0, batch.cond.label):
        assert torch.equal(z, z[::4].repeat_interleave(4, 0))
    assert len(torch.unique(batch.x0[:, 0])) == 6
    loss = game.moves[0].objective
    draws = loss.draw(batch, rng)
    w = draws["guidance"]
    assert isinstance(w, Tensor) and torch.equal(w, w[::4].repeat_interleave(4)) and len(torch.unique(w)) == 6
    s = draws["s"]
    assert isinstance(s, Tensor)
    state, cond = locate(vars(loss)["states"], Linear(), vars(loss)["guidance"], batch, draws, s)
    assert cond is not None and cond.w is not None and len(seen) == 4
    assert all(c.w is not None and torch.equal(c.w, w[::4]) for c in seen)
    # b = w label x for this teacher: what the state knows is the velocity under the row's own condition
    assert state.velocity is not None
    assert torch.allclose(state.velocity, like(w * batch.cond.label.to(w), state.x) * state.x, atol=1e-12)


def test_share_repeats_the_first_row_of_each_group() -> None:
    x = torch.arange(8.0).reshape(8, 1)
    got = share(Batch(x, -x, Condition(label=torch.arange(8))), 4)
    assert got.x0.flatten().tolist() == [0.0] * 4 + [4.0] * 4
    assert got.cond is not None and got.cond.label is not None
    assert got.cond.label.tolist() == [0] * 4 + [4] * 4
    with pytest.raises(ValueError, match="multiple"):
        share(Batch(x), 3)


def test_a_roll_out_arrives_where_the_maps_jumps_do() -> None:
    """On the exact map any number of jumps is one; away from it they differ, and no gradient passes."""
    batch, rng = noise(30, 1)
    s, zero = rng.uniform("s"), torch.zeros(30, dtype=torch.float64)
    exact = MAP(batch.x0, zero, s)
    for jumps in (1, 3):
        x = RollOut(MAP, jumps)(batch, Linear(), s, None).x
        assert torch.allclose(x, exact, atol=1e-9)
    network = AverageVelocity(MLP((1,), width=8, depth=1)).double()
    nn.init.normal_(list(network.parameters())[-1])
    one, two = (RollOut(network, k)(batch, Linear(), s, None).x for k in (1, 2))
    middle = network(batch.x0, zero, s / 2)
    assert torch.equal(one, network(batch.x0, zero, s).detach())
    assert torch.allclose(two, network(middle, s / 2, s).detach(), atol=1e-12)
    assert not one.requires_grad
    assert torch.equal(RollOut(network)(batch, Linear(), zero, None).x, batch.x0)


def test_pairs_stay_together_in_every_epoch() -> None:
    x0 = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    source = Pairs(x0, ArrayData(2.0 * x0 + 1.0, batch=4, labels=torch.arange(12)))
    assert len(source) == 12
    seen = []
    for step in range(6):
        batch = source(Streams(0, step, torch.arange(4)))
        assert torch.allclose(batch.data(), 2.0 * batch.x0 + 1.0)
        assert batch.cond is not None and batch.cond.label is not None
        assert torch.equal(batch.x0, x0[batch.cond.label])
        seen.append(batch.cond.label)
    assert torch.cat(seen[:3]).sort().values.tolist() == list(range(12))
    with pytest.raises(ValueError, match="keep the x0"):
        Pairs(x0[:5], ArrayData(x0, batch=4))
    with pytest.raises(ValueError, match="pairs"):
        Pairs(x0 / 0.0, ArrayData(x0, batch=4))
