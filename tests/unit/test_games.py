"""Players, and what happens after a move."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saltus.games import Follow, Game, Move, Project, as_game
from saltus.streams import Streams
from saltus.training import fit
from saltus.typing import Batch, Draws, Term


class Net(nn.Module):
    count: Tensor
    spread: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.full((2, 3), value, dtype=torch.float64))
        self.b = nn.Parameter(torch.full((3,), -2.0 * value))
        self.register_buffer("count", torch.tensor(int(value)))
        self.register_buffer("spread", torch.tensor(value))


class Nothing:
    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        return {"zero": Term(torch.zeros(batch.x0.shape[0]))}


def test_following_is_a_moving_average_in_closed_form() -> None:
    """m_k = d^k m_0 + (1 - d) sum_j d^(k - j) w_j; buffers are the source's."""
    target, source = Net(1.0), Net(5.0)
    follow = Follow(target, source, 0.8)
    values = [5.0, 7.0, -3.0, 11.0]
    for value in values:
        with torch.no_grad():
            source.a.fill_(value)
            source.b.fill_(-2.0 * value)
            source.count.fill_(int(value))
            source.spread.fill_(value)
        follow()
    k = len(values)
    want = 0.8**k + 0.2 * sum(0.8 ** (k - 1 - j) * w for j, w in enumerate(values))
    assert torch.allclose(target.a, torch.full_like(target.a, want), rtol=1e-14)
    assert torch.allclose(target.b, torch.full_like(target.b, -2.0 * want), rtol=1e-6)
    assert int(target.count) == 11 and float(target.spread) == 11.0
    assert bool((source.a == 11.0).all()), "the source does not move"
    assert target.a.requires_grad and target.a.grad is None


@pytest.mark.parametrize(("decay", "want"), [(0.0, 5.0), (1.0, 1.0)])
def test_decays_0_and_1_copy_and_keep_exactly(decay: float, want: float) -> None:
    target = Net(1.0).requires_grad_(False)
    Follow(target, Net(5.0), decay)()
    assert bool((target.a == want).all()) and not target.a.requires_grad


def test_following_needs_the_same_network() -> None:
    with pytest.raises((RuntimeError, ValueError)):
        Follow(nn.Linear(2, 2), nn.Linear(3, 2), 0.5)()


def test_projection_applies_its_rule_to_every_parameter() -> None:
    net = Net(3.0)
    Project(net, lambda p: p / p.norm())()
    for p, sign in ((net.a, 1.0), (net.b, -1.0)):
        assert p.requires_grad and torch.allclose(p, torch.full_like(p, sign / p.numel() ** 0.5))
    assert float(net.spread) == 3.0


def test_a_bare_objective_is_a_game_of_the_student_alone() -> None:
    student, objective = Net(1.0), Nothing()
    game = as_game(objective, student)
    (move,) = game.moves
    assert move.module is student and move.objective is objective and move.name == "student"
    assert [move.when(k) for k in (0, 1, 100)] == [1, 1, 1] and move.after == () and game.prepare is None
    other = Game((Move("critic", student, objective, when=lambda step: 5 if step else 0),))
    assert as_game(other, student) is other and other.moves[0].when(3) == 5


class Pulls:
    """The weight itself as a loss, whose gradient is 1."""

    def __init__(self, net: nn.Linear) -> None:
        self.net = net

    def draw(self, batch: Batch, rng: Streams) -> Draws:
        return {}

    def __call__(self, batch: Batch, draws: Draws) -> dict[str, Term]:
        return {"pull": Term(self.net.weight.flatten())}


def noise(rng: Streams) -> Batch:
    return Batch(rng.normal("x0", 1))


def test_a_move_has_a_rate_of_its_own() -> None:
    """A step of plain descent is the run's rate times the schedule's times the move's; 0 is refused."""
    moved = []
    for rate in (1.0, 0.25):
        net = nn.Linear(1, 1, bias=False)
        nn.init.constant_(net.weight, 2.0)

        game = Game((Move("student", net, Pulls(net), lambda p: torch.optim.SGD(p, 0.1), rate=rate),))
        next(fit(game, noise, steps=1, seed=0, batch=2, schedule=lambda progress: 0.5 + 0.0 * progress))
        moved.append(2.0 - float(net.weight.detach()))
    assert moved == pytest.approx([0.05, 0.0125], rel=1e-5)
    with pytest.raises(ValueError, match="rate"):
        Move("student", net, Pulls(net), rate=0.0)
