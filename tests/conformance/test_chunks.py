"""Clips made chunk by chunk: the walk against one written out by hand, what is live in it and what each chunk
sees; and diagonal distillation, whose motion has a gradient.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from systems import streams, unfold
from test_method_equalities import assert_same_gradient
from torch import Tensor, nn

from saltus.interpolants import Linear
from saltus.maps import AverageVelocity
from saltus.methods.diagonal import CARD, clips, diagonal
from saltus.nn import MLP
from saltus.objectives import OnSamples
from saltus.samplers import renoise
from saltus.samples import Chunks, as_tokens, renoised
from saltus.tensors import like
from saltus.times import shifted
from saltus.typing import Batch, Condition, Output
from saltus.weights import Squared

ROWS, FRAMES, SIZE = 24, 6, 3


class Sees(nn.Module):
    """A network of chunks that looks at the frames before, if there are any."""

    blocks = nn.ModuleList()

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.look = nn.Linear(SIZE + 2, SIZE).double(), nn.Linear(SIZE, SIZE).double()

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u, from each frame and the mean of those before."""
        times = torch.stack([s, t], 1).unsqueeze(1).expand(len(x), x.shape[1], 2)
        u = torch.tanh(self.mix(torch.cat([x, times], dim=2)))
        if cond is not None and cond.tokens is not None:
            u = u + torch.sin(self.look(cond.tokens.mean(1, keepdim=True)))
        return Output(u, {})


def clip() -> Batch:
    rng = streams(ROWS)
    return Batch(rng.normal("x0", FRAMES, SIZE), cond=Condition(label=torch.arange(ROWS) % 3))


def by_hand(student: AverageVelocity, maker: Chunks, batch: Batch, exits: Tensor, noise: Tensor) -> Tensor:
    """Row by row, in plain loops."""
    rows = []
    for i in range(ROWS):
        chunks: list[Tensor] = []
        seen: Tensor | None = None
        for k, steps in enumerate((3, 2, 2)):
            part, last = slice(2 * k, 2 * k + 2), int(float(exits[i]) * steps)
            cond = None if seen is None else Condition(tokens=seen)
            x = batch.x0[i : i + 1, part]
            one = torch.ones(1, dtype=torch.float64)
            at = [shifted(one * j / steps, maker.shift) for j in range(steps)]
            for j in range(1, last + 1):
                end = student(x, at[j - 1], one, cond).detach()
                x = renoised(Linear(), end, one, at[j], noise[i : i + 1, j - 1, part])
            seen = x
            chunks.append(student(x, at[last], one, cond))
        rows.append(torch.cat(chunks, dim=1))
    return torch.cat(rows)


def test_a_clip_is_made_chunk_by_chunk_on_a_schedule_that_shortens() -> None:
    """Three, two and two steps; each chunk sees the noisy start of its predecessor's last jump; the gradient
    is that of the last jumps alone."""
    student, maker = AverageVelocity(Sees()), Chunks((3, 2), frames=2, shift=2.0)
    batch = clip()
    draws = maker.draw(batch, streams(ROWS))
    exits, noise = draws["exit"], draws["noise"]
    assert isinstance(exits, Tensor) and isinstance(noise, Tensor)
    assert set((exits * 3).floor().tolist()) == {0.0, 1.0, 2.0}
    made = maker(student, Linear(), batch, draws)
    wanted = by_hand(student, maker, batch, exits, noise)
    assert torch.allclose(made.x, wanted, atol=1e-12) and bool((made.t == 1.0).all())
    pull = streams(ROWS).normal("pull", FRAMES, SIZE)
    assert_same_gradient((pull * made.x).mean(), (pull * wanted).mean(), student)
    assert not made.start.x.requires_grad


def test_one_chunk_of_one_step_is_one_jump() -> None:
    student, maker = AverageVelocity(Sees()), Chunks((1,), frames=9)
    batch = clip()
    zero = torch.zeros(ROWS, dtype=torch.float64)
    assert maker.draw(batch, streams(ROWS)) == {}
    assert torch.equal(maker(student, Linear(), batch, {}).x, student(batch.x0, zero, zero + 1.0))


def test_what_cannot_be_cut_or_seen_is_refused() -> None:
    student = AverageVelocity(Sees())
    with pytest.raises(ValueError, match="a multiple of 4 frames, got 6"):
        Chunks((1,), frames=4)(student, Linear(), clip(), {})
    with pytest.raises(ValueError, match="at least 1"):
        Chunks((2, 0))
    with pytest.raises(ValueError, match="without tokens"):
        as_tokens(Condition(tokens=torch.zeros(2, 1, 1)), torch.zeros(2, 1, 1))


def teacher(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    return torch.cos(x) * like(t, x) - x


def test_diagonal_distillation_has_a_gradient_of_motion() -> None:
    """E[g . dX] + 0.2 E[phi(g) . d phi(X)], with g = (D_critic - D)/mean|X - D| and phi the differences."""
    student, critic = AverageVelocity(Sees()), AverageVelocity(MLP((FRAMES, SIZE), width=8, depth=1).double())
    for k, p in enumerate(critic.parameters()):
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(k))
    game = diagonal(student, teacher=teacher, critic=critic, steps=(3, 2), frames=2)
    batch = replace(clip(), cond=None)
    objective = game.moves[0].objective
    (seen,) = unfold(objective, batch, objective.draw(batch, streams(ROWS)))
    r, noise, made = (seen.draws[key] for key in ("t", "noise", "maker"))
    assert isinstance(r, Tensor) and isinstance(noise, Tensor) and isinstance(made, dict)
    x = Chunks((3, 2), 2, 5.0)(student, Linear(), batch, made).x
    there = renoised(Linear(), x.detach(), torch.ones_like(r), r, noise)
    far = like(1.0 - r, x)
    fake, real = (there + far * b(there, r) for b in (critic.velocity, teacher))
    g = ((fake - real) / (x - real).abs().mean((1, 2), keepdim=True)).detach()
    term = seen.objective(batch, seen.draws)["distribution"]
    of_clip, of_motion = (g * x).sum((1, 2)), (g.diff(dim=1) * x.diff(dim=1)).sum((1, 2))
    assert_same_gradient(seen.weight * term.value.mean(), (of_clip + 0.2 * of_motion).mean(), student)
    plain = replace(seen.objective, weight=Squared())  # type: ignore[type-var]
    value = plain(batch, seen.draws)["distribution"].value  # type: ignore[operator]
    grads = torch.autograd.grad(0.5 * (term.value - value).mean(), list(student.parameters()))
    assert max(float(z.norm()) for z in grads) > 1e-3  # the motion's own part is not inert
    assert game.moves[1].when(0) == 5 and isinstance(game.moves[1].objective, OnSamples)


def test_clips_are_made_with_all_the_steps_of_training() -> None:
    """Chunk by chunk, or as a whole on the training's clock; one step of it is the card's sampler."""
    student, batch = AverageVelocity(Sees()), clip()
    maker, rng = Chunks((3, 2), frames=2, shift=2.0), streams(ROWS)
    noise = maker.draw(batch, rng)["noise"]
    assert isinstance(noise, Tensor)
    last = torch.full((ROWS,), 1.0 - 1e-6, dtype=torch.float64)
    wanted = by_hand(student, maker, batch, last, noise)
    made = clips(student, batch.x0, rng, batch.cond, steps=(3, 2), frames=2, shift=2.0)
    assert torch.allclose(made, wanted, atol=1e-12) and not made.requires_grad
    grid = shifted(torch.arange(6, dtype=torch.float64) / 5, 5.0)
    x, one = batch.x0, torch.ones(ROWS, dtype=torch.float64)
    fresh = rng.normal("noise", 4, FRAMES, SIZE)
    for k in range(4):
        end = student(x, one * grid[k], one, batch.cond)
        x = renoised(Linear(), end, one, one * grid[k + 1], fresh[:, k])
    whole = student(x, one * grid[4], one, batch.cond)
    assert torch.allclose(clips(student, batch.x0, rng, batch.cond), whole, atol=1e-12)
    (only,) = CARD.steps
    at_once = renoise(student, batch.x0, only, Linear(), rng, cond=batch.cond)
    assert torch.equal(clips(student, batch.x0, rng, batch.cond, steps=(only,)), at_once)


def test_data_that_are_no_clips_have_no_frames() -> None:
    """Unless frames are asked for a sample is made as a whole, of any shape, and has no motion."""
    student, critic = (AverageVelocity(MLP((2,), width=8, depth=1)) for _ in range(2))
    loss = diagonal(student, teacher=teacher, critic=critic).moves[0].objective
    rng = streams(ROWS)
    batch = Batch(rng.normal("x0", 2).float())
    (seen,) = unfold(loss, batch, loss.draw(batch, replace(rng, dtype=torch.float32)))
    drawn = seen.draws["maker"]
    assert isinstance(drawn, dict) and isinstance(drawn["stops"], Tensor)
    even = torch.arange(5) / 5
    assert torch.allclose(drawn["stops"], (even / (even + 5.0 * (1.0 - even))).expand(ROWS, 5))
    assert isinstance(vars(seen.objective)["weight"], Squared)
