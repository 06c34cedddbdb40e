"""Compact checks in float64 for the mutation test: what each module must satisfy, in at most two seconds.

``CHECKS`` names them by module. They are imported afresh for every mutant, so that everything they
use is the mutated package.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import test_data_free as prior_only
import test_distillation_equalities as distilled
import test_distribution as matching
import test_freeflow as free
import test_method_equalities as equal
import test_teachers_asked as asked
import torch
from formulas import CASES
from systems import Perturbed, System, gaussian, mixture, points
from test_facts import test_diagonal_of_every_method_takes_its_own_share
from test_where_gradients_flow import (
    test_sum_adds_weighted_parts_on_their_own_rows,
    test_value_and_gradient_are_those_of_the_formula,
)
from torch import Tensor

from saltus import identities
from saltus.guidance import CFG, AutoGuidance, GuidanceInput
from saltus.guidance import guided as learned_from
from saltus.interpolants import VE, VP, Cosine, Custom, Interpolant, Linear, Trigonometric, path, slopes
from saltus.legs import ddim
from saltus.maps import EDM, AverageVelocity
from saltus.maps import Trigonometric as TrigonometricMap
from saltus.predictions import Converted, Prediction, convert
from saltus.slots import Mixed
from saltus.states import State
from saltus.tensors import like
from saltus.typing import Condition
from saltus.weights import (
    AdaptivePower,
    InStates,
    LearnedLogVariance,
    PseudoHuber,
    Scaled,
    Span,
    Squared,
    TangentNormalised,
    Weight,
)

__all__ = ["CHECKS"]

Check = Callable[[], None]
PATHS: tuple[Interpolant, ...] = (
    Linear(),
    Trigonometric(),
    VP(),
    Cosine(),
    VE(),
    Custom(lambda t: (1.0 - t) ** 2, lambda t: t**3),
)
TIMES = torch.tensor([0.15, 0.4, 0.62, 0.9], dtype=torch.float64)
LATER = torch.tensor([0.3, 0.45, 0.95, 0.93], dtype=torch.float64)
X0 = torch.tensor([[0.3, -1.1], [1.4, 0.2], [-0.6, 0.9], [0.1, 0.5]], dtype=torch.float64)
X1 = torch.tensor([[0.9, 0.4], [-0.7, 1.3], [0.5, -0.2], [-1.2, 0.6]], dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    """Equal up to the tolerance, relative to the larger of b and 1."""
    assert float(((a - b).abs() / b.abs().clamp(min=1.0)).max().detach()) <= tolerance


def satisfies(system: System) -> None:
    """The exact map has no residual."""
    student = Perturbed(system.exact, torch.zeros(8, dtype=torch.float64)).requires_grad_(False)
    x, s, m, t = points(system, 20)
    b = system.velocity
    zero = torch.zeros_like(x)
    close(identities.tangent(student, b, x, t), zero)
    close(identities.lagrangian(student, b, x, s, t), zero)
    close(identities.eulerian(student, b, x, s, t), zero)
    close(identities.semigroup(student, x, s, m, t), zero)


def formula(prefix: str) -> tuple[Check, ...]:
    """Value and gradient of the cases of an objective."""
    test, plane = test_value_and_gradient_are_those_of_the_formula, gaussian()
    return tuple(partial(test, name, plane) for name in CASES if name.startswith(prefix))


def interpolants() -> None:
    """Derivatives are those of alpha and beta; divided differences are those; ends are noise and data."""
    for given in PATHS:
        c, eps = given(TIMES), 1e-5
        ahead, behind = given(TIMES + eps), given(TIMES - eps)
        close((ahead.alpha - behind.alpha) / (2 * eps), c.dalpha, 1e-5)
        close((ahead.beta - behind.beta) / (2 * eps), c.dbeta, 1e-5)
        of_alpha, of_beta = slopes(given, TIMES, LATER)
        end = given(LATER)
        close(of_alpha, (end.alpha - c.alpha) / (LATER - TIMES), 1e-8)
        close(of_beta, (end.beta - c.beta) / (LATER - TIMES), 1e-8)
        x, v = path(given, X0, X1, TIMES)
        close(x, like(c.alpha, X0) * X0 + like(c.beta, X0) * X1)
        ahead_x, behind_x = (path(given, X0, X1, TIMES + e)[0] for e in (eps, -eps))
        close((ahead_x - behind_x) / (2 * eps), v, 1e-5)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    wanted = torch.eye(2, dtype=torch.float64)
    for given, leak in ((Linear(), 1e-12), (Trigonometric(), 1e-12), (VP(), 7e-3), (Cosine(), 1e-6)):
        c = given(ends)
        close(torch.stack([c.alpha, c.beta]), wanted, leak)
    t = TIMES
    close(VP()(t).beta, torch.exp(-0.25 * (1 - t) ** 2 * 19.9 - 0.05 * (1 - t)))
    phi = [torch.cos(torch.as_tensor((1 - z + 0.008) / 1.008 * math.pi / 2)) for z in (t, torch.ones_like(t))]
    close(Cosine()(t).beta, phi[0] / phi[1])
    for given in (VP(), Cosine()):
        close(given(t).alpha ** 2 + given(t).beta ** 2, torch.ones_like(t))
    close(VE()(ends).alpha, torch.tensor([80.0, 0.002], dtype=torch.float64))


def predictions() -> None:
    """Every conversion, against the pair that made the state."""
    for given in (Linear(), Trigonometric(), VP()):
        c = given(TIMES)
        a, b = like(c.alpha, X0), like(c.beta, X0)
        x, v = path(given, X0, X1, TIMES)
        truth = {
            Prediction.X0: X0,
            Prediction.NOISE: X0,
            Prediction.X1: X1,
            Prediction.VELOCITY: v,
            Prediction.V: b * X0 - a * X1,
            Prediction.SCORE: -X0 / a,
        }
        for have, want in itertools.permutations(truth, 2):
            if {have, want} <= {Prediction.X0, Prediction.NOISE}:
                continue
            close(convert(truth[have], x, TIMES, given, have, want), truth[want], 1e-9)
    plane, turned = gaussian(), gaussian(Trigonometric())
    again = Converted(plane.velocity, Linear(), onto=Trigonometric())
    close(again(X0, TIMES), turned.velocity(X0, TIMES))


def maps() -> None:
    """Each map is the formula of its network's output, and forward is x + (t - s) u."""
    s, t, sd = TIMES, LATER, 0.7
    net = equal.Net()
    h = like(t - s, X0)
    plain = AverageVelocity(net)
    close(plain(X0, s, t), X0 + h * net(X0, s, t).u)
    angle = like((math.pi / 2) * (t - s), X0)
    rotation = TrigonometricMap(net, sd)
    f = net(X0 / sd, s, t)
    close(rotation(X0, s, t), torch.cos(angle) * X0 + torch.sin(angle) * sd * f.u)
    close(rotation.velocity(X0, s), (math.pi / 2) * sd * net(X0 / sd, s, s).u)
    close(rotation.evaluate(X0, s, t).heads["v"], (math.pi / 2) * sd * f.heads["v"])
    edm = EDM(net, sd)
    sigma = like((1 - s) / s, X0)
    n = like(torch.sqrt((1 - s) ** 2 + (s * sd) ** 2), X0)
    out = net(X0 / n, s, t).u
    denoised = sd**2 / (sigma**2 + sd**2) * X0 / like(s, X0) + sigma * sd / torch.sqrt(sigma**2 + sd**2) * out
    close(edm(X0, s, t), X0 + h * (denoised - X0) / like(1 - s, X0))
    for each in (plain, rotation, edm):
        close(each(X0, s, s), X0)
        close(each(X0, s, t), X0 + h * each.average(X0, s, t))


def weights() -> None:
    """Value, and gradient in the error with what is stopped held fixed."""
    error = 0.7 * X0 + 0.1
    span = Span(TIMES, TIMES + 0.08, torch.full_like(TIMES, 0.03))
    e2 = error.square().sum(1)
    n = torch.sqrt(e2 / 2) + 0.1
    learned = LearnedLogVariance().double()
    torch.nn.init.normal_(learned.linear.weight, generator=torch.Generator().manual_seed(0))
    w = learned.log_variance(span.s, span.t).detach()
    root, h, d = torch.sqrt(e2 + 0.09), span.t - span.s, torch.full_like(TIMES, 0.03)
    table: list[tuple[Weight, Tensor, Tensor]] = [
        (Squared(), e2, torch.full_like(e2, 2.0)),
        (PseudoHuber(0.3), root - 0.3, 1.0 / root),
        (PseudoHuber(0.3, True), torch.sqrt(e2 + 0.18) - 0.18**0.5, 1.0 / torch.sqrt(e2 + 0.18)),
        (AdaptivePower(0.75, 0.05), e2 / (e2 + 0.05) ** 0.75, 2.0 / (e2 + 0.05) ** 0.75),
        (TangentNormalised(0.1), e2 / n**2, 2.0 / n),
        (Scaled(Squared(), lambda p: p.s, lambda p: p.t), span.t * span.s**2 * e2, 2 * span.t * span.s**2),
        (InStates(Squared()), d**2 * e2, 2 * d * h),
        (learned, torch.exp(-w) * e2 + w, 2.0 * torch.exp(-w)),
    ]
    for weight, value, slope in table:
        live = error.clone().requires_grad_()
        found = weight(live, span)
        close(found, value)
        close(torch.autograd.grad(found.sum(), live)[0], like(slope, error) * error)
    pair = torch.stack([span.s, span.t]).unsqueeze(-1) * torch.arange(32).double() * math.pi
    features = torch.cat([torch.cos(pair), torch.sin(pair)], dim=-1).sum(0) / math.sqrt(2.0)
    close(w, features @ learned.linear.weight[0].detach())


def guided() -> None:
    """Guidance extrapolates away from the unconditional velocity."""
    cond = Condition(label=torch.zeros(4, dtype=torch.int64), w=TIMES + 2.0)

    def b(x: Tensor, t: Tensor, c: Condition | None = None) -> Tensor:
        assert c is not None and (c.w is None or bool((c.w == 1).all()))
        return x * (0.5 if c.null is not None else 2.0) + like(t, x)

    free, full = 0.5 * X0 + like(TIMES, X0), 2.0 * X0 + like(TIMES, X0)
    close(CFG(b)(X0, TIMES, cond), free + like(TIMES + 2.0, X0) * (full - free))
    close(CFG(b, 3.0)(X0, TIMES, cond), free + 3.0 * (full - free))
    strong = AutoGuidance(lambda x, t, c=None: full, lambda x, t, c=None: free, 2.5)
    close(strong(X0, TIMES), free + 2.5 * (full - free))
    away = AutoGuidance(lambda x, t, c=None: full, lambda x, t, c=None: free)
    for rows in (b, CFG(b), away):
        wanted = free + like(TIMES + 2.0, X0) * (full - free)
        close(learned_from(rows, GuidanceInput(3.0))(X0, TIMES, cond), wanted)

    class Own(AverageVelocity):
        def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
            return b(x, t, cond)

    mixed = Mixed(0.7, 0.4)(Own(equal.Net()), State(X0, X1), TIMES, Condition(label=cond.label))
    close(mixed, 0.7 * X1 - 0.1 * free + 0.4 * full)


def stepped() -> None:
    """DDIM is exact for data at one point, for any interpolant."""
    point = torch.tensor([0.4, -0.3], dtype=torch.float64)
    for given in (Linear(), Trigonometric(), VP()):
        x, v = path(given, X0, point.expand(4, 2), TIMES)
        end, _ = path(given, X0, point.expand(4, 2), LATER)
        close(ddim(lambda x, t, cond=None, v=v: v, x, TIMES, LATER, given), end)


def shares() -> None:
    """The parts' rows and weights."""
    test_sum_adds_weighted_parts_on_their_own_rows()
    equal.test_lsd_and_psd_weight_their_parts_by_their_shares()
    test_diagonal_of_every_method_takes_its_own_share()


def _mean_flow() -> None:
    for p in (0.0, 1.0):
        equal.test_mean_flow_is_the_official_loss(p)


balances: tuple[Check, ...] = (
    partial(free.test_the_students_gradient_is_the_balanced_sum_of_the_two, 1.0),
    free.test_the_balance_is_of_the_global_batch,
)
corrections: tuple[Check, ...] = (
    partial(matching.test_gradient_is_that_of_the_inverse_divergence, Linear(), 0.5),
    free.test_the_correction_moves_the_student_alone_and_through_u_alone,
    free.test_the_critic_learns_on_samples_and_nobody_else_moves,
    free.test_noise_of_the_pairs_is_not_the_noise_of_the_samples,
    free.test_prediction_is_the_papers_in_its_own_variables,
    free.test_levels_favour_noise_as_published,
    free.test_guidance_of_the_teacher_is_for_its_interval,
    free.test_the_critic_sees_the_strength_that_made_its_sample,
)
_follows = equal.test_moving_averages_bootstrap_and_follow


def without_data(prefix: str) -> tuple[Check, ...]:
    """Value and gradient of the cases that start at the prior."""
    test, plane = prior_only.test_value_and_gradient_are_those_of_the_formula, gaussian()
    return tuple(partial(test, name, plane) for name in prior_only.CASES if name.startswith(prefix))


_signals = prior_only.test_boot_in_average_velocities_is_boot_in_signals
CHECKS: dict[str, tuple[Check, ...]] = {
    "identities": (partial(satisfies, gaussian()), partial(satisfies, mixture())),
    "objectives.diagonal": formula("diagonal"),
    "objectives.lagrangian": (*formula("lagrangian"), *without_data("lagrangian")),
    "objectives.eulerian": formula("eulerian"),
    "objectives.composition": formula("composition"),
    "objectives.endpoint": formula("endpoint"),
    "objectives.distribution": corrections,
    "objectives.sum": (shares, *balances),
    "slots": (
        guided,
        *formula("eulerian, warm"),
        *formula("diagonal, of"),
        *formula("lagrangian, full, teacher"),
    ),
    "guidance": (
        guided,
        asked.test_auto_guidance_with_strengths_of_rows_is_that_with_a_fixed_one,
        free.test_guidance_of_the_teacher_is_for_its_interval,
    ),
    "legs": (stepped, *formula("eulerian, finite"), *formula("endpoint")),
    "states": (*formula("eulerian, target, data"),),
    "interpolants": (interpolants,),
    "predictions": (predictions,),
    "maps": (maps,),
    "weights": (
        weights,
        *balances,
        prior_only.test_tbcm_by_default_has_the_weight_of_scm,
        equal.test_scm_has_the_gradient_of_the_official_loss,
        partial(equal.test_ect_is_the_official_loss, 0.4),
    ),
    "tangents": (
        prior_only.test_tbcm_weighs_like_scm_on_any_interpolant,
        equal.test_scm_has_the_gradient_of_the_official_loss,
    ),
    "times": (
        partial(equal.test_ect_is_the_official_loss, 0.4),
        partial(equal.test_consistency_training_is_the_distance_of_two_jumps, 0.5),
        *formula("eulerian, finite, line"),
        *formula("eulerian, finite, own"),
        distilled.test_align_your_flow_is_the_paper_s_loss,
    ),
    "curricula": (
        partial(equal.test_ect_is_the_official_loss, 0.4),
        partial(equal.test_consistency_training_is_the_distance_of_two_jumps, 0.5),
    ),
    "samples": corrections,
    "trajectories": (*without_data("tbcm"), *without_data("on-policy")),
    "methods.boot": (partial(_signals, gaussian(Trigonometric())),),
    "methods.tbcm": without_data("tbcm"),
    "methods.endpoint": without_data("endpoint"),
    "methods.on_policy": without_data("on-policy"),
    "methods.lsd": (shares, equal.test_lsd_target_form_has_the_value_of_the_time_form),
    "methods.psd": (shares, equal.test_psd_regresses_on_the_mean_of_its_legs),
    "methods.mean_flow": (shares, _mean_flow, equal.test_mean_flow_on_its_diagonal_is_flow_matching),
    "methods.improved_mean_flow": (
        equal.test_improved_mean_flow_is_the_official_loss,
        equal.test_improved_mean_flow_with_the_adaptive_weight_divides_each_term_by_itself,
    ),
    "methods.shortcut": (
        shares,
        equal.test_shortcut_is_the_official_loss,
        partial(_follows, "shortcut", "composition", "composition"),
    ),
    "methods.tvm": (partial(_follows, "tvm", "lagrangian", "lagrangian"),),
    "methods.alpha_flow": (partial(equal.test_alpha_flow_has_the_gradient_of_its_own_loss, 0.5),),
    "methods.consistency_training": (
        partial(equal.test_consistency_training_is_the_distance_of_two_jumps, 0.5),
        partial(_follows, "consistency_training", "all", "eulerian"),
    ),
    "methods.ect": (partial(equal.test_ect_is_the_official_loss, 0.4),),
    "methods.freeflow": (*balances, *corrections),
    "methods.scm": (
        equal.test_scm_has_the_gradient_of_the_official_loss,
        equal.test_scm_tangent_is_that_of_the_jump,
    ),
    "methods.lmd": (
        distilled.test_lmd_is_its_equation,
        distilled.test_lmd_takes_the_stopped_teacher_by_default,
        partial(asked.test_the_strength_of_guidance_is_an_input_of_the_student_and_of_the_teacher, "lmd"),
    ),
    "methods.emd": (distilled.test_emd_is_its_equation,),
    "methods.align_your_flow": (
        distilled.test_align_your_flow_is_the_paper_s_loss,
        distilled.test_align_your_flow_draws_its_own_gaps,
        partial(
            asked.test_the_strength_of_guidance_is_an_input_of_the_student_and_of_the_teacher,
            "align_your_flow, weak",
        ),
    ),
    "methods.consistency_distillation": (
        distilled.test_consistency_distillation_is_the_distance_of_two_jumps,
        distilled.test_consistency_distillation_with_a_derivative_is_emd_to_the_end,
    ),
    "methods.scd": (
        distilled.test_scd_has_the_gradient_of_the_official_loss,
        distilled.test_scd_in_its_plain_form_is_emd_to_the_end,
    ),
    "methods.ctm": (
        distilled.test_ctm_is_the_paper_s_loss,
        distilled.test_ctm_split_at_its_end_is_the_endpoint_loss,
    ),
}
