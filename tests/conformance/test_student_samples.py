"""Methods that look at the student's own samples, against formulas written out by hand: what they see, what
learns and what does not. The student is a perturbed map: nothing is at an optimum.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from systems import Perturbed, Undecided, gaussian, loss, pairs, points, streams, unfold
from test_method_equalities import C, Net, assert_same_gradient
from torch import Tensor

from saltus.autodiff import derivative
from saltus.games import Game, Stages
from saltus.interpolants import Linear, Trigonometric, path
from saltus.legs import ddim
from saltus.maps import Trigonometric as TrigonometricMap
from saltus.methods.anyflow import anyflow
from saltus.methods.motion_consistency import motion_consistency
from saltus.methods.rcm import rcm
from saltus.methods.sana_sprint import sana_sprint
from saltus.methods.scd import scd
from saltus.objectives import Distribution, OnSamples
from saltus.predictions import Converted
from saltus.samples import CellStops, Chain, renoised
from saltus.tensors import like
from saltus.typing import Batch, Draws, Output

SYSTEM = gaussian()
ROWS = 40
ONE = torch.ones(ROWS, dtype=torch.float64)


def student_of() -> Perturbed:
    return Perturbed(SYSTEM.exact, C, C.flip(0))


def played(game: Game, move: int = 0, rows: int = ROWS) -> tuple[Batch, Draws]:
    batch, rng = pairs(SYSTEM, rows, progress=0.3)
    batch = replace(batch, cond=None)
    return batch, game.moves[move].objective.draw(batch, rng)


# Motion consistency: rows of two frames, one number each


def huber(e: Tensor) -> Tensor:
    return (torch.sqrt(e.square() + 1e-6) - 0.001).mean(1)


def test_motion_consistency_compares_what_changes_from_frame_to_frame() -> None:
    """huber(phi(X_s) - sg phi(X_m)), one DDIM step further; half of the states from the student's samples."""
    student = student_of()
    game = motion_consistency(student, teacher=SYSTEM.velocity, decay=0.0)  # type: ignore[arg-type]
    batch, draws = played(game)
    on_data, on_own = unfold(game.moves[0].objective, batch, draws)
    assert (len(on_data.rows), len(on_own.rows)) == (20, 20)
    for seen in (on_data, on_own):
        x0, x1, drawn = seen.batch.x0, seen.batch.data(), seen.draws
        if seen is on_own:
            noise, of = drawn["noise"], drawn["of"]
            assert isinstance(noise, Tensor) and isinstance(of, dict)
            drawn = of
            x1, x0 = student(x0, 0.0 * ONE[:20], ONE[:20]).detach(), noise
        s = drawn["s"]
        assert isinstance(s, Tensor)
        x, _ = path(Linear(), x0, x1, s)
        m = torch.clamp(s + 0.02, max=1.0)
        x_m = ddim(SYSTEM.velocity, x, s, m, Linear())
        end, wanted = student(x, s, ONE[:20]), student(x_m, m, ONE[:20]).detach()
        value = huber(end.diff(dim=1) - wanted.diff(dim=1))
        found = seen.objective(seen.batch, seen.draws)["eulerian"].value
        assert torch.allclose(found, value, rtol=1e-8)
        assert_same_gradient(found.mean(), value.mean(), student)


def test_motion_leaves_free_what_frames_share_and_the_discriminator_pins_it() -> None:
    """Displaced alike in both frames, the student has no gradient along the displacement; the term of a
    discriminator that prefers larger frames has one."""
    shift = Perturbed(
        SYSTEM.exact, torch.full((1,), 0.3).double(), basis=lambda x, s, t: torch.ones_like(x).unsqueeze(0)
    )
    judge = Undecided().double()
    judge.gain.data += 0.5
    for discriminator in (None, judge):
        game = motion_consistency(shift, teacher=SYSTEM.velocity, discriminator=discriminator, decay=0.0)  # type: ignore[arg-type]
        objective = game.moves[0].objective
        batch, rng = pairs(SYSTEM, ROWS)
        terms = objective(batch, objective.draw(batch, rng))
        judged = {k: v for k, v in terms.items() if "adversarial" in k}
        trajectory = loss({k: v for k, v in terms.items() if k not in judged})
        (grad,) = torch.autograd.grad(trajectory, shift.c, retain_graph=True)
        assert abs(float(grad)) < 1e-12 and float(trajectory.detach()) > 1e-6
        assert bool(judged) == (discriminator is not None)
        if discriminator is not None:
            (grad,) = torch.autograd.grad(loss(judged), shift.c)
            assert float(grad) < -1e-2
            assert game.moves[1].module is judge


def test_the_discriminator_of_motion_consistency_sees_the_jumps_that_are_compared() -> None:
    """D learns on X_{s,1}(x_s) of both halves, told apart from data; the student's term is on the same jumps,
    of the one call that its distance is of."""
    student, judge = student_of(), Undecided().double()
    judge.gain.data += 0.5
    game = motion_consistency(student, teacher=SYSTEM.velocity, discriminator=judge, decay=0.0)  # type: ignore[arg-type]
    for k, move in enumerate(game.moves):
        batch, draws = played(game, k)
        halves = unfold(move.objective, batch, draws)
        assert [(h.name, len(h.rows), h.weight) for h in halves] == [("data", 20, 0.5), ("own", 20, 0.5)]
        for seen in halves:
            x0, x1, drawn = seen.batch.x0, seen.batch.data(), seen.draws
            if k:
                assert isinstance(drawn["of"], dict)
                drawn = drawn["of"]
            if seen.name == "own":
                noise, of = drawn["noise"], drawn["of"]
                assert isinstance(noise, Tensor) and isinstance(of, dict)
                x1, x0, drawn = student(x0, 0.0 * ONE[:20], ONE[:20]).detach(), noise, of
            s = drawn["s"]
            assert isinstance(s, Tensor)
            made = student(path(Linear(), x0, x1, s)[0], s, ONE[:20])
            found = seen.objective(seen.batch, seen.draws)
            if k == 0:
                assert torch.allclose(found["adversarial"].value, -judge(made, s).mean(1), rtol=1e-9)
                continue
            real = judge(seen.batch.data(), s)
            wanted = (torch.relu(1.0 - real) + torch.relu(1.0 + judge(made, s))).mean(1)
            assert torch.allclose(found["discriminator"].value, wanted, rtol=1e-9)


def test_motion_consistency_of_whole_clips_is_a_latent_consistency_model() -> None:
    """phi = None: on data the entrywise huber of two jumps' ends."""
    student = student_of()
    game = motion_consistency(student, teacher=SYSTEM.velocity, motion=None)  # type: ignore[arg-type]
    batch, draws = played(game)
    seen = unfold(game.moves[0].objective, batch, draws)[0]
    s = seen.times()[0]
    x, _ = path(Linear(), seen.batch.x0, seen.batch.data(), s)
    m = torch.clamp(s + 0.02, max=1.0)
    ends = student(x, s, ONE[:20]), student(ddim(SYSTEM.velocity, x, s, m, Linear()), m, ONE[:20])
    found = seen.objective(seen.batch, seen.draws)["eulerian"].value
    assert torch.allclose(found, huber(ends[0] - ends[1]), rtol=1e-8)


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_a_share_of_own_samples_that_is_none_or_all_is_refused(own: float) -> None:
    with pytest.raises(ValueError, match="own samples"):
        motion_consistency(student_of(), teacher=SYSTEM.velocity, own=own)  # type: ignore[arg-type]


# AnyFlow


def flowing(student: Perturbed, critic: Perturbed) -> Stages:
    return anyflow(student, teacher=SYSTEM.velocity, critic=critic)  # type: ignore[arg-type]


def test_anyflow_learns_mean_flow_by_differences_first() -> None:
    """D times (1 - s) sqrt(s) m/(m + c), m the mean square, off the diagonal; on it (1 - s) sqrt(s) D m."""
    student = student_of()
    stage = flowing(student, student_of()).stages[0].build({})
    batch, rng = pairs(SYSTEM, 400)
    batch = replace(batch, cond=None)
    found = unfold(stage, batch, stage.draw(batch, rng))  # type: ignore[arg-type, union-attr]
    assert [len(seen.rows) for seen in found] == [200, 100, 100]
    for seen in found:
        s, t = seen.times()
        x, v = path(Linear(), seen.batch.x0, seen.batch.data(), s)
        fade = (1.0 - s) * s.sqrt()
        if seen.name == "diagonal":
            wanted = fade * (student.velocity(x, s) - v).square().sum(1)
        else:
            ahead, behind = (student.average(x + h * v, s + h, t) for h in (0.005, -0.005))
            target = v + like(t - s, x) * (ahead - behind) / 0.01
            m = (student.average(x, s, t) - target.detach()).square().mean(1)
            wanted = 2.0 * fade * m / (m.detach() + 1e-5)
        (term,) = seen.objective(seen.batch, seen.draws).values()
        assert torch.allclose(term.value, wanted, rtol=1e-8)
        assert_same_gradient(term.value.mean(), wanted.mean(), student)
    assert bool((found[2].times()[1] == 1.0).all())


def test_anyflow_then_moves_the_ends_of_three_live_jumps_by_dmd() -> None:
    """Gradient E[ (D_critic - D)/mean|X - D| . dX ] with D(x, r) = x + (1 - r) b the denoisers."""
    student, critic = student_of(), Perturbed(SYSTEM.exact, C.roll(3))
    game = flowing(student, critic).stages[1].build({})
    assert isinstance(game, Game)
    learns, follows = game.moves
    assert learns.rate == 0.04 and follows.rate == 1.0 and follows.module is critic
    assert isinstance(follows.objective, OnSamples)
    batch, rng = pairs(SYSTEM, ROWS)
    batch = replace(batch, cond=None)
    (weighed,) = [p for p in learns.objective.parts if p.name == "distribution"]  # type: ignore[attr-defined]
    part = weighed.objective
    assert isinstance(part, Distribution) and weighed.weight == 0.5
    draws = part.draw(batch, rng)
    of, r, noise = draws["maker"], draws["t"], draws["noise"]
    assert isinstance(of, dict) and isinstance(r, Tensor) and isinstance(noise, Tensor)
    stops = of["stops"]
    assert isinstance(stops, Tensor)
    x = student(batch.x0, 0.0 * ONE, stops[:, 1])
    x = student(student(x, stops[:, 1], stops[:, 2]), stops[:, 2], ONE)
    seen = renoised(Linear(), x.detach(), ONE, r, noise)
    far = like(1.0 - r, seen)
    fake, real = (seen + far * b(seen, r) for b in (critic.velocity, SYSTEM.velocity))
    step = (fake - real) / (x - real).abs().mean(1, keepdim=True)
    term = part(batch, draws)["distribution"]
    assert torch.allclose(term.value, step.detach().square().sum(1), rtol=1e-8)
    assert_same_gradient(0.5 * term.value.mean(), (step.detach() * x).sum(1).mean(), student)


def test_a_walk_of_any_number_of_steps_is_one_jump_on_the_exact_map() -> None:
    """And away from it, it is not."""
    batch, rng = pairs(SYSTEM, ROWS)
    walk = Chain(CellStops(shift=5.0))
    for student, same in ((SYSTEM.exact, True), (student_of(), False)):
        one = student(batch.x0, 0.0 * ONE, ONE)
        made = walk(student, Linear(), replace(batch, cond=None), walk.draw(batch, rng))
        assert torch.allclose(made.x, one, atol=1e-10) is same


def test_cells_of_a_walk_are_neighbours_on_the_shifted_grid() -> None:
    """All numbers of cells come up, all cells of one as often, and w = 5 w/(1 + 4 w) at their ends."""
    stops = CellStops((2, 4), shift=5.0)(streams(4000))
    assert bool((stops[:, 0] == 0.0).all())
    w = 1.0 - stops
    even = 1.0 - w / (5.0 - 4.0 * w)
    length = even[:, 2] - even[:, 1]
    assert torch.allclose(length, torch.where(length > 0.4, 0.5, 0.25).to(length), atol=1e-12)
    assert float((length > 0.4).double().mean()) == pytest.approx(0.5, abs=0.03)
    first = even[length < 0.4, 1]
    counts = torch.stack([(first - k / 4).abs() < 1e-9 for k in range(4)]).sum(1)
    assert int(counts.sum()) == len(first) and int(counts.min()) > 400


# rCM and SANA-Sprint, in TrigFlow's variables


def rotation() -> TrigonometricMap:
    return TrigonometricMap(Net(), sigma_data=1.0)


def teacher_on_angles(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
    return gaussian(Trigonometric()).velocity(x, t)


def test_rcm_has_the_gradient_of_the_official_consistency_loss() -> None:
    """100 |F - sg F - g/(|g| + 0.1)|^2, g = -cos(a)^2 (F - F_T) - (cos a sin a x + cos a sin a dF/da), for
    the network F and the teacher F_T of noise angles a, both pointing to noise; at the end of the warm-up."""
    student, critic = rotation(), rotation()
    game = rcm(student, teacher=teacher_on_angles, critic=critic, warm_up=None)
    batch, draws = played(game)
    seen = unfold(game.moves[0].objective, batch, draws)[0]
    s = seen.times()[0]
    a = (math.pi / 2.0) * (1.0 - s)
    x, _ = path(Trigonometric(), seen.batch.x0, seen.batch.data(), s)
    cos, sin = like(torch.cos(a), x), like(torch.sin(a), x)

    def f_of(x: Tensor, a: Tensor) -> Tensor:
        start = 1.0 - a * (2.0 / math.pi)
        out: Output = student.backbone(x, start, torch.ones_like(start))
        return -out.u

    f_t = -(2.0 / math.pi) * teacher_on_angles(x, s)
    f, df = derivative(f_of, (x, a), (cos * sin * f_t, torch.cos(a) * torch.sin(a)))
    g = -(cos**2) * (f - f_t) - (cos * sin * x + df)
    g = (g / (g.square().sum(1, keepdim=True).sqrt() + 0.1)).detach()
    wanted = (f - f.detach() - g).square().sum(1)
    found = seen.objective(seen.batch, seen.draws)["eulerian"].value
    assert seen.weight == 100.0 and torch.allclose(found, wanted, rtol=1e-9)
    assert_same_gradient(found.mean(), wanted.mean(), student)


def test_rcm_moves_the_last_of_several_steps_by_dmd_and_four_times_its_critic() -> None:
    student, critic = rotation(), rotation()
    for p in critic.parameters():
        p.data *= 0.5
    game = rcm(student, teacher=teacher_on_angles, critic=critic)
    batch, draws = played(game)
    seen = unfold(game.moves[0].objective, batch, draws)[1]
    of, r, noise = (seen.draws[key] for key in ("maker", "t", "noise"))
    assert isinstance(of, dict) and isinstance(r, Tensor) and isinstance(noise, Tensor)
    stops, leave, fresh = (of[key] for key in ("stops", "exit", "noise"))
    assert isinstance(stops, Tensor) and isinstance(leave, Tensor) and isinstance(fresh, Tensor)
    assert bool((stops.diff(dim=1) >= 0.0).all()) and bool((stops[:, 1:].diff(dim=1) == 0.0).any())
    assert stops.shape == (ROWS, 4) and set(leave.tolist()) == {0, 1, 2, 3}
    rows = torch.arange(ROWS)
    x, s = batch.x0, 0.0 * ONE
    for k in range(1, 4):
        on = renoised(Trigonometric(), student(x, s, ONE).detach(), ONE, stops[:, k], fresh[:, k - 1])
        goes = (leave >= k).unsqueeze(1)
        x, s = torch.where(goes, on, x), stops[rows, torch.minimum(leave, torch.full_like(leave, k))]
    x = student(x, s, ONE)
    there = renoised(Trigonometric(), x.detach(), ONE, r, noise)
    angle = (math.pi / 2.0) * (1.0 - r)
    cos, sin = like(torch.cos(angle), x), like(torch.sin(angle), x)
    fake, real = (
        cos * there + sin * (2.0 / math.pi) * b(there, r) for b in (critic.velocity, teacher_on_angles)
    )
    step = (2.0 * (fake - real) / (x - real).abs().mean(1, keepdim=True)).detach()
    term = seen.objective(batch, seen.draws)["distribution"]
    assert_same_gradient(seen.weight * term.value.mean(), (step * x).sum(1).mean(), student)
    assert game.moves[1].when(7) == 4 and game.moves[1].module is critic


def test_sana_sprint_is_consistency_distillation_and_half_of_its_judged_jumps_begin_at_the_prior() -> None:
    """Its first part is scd's, to the bit; the second is -lambda D of the jumps, noised anew."""
    student, judge = rotation(), Undecided().double()
    judge.gain.data += 0.7
    game = sana_sprint(student, teacher=teacher_on_angles, discriminator=judge)
    batch, draws = played(game, rows=400)
    first, second = unfold(game.moves[0].objective, batch, draws)
    alone = scd(student, teacher=teacher_on_angles, mean=0.2 - math.log(0.5), std=1.6)
    ours, theirs = (o(batch, first.draws)["eulerian"].value for o in (first.objective, alone))
    assert torch.equal(ours, theirs)
    of, drawn = second.draws["maker"], second.draws["adversary"]
    assert isinstance(of, dict) and isinstance(drawn, dict)
    s, level, noise = of["s"], drawn["level"], drawn["made"]
    assert isinstance(s, Tensor) and isinstance(level, Tensor) and isinstance(noise, Tensor)
    assert int((s == 0.0).sum()) == pytest.approx(200, abs=2)
    log = torch.log(torch.tan((math.pi / 2.0) * (1.0 - s[s > 0.0])))
    assert float(log.mean()) == pytest.approx(0.2 - math.log(0.5), abs=0.3)
    judged = torch.log(torch.tan((math.pi / 2.0) * (1.0 - level)))
    assert float(judged.mean()) == pytest.approx(-0.6 - math.log(0.5), abs=0.15)
    assert float(judged.std()) == pytest.approx(1.0, abs=0.1)
    x, _ = path(Trigonometric(), batch.x0, batch.data(), s)
    end = student(x, s, torch.ones_like(s))
    shown = renoised(Trigonometric(), end, torch.ones_like(s), level, noise)
    term = second.objective(batch, second.draws)["adversarial"]
    assert torch.allclose(term.value, -judge(shown, level).squeeze(1), rtol=1e-9)
    assert term.weight == 0.5 and game.moves[1].module is judge


def test_a_flow_on_the_line_is_the_same_flow_on_angles_exactly() -> None:
    """SANA-Sprint's conversion of its teacher: t_FM = sin/(sin + cos), the state scaled, one and the same
    denoiser."""
    x, s, _, _ = points(SYSTEM, ROWS)
    turned = Converted(SYSTEM.velocity, Linear(), onto=Trigonometric())
    a = (math.pi / 2.0) * (1.0 - s)
    cos, sin = torch.cos(a), torch.sin(a)
    t = cos / (sin + cos)
    there = x / like(sin + cos, x)
    denoised = there + like(1.0 - t, x) * SYSTEM.velocity(there, t)
    noise = (x - like(cos, x) * denoised) / like(sin, x)
    wanted = (math.pi / 2.0) * (like(sin, x) * denoised - like(cos, x) * noise)
    assert float((turned(x, s) - wanted).abs().max()) < 1e-9
