"""Teachers from diffusers, walked by our samplers, against diffusers' own pipelines: same noise, same texts
or labels, same steps, same guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny_models import SIZE, condition, network, noise, pipeline, scheduler
from torch import Tensor

from saltus.guidance import CFG
from saltus.interpolants import VE, Linear
from saltus.legs import EULER, ddim
from saltus.samplers import integrate
from saltus.samplers.trajectory import fold
from saltus.teachers.diffusers import DiffusersModel, family_of, open_diffusers, path_of
from saltus.tensors import like
from saltus.typing import Condition, Velocity

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # its Euler

STEPS, STRENGTH = 4, 2.5
TEXTS = ["a cat", "photo of a dog"]
CLOSE = 1e-5
"""Of what diffusers' float32 arithmetic leaves, over the largest entry."""


@dataclass(frozen=True)
class Case:
    """A pipeline, and a scheduler put in the place of its own."""

    name: str
    kind: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)


BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
EULER_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V = {"prediction_type": "v_prediction"}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
EDM = {"final_sigmas_type": "sigma_min", "sigma_max": 20.0}
CASES = {
    "sd15": Case("SD1.5"),
    "sd15-v-zero-snr": Case("SD1.5", "DDIMScheduler", {**BETAS, **V, **ZERO, "steps_offset": 1}),
    "sd15-sample": Case("SD1.5", "DDIMScheduler", {**BETAS, "prediction_type": "sample", "steps_offset": 1}),
    "sd15-euler-v": Case("SD1.5", "EulerDiscreteScheduler", {**EULER_BETAS, **V, **LEADING}),
    "sd15-edm": Case("SD1.5", "EDMEulerScheduler", EDM),
    "sd15-edm-v": Case("SD1.5", "EDMEulerScheduler", {**EDM, **V}),
    "sdxl-euler": Case("SDXL"),
    "sd3": Case("SD3"),
    "flux": Case("Flux"),
    "flux-no-embedding": Case("Flux", network={"guidance_embeds": False}),
    "sana": Case("Sana"),
    "pixart": Case("PixArt"),
}


def walked(velocity: Velocity, x: Tensor, grid: Tensor, model: DiffusersModel, cond: Condition) -> Tensor:
    """Euler's steps on the line, DDIM's on the model's own path: what diffusers' samplers do."""
    path = model.path.interpolant
    if isinstance(path, Linear):
        return integrate(velocity, x, grid, EULER, cond)

    def leg(i: int, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return ddim(velocity, x, s, t, path, cond)

    with torch.no_grad():
        end = fold(leg, x, grid.to(x.dtype), False)
    assert isinstance(end, Tensor)
    return end


def theirs(pipe: Any, name: str, x: Tensor) -> Tensor:  # noqa: ANN401
    """What the pipeline makes of the noise, as latents."""
    given: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "latent", "latents": x.clone()}
    if name == "Flux":
        given["latents"] = pipe._pack_latents(x, *x.shape)
        given |= {"guidance_scale": STRENGTH, "height": 2 * SIZE, "width": 2 * SIZE}
        packed = pipe(TEXTS, **given).images
        return pipe._unpack_latents(packed, 2 * SIZE, 2 * SIZE, 2)
    if name in ("Sana", "PixArt"):
        given |= {"use_resolution_binning": False, "clean_caption": False}
        given |= {"height": 4 * SIZE, "width": 4 * SIZE}  # read by the checks alone
    return pipe(TEXTS, guidance_scale=STRENGTH, **given).images


def error(ours: Tensor, others: Tensor) -> float:
    """The largest error over the largest entry."""
    return float((ours - others).abs().max() / others.abs().max())


def started(model: DiffusersModel, x: Tensor) -> Tensor:
    """The noise as diffusers' samplers begin with it: EDM's adds the data's variance, taken to be 1."""
    if not isinstance(model.path.interpolant, VE):
        return x
    return x * (model.path.interpolant.sigma_max**2 + 1.0) ** 0.5


@pytest.mark.parametrize("name", CASES)
def test_samples_are_those_of_the_pipeline(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    pipe = pipeline(case.name, **case.network)
    if case.kind:
        pipe.scheduler = getattr(diffusers, case.kind)(**case.settings)
    pipe.save_pretrained(tmp_path)
    model = open_diffusers(tmp_path, shape=(4, SIZE, SIZE), strength=STRENGTH)
    x = noise(case.name)
    cond = model.condition(TEXTS)
    velocity = model.velocity(model.path.interpolant)
    strength = None if case.name == "Flux" else STRENGTH  # Flux takes it as an input, if at all
    expected = theirs(pipe, case.name, x)

    def ours(strength: float | None, dtype: torch.dtype) -> Tensor:
        guided = velocity if strength is None else CFG(velocity, strength)
        return walked(guided, started(model, x.to(dtype)), model.grid(STEPS), model, cond)

    for dtype in (torch.float32, torch.float64):
        end = ours(strength, dtype)
        assert end.dtype == dtype
        assert error(end, expected) <= CLOSE
    assert error(ours(1.3 * STRENGTH, torch.float32), expected) > 50 * CLOSE


def test_images_of_classes_are_those_of_the_pipeline(tmp_path: Path) -> None:
    """With learned variances, the class that stands for none, and the autoencoder."""
    pipe = pipeline("DiT")
    pipe.save_pretrained(tmp_path)
    model = open_diffusers(tmp_path)
    rng = torch.Generator().manual_seed(4)
    images = pipe([3, 990], STRENGTH, rng, STEPS, output_type="pt").images
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(4))
    velocity = CFG(model.velocity(model.path.interpolant), STRENGTH)
    cond = model.condition(labels=[3, 990])
    latents = walked(velocity, x, model.grid(STEPS), model, cond)
    ours = (model.decode(latents) / 2.0 + 0.5).clamp(0.0, 1.0)
    assert float(((ours > 0.0) & (ours < 1.0)).float().mean()) > 0.5
    assert float((ours - images).abs().max()) <= CLOSE
    other = walked(velocity, x, model.grid(STEPS), model, model.condition(labels=[3, 991]))
    assert float((other[0] - latents[0]).abs().max()) == 0.0
    assert float((other[1] - latents[1]).abs().max()) > 100 * CLOSE


def test_an_end_is_that_of_a_latent_consistency_model(tmp_path: Path) -> None:
    """Its scheduler's jump to the end, with the strength of guidance as an input."""
    pipe = pipeline("SD1.5", time_cond_proj_dim=6)
    betas = {k: v for k, v in BETAS.items() if k != "clip_sample"}
    pipe.scheduler = diffusers.LCMScheduler(**betas, timestep_scaling=0.002)  # else the scalings are 0 and 1
    pipe.save_pretrained(tmp_path)
    lcm = diffusers.LatentConsistencyModelPipeline(**pipe.components, requires_safety_checker=False)
    lcm.set_progress_bar_config(disable=True)
    x = noise("SD1.5")
    expected = lcm(TEXTS, num_inference_steps=1, guidance_scale=4.0, latents=x, output_type="latent").images
    asked = float(lcm.scheduler.timesteps[0])
    model = open_diffusers(tmp_path, strength=4.0)
    assert model.path.endpoint
    grid = torch.stack([model.path.when(torch.tensor(asked)), torch.ones((), dtype=torch.float64)])
    cond = model.condition(TEXTS)
    end = walked(model.velocity(model.path.interpolant), x, grid, model, cond)
    assert error(end, expected) <= CLOSE
    other = open_diffusers(tmp_path, strength=1.0)
    end = walked(other.velocity(other.path.interpolant), x, grid, other, cond)
    assert error(end, expected) > 100 * CLOSE


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_on_the_line_the_velocity_is_what_the_network_says_of_noise_and_data(kind: str) -> None:
    """b = E[x1|x] - E[x0|x] and x = (1 - t) E[x0|x] + t E[x1|x], both from diffusers' own tables, at an index
    k whose signal-to-noise ratio the line has at t."""
    module, betas = network("SD1.5").requires_grad_(False), scheduler("SD1.5", prediction_type=kind)
    model = DiffusersModel(module, family_of(module), path_of(betas), (4, SIZE, SIZE))
    cond, x = condition("SD1.5"), noise("SD1.5", dtype=torch.float64)
    k = torch.tensor([700, 31])
    signal = betas.alphas_cumprod.double()[k].sqrt()
    sigma = (1.0 - signal**2).sqrt()
    t = signal / (signal + sigma)
    b = model.velocity()(x, t, cond)
    x0, x1 = x - like(t, x) * b, x + like(1.0 - t, x) * b
    seen = x * like(sigma / (1.0 - t), x)
    with torch.no_grad():
        said = module(seen.float(), k, encoder_hidden_states=cond.tokens).sample.double()
    meant = {
        "epsilon": x0,
        "sample": x1,
        "v_prediction": like(signal, x) * x0 - like(sigma, x) * x1,
    }
    assert error(meant[kind], said) < 1e-5
