"""Any model onto the student's path against exact mixtures, and what the probe tells of broken ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saltus.exact import Gaussian, Mixture, ReferenceMap, reference_mixture, ring
from saltus.guidance import CFG, AutoGuidance
from saltus.interpolants import VE, VP, Cosine, Interpolant, Linear, Trigonometric, path
from saltus.maps import AverageVelocity
from saltus.nn import build
from saltus.predictions import Converted, Prediction, matching_time
from saltus.samplers import integrate, prior
from saltus.streams import Streams
from saltus.teachers import Foreign, probe, teacher
from saltus.tensors import full_like_rows
from saltus.typing import Condition, Velocity

PATHS: dict[str, Interpolant] = {
    "linear": Linear(),
    "trigonometric": Trigonometric(),
    "vp": VP(),
    "cosine": Cosine(),
    "ve": VE(),
}
ONTO = ("linear", "trigonometric", "vp")
SURE = {  # kinds that may be asked at both ends of a path
    "linear": {Prediction.VELOCITY, Prediction.V},
    "trigonometric": {Prediction.VELOCITY, Prediction.V},
    "vp": {Prediction.NOISE, Prediction.X0, Prediction.SCORE, Prediction.V},
    "cosine": {Prediction.V},
    "ve": set(Prediction),
}
ROWS = 64
RNG = Streams(0, index=torch.arange(ROWS), dtype=torch.float64)
NOISE = prior(RNG, (2,))
END = ReferenceMap(reference_mixture())(NOISE, full_like_rows(0.0, NOISE), full_like_rows(1.0, NOISE))


def model(interpolant: Interpolant, kind: Prediction) -> Velocity:
    """The exact prediction of the reference mixture, written out."""
    law = reference_mixture(interpolant)

    def predict(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        a, b, da, db = (v[:, None] for v in interpolant(t))
        score, x1 = law.score(x, t, cond), law.posterior_mean(x, t, cond)
        x0 = -a * score
        values = {
            Prediction.X0: x0,
            Prediction.NOISE: x0,
            Prediction.X1: x1,
            Prediction.VELOCITY: da * x0 + db * x1,
            Prediction.V: b * x0 - a * x1,
            Prediction.SCORE: score,
        }
        return values[kind]

    return predict


def between(name: str, kind: Prediction) -> tuple[float, float]:
    return (0.0, 1.0) if kind in SURE[name] else (1e-5, 1.0 - 1e-5)


def states(interpolant: Interpolant, t: Tensor) -> Tensor:
    x1, _ = reference_mixture().sample(RNG)
    return path(interpolant, RNG.normal("x0", 2)[: len(t)], x1[: len(t)], t)[0]


@pytest.mark.parametrize(("name", "kind"), [*product(PATHS, Prediction)])
def test_any_prediction_of_any_path_is_the_velocity_of_the_students(name: str, kind: Prediction) -> None:
    """With labels; where the signal-to-noise ratio is one that the model's path has."""
    given = PATHS[name]
    t = torch.linspace(0.15, 0.99, ROWS, dtype=torch.float64)
    cond = Condition(label=torch.arange(ROWS) % 4, null=torch.arange(ROWS) % 3 == 0)
    for onto in (PATHS[o] for o in ONTO):
        x = states(onto, t)
        found = teacher(model(given, kind), given, kind, onto=onto, between=between(name, kind))(x, t, cond)
        want = reference_mixture(onto)(x, t, cond)
        assert float(((found - want) / (1.0 + want.abs())).abs().max()) < 1e-8, onto


@pytest.mark.parametrize(
    ("name", "kind"), [*product(PATHS, (Prediction.NOISE, Prediction.X1, Prediction.V))]
)
def test_64_steps_of_a_converted_teacher_reach_the_end_of_the_exact_map(name: str, kind: Prediction) -> None:
    """Exactly where the path starts at noise; VP keeps a trace of data there, 0.0066, and VE 1/80 of it."""
    given = PATHS[name]
    velocity = teacher(model(given, kind), given, kind, between=between(name, kind))
    found = integrate(velocity, NOISE, 64)
    own = integrate(reference_mixture(), NOISE, 64)
    assert float((own - END).square().mean().sqrt()) < 1e-3, "the method's own error"
    # Heun gives b_0 half a step, 1/128, and its bias is some three times the ratio at which the path begins
    allowed = {"vp": 6 * 0.0066 / 128, "ve": 6 / 80 / 128}.get(name, 1e-12 if kind in SURE[name] else 3e-5)
    assert float((found - own).square().mean().sqrt()) < allowed


@pytest.mark.parametrize("name", ["linear", "trigonometric", "cosine"])
def test_both_ends_are_exact_where_the_prediction_says_something(name: str) -> None:
    given = PATHS[name]
    for kind, onto in product(SURE[name], ("linear", "trigonometric")):
        for t, x in ((0.0, NOISE), (1.0, END)):
            times = full_like_rows(t, x)
            found = teacher(model(given, kind), given, kind, onto=PATHS[onto])(x, times)
            assert torch.allclose(found, reference_mixture(PATHS[onto])(x, times), atol=1e-10), (kind, t)


def test_a_ratio_beyond_the_models_path_is_asked_at_its_nearest() -> None:
    """VP begins at beta_0/alpha_0 = 0.0066: at our t = 0 the answer is E[x1] up to that times Cov(x1) x."""
    law, zero, one = reference_mixture(), full_like_rows(0.0, NOISE), full_like_rows(1.0, END)
    for name, ratio in (("vp", 0.0066), ("ve", 1 / 80)):
        given = PATHS[name]
        for kind in (Prediction.NOISE, Prediction.V, Prediction.SCORE):
            velocity = teacher(model(given, kind), given, kind)
            off = velocity(NOISE, zero) - law(NOISE, zero)
            assert 0.5 * ratio < float(off.square().mean().sqrt()) < 3 * ratio
            if name == "vp":
                assert torch.allclose(velocity(END, one), law(END, one), atol=1e-12)


@pytest.mark.parametrize(("kind", "end"), [(Prediction.NOISE, 0), (Prediction.SCORE, 0), (Prediction.X1, 1)])
def test_keeping_away_from_an_end_costs_an_error_of_first_order(kind: Prediction, end: int) -> None:
    """At t = 0 it is low Cov(x1) x to leading order, known in closed form for Gaussian data."""
    law = Gaussian(torch.tensor([0.7, -0.4]), 0.6)
    t = full_like_rows(float(end), NOISE)

    def predict(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        score = law.score(x, t)
        return {
            Prediction.NOISE: -(1.0 - t)[:, None] * score,
            Prediction.SCORE: score,
            Prediction.X1: law.posterior_mean(x, t),
        }[kind]

    def off(width: float) -> Tensor:
        near = (width, 1.0) if end == 0 else (0.0, 1.0 - width)
        return teacher(predict, Linear(), kind, between=near)(NOISE, t) - law(NOISE, t)

    sizes = [float(off(width).norm()) for width in (0.02, 0.01, 0.005)]
    assert all(1.9 < a / b < 2.15 for a, b in zip(sizes, sizes[1:], strict=False)), sizes
    if end == 0:  # E[x1 | x] = E[x1] + low Cov(x1) x + O(low^2)
        assert float((off(1e-4) / 1e-4 - 0.6 * NOISE).abs().max()) < 0.01


def test_a_prediction_that_says_nothing_at_an_end_is_refused_and_never_silent() -> None:
    for name, kind in product(PATHS, Prediction):
        if kind in SURE[name]:
            teacher(model(PATHS[name], kind), PATHS[name], kind)
            continue
        with pytest.raises(ValueError, match=f"between: expected times at which {kind.value} ") as e:
            teacher(model(PATHS[name], kind), PATHS[name], kind, onto=Trigonometric())
        assert "between=(0" in str(e.value)
    with pytest.raises(ValueError, match=r"got t = 0 of Linear\(\).*between=\(0.001, 1\)"):
        Converted(model(Linear(), Prediction.NOISE), Linear(), Prediction.NOISE)
    with pytest.raises(ValueError, match=r"got t = 1 of Linear\(\).*between=\(0, 0.999\)"):
        Converted(model(Linear(), Prediction.X1), Linear(), Prediction.X1)
    for wrong in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.9, 0.1), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="between: expected two times with 0 <= low < high <= 1"):
            teacher(model(Linear(), Prediction.V), Linear(), Prediction.V, between=wrong)


@pytest.mark.parametrize(
    ("name", "kind", "clock", "back"),
    [
        ("linear", Prediction.VELOCITY, lambda t: 1 - t, lambda c: 1 - c),
        ("vp", Prediction.NOISE, lambda t: 999 * (1 - t), lambda c: 1 - c / 999),
        ("ve", Prediction.X1, lambda t: VE()(t).alpha.log(), None),
    ],
)
def test_a_model_is_asked_on_its_own_clock(
    name: str, kind: Prediction, clock: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor] | None
) -> None:
    """Time reversed, an index from 999 to 0, and the logarithm of the noise level."""
    given = PATHS[name]

    def inverse(log_sigma: Tensor) -> Tensor:
        low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
        t: Tensor = (high - (log_sigma / 7).exp()) / (high - low)
        return t

    def foreign(x: Tensor, time: Tensor) -> Tensor:
        return model(given, kind)(x, (back or inverse)(time))

    velocity = teacher(foreign, given, kind, clock=clock, conditional=False)
    t = torch.linspace(0.05, 0.98, ROWS, dtype=torch.float64)
    x = states(Linear(), t)
    assert torch.allclose(velocity(x, t), reference_mixture()(x, t), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="teacher: expected no label, because it takes no condition"):
        velocity(x, t, Condition(label=torch.zeros(ROWS, dtype=torch.int64)))


def test_what_needs_no_conversion_is_asked_as_it_is() -> None:
    law = reference_mixture()
    assert teacher(law) is law
    net = AverageVelocity(build("mlp", "tiny", (2,)))
    x, t = NOISE.float(), full_like_rows(0.3, NOISE.float())
    for p in net.parameters():
        nn.init.normal_(p)
    assert torch.equal(teacher(net)(x, t), net.velocity(x, t))
    exact = Gaussian(torch.zeros(2), 0.5, Trigonometric()).flow_map()
    moved = teacher(exact, Trigonometric())
    want = Gaussian(torch.zeros(2), 0.5)(NOISE, t.double())
    assert torch.allclose(moved(NOISE, t.double()), want, atol=1e-12)
    for bad in ({"prediction": Prediction.NOISE}, {"clock": torch.sqrt}, {"conditional": False}):
        with pytest.raises(ValueError, match="teacher: expected a flow map as it is"):
            teacher(net, **bad)  # type: ignore[arg-type]


def test_float32_states_at_the_ends() -> None:
    for name, kind in product(PATHS, Prediction):
        velocity = teacher(model(PATHS[name], kind), PATHS[name], kind, between=(1e-3, 0.999))
        for t, x in ((0.0, NOISE), (1e-7, NOISE), (1.0 - 1e-7, END), (1.0, END)):
            found = velocity(x.float(), full_like_rows(t, x).float())
            assert found.dtype == torch.float32
            want = reference_mixture()(x, full_like_rows(t, x))
            assert float((found - want).square().mean().sqrt()) < 0.06, (name, kind, t)


def test_matching_times_of_a_constant_beta_at_the_ends() -> None:
    """VE has dbeta = 0, so at t = 0 of the line nothing changes with its time: this was 0/0."""
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(matching_time(t, Linear(), VE()), t, atol=1e-15)


# ---- the probe


def labelled(rows: int = ROWS) -> Condition:
    return Condition(label=torch.arange(rows) % 4)


def test_healthy_teachers_pass() -> None:
    for name in PATHS:
        law = reference_mixture(PATHS[name])
        for cond in (None, labelled()):
            if name in ("vp", "cosine"):  # at t = 1 their own velocity is infinite times zero
                continue
            probe(law, (2,), cond=cond, interpolant=PATHS[name])
        for kind in Prediction:
            onto_line = teacher(model(PATHS[name], kind), PATHS[name], kind, between=(1e-3, 0.999))
            probe(onto_line, (2,), cond=labelled(), guided=True)
    probe(ring(), (2,), RNG)
    probe(CFG(reference_mixture(), 3.0), (2,), cond=labelled(), guided=True)
    probe(CFG(reference_mixture(), 3.0, interval=(0.2, 0.7)), (2,), cond=labelled(), guided=True)
    blurred = Mixture(reference_mixture().means, reference_mixture().weights, 0.5**2)
    probe(AutoGuidance(reference_mixture(), blurred, 2.0), (2,))
    for variance in (0.01, 1.0, 9.0):
        for path_ in (Linear(), Trigonometric()):
            probe(Gaussian(torch.tensor([2.0, -1.0]), variance, path_), (2,), interpolant=path_)
            probe(Gaussian(torch.zeros(2), variance, path_), (2,), interpolant=path_)


BROKEN: dict[str, tuple[Velocity, str]] = {
    "flipped sign": (lambda x, t, cond=None: -reference_mixture()(x, t), "slope of b_0.* near -1, got 1;"),
    "reversed time": (lambda x, t, cond=None: reference_mixture()(x, 1 - t), "slope of b_0.* got 1"),
    "data to noise": (lambda x, t, cond=None: -reference_mixture()(x, 1 - t), "velocity from data to noise"),
    "clock of 1000": (lambda x, t, cond=None: reference_mixture()(x, t / 1000), "slope of b_1|changes bet"),
    "noise": (model(Linear(), Prediction.NOISE), "slope of b_0.* got 1"),
    "x1": (model(Linear(), Prediction.X1), "slope of b_0.x. on x near -1, got"),
    "v": (model(Linear(), Prediction.V), "slope of b_0.x. on x near -1, got"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_teacher_with_another_convention_is_told(name: str) -> None:
    velocity, words = BROKEN[name]
    with pytest.raises(ValueError, match=words):
        probe(velocity, (2,))
    with pytest.raises(ValueError, match="independent=False"):
        probe(velocity, (2,), RNG)
    probe(velocity, (2,), independent=False)


def test_a_large_mean_does_not_hide_a_clock_that_stands_still() -> None:
    law = Gaussian(torch.tensor([5.0, 5.0]), 0.04)
    with pytest.raises(ValueError, match="expected a velocity that changes between t = 0 and t = 1"):
        probe(lambda x, t, cond=None: law(x, t / 1000), (2,))
    turned = Gaussian(torch.tensor([5.0, 5.0]), 0.04, Trigonometric())
    with pytest.raises(ValueError, match="teacher: expected a"):
        probe(lambda x, t, cond=None: turned(x, t / 1000), (2,), interpolant=Trigonometric())


def test_what_cannot_be_told() -> None:
    """The velocity from data to noise of N(0, C) data is the teacher of N(0, C^-1) data."""
    wide, narrow = Gaussian(torch.zeros(2), 4.0), Gaussian(torch.zeros(2), 0.25)
    t = torch.linspace(0, 1, ROWS, dtype=torch.float64)
    assert torch.allclose(-wide(NOISE, 1 - t), narrow(NOISE, t), atol=1e-13)
    probe(lambda x, t, cond=None: -wide(x, 1 - t), (2,))


def test_dependent_pairs_are_allowed_when_said() -> None:
    """Optimal transport to a moved Gaussian: b is a constant, right and yet without the slopes."""

    def moved(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return torch.full_like(x, 2.0)

    with pytest.raises(ValueError, match="slope of b_0"):
        probe(moved, (2,))
    probe(moved, (2,), independent=False)


def test_wrong_results_are_told_with_the_time() -> None:
    law = reference_mixture()

    def late(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return torch.where((t > 0.7)[:, None], torch.nan, law(x, t))

    def embedded(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        step: Tensor = nn.Embedding(1000, 2)(t)
        return x + step

    wrong: dict[str, Velocity] = {
        "expected finite numbers, got 64 NaN or infinite ones of 64 at t = 0.75, first in row 0": late,
        "expected a velocity at t = 0, got RuntimeError: Expected tensor for argument": embedded,
        r"got torch.float32 of shape \[32, 1\]": lambda x, t, cond=None: law(x, t)[:, :1],
        r"expected torch.float32 of .* got torch.float64": lambda x, t, cond=None: law(x, t).double(),
        "expected a tensor like x, got tuple at t = 0": lambda x, t, cond=None: (law(x, t),),  # type: ignore[dict-item,return-value]
        "got TypeError": lambda x, t: law(x, t),  # type: ignore[dict-item,misc]
    }
    for words, velocity in wrong.items():
        for independent in (True, False):
            with pytest.raises(ValueError, match=words):
                probe(velocity, (2,), independent=independent)


def test_guidance_needs_a_teacher_that_knows_labels() -> None:
    plain = Mixture(reference_mixture().means, reference_mixture().weights, 0.35**2)

    def deaf(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return plain(x, t)

    for velocity in (deaf, CFG(deaf, 2.0)):
        probe(velocity, (2,), cond=labelled())
        with pytest.raises(ValueError, match="an unlabelled teacher cannot be guided by labels"):
            probe(velocity, (2,), cond=labelled(), guided=True)
    with pytest.raises(ValueError, match="expected labels to guide by, got none"):
        probe(reference_mixture(), (2,), guided=True)
    unlabelled = AverageVelocity(build("mlp", "tiny", (2,))).velocity
    for velocity in (plain, CFG(unlabelled, 2.0), Foreign(deaf, conditional=False)):
        with pytest.raises(ValueError, match="label"):
            probe(velocity, (2,), cond=labelled(), guided=True)


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric()])
def test_a_briefly_trained_network_passes(interpolant: Interpolant) -> None:
    torch.manual_seed(0)
    net, law = AverageVelocity(build("mlp", "small", (2,), classes=4)), reference_mixture()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for step in range(300):
        rng = Streams(1, step, torch.arange(128))
        x1, label = law.sample(rng)
        x, v = path(interpolant, rng.normal("x0", 2), x1, t := rng.uniform("t"))
        cond = Condition(label=label, null=rng.uniform("drop") < 0.25)
        loss = (net.velocity(x, t, cond) - v).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    net.requires_grad_(False)
    rng = Streams(0, index=torch.arange(ROWS))
    probe(net.velocity, (2,), rng, interpolant=interpolant)
    probe(CFG(net.velocity, 2.0), (2,), rng, labelled(), interpolant=interpolant, guided=True)
    probe(teacher(net, interpolant), (2,), rng)
    if isinstance(interpolant, Linear):
        for sign, flip in ((-1.0, False), (1.0, True), (-1.0, True)):

            def other(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
                return sign * net.velocity(x, 1 - t if flip else t, cond)  # noqa: B023

            with pytest.raises(ValueError, match="teacher: expected"):
                probe(other, (2,), rng)
        with pytest.raises(ValueError, match="teacher: expected"):
            probe(lambda x, t, cond=None: net.velocity(x, t / 1000, cond), (2,), rng)


def test_a_teacher_that_answers_in_two_ways_is_told() -> None:
    """Active dropout: a run would not be a function of its seed."""
    law, drop = reference_mixture(), nn.Dropout(0.5)
    with pytest.raises(ValueError, match="the same answer to the same question.*eval"):
        probe(lambda x, t, cond=None: law(drop(x), t), (2,))
    drop.eval()
    probe(lambda x, t, cond=None: law(drop(x), t), (2,))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"prediction": "noise"}, "Prediction.NOISE.*got 'noise'"),
        ({"interpolant": VP}, "interpolant to be an interpolant such as VP"),
        ({"onto": "linear"}, "onto to be an interpolant such as VP.*got 'linear'"),
    ],
)
def test_what_is_no_path_or_prediction_is_told(words: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        teacher(reference_mixture(), **words)
