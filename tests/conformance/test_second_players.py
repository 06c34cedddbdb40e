"""Discriminators as second players beside a trajectory loss: what they see, what is real to them, and how
much they count beside the distance.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from systems import loss, pairs, streams
from test_consistency_family import euler
from test_distillation_equalities import B, moving
from test_method_equalities import SYSTEM, assert_same_gradient, student_of
from torch import Tensor, nn

from saltus.interpolants import Linear, path
from saltus.methods import discover
from saltus.methods.pcm import pcm
from saltus.methods.scott import scott
from saltus.tensors import like
from saltus.typing import Batch, Condition
from saltus.weights import Differences, InFeatures, InStates, Span


class Slope(nn.Module):
    """D(x) = w . x, a discriminator whose logits are easily written down."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.6, -0.8], dtype=torch.float64))

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition | None = None, start: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """[B, 1]."""
        return (x @ self.w).unsqueeze(1)


@pytest.mark.parametrize("name", ["scott", "pcm"])
def test_a_discriminator_joins_as_a_second_player(name: str) -> None:
    """-D for the student (SCott), or max(0, 1 - D) (PCM), times lambda, on the jump that its distance is of;
    the hinge loss for D, against data (SCott) or against the target's own end (PCM, both noised first)."""
    student, d = student_of(), Slope()
    options = {"eta": 0.0} if name == "scott" else {"phases": 2, "decay": 0.95}
    game = {"scott": scott, "pcm": pcm}[name](student, teacher=B, discriminator=d, **options)  # type: ignore[operator]
    assert [move.name for move in game.moves] == ["student", "discriminator"]
    assert game.moves[1].module is d
    target = moving(vars(game.moves[0].objective)["target"])
    batch, rng = pairs(SYSTEM, 40)
    batch = replace(batch, cond=None)
    noised: dict[str, Tensor] = {}

    def shown(x: Tensor, e: Tensor, draws: object, who: str) -> Tensor:
        if name == "scott":
            return x
        assert isinstance(draws, dict)
        t = draws["level"] * e
        a = t / e
        noise = torch.sqrt(((1 - t) ** 2 - (a * (1 - e)) ** 2).clamp(min=0.0))
        noised[who] = noise
        return like(a, x) * x + like(noise, x) * draws[who]

    for k, move in enumerate(game.moves):
        draws = move.objective.draw(batch, rng)
        of = draws if k == 0 else draws["of"]
        assert isinstance(of, dict)
        s, t = of["s"], of["t"]
        assert isinstance(s, Tensor) and isinstance(t, Tensor)
        x, _ = path(Linear(), batch.x0, batch.data(), s)
        found = move.objective(batch, draws)
        made = student(x, s, t)
        if k == 0:
            term = found["adversarial"]
            logits = d(shown(made, t, draws["adversary"], "made"), t)[:, 0]
            wanted = -logits if name == "scott" else torch.relu(1.0 - logits)
            assert name == "scott" or 0 < int((logits > 1.0).sum()) < len(logits)
            assert term.weight == {"scott": 0.4, "pcm": 0.1}[name] and "eulerian" in found
            assert torch.allclose(term.value, wanted, rtol=1e-10)
            assert_same_gradient(term.value.mean(), wanted.mean(), student)
            continue
        m = torch.minimum(s + (0.024 if name == "scott" else 0.02), t)
        led = x
        for j in range(3 if name == "scott" else 1):
            n = 3 if name == "scott" else 1
            led = euler(led, s + (m - s) * j / n, s + (m - s) * (j + 1) / n)
        real = batch.data() if name == "scott" else target(led, m, t)
        both = {"real": real, "made": made}
        of_real, of_made = (d(shown(x, t, draws["adversary"], who), t) for who, x in both.items())
        wanted = (torch.relu(1 - of_real) + torch.relu(1 + of_made))[:, 0]
        value = found["discriminator"].value
        assert torch.allclose(value, wanted, rtol=1e-10)
        assert torch.autograd.grad(value.sum(), student.c, allow_unused=True) == (None,)
    assert (not noised) == (name == "scott")


class Bent(nn.Module):
    """A flow map in any dimension: u_{s,t}(x) = a sin(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def average(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.a * torch.sin(x)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return x + like(t - s, x) * self.average(x, s, t, cond)


class Kept:
    """A weight that keeps the errors it is given."""

    def __init__(self) -> None:
        self.errors: list[Tensor] = []

    def __call__(self, error: Tensor, span: Span) -> Tensor:
        self.errors.append(error.detach())
        return error.square().sum(1)


class Middle(nn.Module):
    """D(x) = g mean(x), in any dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: object = None, start: object = None) -> Tensor:
        return self.g * x.mean(1, keepdim=True)


@pytest.mark.parametrize("dim", [2, 32])
@pytest.mark.parametrize("name", ["pcm", "adversarial_consistency", "motion_consistency"])
def test_the_adversary_counts_beside_a_mean_over_entries(name: str, dim: int) -> None:
    """The authors minimise mean(huber) + lambda g over all entries and rows, in any dimension: by how much
    one term counts beside the other does not grow with it."""
    build = discover()[name].build
    kept, rng = Kept(), streams(40)
    weight = InFeatures(kept, Differences()) if name == "motion_consistency" else InStates(kept)
    half = torch.tensor(0.5, dtype=torch.float64)
    batch = Batch(rng.normal("x0", dim), half + rng.normal("x1", dim), progress=half)
    found = []
    for options in ({"weight": weight}, {}):
        student = Bent()
        game = build(student, teacher=lambda x, t, cond=None: -x, discriminator=Middle(), **options)
        objective = game.moves[0].objective
        found.append(objective(batch, objective.draw(batch, rng)))
    errors = torch.cat(kept.errors)
    assert errors.numel() == 40 * (dim - (name == "motion_consistency"))
    huber = torch.mean(torch.sqrt(errors.square() + 1e-6) - 1e-3)
    at = {"pcm": 0.1, "adversarial_consistency": 1.0, "motion_consistency": 1.0}[name]
    terms = {k: v for k, v in found[1].items() if "adversarial" not in k}
    assert torch.allclose(loss(terms), huber, rtol=1e-9) and float(huber) > 1e-4
    judged = [v.weight for k, v in found[1].items() if "adversarial" in k]
    assert float(sum(judged)) == pytest.approx(at)  # type: ignore[arg-type]
