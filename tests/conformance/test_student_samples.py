"""Methods that look at the student's own samples, against formulas written out by hand: what they see, what
learns and what does not. The student is a perturbed map: nothing is at an optimum.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from systems import Perturbed, Undecided, gaussian, loss, pairs, unfold
from test_method_equalities import C, assert_same_gradient
from torch import Tensor

from saltus.games import Game
from saltus.interpolants import Linear, path
from saltus.legs import ddim
from saltus.methods.motion_consistency import motion_consistency
from saltus.objectives import Discrimination
from saltus.typing import Batch, Draws
from saltus.weights import EntryHuber, Span

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
    return (torch.sqrt(e.square() + 1e-6) - 0.001).sum(1)


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
            noise, drawn = drawn["noise"], drawn["of"]
            assert isinstance(noise, Tensor) and isinstance(drawn, dict)
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
        trajectory = loss({k: v for k, v in terms.items() if k != "adversarial"})
        (grad,) = torch.autograd.grad(trajectory, shift.c, retain_graph=True)
        assert abs(float(grad)) < 1e-12 and float(trajectory.detach()) > 1e-6
        assert ("adversarial" in terms) == (discriminator is not None)
        if discriminator is not None:
            (grad,) = torch.autograd.grad(loss({"adversarial": terms["adversarial"]}), shift.c)
            assert float(grad) < -1e-2
            assert isinstance(game.moves[1].objective, Discrimination)
            assert game.moves[1].module is judge


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
    assert torch.allclose(found, EntryHuber(0.001)(ends[0] - ends[1], Span(s, ONE[:20])), rtol=1e-8)


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_a_share_of_own_samples_that_is_none_or_all_is_refused(own: float) -> None:
    with pytest.raises(ValueError, match="own samples"):
        motion_consistency(student_of(), teacher=SYSTEM.velocity, own=own)  # type: ignore[arg-type]
