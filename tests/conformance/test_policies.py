"""Policies against closed forms: Bayes' rule on exact mixtures, integrals by quadrature, Euler steps; and
what imitation asks of them, by hand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from systems import Perturbed, gaussian, mixture, pairs, streams
from torch import Tensor, nn

from saltus.curricula import Falling
from saltus.exact import Mixture, MixtureMap1D, ReferenceMap, line_mixture, reference_mixture
from saltus.interpolants import Interpolant, Linear, Trigonometric, path
from saltus.legs import slide
from saltus.maps import EDM, AverageVelocity, EulerMap
from saltus.methods import load
from saltus.nn import MLP
from saltus.objectives import Imitation, Lagrangian
from saltus.policies import (
    GridMap,
    MixtureMap,
    MomentumMap,
    OpenLoop,
    PolicyMap,
    grid_heads,
    mixture_heads,
    momentum_heads,
    policy_of,
)
from saltus.policies.mixture import offsets
from saltus.policies.policy import PolicyNetwork, led
from saltus.slots import Teacher
from saltus.teachers import from_teacher
from saltus.tensors import like
from saltus.times import Cells
from saltus.trajectories import Relay
from saltus.typing import Condition, Gradient, Output

C = torch.tensor([0.3, -0.2, 0.3, 0.2, -0.3, 0.3, 0.2, -0.3], dtype=torch.float64)
PATHS = pytest.mark.parametrize("on", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])


class Knowing(nn.Module):
    """A network that says a mixture's own posterior."""

    def __init__(self, law: Mixture, shared: bool) -> None:
        super().__init__()
        self.law, self.shared = law, shared

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        alpha, beta, dalpha, dbeta = (like(c, x) for c in self.law.interpolant(s))
        det, said = alpha * dbeta - dalpha * beta, []
        variances = torch.as_tensor(self.law.covs).expand(len(self.law.means))
        for mu, v, w in zip(self.law.means, variances, self.law.weights, strict=True):
            whole = alpha.square() + beta.square() * v
            end = (alpha.square() * mu + beta * v * x) / whole
            u = (det * end + dalpha * x) / alpha
            far = (x - beta * mu).square().sum(1, keepdim=True) / whole + x.shape[1] * whole.log()
            said.append((u, w.log() - 0.5 * far, (v / whole).log()))
        (u0, w0, g0), shift = said[0], offsets(len(said), x)
        heads = {"spread": g0.expand_as(x)}
        for k, (u, w, g) in enumerate(said[1:], 1):
            heads[f"mean{k}"] = (u - u0) / det - shift[:, k]
            heads[f"weight{k}"] = (w - w0).expand_as(x)
            if not self.shared:
                heads[f"spread{k}"] = g.expand_as(x)
        return Output(u0, heads)


def laws(on: Interpolant) -> list[MixtureMap]:
    """Four components of one variance in the plane, two of their own on the line."""
    plane, line = Knowing(reference_mixture(on), True), Knowing(line_mixture(on), False)
    return [MixtureMap(plane, on), MixtureMap(line, on)]


@PATHS
def test_a_mixture_policy_with_the_target_s_components_is_its_velocity_everywhere(on: Interpolant) -> None:
    """At every later time and every state, also far from where it was asked and at the data's end."""
    for student in laws(on):
        law = student.backbone.law
        rng = streams(200)
        x1, _ = law.sample(rng)
        s, t = rng.uniform("times", 2).sort(dim=1).values.unbind(1)
        s, t = torch.where(rng.uniform("start") < 0.2, 0.0, s), torch.where(rng.uniform("end") < 0.2, 1.0, t)
        x_s, _ = path(on, rng.normal("x0", law.dim), x1, s)
        policy = student.policy(x_s, s, t)
        anywhere = 2.0 * rng.normal("x", law.dim)
        for x, at in ((anywhere, t), (anywhere, torch.lerp(s, t, 0.3)), (x_s, s)):
            assert torch.allclose(policy.velocity(x, at), law(x, at), rtol=1e-7, atol=1e-7)


@PATHS
def test_a_mixture_policy_with_the_target_s_components_is_exact_in_one_call(on: Interpolant) -> None:
    """The jump from noise to data, up to its substeps: their error falls fourfold with twice as many."""
    for student in laws(on):
        law = student.backbone.law
        x0, zero = streams(40).normal("x0", law.dim), torch.zeros(40).double()
        exact = MixtureMap1D(law) if law.dim == 1 else ReferenceMap(law)
        wanted, found = exact(x0, zero, zero + 1.0), []
        for substeps in (64, 128):
            student.substeps = substeps
            found.append(float((student(x0, zero, zero + 1.0) - wanted).square().mean().sqrt()))
        assert found[1] < 1e-3 and found[0] / found[1] == pytest.approx(4.0, rel=0.25), found


def test_bayes_rule_is_that_of_the_published_formula() -> None:
    """One variance v, linear: with z = (b/a)^2 - (b_s/a_s)^2 and n = b x/a^2 - b_s x_s/a_s^2 the means become
    (v n + mu)/(v z + 1) and the log-weights gain mu (n - z mu/2)/(v z + 1)."""
    rng = streams(20)
    x_s, x = rng.normal("s", 3), rng.normal("t", 3)
    s, t = (torch.full((20,), z, dtype=torch.float64) for z in (0.3, 0.6))
    student = MixtureMap(Said(mixture_heads(4), 3))
    said = student.backbone(x_s, s, t)
    u = torch.stack([said.u + z for z in (offsets(4, x) + stacked(said, "mean")).unbind(1)], dim=1)
    mu = x_s.unsqueeze(1) + 0.7 * u
    v = 0.49 * said.heads["spread"].mean(1).exp().reshape(-1, 1, 1)
    z = (0.6 / 0.4) ** 2 - (0.3 / 0.7) ** 2
    n = (0.6 / 0.16 * x - 0.3 / 0.49 * x_s).unsqueeze(1)
    mean = (v * n + mu) / (v * z + 1.0)
    shift = (mu * (n - 0.5 * z * mu)).sum(2) / (v[:, :, 0] * z + 1.0)
    weights = (stacked(said, "weight").mean(2) + shift).softmax(1)
    wanted = ((weights.unsqueeze(2) * mean).sum(1) - x) / 0.4
    assert torch.allclose(student.policy(x_s, s, t).velocity(x, t), wanted, rtol=1e-10)


class Said(nn.Module):
    """A network of smooth functions with given heads."""

    def __init__(self, names: tuple[str, ...], dim: int) -> None:
        super().__init__()
        self.names = names
        count = (1 + len(names)) * dim
        self.w = nn.Parameter(torch.sin(torch.arange(1.0, dim * count + 1)).double().reshape(count, dim))
        self.calls = 0

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        self.calls += 1
        first, *rest = torch.sin(x @ self.w.T + like(s + 0.5 * t, x)).chunk(1 + len(self.names), dim=1)
        return Output(first, dict(zip(self.names, rest, strict=True)))


def stacked(said: Output, name: str) -> Tensor:
    """0 and the heads of a name, [B, K, D]."""
    heads = [h for key, h in said.heads.items() if key.startswith(name)]
    return torch.stack([torch.zeros_like(said.u), *heads], dim=1)


def students() -> list[PolicyNetwork]:
    return [
        MixtureMap(Said(mixture_heads(3, own_spread=True), 2)),
        GridMap(Said(grid_heads(4), 2)),
        MomentumMap(Said(momentum_heads(4), 2)),
    ]


@pytest.mark.parametrize("student", students(), ids=lambda m: type(m).__name__)
def test_a_map_of_policies_goes_where_they_lead(student: PolicyNetwork) -> None:
    """X_{s,s} is the identity with u_{s,s} the policy's velocity there; a jump is the policy's integral, in
    fine midpoint steps, and in two parts."""
    rng = streams(12)
    x, s = rng.normal("x", 2), 0.5 * rng.uniform("s")
    t = s + 0.45
    assert isinstance(student, PolicyMap)
    assert torch.equal(student(x, s, s), x)
    assert torch.allclose(student.average(x, s, s), student.velocity(x, s), rtol=1e-9)
    policy = student.policy(x, s, t)
    fine = x + like(t - s, x) * led(policy, x, s, t, 400)
    student.substeps = 100
    assert torch.allclose(student(x, s, t), fine, atol=2e-4)
    half = torch.lerp(s, t, 0.5)
    begun = policy.mean(x, s, half, 100)
    rest = policy.mean(x + like(half - s, x) * begun, half, t, 100)
    assert torch.allclose(0.5 * (begun + rest), student.average(x, s, t), atol=1e-3)


def test_one_momentum_mode_is_an_euler_step() -> None:
    """To the last bit; and modes of other rates are not."""
    network = Said((), 2)
    rng = streams(12)
    x, s = rng.normal("x", 2), 0.5 * rng.uniform("s")
    t = s + 0.4
    euler = EulerMap(lambda x, s, cond=None: network(x, s, t).u)
    assert torch.equal(MomentumMap(network)(x, s, t), euler(x, s, t))
    other = MomentumMap(Said(momentum_heads(2), 2))(x, s, t)
    assert float((other - euler(x, s, t)).detach().abs().max()) > 1e-3


def test_momentum_integrates_in_closed_form() -> None:
    """Against 40-point quadrature, from any time on, and smooth where nothing is left to integrate."""
    student = MomentumMap(Said(momentum_heads(5), 2))
    rng = streams(12)
    x, s = rng.normal("x", 2), 0.4 * rng.uniform("s")
    policy = student.policy(x, s, s + 0.6)
    rates = policy.rates.detach()[:, :, 0]
    assert torch.equal(rates[:, 0], torch.zeros(12).double()) and float(rates[:, 1:].abs().min()) > 1e-3
    a, b = s + 0.1, s + 0.5
    nodes, weights = np.polynomial.legendre.leggauss(40)
    seen = [policy.velocity(x, torch.lerp(a, b, 0.5 + 0.5 * z)) for z in nodes]
    wanted = sum(0.5 * w * v for w, v in zip(weights, seen, strict=True))
    assert torch.allclose(policy.mean(x, a, b, 1), wanted, rtol=1e-12)
    assert torch.allclose(policy.mean(x, a, a + 1e-9, 1), policy.velocity(x, a), rtol=1e-7)
    silent = Said(momentum_heads(5), 2)
    nn.init.zeros_(silent.w)
    assert len(set(MomentumMap(silent).policy(x, s, s).rates[0, :, 0].tolist())) == 5


@PATHS
def test_a_grid_of_one_estimate_is_a_ddim_step(on: Interpolant) -> None:
    """With all nodes at one end of the path; and between the nodes the estimate is linear."""
    network = Said(grid_heads(3), 2)
    rng = streams(12)
    x, s = rng.normal("x", 2), 0.1 + 0.5 * rng.uniform("s")
    t = s + 0.3
    student = GridMap(network, on, substeps=400)
    policy = student.policy(x, s, t)
    u = network(x, s, t).u
    alone = replace(policy, estimates=policy.estimates[:, :1].expand(-1, 3, -1))
    wanted = slide(on, x, u, s, t)
    assert torch.allclose(x + like(t - s, x) * alone.mean(x, s, t, 400), wanted, atol=1e-5)
    assert torch.allclose(policy.velocity(x, s), u, rtol=1e-9)
    for place, weights in ((0.25, (0.5, 0.5, 0.0)), (0.5, (0.0, 1.0, 0.0)), (1.0, (0.0, 0.0, 1.0))):
        at = torch.lerp(s, t, place)
        end = sum(w * policy.estimates[:, k] for k, w in enumerate(weights))
        alpha, beta, dalpha, dbeta = (like(c, x) for c in on(at))
        by_hand = dalpha * (x - beta * end) / alpha + dbeta * end
        assert torch.allclose(policy.velocity(x, at), by_hand, rtol=1e-9)


def test_a_network_without_the_heads_is_told_which() -> None:
    x, s = torch.zeros(2, 2).double(), torch.zeros(2).double()
    with pytest.raises(ValueError, match="expected a network with heads mean1, mean2, got mean2"):
        MixtureMap(Said(("mean2", "mean3"), 2)).policy(x, s, s)
    with pytest.raises(ValueError, match="a head 'spread', got"):
        MixtureMap(Said((), 2)).policy(x, s, s)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        MixtureMap(Said((), 2), substeps=0)


@pytest.mark.parametrize("system", [gaussian(), mixture()], ids=["gaussian", "mixture"])
def test_any_flow_map_is_a_policy_that_follows_its_own_jumps(system: object) -> None:
    """At the exact map it has the flow's velocity along the trajectory; its means are those of the map."""
    batch, rng = pairs(system, 20)  # type: ignore[arg-type]
    s, (a, b) = 0.3 * rng.uniform("s"), (torch.full((20,), z, dtype=torch.float64) for z in (0.5, 0.8))
    policy = policy_of(system.exact, batch.x0, s, b)  # type: ignore[attr-defined]
    assert isinstance(policy, OpenLoop)
    x_a, x_b = (system.exact(batch.x0, s, t) for t in (a, b))  # type: ignore[attr-defined]
    assert torch.allclose(policy.velocity(batch.x0, a), system.velocity(x_a, a), atol=1e-6)  # type: ignore[attr-defined]
    assert torch.allclose(policy.mean(batch.x0, a, b, 1), (x_b - x_a) / 0.3, atol=1e-8)
    assert torch.equal(policy.mean(batch.x0, a, a, 1), system.exact.average(batch.x0, s, a))  # type: ignore[attr-defined]


def test_a_student_of_policies_starts_with_its_teacher_s_velocity() -> None:
    """Second heads would start as copies of it; silent ones leave it, and the grid an Euler step."""
    teacher = AverageVelocity(MLP((2,), width=16, depth=2)).double()
    for k, p in enumerate(teacher.parameters()):
        nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(k))
    rng = streams(12)
    x, s = rng.normal("x", 2), 0.5 * rng.uniform("s")
    b = teacher.velocity(x, s)
    kinds = ((grid_heads(3), GridMap), (momentum_heads(3), MomentumMap), (mixture_heads(1), MixtureMap))
    for heads, make in kinds:
        student = make(MLP((2,), width=16, depth=2, heads=heads)).double()
        from_teacher(student, teacher)
        assert torch.allclose(student.velocity(x, s), b, rtol=1e-9)
        policy = student.policy(x, s, s + 0.4)
        assert torch.allclose(policy.velocity(x, s), b, rtol=1e-9)
        if make is GridMap:
            assert torch.allclose(student(x, s, s + 0.4), x + 0.4 * b, rtol=1e-9)
    with pytest.raises(ValueError, match="one parametrisation, got MomentumMap and EDM"):
        from_teacher(MomentumMap(teacher.backbone), EDM(teacher.backbone))


# Imitation


def test_imitation_is_the_lagrangian_loss_at_every_visit() -> None:
    """Of a flow map: value and gradient are the means of Lagrangian losses at its own jumps' ends."""
    system = gaussian()
    student, batch = Perturbed(system.exact, C), pairs(system, 16, progress=1.0)[0]
    own = Imitation(student, Teacher(system.velocity), mix=Falling(0.2))
    draws = own.draw(batch, streams(16))
    places = draws["visits"]
    assert isinstance(places, Tensor) and float(places[:, 0].abs().max()) == 0.0
    parts = torch.floor(places[:, 1:] * 3.0)
    assert torch.equal(parts, torch.arange(3.0).double().expand(16, 3))
    zero, losses = torch.zeros(16).double(), []
    for place in places.unbind(1):
        by = Lagrangian(student, states=own.states, end=own.end, gradient=Gradient.TIME)
        losses.append(by(batch, {"s": zero, "t": place})["lagrangian"].value)
    found, wanted = own(batch, draws)["imitation"].value, torch.stack(losses).mean(0)
    assert torch.allclose(found, wanted, rtol=1e-9)
    c = student.c
    (mine,), (theirs,) = (torch.autograd.grad(v.mean(), c, retain_graph=True) for v in (found, wanted))
    assert torch.allclose(mine, theirs, rtol=1e-9)


@pytest.mark.parametrize("student", students(), ids=lambda m: type(m).__name__)
def test_imitation_by_hand(student: PolicyNetwork) -> None:
    """One call of the network; the teacher, asked once a visit, leads for half of the way, the policy for the
    rest; the gradient is that of the policy's velocities at states held fixed."""
    batch, rng = pairs(gaussian(), 10, progress=0.1)

    def teacher(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return torch.sin(x) * like(1.0 + t, x)

    own = Imitation(student, Teacher(teacher), times=Cells(2), visits=3, mix=Falling(0.2), substeps=5)
    draws = own.draw(batch, rng)
    s, t, places = draws["s"], draws["t"], draws["visits"]
    assert isinstance(s, Tensor) and isinstance(t, Tensor) and isinstance(places, Tensor)
    assert set(s.tolist()) == {0.0, 0.5}
    student.backbone.calls = 0
    found = own(batch, draws)["imitation"].value
    assert student.backbone.calls == 1
    x = like(1.0 - s, batch.x0) * batch.x0
    policy, errors = student.policy(x, s, t), []
    times = [s + z * (t - s) for z in places.unbind(1)]
    for now, then in zip(times, [*times[1:], None], strict=True):
        b = teacher(x, now)
        errors.append(policy.velocity(x, now) - b)
        if then is not None:
            half = 0.5 * (now + then)
            x = x + like(half - now, x) * b
            x = (x + like(then - half, x) * policy.mean(x, half, then, 5)).detach()
    wanted = torch.stack([e.square().sum(1) for e in errors]).mean(0)
    assert torch.allclose(found, wanted, rtol=1e-9)
    w = student.backbone.w
    (mine,), (theirs,) = (torch.autograd.grad(v.mean(), w, retain_graph=True) for v in (found, wanted))
    assert torch.allclose(mine, theirs, rtol=1e-9) and float(mine.norm()) > 1e-3


@PATHS
def test_imitation_has_no_error_where_the_policy_is_exact(on: Interpolant) -> None:
    for student in laws(on):
        law = student.backbone.law
        for name in ("pi_flow", "arcflow"):
            own = load(name).build(student, teacher=law, interpolant=on)
            rng = streams(32)
            batch = replace(pairs(gaussian(), 32)[0], x0=rng.normal("x0", law.dim), cond=None)
            value = own(batch, own.draw(batch, rng))["imitation"].value
            assert float(value.detach().abs().max()) < 1e-9


def test_relays_hand_on_from_cell_to_cell() -> None:
    system = gaussian()
    student, batch = Perturbed(system.exact, C), pairs(system, 8)[0]
    s = torch.tensor([0.0, 0.25, 0.5, 0.75] * 2).double()
    found = Relay(student, 4)(batch, Linear(), s, None).x
    x, zero = batch.x0, torch.zeros(8).double()
    for k in range(4):
        assert torch.equal(found[s == 0.25 * k], x[s == 0.25 * k])
        x = student(x, zero + 0.25 * k, zero + 0.25 * (k + 1), batch.cond).detach()
