"""What is read off a scheduler's configuration, against diffusers' own tables and an exact Gaussian."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from saltus.exact import Gaussian
from saltus.interpolants import VE, Coefficients, Linear, Trigonometric
from saltus.predictions import Prediction, matching_time
from saltus.streams import Streams
from saltus.teachers import probe
from saltus.teachers.diffusers import Path, Tabulated, path_of
from saltus.tensors import full_like_rows, like
from saltus.typing import Condition

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
V, X1 = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
ZERO = {"rescale_betas_zero_snr": True}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm-linear": ("DDPMScheduler", {}),
    "ddim-scaled": ("DDIMScheduler", SD),
    "pndm-scaled": ("PNDMScheduler", {**SD, "skip_prk_steps": True}),
    "ddpm-cosine": ("DDPMScheduler", {**COSINE, **V}),
    "euler-scaled-v": ("EulerDiscreteScheduler", {**SD, **V}),
    "dpm-linear-x1": ("DPMSolverMultistepScheduler", X1),
    "ddim-zero-v": ("DDIMScheduler", {**SD, **V, **ZERO}),
    "ddim-zero-x1": ("DDIMScheduler", {**SD, **X1, **ZERO}),
    "euler-zero-v": ("EulerDiscreteScheduler", {**SD, **V, **ZERO}),
    "few-times": ("DDPMScheduler", {"num_train_timesteps": 20, "beta_end": 0.4}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow-dpm": ("DPMSolverMultistepScheduler", FLOW),
    "edm": ("EDMEulerScheduler", {}),
    "edm-v": ("EDMEulerScheduler", {**V, "sigma_schedule": "exponential", "sigma_data": 1.0}),
}
ALL = {**TABLES, **OTHERS}
LAW = Gaussian(torch.tensor([0.7, -0.4]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))


def made(name: str) -> Any:  # noqa: ANN401
    kind, settings = ALL[name]
    return getattr(diffusers, kind)(**settings)


def law(path: Path) -> Gaussian:
    return Gaussian(LAW.mean, LAW.cov, path.interpolant)


@pytest.mark.parametrize("name", TABLES)
def test_the_path_is_the_table_at_its_indices(name: str) -> None:
    scheduler = made(name)
    path = path_of(scheduler)
    table = scheduler.alphas_cumprod
    n = len(table)
    k = torch.arange(n)
    t = path.when(k)
    assert t[-1] == 0.0 and abs(float(t[0]) - (1.0 - 1.0 / n)) < 1e-15
    c = path.interpolant(t)
    assert float((c.beta - table.double().sqrt()).abs().max()) < 1e-12
    assert float((c.alpha - (1.0 - table.double()).sqrt()).abs().max()) < 1e-12
    # diffusers' own mixture of noise and data, in its float32
    x0, x1 = torch.ones(n, 1), torch.zeros(n, 1)
    if not name.startswith(("euler", "dpm")):  # theirs take times of a sampler
        mixed = [scheduler.add_noise(a, b, k)[:, 0] for a, b in ((x1, x0), (x0, x1))]
        assert float((c.alpha - mixed[0]).abs().max()) < 2e-7
        assert float((c.beta - mixed[1]).abs().max()) < 2e-7
    end = path.interpolant(torch.ones(1, dtype=torch.float64))
    assert end.beta == 1.0 and end.alpha == 0.0


@pytest.mark.parametrize("name", ["ddim-scaled", "ddpm-cosine", "ddim-zero-v", "few-times"])
def test_the_path_is_smooth_and_its_derivatives_are_those_of_its_values(name: str) -> None:
    path = path_of(made(name)).interpolant
    assert isinstance(path, Tabulated)
    n = len(path)
    t = torch.linspace(0.003, 0.995, 4001, dtype=torch.float64)  # between the indices, too
    c = path(t)
    eps = 1e-4 / n
    ahead, behind = path(t + eps), path(t - eps)
    for value, slope in (("alpha", "dalpha"), ("beta", "dbeta")):
        difference = (getattr(ahead, value) - getattr(behind, value)) / (2.0 * eps)
        assert float((difference - getattr(c, slope)).abs().max()) < 1e-5 * float(
            getattr(c, slope).abs().max()
        )
    assert bool((c.dbeta > 0.0).all()) and bool((c.dalpha < 0.0).all())
    # across an index the slope and its own slope are continuous
    knots = 1.0 - torch.arange(3, n, dtype=torch.float64) / n
    left, right = path(knots - 1e-9 / n), path(knots + 1e-9 / n)
    assert float((left.dbeta - right.dbeta).abs().max()) < 1e-6 * float(c.dbeta.abs().max())
    (second,) = torch.autograd.functional.jvp(
        lambda t: path(t).dbeta, knots - 1e-7 / n, torch.ones_like(knots)
    )[1:]
    (other,) = torch.autograd.functional.jvp(
        lambda t: path(t).dbeta, knots + 1e-7 / n, torch.ones_like(knots)
    )[1:]
    assert float((second - other).abs().max()) < 1e-4 * float(second.abs().max())


def test_between_two_indices_the_spline_errs_by_the_fourth_power_of_their_distance() -> None:
    """The cosine of improved DDPM is a function of continuous time: tables of 50 and 100 of its values."""

    def error(n: int) -> float:
        signal = lambda tau: torch.cos(tau * torch.pi / 2.0 * 0.98)  # noqa: E731
        k = torch.arange(n, dtype=torch.float64)
        path = Tabulated(signal((k + 1.0) / n) ** 2)
        t = torch.linspace(0.3, 0.7, 997, dtype=torch.float64)
        return float((path(t).beta - signal(1.0 - t)).abs().max())

    assert 12.0 < error(50) / error(100) < 20.0


@pytest.mark.parametrize("name", ALL)
def test_the_clock_and_its_inverse(name: str) -> None:
    path = path_of(made(name))
    t = torch.linspace(*path.between, 101, dtype=torch.float64)
    assert float((path.when(path.clock(t)) - t).abs().max()) < 1e-12
    short = path.clock(t.float())
    assert short.dtype == torch.float32
    assert float((short - path.clock(t)).abs().max()) <= 1.3e-4 * max(1.0, float(short.abs().max()) / 1000.0)
    if name in TABLES:  # whole numbers are met exactly, in float32 too
        k = torch.arange(len(made(name).alphas_cumprod))
        assert bool((path.clock(path.when(k).float()) == k).all())


@pytest.mark.parametrize("name", TABLES)
def test_the_time_of_a_ratio_is_found_at_once(name: str) -> None:
    path = path_of(made(name)).interpolant
    assert isinstance(path, Tabulated)
    t = torch.cat([torch.linspace(0.0, 1.0, 4001), torch.tensor([1e-9, 1.0 - 1e-9])]).double()
    c = path(t)
    assert float((path.time_of(3.0 * c.alpha, 3.0 * c.beta) - t).abs().max()) < 1e-9
    assert path.time_of(torch.ones(1), torch.zeros(1)) == 0.0  # less of the data than the table has
    assert abs(float(path.time_of(torch.zeros(1), torch.ones(1))) - 1.0) < 1e-9

    def searched(t: Tensor) -> Coefficients:  # the same path, without the inverse
        return path(t)

    line = torch.linspace(0.0, 0.999, 501, dtype=torch.float64).requires_grad_()
    found, other = (matching_time(line, Linear(), p) for p in (path, searched))
    assert float((found - other).detach().abs().max()) < 1e-9
    slopes = [torch.autograd.grad(v.sum(), line)[0] for v in (found, other)]
    inside = other.detach() > 1e-6
    assert float((slopes[0] - slopes[1])[inside].abs().max()) < 1e-6 * float(slopes[1][inside].abs().max())


def network(path: Path, kind: str, name: str, sigma_data: float) -> Any:  # noqa: ANN401
    """An exact network of the law under a configuration, by diffusers' own definitions of what it is asked
    and says: (x, timestep) -> output."""
    exact = law(path)

    def says(x: Tensor, timestep: Tensor, cond: Condition | None = None) -> Tensor:
        t = path.when(timestep)
        if name.startswith("edm"):
            sigma = like(torch.exp(4.0 * timestep.double()), x)
            noisy = x * (sigma**2 + sigma_data**2).sqrt()
            denoised = exact.posterior_mean(noisy, t)
            skip = sigma_data**2 / (sigma**2 + sigma_data**2)
            out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
            return (denoised - skip * noisy) / (-out if kind == "v_prediction" else out)
        c = path.interpolant(t)
        a, b = like(c.alpha, x), like(c.beta, x)
        data = exact.posterior_mean(x, t)
        noise = -a * exact.score(x, t)
        said = {"epsilon": noise, "sample": data, "v_prediction": b * noise - a * data}
        return said[kind] if kind in said else noise - data

    return says


def exact_network(name: str) -> tuple[Path, Any]:
    scheduler = made(name)
    path = path_of(scheduler)
    kind = "flow" if name.startswith("flow") else scheduler.config.prediction_type
    return path, network(path, kind, name, scheduler.config.get("sigma_data", 0.5))


@pytest.mark.parametrize("name", ALL)
def test_an_exact_network_has_the_closed_form_as_its_velocity(name: str) -> None:
    path, ask = exact_network(name)
    rng = Streams(0, index=torch.arange(64), dtype=torch.float64)
    tau = torch.lerp(*torch.tensor(path.between).double(), rng.uniform("t"))
    for onto in (Linear(), Trigonometric(), path.interpolant):
        exact = Gaussian(LAW.mean, LAW.cov, onto)
        t = tau if onto is path.interpolant else matching_time(tau, path.interpolant, onto)
        c = onto(t)
        x0, x1 = rng.normal("x0", 2), exact.sample(rng)
        x = like(c.alpha, x0) * x0 + like(c.beta, x1) * x1
        found = path.velocity(ask, onto)(x, t)
        truth = exact(x, t)
        assert float(((found - truth).norm(dim=1) / (1.0 + truth.norm(dim=1))).max()) < 1e-9, onto


@pytest.mark.parametrize("name", ALL)
def test_the_probe_knows_a_right_teacher(name: str) -> None:
    path, ask = exact_network(name)
    probe(path.velocity(ask), (2,), Streams(0, index=torch.arange(32), dtype=torch.float64))


WRONG = {
    "noise taken for v": ("ddim-scaled", "ddim-scaled-v"),
    "v taken for noise": ("euler-scaled-v", "ddim-scaled"),
    "the end taken for noise": ("dpm-linear-x1", "ddpm-linear"),
    "noise for flow": ("ddim-scaled", "flow"),
    "flow for noise": ("flow", "ddim-scaled"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_probe_knows_a_wrong_configuration(case: str) -> None:
    trained, taken = WRONG[case]
    _, ask = exact_network(trained)
    wrong = path_of(made(taken)) if taken in ALL else path_of(diffusers.DDIMScheduler(**SD, **V))
    with pytest.raises(ValueError, match="slope|finite|E\\[x"):
        probe(wrong.velocity(ask), (2,), Streams(0, index=torch.arange(32), dtype=torch.float64))


def test_times_of_samplers() -> None:
    scheduler = made("ddim-scaled")
    scheduler.set_timesteps(5)
    grid = path_of(scheduler).grid(5)
    assert float((1000.0 * (1.0 - grid[:-1]) - 1.0 - scheduler.timesteps).abs().max()) < 1e-9
    assert grid[-1] == 1.0
    flow = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    flow.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.6)
    tokens = 256 + round((0.6 - 0.5) / (1.15 - 0.5) * (4096 - 256))
    found = path_of(flow).grid(4, tokens, from_one=True)
    assert float((found - (1.0 - flow.sigmas)).abs().max()) < 1e-4
    with pytest.raises(ValueError, match="number of patches"):
        path_of(flow).grid(4)
    assert torch.equal(path_of(made("flow-dpm")).grid(6), path_of(made("flow")).grid(6))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "zero ratio and noise": ({"_class_name": "DDIMScheduler", **ZERO}, "pure noise"),
    "unknown": ({"_class_name": "ScoreSdeVeScheduler"}, "expected one of .* got 'ScoreSdeVeScheduler'"),
    "none": ({}, "expected one of"),
    "prediction": ({"_class_name": "DDIMScheduler", "prediction_type": "dino"}, "got 'dino'"),
    "edm prediction": ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "got 'sample'"),
    "continuous": (
        {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous", **V},
        "expected discrete",
    ),
    "inverted": (
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
        "expected sigmas that fall",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused(case: str) -> None:
    config, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        path_of(config)


def test_tables_that_are_none() -> None:
    for table in ([0.5, 0.6], [1.0, 0.5], [0.5], [0.5, -0.1]):
        with pytest.raises(ValueError, match="alphas_cumprod: expected"):
            Tabulated(torch.tensor(table))


def test_an_edm_path_spans_the_levels_of_its_scheduler() -> None:
    path = path_of(made("edm"))
    assert path.interpolant == VE(0.002, 80.0, 7.0) and path.prediction is Prediction.X1
    levels = path.interpolant(path.grid(7)).alpha
    scheduler = made("edm")
    scheduler.set_timesteps(7)
    assert float((levels[:-1] - scheduler.sigmas[:-1]).abs().max()) < 1e-4
    x = torch.ones(1, 1)
    sigma = scheduler.sigmas[2]
    c = path.scalings(full_like_rows(float(path.when(scheduler.timesteps[2])), x))
    assert abs(float(c.c_in) - float(scheduler.precondition_inputs(x, sigma))) < 1e-6
    denoised = scheduler.precondition_outputs(2.0 * x, x, sigma)
    assert abs(float(2.0 * c.c_skip + c.c_out) - float(denoised)) < 1e-5
