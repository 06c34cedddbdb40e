"""Flows of several resolutions against closed forms on Gaussian signals: the rise, the law of what K jumps
make, and the method that distils them.
"""

from __future__ import annotations

import pytest
import torch
from systems import streams
from torch import Tensor

from saltus.interpolants import Linear, path
from saltus.legs import EULER, HEUN, RALSTON3
from saltus.maps import EulerMap
from saltus.methods.multiscale import multiscale
from saltus.objectives import Diagonal
from saltus.pyramid import Climb, EdgeStates, Pyramid, PyramidStates
from saltus.slots import Teacher
from saltus.states import State
from saltus.tensors import like
from saltus.typing import Batch, Condition, Output

CELLS = 4
MEAN = torch.tensor([0.5, -0.3, 0.8, 0.1], dtype=torch.float64)
ROOT = torch.tensor(
    [[0.7, 0, 0, 0], [0.5, 0.4, 0, 0], [0.1, 0.3, 0.5, 0], [-0.2, 0.2, 0.3, 0.4]], dtype=torch.float64
)
PYRAMIDS = [Pyramid((2, 1)), Pyramid((4, 2, 1)), Pyramid((4, 1)), Pyramid((2, 2, 1))]


def signals(rows: int, seed: int = 0) -> Batch:
    rng = streams(rows, seed)
    return Batch(rng.normal("x0", CELLS), MEAN + rng.normal("x1", CELLS) @ ROOT.T)


def constant(value: float, rows: int) -> Tensor:
    return torch.full((rows,), value, dtype=torch.float64)


class Exact:
    """E[velocity | state] on a pyramid's path for N(MEAN, ROOT ROOT^T) data: states and velocities are linear
    in the pair, so the joint law is Gaussian."""

    def __init__(self, pyramid: Pyramid) -> None:
        self.states = PyramidStates(pyramid)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        assert bool((t == t[0]).all())
        eye, none = torch.eye(CELLS).double(), torch.zeros(CELLS, CELLS).double()
        pairs = Batch(torch.cat([eye, none]), torch.cat([none, ROOT.T]))
        of = self.states(pairs, Linear(), t[:1].expand(2 * CELLS), None)
        mean = self.states(Batch(none[:1], MEAN[None]), Linear(), t[:1], None)
        assert of.velocity is not None and mean.velocity is not None
        gain = torch.linalg.solve(of.x.T @ of.x, of.x.T @ of.velocity)
        return mean.velocity + (x - mean.x) @ gain


@pytest.mark.parametrize("pyramid", PYRAMIDS, ids=lambda p: "-".join(map(str, p.blocks)))
def test_the_rise_leads_from_the_end_of_a_stage_to_the_start_of_the_next(pyramid: Pyramid) -> None:
    batch = signals(20)
    x0, x1, count = batch.x0, batch.data(), len(pyramid.blocks)
    before = x0
    for i in range(count):
        start, end = pyramid.ends(i, x0, x1)
        s = constant(i / count, 20)
        assert torch.allclose(EdgeStates(pyramid)(batch, Linear(), s, None).x, before, rtol=1e-12)
        assert torch.allclose(pyramid.rise(before, s), start, rtol=1e-12, atol=1e-12)
        assert torch.allclose(PyramidStates(pyramid)(batch, Linear(), s, None).x, start, rtol=1e-12)
        before = end
    assert torch.allclose(before, x1, rtol=1e-12), "the last stage ends at the data"


@pytest.mark.parametrize("pyramid", PYRAMIDS, ids=lambda p: "-".join(map(str, p.blocks)))
def test_a_stage_s_noise_is_standard_at_its_resolution(pyramid: Pyramid) -> None:
    """start_i of x1 = 0 has (1 - a_i)^2 on the diagonal of the coarse covariance, and no correlation."""
    eye = torch.eye(CELLS).double()
    for i, b in enumerate(pyramid.blocks):
        start, _ = pyramid.ends(i, eye, torch.zeros_like(eye))
        coarse = start.unflatten(1, (-1, b)).mean(2)
        a = i / len(pyramid.blocks)
        assert torch.allclose(coarse.T @ coarse, (1 - a) ** 2 * torch.eye(CELLS // b).double(), atol=1e-12)


def test_blocks_that_halve_meet_as_in_print() -> None:
    """c = 2a/(1 + a) on pictures; and what rises is (1 - a) times noise of correlation -1/3 in a block."""
    pyramid, a = Pyramid((2, 1)), 0.5
    x1 = torch.ones(1, 1, 4, 4).double()
    _, end = pyramid.ends(0, torch.zeros_like(x1), x1)
    assert torch.allclose(end, 2 * a / (1 + a) * x1)
    noise = torch.eye(16).double().reshape(16, 1, 4, 4)
    detail = (noise - pyramid.levels(noise)[0]).flatten(1)
    cov = detail.T @ detail
    assert float(cov[0, 1] / cov[0, 0]) == pytest.approx(-1 / 3) and float(cov[0, 2]) == 0.0
    fresh = pyramid.rise(detail.reshape(16, 1, 4, 4), constant(a, 16))
    assert torch.allclose(fresh.flatten(1), (1 - a) * detail, atol=1e-14)


def test_blocks_all_alike_are_the_linear_interpolant() -> None:
    batch, rng = signals(50), streams(50)
    s = rng.uniform("s")
    state = PyramidStates(Pyramid((1, 1, 1)))(batch, Linear(), s, None)
    x, v = path(Linear(), batch.x0, batch.data(), s)
    assert state.velocity is not None
    assert torch.allclose(state.x, x, atol=1e-12) and torch.allclose(state.velocity, v, atol=1e-12)
    edge = torch.floor(3 * s) / 3
    assert torch.allclose(Pyramid((1, 1, 1)).rise(x, edge), x, rtol=1e-12)


@pytest.mark.parametrize("pyramid", PYRAMIDS, ids=lambda p: "-".join(map(str, p.blocks)))
def test_the_exact_jumps_make_the_data_s_law_of_the_prior(pyramid: Pyramid) -> None:
    """The K climbs along the exact velocity are affine in x0: their matrix M has M M^T = ROOT ROOT^T, and the
    prior's mean goes to MEAN."""
    x = torch.cat([torch.eye(CELLS), torch.zeros(1, CELLS)]).double()
    climb, count = Climb(pyramid, Teacher(Exact(pyramid)), RALSTON3, 48), len(pyramid.blocks)
    for i in range(count):
        s, m = constant(i / count, CELLS + 1), constant((i + 1) / count, CELLS + 1)
        x = climb(None, State(x), Linear(), s, m, None)  # type: ignore[arg-type]
    matrix = x[:CELLS] - x[CELLS:]
    assert torch.allclose(x[CELLS], MEAN, atol=1e-4)
    assert torch.allclose(matrix.T @ matrix, ROOT @ ROOT.T, atol=1e-4)


def test_flow_matching_on_its_states_learns_that_velocity() -> None:
    """The error of the exact velocity against the states' own has mean zero, also times the state."""
    pyramid, rows = Pyramid((4, 2, 1)), 20_000
    batch = signals(rows)
    for t in (0.1, 0.45, 0.9):
        times = constant(t, rows)
        state = PyramidStates(pyramid)(batch, Linear(), times, None)
        assert state.velocity is not None
        error = state.velocity - Exact(pyramid)(state.x, times)
        products = torch.cat([error, (error[:, :, None] * state.x[:, None, :]).flatten(1)], 1)
        deviation = products.std(0) / rows**0.5
        assert bool((products.mean(0).abs() <= 5.0 * deviation + 1e-9).all())
        assert float(error.std()) > 0.05
        loss = Diagonal(EulerMap(Exact(pyramid)), states=PyramidStates(pyramid))
        value = loss(batch, {"t": times})["diagonal"].value
        assert torch.allclose(value, error.square().sum(1), rtol=1e-12)


class Jumps:
    """The flow map whose jumps from edge to edge are climbs of so many steps along the exact velocity."""

    def __init__(self, pyramid: Pyramid, steps: int) -> None:
        self.b = Exact(pyramid)
        self.climb = Climb(pyramid, Teacher(self.b), RALSTON3, steps)

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.climb(self, State(x), Linear(), s, t, cond)

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return (self(x, s, t) - x) / like(t - s, x)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.b(x, t)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        return Output(self.average(x, s, t), {})


def test_the_exact_jumps_have_no_loss_but_the_solver_s() -> None:
    """On one stage after the other; the root of the loss falls by 8 with twice the solver's steps."""
    pyramid = Pyramid((4, 2, 1))
    student, batch = Jumps(pyramid, 128), signals(40)
    for i in range(3):
        times = {"s": constant(i / 3, 40), "t": constant((i + 1) / 3, 40)}

        def size(steps: int, times: dict[str, Tensor] = times) -> float:
            loss = multiscale(student, teacher=Exact(pyramid), pyramid=pyramid, solver_steps=steps)
            return float(loss(batch, {**times})["endpoint"].value.mean().sqrt())

        coarse, fine = size(8), size(16)
        assert coarse / fine == pytest.approx(8.0, rel=0.15) and fine < 2e-3
    drawn = multiscale(student, teacher=Exact(pyramid), pyramid=pyramid).draw(batch, streams(40))
    s, t = drawn["s"], drawn["t"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor)
    assert set((3 * s).round().tolist()) == {0.0, 1.0, 2.0}
    assert torch.allclose(t - s, torch.full_like(s, 1 / 3))


def test_what_cannot_be_is_refused() -> None:
    for blocks in ((), (2,), (3, 2, 1), (1, 2, 1)):
        with pytest.raises(ValueError, match="each a multiple of the next"):
            Pyramid(blocks)
    with pytest.raises(ValueError, match="to be a multiple of 3"):
        Pyramid((3, 1)).levels(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="no velocity at the end of a step"):
        multiscale(Jumps(PYRAMIDS[0], 1), teacher=Exact(PYRAMIDS[0]), tableau=HEUN)
    assert multiscale(Jumps(PYRAMIDS[0], 1), teacher=Exact(PYRAMIDS[0]), tableau=EULER)
