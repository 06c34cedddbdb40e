"""Consistency models between their papers' formulas and each other: improved, truncated, latent, phased,
trajectory, segmented and stochastic; value and gradient away from the truth, later stages too.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from systems import Perturbed, gaussian, objective_of, pairs, streams, unfold
from test_distillation_equalities import B, followed, moving, same
from test_method_equalities import (
    SYSTEM,
    Net,
    assert_same,
    assert_same_gradient,
    denoiser_of,
    drawn,
    parts,
    sq,
    student_of,
)
from torch import Tensor, nn

from saltus.games import Follow, Freeze, Game, Stages
from saltus.interpolants import Linear, Trigonometric, path
from saltus.legs import EULER, Along, slide
from saltus.maps import EDM, Spliced
from saltus.methods.consistency_distillation import consistency_distillation
from saltus.methods.ctm import ctm
from saltus.methods.ect import ect
from saltus.methods.hyper_sd import hyper_sd
from saltus.methods.ict import ict
from saltus.methods.lcm import lcm
from saltus.methods.multistep_consistency import AdjustedSlide, multistep_consistency
from saltus.methods.pcm import pcm
from saltus.methods.scott import scott
from saltus.methods.tcd import tcd
from saltus.methods.tcm import tcm
from saltus.objectives import Composition, Eulerian, Sum
from saltus.slots import Teacher
from saltus.states import State
from saltus.tensors import like
from saltus.times import Constant, Restricted, Uniform
from saltus.weights import InStates, Squared

EARLY = Uniform(0.0, 0.9)


def stage_of(built: Stages, k: int, artifacts: dict[str, nn.Module] | None = None) -> object:
    """What is played in a stage."""
    return built.stages[k].build(artifacts or {})


def euler(x: Tensor, s: Tensor, m: Tensor) -> Tensor:
    """One DDIM step of the exact velocity on the linear interpolant."""
    return x + like(m - s, x) * B(x, s)


def step_of(seen: object, s: Tensor, t: Tensor) -> Tensor:
    """d of the objective that is seen."""
    return seen.objective.step(s, t, seen.batch.progress)  # type: ignore[attr-defined, no-any-return]


# From data: iCT and TCM


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_ict_is_the_paper_s_loss(progress: float) -> None:
    """(sqrt(|D(x + sigma z) - sg D(x + sigma' z)|^2 + c^2) - c)/(sigma - sigma'), sigma' one cell further, of
    min(10 2^floor(8 k/K), 1280), on the rho-7 clock, c = 0.00054 sqrt(D)."""
    student = EDM(Net(), sigma_data=0.7)
    seen = parts(ict(student), progress)["all"]
    s, _ = seen.times()
    sigma = (1 - s) / s
    (high, low), cells = (80 ** (1 / 7), 0.002 ** (1 / 7)), min(10 * 2 ** min(int(8 * progress), 7), 1280)
    place = (sigma ** (1 / 7) - high) / (low - high) + 1 / cells
    after = torch.where(place < 1.0, (high + place.clamp(max=1.0) * (low - high)) ** 7, 0.0)
    f, x0, x1 = denoiser_of(student), seen.batch.x0, seen.batch.data()
    error = f(x1 + like(sigma, x0) * x0, sigma) - f(x1 + like(after, x0) * x0, after).detach()
    c = 0.00054 * math.sqrt(2.0)
    wanted = (torch.sqrt(sq(error) + c * c) - c) / (sigma - after)
    value = seen.objective(seen.batch, seen.draws)["eulerian"].value
    assert torch.allclose(value, wanted, rtol=1e-7)
    assert_same_gradient_within(value.mean(), wanted.mean(), student)


def assert_same_gradient_within(a: Tensor, b: Tensor, module: nn.Module, rtol: float = 1e-7) -> None:
    """As assert_same_gradient, for numbers that went through powers of 1/7."""
    found = []
    for value in (a, b):
        grads = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in grads if g is not None]))
    ours, theirs = found
    assert float((ours - theirs).norm()) <= rtol * float(theirs.norm()) and float(theirs.norm()) > 1e-4


def test_the_first_stage_of_tcm_is_ect() -> None:
    student = student_of()
    seen = parts(ect(student), 0.4)["all"]
    first = stage_of(tcm(student), 0)  # type: ignore[arg-type]
    assert isinstance(first, Eulerian)
    same(seen, first, "eulerian", student)
    again = first.draw(seen.batch, streams(40))
    assert torch.equal(again["s"], seen.draws["s"])  # type: ignore[arg-type]


@pytest.mark.parametrize("progress", [0.0, 0.7])
def test_the_second_stage_of_tcm_is_the_authors_loss(progress: float) -> None:
    """mean over sigma > 1 of |D(x_t) - sg D'(x_r)|/(t - r), plus 0.1 times that over a quarter of the rows at
    sigma = 1, D' the frozen model below 1 and the student above; r = t - (1 - ratio)(1 + 8 sigmoid(-t)) t,
    the ratio at its limit of 0.999 at any progress."""
    student, frozen = student_of(), moving(student_of()).requires_grad_(False)
    built = tcm(student)  # type: ignore[arg-type]
    loss = stage_of(built, 1, {"whole": frozen})
    assert isinstance(loss, Sum)
    batch, rng = pairs(SYSTEM, 64, progress=progress)
    batch = replace(batch, cond=None)
    draws = loss.draw(batch, rng)
    found = {seen.name: seen for seen in unfold(loss, batch, draws)}
    assert (found["boundary"].weight, found["inside"].weight) == (0.1, 1.0)
    assert (len(found["boundary"].rows), len(found["inside"].rows)) == (16, 48)
    for name, seen in found.items():
        s, t = seen.times()
        sigma = (1 - s) / s
        if name == "boundary":
            assert bool((sigma == 1.0).all())
        else:
            assert float(sigma.min()) > 1.0 and float(sigma.max()) <= 80.0
        r = (sigma * (1 - 0.001 * (1 + 8 * torch.sigmoid(-sigma)))).clamp(min=0.0)
        x0, x1 = seen.batch.x0, seen.batch.data()
        y, m = x1 + like(r, x0) * x0, 1 / (1 + r)
        below = torch.where(like(r < 1.0, y), denoiser_of(frozen)(y, r), denoiser_of(student)(y, r)).detach()
        assert bool((r < 1.0).all()) == (name == "boundary") and torch.allclose(m, s + step_of(seen, s, t))
        error = denoiser_of(student)(x1 + like(sigma, x0) * x0, sigma) - below
        assert_same(seen, torch.sqrt(sq(error)) / (sigma - r), student, "eulerian")


def test_tcm_hands_its_first_model_on_frozen() -> None:
    student = student_of()
    built = tcm(student, transition=3.0)  # type: ignore[arg-type]
    (name, producer), = built.stages[0].produce.items()
    assert isinstance(producer, Freeze) and producer.module is student
    frozen = producer()
    loss = stage_of(built, 1, {name: frozen})
    assert isinstance(loss, Sum)
    for part in loss.parts:
        target = vars(part.objective)["target"]
        assert isinstance(target, Spliced) and (target.early, target.late) == (student, frozen)
        assert target.at == 0.25
    with pytest.raises(ValueError, match="share of rows at the boundary"):
        tcm(student, boundary=1.0)  # type: ignore[arg-type]


# From a teacher: LCM, PCM, TCD, SCott, Hyper-SD


def test_lcm_is_the_loss_of_its_code() -> None:
    """sum of sqrt(e^2 + c^2) - c over entries, e = f(x_n) - sg f'(DDIM step to n - 1/50), f' the average."""
    student = EDM(Net(), sigma_data=0.7)
    seen = followed(lcm(student, teacher=B), student, "all")
    target = seen.objective.target  # type: ignore[attr-defined]
    for p in target.parameters():
        p.data += 0.1
    x, _, s, t = drawn(seen)
    m = torch.minimum(s + 0.02, t)
    assert bool((t == 1.0).all()) and bool((m == 1.0).any()) == bool((s > 0.98).any())
    error = student(x, s, t) - target(euler(x, s, m), m, t).detach()
    assert_same(seen, (torch.sqrt(error.square() + 1e-6) - 1e-3).sum(1), student, "eulerian")


def test_the_ddim_step_is_that_of_the_interpolant() -> None:
    student, trig = student_of(gaussian(Trigonometric())), Trigonometric()
    teacher = gaussian(trig).velocity
    for build in (lcm, pcm, tcd):
        seen = parts(build(student, teacher=teacher, interpolant=trig, weight=InStates(Squared())))["all"]  # type: ignore[operator]
        s, t = seen.times()
        x, _ = path(trig, seen.batch.x0, seen.batch.data(), s)
        m = s + step_of(seen, s, t)
        x_m = slide(trig, x, teacher(x, s), s, m)
        assert_same(seen, sq(student(x, s, t) - student(x_m, m, t).detach()), student, "eulerian")


@pytest.mark.parametrize("phases", [1, 2, 4])
def test_pcm_is_consistency_distillation_in_every_phase(phases: int) -> None:
    student = student_of()
    game = pcm(student, teacher=B, phases=phases, decay=0.95, weight=InStates(Squared()))  # type: ignore[arg-type]
    seen = parts(game)["all"]
    target = moving(seen.objective.target)  # type: ignore[attr-defined]
    x, _, s, t = drawn(seen)
    assert torch.equal(t, (torch.floor(s * phases) + 1) / phases)
    m = torch.minimum(s + 0.02, t)
    assert_same(seen, sq(student(x, s, t) - target(euler(x, s, m), m, t).detach()), student, "eulerian")


def test_pcm_is_the_loss_of_its_code() -> None:
    """mean of sqrt(e^2 + c^2) - c over entries, the target the network itself, without gradient."""
    student = student_of()
    game = pcm(student, teacher=B)  # type: ignore[arg-type]
    assert not game.moves[0].after
    seen = parts(game)["all"]
    x, _, s, t = drawn(seen)
    m = torch.minimum(s + 0.02, t)
    error = student(x, s, t) - student(euler(x, s, m), m, t).detach()
    assert_same(seen, (torch.sqrt(error.square() + 1e-6) - 1e-3).mean(1), student, "eulerian")


def test_pcm_with_one_phase_is_consistency_distillation() -> None:
    """The same numbers from the same draws, and the same draws from the same streams."""
    student, options = student_of(), {"step": Constant(0.02), "times": Uniform(), "decay": 0.9}
    ours = pcm(student, teacher=B, phases=1, weight=InStates(Squared()), **options)  # type: ignore[arg-type]
    theirs = consistency_distillation(student, teacher=B, tableau=EULER, **options)  # type: ignore[arg-type]
    alike(ours, theirs, student)


@pytest.mark.parametrize("progress", [0.0, 0.2, 0.7])
def test_multistep_consistency_is_the_paper_s_loss(progress: float) -> None:
    """(SNR + 1) |x^ - x^ref|^2, a the signal and b the noise: the teacher's aDDIM step to z, the student's
    jump from there to the edge of the segment, DDIM backwards from there to x^ref."""
    student = student_of()
    seen = parts(multistep_consistency(student, teacher=B, segments=3), progress)["all"]  # type: ignore[arg-type]
    x, _, s, t = drawn(seen)
    cells = 64.0 * (1280.0 / 64.0) ** min(1.0, 2.0 * progress)
    m = torch.minimum(s + 1.0 / cells, t)
    assert torch.allclose(t, (torch.floor(s * 3) + 1) / 3) and (progress > 0.0 or bool((m == t).any()))
    (a, b), (a_m, b_m), (a_t, b_t) = ((like(at, x), like(1.0 - at, x)) for at in (s, m, t))
    data = x + b * B(x, s)
    eps = (x - a * data) / b
    missed = sq(data - seen.batch.data()).unsqueeze(1) / sq(eps).unsqueeze(1)
    z = a_m * data + torch.sqrt(b_m**2 + 0.75 * (a_m - a * b_m / b) ** 2 * missed) * eps
    ends = (student(z, m, t).detach(), student(x, s, t))
    ref, end = ((y - b_t / b * x) / (a_t - a * b_t / b) for y in ends)
    loss = ((a / b) ** 2 + 1.0).squeeze(1) * sq(end - ref)
    value = seen.objective(seen.batch, seen.draws)["eulerian"].value
    assert torch.allclose(value, loss, rtol=1e-9)
    assert_same_gradient(value.mean(), loss.mean(), student)


def test_multistep_consistency_without_correction_is_pcm_without_average() -> None:
    student, options = student_of(), {"step": Constant(0.02), "weight": InStates(Squared())}
    seen = parts(multistep_consistency(student, teacher=B, eta=0.0, **options))["all"]  # type: ignore[arg-type]
    theirs = parts(pcm(student, teacher=B, decay=0.0, **options))["all"].objective  # type: ignore[arg-type]
    same(seen, theirs, "eulerian", student)
    adjusted = parts(multistep_consistency(student, teacher=B, **options))["all"].objective  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        same(seen, adjusted, "eulerian", student)


def test_the_adjusted_step_gives_back_variance_that_ddim_loses() -> None:
    """|x_m|^2 is that of DDIM and eta r^2 |x1^ - x1|^2 more wherever x1^ and x0^ are orthogonal."""
    rng = torch.Generator().manual_seed(0)
    x1, clean, noise = torch.randn(3, 20, 64, generator=rng, dtype=torch.float64)
    clean[:, ::2], noise[:, 1::2] = 0.0, 0.0
    s, m = torch.full((20,), 0.3).double(), torch.full((20,), 0.6).double()
    state = State(0.7 * noise + 0.3 * clean, None, noise, x1)

    def square(eta: float) -> Tensor:
        leg = AdjustedSlide(Teacher(lambda x, t, cond=None: clean - noise), eta)
        return sq(leg(student_of(), state, Linear(), s, m, None))  # type: ignore[arg-type]

    given = (0.6 - 0.3 * 0.4 / 0.7) ** 2 * sq(clean - x1)
    assert torch.allclose(square(0.0), 0.36 * sq(clean) + 0.16 * sq(noise))
    assert torch.allclose(square(0.75) - square(0.0), 0.75 * given)


@pytest.mark.parametrize("steps", [1, 3])
def test_scott_without_noise_is_consistency_distillation(steps: int) -> None:
    student, options = student_of(), {"step": Constant(0.024), "times": Uniform(), "decay": 0.95}
    ours = scott(student, teacher=B, eta=0.0, solver_steps=steps, **options)  # type: ignore[arg-type]
    theirs = consistency_distillation(student, teacher=B, **options)  # type: ignore[arg-type]
    several = replace(objective_of(theirs), leg=Along(Teacher(B), EULER, steps))  # type: ignore[type-var]
    alike(ours, replace(theirs, moves=(replace(theirs.moves[0], objective=several),)), student)
    noisy = scott(student, teacher=B, eta=0.5, solver_steps=steps, **options)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        alike(noisy, replace(theirs, moves=(replace(theirs.moves[0], objective=several),)), student)


def alike(ours: Game, theirs: Game, student: Perturbed) -> None:
    """Two games of one student: draws, values, gradients, and what follows a move."""
    seen, other = parts(ours)["all"], parts(theirs)["all"]
    assert torch.equal(seen.draws["s"], other.draws["s"])  # type: ignore[arg-type]
    assert torch.equal(seen.draws["t"], other.draws["t"])  # type: ignore[arg-type]
    for game in (ours, theirs):
        moving(objective_of(game).target)  # type: ignore[attr-defined]
    same(seen, other.objective, "eulerian", student)
    (a,), (b,) = ours.moves[0].after, theirs.moves[0].after
    assert isinstance(a, Follow) and isinstance(b, Follow) and a.decay == b.decay
    assert a.source is b.source is student


def test_scott_follows_the_noise_that_is_drawn() -> None:
    """By hand: sigma = eta (alpha_m/alpha_s) sqrt(alpha_s^2 - (beta_s alpha_m/beta_m)^2), three times."""
    student = student_of()
    seen = parts(scott(student, teacher=B))["all"]  # type: ignore[arg-type]
    target = moving(seen.objective.target)  # type: ignore[attr-defined]
    x, _, s, t = drawn(seen)
    z = seen.draws["leg"]
    assert isinstance(z, Tensor) and z.shape == (40, 3, 2)
    m = torch.minimum(s + 0.024, t)
    y, a = x, s
    for k in range(3):
        b = s + (m - s) * (k + 1) / 3
        v = B(y, a)
        clean, noise = y + like(1 - a, y) * v, y - like(a, y) * v
        sigma = 0.3 * (1 - b) / (1 - a) * torch.sqrt((1 - a) ** 2 - (a * (1 - b) / b) ** 2)
        rest = torch.sqrt((1 - b) ** 2 - sigma**2)
        y, a = like(b, y) * clean + like(rest, y) * noise + like(sigma, y) * z[:, k], b
    assert_same(seen, sq(student(x, s, t) - target(y, m, t).detach()), student, "eulerian")


def test_tcd_is_consistency_distillation_to_every_later_time() -> None:
    student = student_of()
    seen = followed(tcd(student, teacher=B), student, "all")  # type: ignore[arg-type]
    target = moving(seen.objective.target)  # type: ignore[attr-defined]
    x, _, s, t = drawn(seen)
    assert seen.objective.times == Restricted(1.0)  # type: ignore[attr-defined]
    m = torch.minimum(s + 0.02, t)
    assert_same(seen, sq(student(x, s, t) - target(euler(x, s, m), m, t).detach()), student, "eulerian")


def test_hyper_sd_merges_its_segments_and_ends_as_tcd() -> None:
    student = student_of()
    built = hyper_sd(student, teacher=B)  # type: ignore[arg-type]
    assert [stage.name for stage in built.stages] == ["8 segments", "4 segments", "2 segments", "1 segment"]
    assert not any(stage.produce for stage in built.stages)
    targets = set()
    for k, count in enumerate((8, 4, 2, 1)):
        game = stage_of(built, k)
        seen = followed(game, student, "all")  # type: ignore[arg-type]
        s, t = seen.times()
        assert bool((torch.floor(s * count) == torch.ceil(t * count) - 1).all())
        assert float((t - s).max()) > 0.6 / count
        targets.add(id(vars(seen.objective)["target"]))
    assert len(targets) == 1, "the moving average goes on through the stages"
    whole = objective_of(tcd(student, teacher=B, times=Restricted(1.0)))  # type: ignore[arg-type]
    moving(seen.objective.target)  # type: ignore[attr-defined]
    target = seen.objective.target  # type: ignore[attr-defined]
    same(seen, replace(whole, target=target), "eulerian", student)  # type: ignore[type-var]
    for wrong in ((), (1, 2), (4, 4)):
        with pytest.raises(ValueError, match="numbers of segments that fall"):
            hyper_sd(student, teacher=B, segments=wrong)  # type: ignore[arg-type]


def test_one_segment_is_a_consistency_trajectory_model_near_its_start() -> None:
    """CTM's target with one solver step of length d is the segment's, but for the rescaling by d/h."""
    student, d = student_of(), 0.05
    built = hyper_sd(student, teacher=B, segments=(1,), times=EARLY, step=Constant(d), weight=Squared())  # type: ignore[arg-type]
    seen = parts(stage_of(built, 0))["all"]
    game = ctm(student, teacher=B, solver_steps=1, tableau=EULER, push=None, matching=1.0)  # type: ignore[arg-type]
    composed = parts(game)["composition"].objective
    assert isinstance(composed, Composition)
    moving(vars(seen.objective)["target"])
    composed = replace(composed, target=vars(seen.objective)["target"])
    s, t = seen.times()
    long = torch.minimum(torch.full_like(s, d), t - s) / (t - s)
    value = composed(seen.batch, seen.draws | {"gamma": long})["composition"].value
    ours = seen.objective(seen.batch, seen.draws)["eulerian"].value
    assert torch.allclose(ours * long.square(), value, rtol=1e-9)
    assert_same_gradient((ours * long).mean(), value.mean(), student)
