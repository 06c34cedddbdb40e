"""The densities of the plane: where their samples lie, in what proportion, and reproducibly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saltus.data import (
    Checkerboard,
    Noise,
    circles,
    eight_gaussians,
    from_density,
    from_mixture,
    pinwheel,
    swiss_roll,
    two_moons,
)
from saltus.exact import line_mixture, reference_mixture, ring
from saltus.streams import Streams

N = 40_000
DENSITIES: dict[str, Callable[[Streams], Tensor]] = {
    "checkerboard": Checkerboard(),
    "moons": two_moons,
    "circles": circles,
    "roll": swiss_roll,
    "pinwheel": pinwheel,
    "eight": eight_gaussians,
}


def draw(density: Callable[[Streams], Tensor], count: int = N, seed: int = 0) -> Tensor:
    return density(Streams(seed, index=torch.arange(count), dtype=torch.float64))


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES.keys())
def test_samples_are_a_function_of_the_index(density: Callable[[Streams], Tensor]) -> None:
    whole = draw(density, 100)
    assert whole.shape == (100, 2) and whole.dtype == torch.float64
    some = torch.tensor([7, 60, 61])
    assert torch.equal(density(Streams(0, index=some, dtype=torch.float64)), whole[some])
    assert not torch.equal(draw(density, 100, seed=1), whole)
    single = density(Streams(0, index=torch.arange(100)))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=0, atol=1e-5)  # angles reach 14 radians
    far = draw(density)
    assert far.mean(0).abs().max() < 0.4 and 0.5 < far.std() < 2.2


@pytest.mark.parametrize("squares", [4, 8])
def test_checkerboard(squares: int) -> None:
    """All mass on filled squares, evenly; the probabilities of a 50 x 50 grid are exact."""
    board = Checkerboard(squares)
    x = draw(board)
    assert (board.density(x) == 0.5).all()
    corners = torch.tensor([[-0.99, -0.99], [0.99, 0.99], [-0.99, 0.99]])
    assert board.density(corners).tolist() == [0.5, 0.5, 0.0]
    at = torch.floor((x + 1.0) * squares / 2.0).long()
    counts = torch.bincount(at[:, 0] * squares + at[:, 1], minlength=squares**2)
    filled = counts[counts > 0]
    assert len(filled) == squares**2 // 2
    share = 2.0 / squares**2
    assert ((filled / N - share).abs() < 5.0 * math.sqrt(share / N)).all()

    cells = board.cells(50)
    assert abs(float(cells.sum()) - 1.0) < 1e-12
    # A fine midpoint rule: each cell of 0.04 is split 25 ways, so no filled edge is missed.
    fine = (torch.arange(50 * 25, dtype=torch.float64) + 0.5) / (50 * 25) * 2.0 - 1.0
    points = torch.cartesian_prod(fine, fine)
    mass = board.density(points).reshape(50, 25, 50, 25).sum(dim=(1, 3)) * (2.0 / (50 * 25)) ** 2
    assert float((cells - mass).abs().max()) < 3e-5
    assert cells[0, 0] == cells.max() and cells[49, 0] == 0.0
    with pytest.raises(ValueError, match="even number"):
        Checkerboard(3)


def test_shapes_lie_on_their_curves() -> None:
    radius = draw(circles).norm(dim=1)
    inner = radius < 1.5
    assert abs(float(inner.double().mean()) - 0.5) < 5.0 * 0.5 / math.sqrt(N)
    assert abs(float(radius[inner].mean()) - 1.0) < 0.01 and abs(float(radius[~inner].mean()) - 2.0) < 0.01

    roll = draw(swiss_roll)
    angle = torch.atan2(roll[:, 1], roll[:, 0])
    turns = ((roll.norm(dim=1) * 6.0 - angle) / (2.0 * math.pi)).round()
    assert float((roll.norm(dim=1) * 6.0 - angle - 2.0 * math.pi * turns).abs().mean()) < 0.5

    moons = draw(two_moons) / 1.5
    upper = (moons + torch.tensor([0.5, 0.25])).norm(dim=1)
    lower = (moons - torch.tensor([0.5, 0.25])).norm(dim=1)
    assert float(torch.minimum((upper - 1.0).abs(), (lower - 1.0).abs()).max()) < 0.05 * 5.5
    torch.testing.assert_close(moons.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=0.5)

    wheel = draw(pinwheel)
    assert abs(float(wheel.norm(dim=1).mean()) - 2.0) < 0.05
    turn = torch.tensor(2.0 * math.pi / 5.0)
    rotation = torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]], dtype=torch.float64)
    bins = [torch.histogramdd(y, [12, 12], range=[-4.0, 4.0] * 2)[0] / N for y in (wheel, wheel @ rotation.T)]
    assert float((bins[0] - bins[1]).abs().max()) < 8.0 / math.sqrt(N)


def test_eight_gaussians_are_the_exact_ring() -> None:
    """The mean log-density of the samples under the ring equals that of the ring's own samples."""
    one = torch.ones(N, dtype=torch.float64)
    own, _ = ring().sample(Streams(1, index=torch.arange(N), dtype=torch.float64))
    a, b = ring().log_density(draw(eight_gaussians), one), ring().log_density(own, one)
    assert abs(float(a.mean() - b.mean())) < 5.0 * math.sqrt(2.0 * float(b.var()) / N)


def test_sources() -> None:
    rng = Streams(0, step=3, index=torch.arange(N))
    batch = from_density(Checkerboard(), prior=0.5)(rng)
    assert batch.cond is None and torch.equal(batch.data(), Checkerboard()(rng))
    assert abs(float(batch.x0.std()) / 0.5 - 1.0) < 5.0 / math.sqrt(4 * N)
    assert torch.equal(batch.x0, 0.5 * rng.normal("x0", 2))

    labelled = from_mixture(reference_mixture())(rng)
    x1, label = reference_mixture().sample(rng)
    assert label is not None and labelled.cond is not None and labelled.cond.label is not None
    assert torch.equal(labelled.data(), x1) and torch.equal(labelled.cond.label, label)
    assert torch.equal(labelled.x0, rng.normal("x0", 2))
    assert from_mixture(line_mixture())(rng).x0.shape == (N, 1)
    correlation = torch.corrcoef(torch.cat([labelled.x0, x1], dim=1).T)[:2, 2:]
    assert float(correlation.abs().max()) < 5.0 / math.sqrt(N)


def test_noise_is_standard_normal_with_labels_in_equal_parts() -> None:
    rng = Streams(0, index=torch.arange(N), dtype=torch.float64)
    batch = Noise((2,), classes=4)(rng)
    assert batch.x1 is None and batch.cond is not None and batch.cond.label is not None
    assert batch.x0.mean(dim=0).abs().max() < 5 / N**0.5
    assert (batch.x0.T.cov() - torch.eye(2, dtype=torch.float64)).abs().max() < 5 * 2**0.5 / N**0.5
    share = batch.cond.label.bincount() / N
    assert len(share) == 4 and (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / N) ** 0.5
    assert Noise((2,))(rng).cond is None


def test_noise_of_no_shape_or_no_class_is_told() -> None:
    with pytest.raises(ValueError, match=r"such as \(2,\), got 2"):
        Noise(2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one, or None"):
        Noise((2,), classes=0)
