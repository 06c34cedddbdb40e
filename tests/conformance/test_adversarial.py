"""Adversarial losses against closed forms: with the best discriminator their values are divergences, by
quadrature, and the student's gradient is that of the formula; what flows where; what heads on features see.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from systems import Perturbed, gaussian, loss, pairs, streams
from torch import Tensor, nn

from saltus.adversaries import AdversarialLoss, Adversary, Hinge, Softplus
from saltus.games import Game
from saltus.interpolants import Linear, Trigonometric
from saltus.legs import Slide
from saltus.nn import MLP, Discriminator, heads_on
from saltus.objectives import Adversarial, Discrimination, Eulerian, Real
from saltus.recipes.options import Output, Training
from saltus.recipes.trials import MIXTURE
from saltus.samples import Chain, FixedStops, FromPrior, Made, OneJump, RandomStops, Renoising, renoised
from saltus.slots import Own, Teacher
from saltus.states import State
from saltus.tensors import like
from saltus.times import Constant, Uniform
from saltus.typing import Batch, Condition

C = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
GRID = torch.linspace(-9.0, 9.0, 4001, dtype=torch.float64)
CELL = float(GRID[1] - GRID[0])
REAL, MADE = (0.5, 0.8), (-0.3, 1.2)
"""Mean and s.d. of two Gaussian laws on the line."""


def log_density(law: tuple[float, float], x: Tensor) -> Tensor:
    return -0.5 * ((x - law[0]) / law[1]) ** 2 - math.log(law[1] * math.sqrt(2.0 * math.pi))


class Ratio(nn.Module):
    """D* = log p/q times a gain, on the line."""

    def __init__(self, gain: float = 1.0, sign: bool = False) -> None:
        super().__init__()
        self.gain, self.sign = nn.Parameter(torch.tensor(gain, dtype=torch.float64)), sign

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition | None = None, start: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        ratio = log_density(REAL, x) - log_density(MADE, x)
        return self.gain * (torch.sign(ratio) if self.sign else ratio)


def made_of(x: Tensor) -> Made:
    one = torch.ones(len(x), dtype=x.dtype)
    return Made(x, one, State(torch.zeros_like(x)), torch.zeros_like(one))


def told(adversary: Adversary) -> Tensor:
    """E of the discriminator's loss over both laws, by quadrature: its two parts are apart in them."""
    x = GRID.unsqueeze(1)
    p, q = (log_density(law, GRID).exp() * CELL for law in (REAL, MADE))
    d = adversary.discriminator(x, torch.ones_like(GRID)).squeeze(1).detach()
    quiet = torch.full_like(d, 0.0)
    base = adversary.loss.tell(quiet, quiet)
    return (p * (adversary.loss.tell(d, quiet) - base / 2)).sum() + (
        q * (adversary.loss.tell(quiet, d) - base / 2)
    ).sum()


def divergences() -> tuple[float, float]:
    """(2 log 2 - 2 JS, 2 - 2 TV) of the two laws."""
    p, q = (log_density(law, GRID).exp() for law in (REAL, MADE))
    mix = 0.5 * (p + q)
    js = 0.5 * ((p * (p / mix).log() + q * (q / mix).log()).sum() * CELL)
    tv = 0.5 * ((p - q).abs().sum() * CELL)
    return float(2.0 * math.log(2.0) - 2.0 * js), float(2.0 - 2.0 * tv)


@pytest.mark.parametrize(
    ("of", "place", "sign"), [(Softplus(), 0, False), (Hinge(), 1, True)], ids=["softplus", "hinge"]
)
def test_the_best_discriminators_value_is_a_divergence(of: AdversarialLoss, place: int, sign: bool) -> None:
    """And it is the best: any other gain has a larger loss."""
    value = float(told(Adversary(Ratio(1.0, sign), of)))
    assert value == pytest.approx(divergences()[place], abs=1e-6)
    for gain in (0.8, 1.3):
        assert float(told(Adversary(Ratio(gain, sign), of))) > value + 1e-4
    assert float(told(Adversary(Ratio(0.0, sign), of))) == pytest.approx((2.0 * math.log(2.0), 2.0)[place])


@pytest.mark.parametrize("of", [Softplus(), Hinge()], ids=["softplus", "hinge"])
def test_the_students_gradient_passes_through_the_discriminator(of: AdversarialLoss) -> None:
    """The expected gradient in the mean and s.d. of its law, E[f'(D) dD . dX], by quadrature in x0."""
    mean, spread = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in MADE)
    x = (mean + spread * GRID).unsqueeze(1)
    weight = log_density((0.0, 1.0), GRID).exp() * CELL
    value = Adversary(Ratio(), of, weight=3.0).fool(made_of(x), None, {})
    assert value.weight == 3.0
    found = torch.autograd.grad((weight * value.value).sum(), (mean, spread))
    y = (MADE[0] + MADE[1] * GRID).detach()
    slope = -(y - REAL[0]) / REAL[1] ** 2 + (y - MADE[0]) / MADE[1] ** 2
    d = log_density(REAL, y) - log_density(MADE, y)
    outer = -torch.sigmoid(-d) if isinstance(of, Softplus) else -torch.ones_like(d)
    wanted = [(weight * outer * slope * w).sum() for w in (torch.ones_like(GRID), GRID)]
    for a, b in zip(found, wanted, strict=True):
        assert float(b.abs()) > 1e-2 and float((a - b).abs()) < 1e-9


def test_the_penalty_is_the_square_of_the_slope() -> None:
    """Of D = g . x it is E (g . e)^2 = |g|^2 for any spread, of what is real alone; its weight is r1."""
    g = torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64)

    class Plane(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Condition | None, start: None = None) -> Tensor:
            return (torch.where(x[:, :1] > 5.0, 9.0 * x, x) @ g).unsqueeze(1)

    rng = streams(4000)
    for spread in (0.1, 1.0):
        adversary = Adversary(Plane(), r1=10.0, spread=spread)
        x = 0.1 * rng.normal("x", 3)
        draws = adversary.draw(Batch(x), rng)
        term = adversary.tell(x, made_of(x + 100.0), None, draws)["r1"]
        e = draws["penalty"]
        assert isinstance(e, Tensor) and term.weight == 10.0
        assert torch.allclose(term.value, (e @ g).square(), rtol=1e-9)
        assert float(term.value.mean()) == pytest.approx(float(g @ g), rel=0.08)


def test_without_levels_and_penalty_nothing_is_drawn() -> None:
    assert Adversary(Ratio()).draw(Batch(torch.zeros(3, 1)), streams(3)) == {}


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])
@pytest.mark.parametrize("m", [1.0, 0.7])
def test_noising_from_a_time_has_the_law_of_the_path(path: Linear | Trigonometric, m: float) -> None:
    """Covariances of a sample at m noised to t: with Gaussian data in closed form, of any variance."""
    t = torch.tensor([0.0, 0.2, 0.65], dtype=torch.float64)
    at, here = path(t), path(torch.full_like(t, m))
    x, zero = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    of_x = renoised(path, x, torch.full_like(t, m), t, zero).squeeze(1)
    of_n = renoised(path, zero, torch.full_like(t, m), t, x).squeeze(1)
    for variance in (0.3, 4.0):  # of the data
        at_m = here.alpha**2 + here.beta**2 * variance
        wanted = at.alpha**2 + at.beta**2 * variance
        assert torch.allclose(of_x**2 * at_m + of_n**2, wanted, atol=1e-12)
    assert torch.allclose(renoised(path, x[1:], t[1:], t[1:], x[1:]), x[1:])


def test_samples_are_shown_at_their_level_with_noise_of_their_own() -> None:
    """D sees alpha_l n + beta_l x for both, at one level l and with different n; a projection comes first."""
    seen: list[tuple[Tensor, Tensor]] = []

    def judge(x: Tensor, t: Tensor, cond: object = None, start: object = None) -> Tensor:
        seen.append((x.detach(), t))
        return x.sum(1, keepdim=True)

    adversary = Adversary(judge, levels=Uniform(0.2, 0.9), projection=lambda x: 2.0 * x[:, 1:])
    rng = streams(5)
    x, y = rng.normal("x", 3), rng.normal("y", 3)
    draws = adversary.draw(Batch(x), rng)
    adversary.tell(y, made_of(x), None, draws)
    (real, t), (made, _) = seen
    level = draws["level"]
    assert isinstance(level, Tensor) and torch.equal(t, level)
    for shown, z, name in ((real, y, "real"), (made, x, "made")):
        n = draws[name]
        assert isinstance(n, Tensor) and n.shape == (5, 2)
        wanted = (1.0 - like(t, n)) * n + like(t, n) * 2.0 * z[:, 1:]
        assert torch.allclose(shown, wanted, atol=1e-12)
    assert not torch.equal(draws["made"], draws["real"])  # type: ignore[arg-type]


# The objectives


def test_each_side_moves_itself_alone() -> None:
    """The student's loss reaches the student through D, the discriminator's the discriminator."""
    system = gaussian()
    student = Perturbed(system.exact, C)
    d = heads_on(MLP((2,), 8, 2, classes=12), (2,), learned=True).double()
    for p in d.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype)
    adversary = Adversary(d, levels=Uniform(), r1=1.0)
    of = Adversarial(student, adversary)
    batch, rng = pairs(system, 12)
    batch = replace(batch, cond=Condition(label=torch.arange(12)))
    loss(of(batch, of.draw(batch, rng))).backward()  # type: ignore[no-untyped-call]
    assert student.c.grad is not None and bool((student.c.grad[:4].abs() > 1e-4).all())
    student.zero_grad()
    d.zero_grad()
    telling = Discrimination(of, adversary)
    loss(telling(batch, telling.draw(batch, rng))).backward()  # type: ignore[no-untyped-call]
    assert student.c.grad is None
    for name, p in d.named_parameters():  # the network's own output is not among the features
        assert ("model.out" in name) == (p.grad is None), name


def test_discrimination_tells_the_batchs_data_from_the_students_samples() -> None:
    system = gaussian()
    student = Perturbed(system.exact, C)
    adversary = Adversary(lambda x, t, cond=None, start=None: x)
    objective = Discrimination(Adversarial(student, adversary), adversary)
    batch, rng = pairs(system, 6)
    value = objective(batch, objective.draw(batch, rng))["discriminator"].value
    zero = torch.zeros(6, dtype=torch.float64)
    fake = student(batch.x0, zero, torch.ones_like(zero), batch.cond).detach()
    by_hand = nn.functional.softplus(-batch.data()) + nn.functional.softplus(fake)
    assert torch.allclose(value, by_hand.mean(1))
    with pytest.raises(ValueError, match=r"Real\.DATA"):
        wanted = replace(objective, real=Real.WANTED)
        wanted(batch, wanted.draw(batch, rng))


# Makers


def test_makers_on_the_exact_map_make_the_data_each_in_its_way() -> None:
    """Jumps in a row are one jump, to the bit of rounding; a jump from data at s is X_{s,1}(I_s)."""
    system = gaussian()
    exact = system.exact
    batch, rng = pairs(system, 40)
    zero, one = torch.zeros(40, dtype=torch.float64), torch.ones(40, dtype=torch.float64)
    direct = exact(batch.x0, zero, one)
    for maker in (FromPrior(), Chain(FixedStops((0.0, 0.3, 0.8))), Chain(RandomStops(4))):
        made = maker(exact, system.interpolant, batch, maker.draw(batch, rng))
        assert torch.allclose(made.x, direct, atol=1e-12) and torch.equal(made.t, one)
    jump = OneJump(times=Uniform(0.1, 0.9))
    draws = jump.draw(batch, rng)
    s = draws["s"]
    assert isinstance(s, Tensor) and 0.1 <= float(s.min()) < 0.2 and 0.8 < float(s.max()) <= 0.9
    x = (1.0 - like(s, batch.x0)) * batch.x0 + like(s, batch.x0) * batch.data()
    made = jump(exact, system.interpolant, batch, draws)
    assert torch.allclose(made.x, exact(x, s, one)) and torch.allclose(made.start.x, x)


def test_backward_simulation_renoises_its_own_samples_up_to_a_row_s_exit() -> None:
    """By hand, row by row; one call carries gradient, and each stop is left equally often."""
    system = gaussian()
    student = Perturbed(system.exact, C)
    maker = Renoising(FixedStops((0.0, 0.4, 0.7)))
    batch, rng = pairs(system, 300)
    draws = maker.draw(batch, rng)
    leave, noise = draws["exit"], draws["noise"]
    assert isinstance(leave, Tensor) and isinstance(noise, Tensor)
    made = maker(student, system.interpolant, batch, draws)
    counts = torch.bincount(leave, minlength=3)
    assert int(counts.min()) > 70
    one = torch.ones(1, dtype=torch.float64)
    for row in range(12):
        x, s = batch.x0[row : row + 1], torch.zeros(1, dtype=torch.float64)
        for k, stop in enumerate((0.4, 0.7)[: int(leave[row])]):
            sample = student(x, s, one)
            x, s = (1.0 - stop) * noise[row : row + 1, k] + stop * sample, stop * one
        assert torch.allclose(made.x[row], student(x, s, one)[0], atol=1e-12)
        assert float(made.s[row]) == float(s)
    x = made.start.x
    assert not x.requires_grad and made.x.requires_grad
    (found,) = torch.autograd.grad(made.x.square().sum(), student.c)
    (alone,) = torch.autograd.grad(student(x, made.s, made.t, batch.cond).square().sum(), student.c)
    assert torch.allclose(found, alone)


def test_stops_ascend_from_the_prior() -> None:
    stops = RandomStops(4, Uniform(0.1, 0.9))(streams(50))
    assert stops.shape == (50, 4) and bool((stops[:, 0] == 0.0).all()) and bool((stops.diff() >= 0.0).all())
    assert RandomStops(1)(streams(3)).tolist() == [[0.0]] * 3
    for wrong in ((), (0.1, 0.5), (0.0, 0.5, 0.5), (0.0, 1.0)):
        with pytest.raises(ValueError, match="ascending times"):
            FixedStops(wrong)


# Heads on features


def test_frozen_features_pass_gradient_to_samples_and_take_none() -> None:
    """They are no part of the module; D = 0 at the start; what the blocks say is what the heads see."""
    network = MLP((2,), 8, 3, classes=3)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    d = heads_on(network, (2,), most=2)
    assert len(d.heads) == 2 and all("heads" in name for name, _ in d.named_parameters())
    assert not any(p.requires_grad for p in network.parameters())
    x, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).requires_grad_(), torch.rand(5)
    cond = Condition(label=torch.arange(5) % 3, w=torch.ones(5))
    assert float(d(x, t, cond).detach().abs().max()) == 0.0
    for head in d.heads.children():
        for p in head.parameters():
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    seen: list[Tensor] = []
    for k in (0, 2):
        network.blocks[k].register_forward_hook(lambda module, given, out: seen.append(out))
    logits = d(x, t, cond)
    by_hand = torch.cat([head(h) for head, h in zip(d.heads, seen, strict=True)], dim=1)
    assert torch.equal(logits, by_hand) and float(logits.detach().abs().max()) > 0.0
    (found,) = torch.autograd.grad(logits.sum(), x)
    assert float(found.abs().min()) > 0.0


def test_a_discriminator_of_pairs_judges_the_start_beside_the_end() -> None:
    """By the features of both at their own times; every place of an image has a logit."""

    def features(x: Tensor, t: Tensor, cond: Condition | None) -> list[Tensor]:
        return [x + like(t, x)]

    d = Discriminator(features, (3,), pairs=True)
    nn.init.normal_(dict(d.named_parameters())["heads.0.last.weight"])
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t, s = torch.rand(2), torch.rand(2)
    logits = d(x, t, None, (y, s))
    assert logits.shape == (2, 16)
    both = torch.cat([x + like(t, x), y + like(s, y)], dim=1).movedim(1, -1)
    assert torch.allclose(logits, d.heads[0](both).flatten(1))
    with pytest.raises(ValueError, match="pairs=False"):
        d(x, t)
    with pytest.raises(ValueError, match="pairs=True"):
        Discriminator(features, (3,))(x, t, None, (y, s))
    with pytest.raises(ValueError, match="only a module"):
        Discriminator(features, (3,), learned=True)
    with pytest.raises(ValueError, match="channels of each"):
        Discriminator(features, (3, 3))(x, t)
    with pytest.raises(ValueError, match="list of blocks"):
        heads_on(nn.Linear(2, 2), (2,))


# Beside a trajectory loss


@pytest.mark.parametrize("step", [None, Constant(0.1)], ids=["derivative", "finite"])
def test_a_trajectory_losss_jumps_fool_an_adversary_in_the_same_call(step: Constant | None) -> None:
    """The term is that of X_{s,t}(x_s), live, its own term as without; what the discriminator learns on are
    the same jumps, and where the leg and the target lead."""
    system = gaussian()
    student, target = Perturbed(system.exact, C), Perturbed(system.exact, -C).requires_grad_(False)

    def judge(x: Tensor, t: Tensor, cond: object, start: tuple[Tensor, Tensor]) -> Tensor:
        return torch.sin(x) + like(t, x) * start[0].square() + like(start[1], x)

    adversary = Adversary(judge, Hinge(), pairs=True, weight=0.7)
    plain = Eulerian(student, target, leg=Slide(Own()), step=step)
    with_it = replace(plain, adversary=adversary)
    batch, rng = pairs(system, 16)
    draws = with_it.draw(batch, rng)
    s, t = draws["s"], draws["t"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor)
    terms = with_it(batch, draws)
    assert torch.equal(terms["eulerian"].value, plain(batch, draws)["eulerian"].value)
    x = (1.0 - like(s, batch.x0)) * batch.x0 + like(s, batch.x0) * batch.data()
    jump = student(x, s, t, batch.cond)
    wanted = -judge(jump, t, None, (x, s)).mean(1)
    assert torch.allclose(terms["adversarial"].value, wanted, atol=1e-12)
    assert terms["adversarial"].weight == 0.7
    found, by_hand = (
        torch.autograd.grad(v.sum(), student.c)[0] for v in (terms["adversarial"].value, wanted)
    )
    assert float(found.abs().max()) > 1e-2 and torch.allclose(found, by_hand, atol=1e-12)

    made, end, _ = plain.ends(batch, draws)
    assert torch.allclose(made.x, jump.detach(), atol=1e-12) and not made.x.requires_grad
    if step is None:
        assert end is None
        return
    d = torch.clamp(t - s, max=0.1)
    x_m = x + like(d, x) * target.velocity(x, s, batch.cond)
    assert end is not None and torch.allclose(end, target(x_m, s + d, t, batch.cond), atol=1e-12)
    telling = Discrimination(plain, adversary, Real.WANTED)
    value = telling(batch, telling.draw(batch, rng))["discriminator"].value
    logits = judge(end, t, None, (x, s)), judge(made.x, t, None, (x, s))
    unasked = replace(plain, leg=Slide(Teacher(lambda *given: pytest.fail("no data is compared with it"))))
    Discrimination(unasked, adversary, Real.DATA)(batch, telling.draw(batch, rng))
    assert torch.allclose(value, Hinge().tell(*logits).mean(1), atol=1e-12)


def test_a_run_judges_by_its_teachers_frozen_features_or_by_a_network_that_learns() -> None:
    """Heads alone are trained where a network of the student's kind teaches on the path; the teacher stays as
    it is. Beside an exact velocity the features learn too. Both are functions of the seed."""
    few = Training(steps=2, batch=16, lr=1e-2, seed=3, ema=(0.0,), precision="float32")
    alone = MIXTURE.make("adversarial_consistency", few, Output(quiet=True))
    exact, again = alone.discriminator(), alone.discriminator()
    assert any(name.startswith("learned.") for name, _ in exact.named_parameters()) and exact.pairs
    for p, q in zip(exact.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)

    first = MIXTURE.make("flow_matching", few, Output(quiet=True))
    made = replace(alone, first=first).under(first.model().eval().requires_grad_(False))
    assert made.teacher is not None
    network = made.teacher.run.model
    before = [p.clone() for p in network.parameters()]
    judge = made.discriminator()
    assert all(name.startswith("heads.") for name, _ in judge.named_parameters()) and len(judge.heads) == 3
    student = made.model()
    game = made.game(student)
    assert isinstance(game, Game) and [move.name for move in game.moves] == ["student", "discriminator"]
    heads = game.moves[1].module
    start = [p.clone() for p in heads.parameters()]
    for _ in made.fit(student, game):
        pass
    assert not any(torch.equal(p, q) for p, q in zip(heads.parameters(), start, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
