"""Who supplies a velocity, where a loss looks, and how a state moves on, against exact systems."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from saltus.couplings import Independent, MinibatchOT
from saltus.exact import Gaussian, GaussianMap, Mixture, reference_mixture
from saltus.guidance import GuidanceInput, LabelDropout
from saltus.interpolants import VE, Interpolant, Linear, Trigonometric, path
from saltus.legs import EULER, HEUN, RALSTON3, RK4, Along, Jump, Leg, Line, Tableau
from saltus.slots import Data, Guided, Head, Mixed, Own, Slot, Teacher
from saltus.states import DataStates, PriorStates, State, draw_pairing, locate
from saltus.streams import Streams
from saltus.typing import Batch, Condition, Output

N = 8
RNG = Streams(0, index=torch.arange(N), dtype=torch.float64)
X0, X1 = RNG.normal("x0", 2), 0.5 + 0.6 * RNG.normal("x1", 2)
T = torch.linspace(0.1, 0.8, N, dtype=torch.float64)
LABEL = torch.arange(N) % 4
COND = Condition(label=LABEL)
MIXTURE = reference_mixture()
EXACT = Gaussian(torch.tensor([0.5, -0.3], dtype=torch.float64), 0.36)


@dataclass
class Labelled:
    """A flow map with the mixture's velocity, for slots that ask no more; its head is 3 b."""

    mixture: Mixture

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return x + (t - s)[:, None] * self.average(x, s, t, cond)

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.mixture(x, s, cond)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.mixture(x, t, cond)

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        assert torch.equal(s, t), "a second head is a velocity: it is read on the diagonal"
        u = self.average(x, s, t, cond)
        return Output(u, {"v": 3.0 * u})


OWN_MAP = Labelled(MIXTURE)
STATE = DataStates()(Batch(X0, X1, COND), Linear(), T, None)
FREE, LABELLED = MIXTURE(STATE.x, T), MIXTURE(STATE.x, T, COND)


def test_each_slot_is_its_formula() -> None:
    assert STATE.velocity is not None
    table: list[tuple[Slot, Tensor]] = [
        (Data(), X1 - X0),
        (Own(), LABELLED),
        (Head(), 3.0 * LABELLED),
        (Teacher(EXACT), EXACT(STATE.x, T)),
        (Mixed(1.0, 0.0), X1 - X0),
        (Mixed(0.4, 0.5), 0.4 * (X1 - X0) + 0.1 * FREE + 0.5 * LABELLED),
        (Mixed(2.0, 0.0), 2.0 * (X1 - X0) - FREE),
    ]
    for slot, want in table:
        assert torch.allclose(slot(OWN_MAP, STATE, T, COND), want, atol=1e-12), slot
    w = torch.linspace(1, 4, N, dtype=torch.float64)
    found = Guided()(OWN_MAP, STATE, T, Condition(label=LABEL, w=w))
    assert torch.allclose(found, FREE + w[:, None] * (LABELLED - FREE), atol=1e-12)


def test_a_mixed_slot_has_effective_strength_w_over_1_minus_k() -> None:
    """Where u(x; c) is the guided velocity and dI its conditional mean, the target is u again."""
    w, k = 0.6, 0.7
    strength = w / (1 - k)

    class Learned(Labelled):
        def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
            assert cond is not None
            return FREE if cond.null is not None else FREE + strength * (LABELLED - FREE)

    own = Learned(MIXTURE)
    found = Mixed(w, k)(own, State(STATE.x, LABELLED), T, COND)
    assert torch.allclose(found, own.velocity(STATE.x, T, COND), atol=1e-12)


def test_rows_with_a_dropped_label_learn_the_unguided_velocity() -> None:
    null = LABEL == 3
    assert STATE.velocity is not None
    found = Mixed(2.0, 0.3)(OWN_MAP, STATE, T, Condition(label=LABEL, null=null))
    guided = 2.0 * (X1 - X0) - 1.3 * FREE + 0.3 * LABELLED
    assert torch.allclose(found[null], STATE.velocity[null]) and torch.allclose(found[~null], guided[~null])


def test_slots_that_cannot_answer_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="at a state that no pair"):
        Data()(OWN_MAP, State(STATE.x), T, COND)
    for cond in (None, Condition()):
        with pytest.raises(ValueError, match="needs labels"):
            Mixed(1.0, 0.5)(OWN_MAP, STATE, T, cond)
        with pytest.raises(ValueError, match="needs labels"):
            Guided()(OWN_MAP, STATE, T, cond)
    with pytest.raises(ValueError, match=r"one named 'w', got \['v'\]"):
        Head("w")(OWN_MAP, STATE, T, COND)


def test_data_states_lie_on_the_path_of_their_pairs() -> None:
    batch = Batch(X0, X1)
    order = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    state = DataStates()(batch, Trigonometric(), T, order)
    c, s = torch.cos(torch.pi / 2 * T)[:, None], torch.sin(torch.pi / 2 * T)[:, None]
    assert torch.allclose(state.x, c * X0[order] + s * X1, atol=1e-14)
    assert state.velocity is not None and state.x0 is not None and state.x1 is not None
    assert torch.allclose(state.velocity, torch.pi / 2 * (c * X1 - s * X0[order]), atol=1e-14)
    assert torch.equal(state.x0, X0[order]) and torch.equal(state.x1, X1)
    with pytest.raises(ValueError, match="x1=None"):
        DataStates()(Batch(X0), Linear(), T, None)


def test_prior_states_need_no_data_and_have_no_velocity() -> None:
    start = torch.zeros(N, dtype=torch.float64)
    cases: list[tuple[Interpolant, float]] = [(Linear(), 1.0), (VE(), 80.0)]
    for interpolant, alpha in cases:
        state = PriorStates()(Batch(X0), interpolant, start, None)
        assert torch.allclose(state.x, alpha * X0, rtol=1e-14)
        assert state.velocity is None and state.x0 is None and state.x1 is None


def test_drawing_and_locating() -> None:
    batch = Batch(X0, X1, COND)
    assert draw_pairing(Independent(), None, batch, RNG) == {}
    draws = draw_pairing(MinibatchOT(), LabelDropout(0.5), batch, RNG)
    order, dropped = draws["order"], draws["guidance"]
    assert isinstance(order, Tensor) and isinstance(dropped, Tensor)
    assert torch.equal(order, MinibatchOT()(batch)) and 0 < int(dropped.sum()) < N
    state, cond = locate(DataStates(), Linear(), LabelDropout(0.5), batch, draws, T)
    assert torch.allclose(state.x, path(Linear(), X0[order], X1, T)[0])
    assert cond is not None and cond.null is not None and torch.equal(cond.null, dropped)
    draws = draw_pairing(Independent(), GuidanceInput(), batch, RNG)
    state, cond = locate(DataStates(), Linear(), GuidanceInput(), batch, draws, T)
    assert cond is not None and cond.w is draws["guidance"] and torch.allclose(state.x, STATE.x)
    assert locate(DataStates(), Linear(), None, batch, {}, T)[1] is COND


def move(leg: Leg, interpolant: Interpolant, x: Tensor, s: Tensor, m: Tensor) -> Tensor:
    own = GaussianMap(Gaussian(EXACT.mean, EXACT.cov, interpolant))
    return leg(own, State(x), interpolant, s, m, None)


def test_a_line_is_the_path_of_the_pair() -> None:
    m = T + 0.15
    for interpolant in (Linear(), Trigonometric()):
        state = DataStates()(Batch(X0, X1), interpolant, T, None)
        found = Line()(OWN_MAP, state, interpolant, T, m, None)
        assert torch.allclose(found, path(interpolant, X0, X1, m)[0], atol=1e-15)
    with pytest.raises(ValueError, match="a line needs the pair"):
        Line()(OWN_MAP, State(X0), Linear(), T, m, None)


@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (HEUN, 2), (RALSTON3, 3), (RK4, 4)])
def test_a_step_has_a_local_error_of_its_order_plus_1(tableau: Tableau, order: int) -> None:
    """Along the own velocity and along a teacher's, with rows of different length and backwards."""
    interpolant = Trigonometric()
    system = Gaussian(EXACT.mean, EXACT.cov, interpolant)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(N // 2)
    for velocity in (Own(), Teacher(system)):
        errors = []
        for d in (0.02, 0.01):
            m = T + d * sign * torch.linspace(1, 2, N, dtype=torch.float64)
            want = system.flow_map()(STATE.x, T, m)
            errors.append((move(Along(velocity, tableau), interpolant, STATE.x, T, m) - want).abs().sum(1))
        slope = torch.log2(errors[0] / errors[1]).median()
        assert abs(float(slope) - (order + 1)) < 0.15


def test_more_steps_converge_at_the_methods_order() -> None:
    m = T + 0.2
    want = EXACT.flow_map()(STATE.x, T, m)
    for tableau in (EULER, HEUN):
        errors = [
            float((move(Along(Own(), tableau, n), Linear(), STATE.x, T, m) - want).norm()) for n in (8, 16)
        ]
        assert abs(errors[0] / errors[1] - 2**tableau.order) < 0.3 * tableau.order


def test_a_leg_takes_its_condition_along() -> None:
    found = Along()(OWN_MAP, State(STATE.x), Linear(), T, T + 0.1, COND)
    assert torch.allclose(found, STATE.x + 0.1 * LABELLED, atol=1e-13)
    jumped = Jump()(OWN_MAP, State(STATE.x), Linear(), T, T + 0.1, COND)
    assert torch.allclose(jumped, STATE.x + 0.1 * LABELLED, atol=1e-13)


@pytest.mark.parametrize("jumps", [1, 2, 5])
def test_jumps_of_the_exact_map_compose_to_it(jumps: int) -> None:
    m = T + 0.2
    want = EXACT.flow_map()(STATE.x, T, m)
    assert torch.allclose(move(Jump(jumps), Linear(), STATE.x, T, m), want, atol=1e-13)
    # a map that does not compose tells the number of jumps apart: n Euler steps
    euler = Jump(jumps)(Labelled(MIXTURE), State(STATE.x), Linear(), T, m, COND)
    steps = Along(Teacher(MIXTURE), EULER, jumps)(Labelled(MIXTURE), State(STATE.x), Linear(), T, m, COND)
    assert torch.allclose(euler, steps, atol=1e-13)


@pytest.mark.parametrize("leg", [Along(Own(), RK4, 3), Jump(3)])
def test_a_leg_of_no_length_stays_and_times_end_exactly(leg: Leg) -> None:
    assert torch.allclose(move(leg, Linear(), STATE.x, T, T), STATE.x, atol=1e-15)
    seen: list[Tensor] = []

    @dataclass
    class Watched(Labelled):
        def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
            seen.extend((s, t))
            return self.mixture(x, s, cond)

        def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
            seen.append(t)
            return self.mixture(x, t, cond)

    end = torch.ones(N, dtype=torch.float64)
    leg(Watched(MIXTURE), State(STATE.x), Linear(), T, end, None)
    times = torch.stack(seen)
    assert float(times.max()) == 1.0 and bool((times >= T).all()) and bool((times[-1] == 1.0).all())
