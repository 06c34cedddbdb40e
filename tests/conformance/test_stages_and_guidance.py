"""Methods of several stages, and guidance as an input of the network, against closed forms.

Stages: what the first stage regresses on, how its bias falls, and that later stages have none. Guidance: the
labelled mixture has exact velocities with and without a label, so guidance at any strength is exact too.
"""

from __future__ import annotations

import pytest
import torch
from systems import Perturbed, System, gaussian, mixture, pairs
from test_expected_gradients import ZERO, assert_stationary
from torch import Tensor

from saltus.exact import reference_mixture
from saltus.games import Stages, as_game
from saltus.guidance import CFG, GuidanceInput, LabelDropout
from saltus.identities import in_end
from saltus.interpolants import Trigonometric
from saltus.legs import EULER, HEUN
from saltus.maps import AverageVelocity, EulerMap, NetworkMap
from saltus.methods import load
from saltus.methods.progressive import truncated_snr
from saltus.nn import BACKBONES, MLP, GuidanceAdapters, build
from saltus.objectives import Composition, Sum
from saltus.samplers import integrate
from saltus.streams import Streams
from saltus.tensors import like
from saltus.training import AdamW, Cosine, fit, initialised
from saltus.typing import Batch, Condition, Draws, Objective, Velocity
from saltus.weights import Span, Squared

PROGRESSIVE = ("progressive", "pfmm")


FROZEN = {"progressive": {}, "pfmm": {"own": False}}
"""Options with which each stage's student, frozen, teaches the next."""


def built(name: str, student: Perturbed, system: System, **options: object) -> Stages:
    found = load(name).wired(student, teacher=system.velocity, **options)
    assert isinstance(found, Stages)
    return found


def drawn(objective: Objective, batch: Batch, rng: Streams) -> tuple[Draws, Tensor, Tensor]:
    draws = objective.draw(batch, rng)
    s, t = draws["s"], draws["t"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor)
    return draws, s, t


@pytest.mark.parametrize("name", PROGRESSIVE)
def test_the_first_stage_is_two_euler_steps_of_the_teacher(name: str) -> None:
    """At u* + c phi the loss is |u - (b_s(x) + b_m(x + (m - s) b_s(x)))/2|^2 by hand, weighted."""
    system = mixture()
    student = Perturbed(system.exact, ZERO + 0.2)
    loss = built(name, student, system, cells=8).stages[0].build({})
    assert isinstance(loss, Composition)
    batch, rng = pairs(system, 64)
    draws, s, t = drawn(loss, batch, rng)
    x = like(1.0 - s, batch.x0) * batch.x0 + like(s, batch.x0) * batch.data()
    h = like(t - s, x)
    m = 0.5 * (s + t)
    first = system.velocity(x, s)
    y = 0.5 * (first + system.velocity(x + 0.5 * h * first, m))
    squares = (student.average(x, s, t, batch.cond) - y).square().sum(1)
    if name == "progressive":
        squares = squares * torch.maximum(s, 1.0 - s).square()
        assert torch.equal(4.0 * s, (4.0 * s).round()) and torch.allclose(t - s, torch.full_like(s, 0.25))
    else:
        assert float((t - s).max()) <= 0.25 and float((t - s).max()) > 0.2
    assert torch.allclose(loss(batch, draws)["composition"].value, squares, rtol=1e-12)


@pytest.mark.parametrize("system", [gaussian(), mixture()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", PROGRESSIVE)
def test_later_stages_taught_by_the_exact_map_are_stationary_there(name: str, system: System) -> None:
    """The Euler step of the first stage is the only bias: it is gone where the frozen student is exact."""
    exact = Perturbed(system.exact, ZERO)

    def last(student: Perturbed) -> Objective:
        found = built(name, student, system, cells=8, weight=Squared(), **FROZEN[name])
        loss = found.stages[-1].build({"teacher": exact})
        assert isinstance(loss, Composition) and loss.target is exact
        return loss

    assert_stationary(last, system)


@pytest.mark.parametrize("name", PROGRESSIVE)
def test_jumps_double_from_stage_to_stage_up_to_the_whole(name: str) -> None:
    system = gaussian()
    student = Perturbed(system.exact, ZERO)
    found = built(name, student, system, cells=16, **FROZEN[name]).stages
    batch, rng = pairs(system, 4000)
    longest = []
    for stage in found:
        loss = stage.build({"teacher": student})
        _, s, t = drawn(loss, batch, rng)
        longest.append(float((t - s).max()))
        frozen = stage.produce["teacher"]()
        assert isinstance(frozen, Perturbed) and frozen is not student and not frozen.c.requires_grad
    assert longest == pytest.approx([0.125, 0.25, 0.5, 1.0], rel=0.05)


def test_the_self_consistent_form_keeps_half_its_rows_on_the_teacher() -> None:
    system = gaussian()
    found = built("pfmm", Perturbed(system.exact, ZERO), system, cells=8, own=True).stages
    assert not any(stage.produce for stage in found)
    last = found[-1].build({})
    assert isinstance(last, Sum)
    start, grown = (part.objective for part in last.parts)
    assert isinstance(start, Composition) and isinstance(start.target, EulerMap)
    assert isinstance(grown, Composition) and grown.target is None


def test_progressive_stops_where_it_is_told_and_refuses_other_counts() -> None:
    student = Perturbed(gaussian().exact, ZERO)
    found = built("progressive", student, gaussian(), cells=16, last=4)
    assert [stage.name for stage in found.stages] == ["8 steps", "4 steps"]
    for cells, last in ((12, 1), (4, 4), (2, 4), (8, 0), (1, 1)):
        with pytest.raises(ValueError, match=f"got cells={cells}, last={last}"):
            built("progressive", student, gaussian(), cells=cells, last=last)
    for cells in (0, 1, 12):
        with pytest.raises(ValueError, match=f"2, 4, 8, ..., got {cells}"):
            built("pfmm", student, gaussian(), cells=cells)


def test_truncated_snr_is_the_squared_error_of_the_data_estimate() -> None:
    """max(SNR, 1) |dx1|^2, where dx1 moves the DDIM step's end by h e; by solving for it on two paths."""
    s, t = torch.tensor([0.1, 0.4, 0.7]).double(), torch.tensor([0.3, 0.9, 1.0]).double()
    for system in (gaussian(), gaussian(Trigonometric())):
        a, b = system.interpolant(s), system.interpolant(t)
        # x_t = (alpha_t/alpha_s) x_s + (beta_t - alpha_t beta_s/alpha_s) x1
        moved = (t - s) / (b.beta - b.alpha * a.beta / a.alpha)
        snr = (a.beta / a.alpha).square()
        want = torch.clamp(snr, min=1.0) * moved.square()
        assert torch.allclose(truncated_snr(system.interpolant)(Span(s, t)), want, rtol=1e-12)


# Guidance


LAW = reference_mixture()
STRENGTHS = (1.0, 2.0, 4.0)
COUNT = 2048


def source(rng: Streams) -> Batch:
    x1, label = LAW.sample(rng)
    return Batch(rng.normal("x0", 2), x1, Condition(label=label))


def asked(w: float, count: int = COUNT) -> tuple[Tensor, Condition]:
    """Noise that no training saw, labels, and a strength."""
    rng = Streams(9, index=torch.arange(2**31, 2**31 + count))
    return rng.normal("x0", 2), Condition(label=rng.integers("label", 4), w=torch.full((count,), w))


def rms(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).square().sum(1).mean().sqrt())


def guided_end(x0: Tensor, cond: Condition) -> Tensor:
    """Where the exact guided flow carries x0: 128 Heun steps in float64."""
    return integrate(CFG(LAW), x0.double(), 128, HEUN, cond)


def trained(student: NetworkMap, method: str, steps: int, lr: float, **options: object) -> NetworkMap:
    game = as_game(load(method).wired(student, teacher=LAW, **options), student)
    run = fit(game, source, steps=steps, seed=0, batch=512, optimizer=AdamW(lr), schedule=Cosine(warmup=0.02))
    for _ in run:
        pass
    return student


def labelled_net(guidance: bool = True, width: int = 128) -> MLP:
    return initialised(0, lambda: MLP((2,), width=width, depth=3, classes=4, guidance=guidance))


@pytest.mark.parametrize("method", ["guidance_input", "guidance_adapters"])
def test_the_target_is_the_guided_velocity_of_the_row(method: str) -> None:
    """Value by hand in float64: |u - (b + w (b_c - b))|^2 at the state, the label and the strength drawn."""
    student = AverageVelocity(labelled_net()).double()
    game = as_game(load(method).wired(student, teacher=LAW), student)
    loss = game.moves[0].objective
    rng = Streams(0, index=torch.arange(64), dtype=torch.float64)
    batch = source(rng) if game.prepare is None else game.prepare(source(rng))
    draws = loss.draw(batch, rng)
    t, w = draws["t"], draws["guidance"]
    assert isinstance(t, Tensor) and isinstance(w, Tensor) and batch.cond is not None
    label = batch.cond.label
    assert 1.0 <= float(w.min()) and 3.0 < float(w.max()) <= 5.0

    def guided(x: Tensor, t: Tensor, rows: slice = slice(None)) -> Tensor:
        assert label is not None
        free = LAW(x, t)
        return free + w[rows, None] * (LAW(x, t, Condition(label=label[rows])) - free)

    if method == "guidance_input":
        x = like(1.0 - t, batch.x0) * batch.x0 + like(t, batch.x0) * batch.data()
    else:  # Euler steps of the guided teacher from the first noise of each group of 16
        x = torch.empty_like(batch.x0)
        for first in range(0, 64, 16):
            x[first] = batch.x0[first]
            for k in range(first, first + 15):
                row = slice(k, k + 1)
                x[k + 1] = (x[row] + (t[k + 1] - t[k]) * guided(x[row], t[row], row))[0]
        assert float(t[0]) == 0.0 and bool((t.reshape(4, 16).diff(dim=1) > 0.0).all())
    wanted = guided(x, t).square().sum(1)  # the network is zero at the start
    assert torch.allclose(loss(batch, draws)["diagonal"].value, wanted, rtol=1e-9)


@pytest.mark.parametrize("method", ["guidance_input", "guidance_adapters"])
def test_no_labels_is_an_error_and_so_is_a_teacher_without(method: str) -> None:
    student = AverageVelocity(labelled_net())

    def bare(rng: Streams) -> Batch:
        return Batch(rng.normal("x0", 2), rng.normal("x1", 2))

    with pytest.raises(ValueError, match="labels"):
        next(fit(as_game(load(method).wired(student, teacher=LAW), student), bare, steps=1, seed=0, batch=32))
    unlabelled = AverageVelocity(MLP((2,))).velocity
    game = as_game(load(method).wired(student, teacher=unlabelled), student)
    with pytest.raises(ValueError, match="without classes"):
        next(fit(game, source, steps=1, seed=0, batch=32))


# Adapters


@pytest.mark.parametrize("name", BACKBONES)
def test_adapters_of_every_backbone_start_as_it_and_are_zero_without_guidance(name: str) -> None:
    shape = (2,) if name == "mlp" else (1, 8, 8)
    base = initialised(0, lambda: build(name, "tiny", shape, classes=3)).double()
    with torch.no_grad():
        for k, p in enumerate(base.parameters()):
            p.copy_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype))
    net = initialised(1, lambda: GuidanceAdapters(base, rank=2))
    rng = Streams(0, index=torch.arange(4), dtype=torch.float64)
    x, s, t = rng.normal("x", *shape), rng.uniform("s"), rng.uniform("t")
    cond = Condition(label=torch.tensor([0, 1, 2, 0]))
    strong = Condition(label=cond.label, w=torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    plain = base(x, s, t, cond).u
    assert torch.equal(net(x, s, t, strong).u, plain), "at the start"
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {
        n for n, _ in net.named_parameters() if n.split(".")[-1] in ("down", "up", "gate")
    }
    with torch.no_grad():
        for n, p in net.named_parameters():
            if n.endswith(".up"):
                p.normal_(generator=torch.Generator().manual_seed(len(n)))
    moved = net(x, s, t, strong).u
    assert torch.equal(net(x, s, t, cond).u, plain), "without a strength"
    change = (moved - plain).detach().flatten(1).norm(dim=1)
    assert float(change[0]) < 1e-12 and float(change[1:].min()) > 1e-3, "row by row: none at w = 1"
    alone = net(x[2:3], s[2:3], t[2:3], strong.rows(torch.tensor([2]))).u
    assert torch.allclose(alone[0], moved[2], rtol=1e-10), "each row has its own strength"


def test_derivatives_pass_through_adapters() -> None:
    """Forward mode in t against central differences, and the gradient of a loss on it, in float64."""
    net = initialised(1, lambda: GuidanceAdapters(labelled_net(guidance=False), rank=2)).double()
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype))
    student = AverageVelocity(net)
    x0, cond = asked(2.5, 8)
    x, s, t = x0.double(), torch.full((8,), 0.2).double(), torch.linspace(0.3, 0.9, 8).double()
    _, du = in_end(student, x, s, t, cond)
    e = 1e-6
    with torch.no_grad():
        slope = (student.average(x, s, t + e, cond) - student.average(x, s, t - e, cond)) / (2 * e)
    assert torch.allclose(du, slope, atol=1e-7)
    (up,) = (p for n, p in net.named_parameters() if n.endswith("blocks.1.linear.up"))
    grad = torch.autograd.grad(du.square().sum(), up)[0]
    way = torch.randn(up.shape, generator=torch.Generator().manual_seed(3), dtype=up.dtype)

    def value(step: float) -> Tensor:
        with torch.no_grad():
            up.add_(step * way)
        found = in_end(student, x, s, t, cond)[1].detach().square().sum()
        with torch.no_grad():
            up.sub_(step * way)
        return found

    numeric = (value(1e-5) - value(-1e-5)) / 2e-5
    assert float((grad * way).sum()) == pytest.approx(float(numeric), rel=1e-6)


def test_only_the_adapters_move() -> None:
    """After training the network inside is bit for bit what it was, and the student is not."""
    base = labelled_net(guidance=False)
    with torch.no_grad():
        for k, p in enumerate(base.parameters()):
            p.copy_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    net = initialised(1, lambda: GuidanceAdapters(base, rank=1))
    assert net.share == pytest.approx(0.02, abs=0.005)
    student = AverageVelocity(net)
    trained(student, "guidance_adapters", 20, 1e-2)
    x0, cond = asked(3.0, 64)
    t = torch.full((64,), 0.4)
    bare = Condition(label=cond.label)
    assert torch.equal(net(x0, t, t, bare).u, base(x0, t, t, bare).u)
    kept = {n.removeprefix("backbone."): v for n, v in net.state_dict().items()}
    assert all(torch.equal(kept[n], v) for n, v in base.state_dict().items())
    assert not torch.equal(net(x0, t, t, cond).u, base(x0, t, t, bare).u)


# Against the guided teacher


def velocity_error(student: NetworkMap, teacher: Velocity, w: float) -> tuple[float, float]:
    """On the guided teacher's trajectories at 8 times: how far the student's velocity is from the guided one,
    and how far the unguided one is."""
    x, cond = asked(w)
    square = torch.zeros(2).double()
    bare = Condition(label=cond.label)
    for k in range(8):
        t = torch.full((COUNT,), k / 8)
        guided = CFG(teacher)(x, t, cond)
        square[0] += rms(student.velocity(x, t, cond), guided) ** 2 / 8
        square[1] += rms(teacher(x, t, bare), guided) ** 2 / 8
        x = integrate(CFG(teacher), x, torch.linspace(k / 8, (k + 1) / 8, 9), HEUN, cond)
    return float(square[0].sqrt()), float(square[1].sqrt())


@pytest.mark.slow
def test_one_step_with_guidance_as_an_input_is_as_good_as_four_of_the_guided_teacher() -> None:
    """A flow map of every strength at once: the distance of its one step from the exact guided end is at most
    1.1 times that of the teacher's four Euler steps (eight network calls), at w = 1, 2 and 4."""
    student = AverageVelocity(labelled_net())
    trained(student, "lmd", 1000, 4e-3, guidance=GuidanceInput(4.0))
    for w in STRENGTHS:
        x0, cond = asked(w)
        end, s = guided_end(x0, cond), torch.zeros(COUNT)
        with torch.no_grad():
            ours = rms(student(x0, s, torch.ones(COUNT), cond), end)
        teacher = rms(integrate(CFG(LAW), x0, 4, EULER, cond), end)
        print(f"w = {w:g}: one step {ours:.3f}, four of the teacher {teacher:.3f}")
        assert ours <= 1.1 * teacher


@pytest.mark.slow
def test_the_learned_guided_velocity_leads_where_the_teacher_does() -> None:
    """64 Euler steps of the student's velocity, one call each, end within 1.1 times the error of the
    teacher's own four steps."""
    student = trained(
        AverageVelocity(labelled_net()), "guidance_input", 1000, 3e-3, guidance=GuidanceInput(4.0)
    )
    for w in STRENGTHS:
        x0, cond = asked(w)
        end = guided_end(x0, cond)
        ours = rms(integrate(student.velocity, x0, 64, EULER, cond), end)
        teacher = rms(integrate(CFG(LAW), x0, 4, EULER, cond), end)
        print(f"w = {w:g}: 64 steps {ours:.3f}, four of the teacher {teacher:.3f}")
        assert ours <= 1.1 * teacher


@pytest.mark.slow
@torch.no_grad()
def test_adapters_of_a_few_percent_learn_the_guided_velocity_of_their_own_network() -> None:
    with torch.enable_grad():
        base = AverageVelocity(labelled_net(guidance=False))
        trained(base, "flow_matching", 600, 4e-3, guidance=LabelDropout(0.2))
        net = initialised(1, lambda: GuidanceAdapters(base.backbone, rank=2))
        student = AverageVelocity(net)
        game = as_game(load("guidance_adapters").wired(student, teacher=base.velocity), student)
        for _ in fit(game, source, steps=600, seed=0, batch=512, optimizer=AdamW(1e-2), schedule=Cosine()):
            pass
    for w in (2.0, 4.0):
        ours, change = velocity_error(student, base.velocity, w)
        print(f"w = {w:g}: velocity error {ours:.3f}, guidance changes it by {change:.3f}, {net.share:.3f}")
        assert ours <= 0.25 * change
    assert velocity_error(student, base.velocity, 1.0)[0] < 1e-6  # by rounding in the guided sum
