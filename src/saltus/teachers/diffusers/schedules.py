"""What a scheduler configuration says of a model: its path, what it predicts, and its clock.

diffusers counts time from the data: index k = 0 is almost clean, k = N - 1 almost noise. Ours runs from noise
to data, so for a model of N discrete times

    t = 1 - (k + 1)/N,     k = N (1 - t) - 1:       t = 0 is k = N - 1, and t = 1 is the data, k = -1.

The path through such a table is a :class:`saltus.teachers.diffusers.tabulated.Tabulated`.

What a scheduler adds when it samples (clipping, thresholding, the order of its solver) is no part of the
model and is left out: the velocity is that of the model as it was trained.

References:
    Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", 2020, arXiv 2006.11239.
    Salimans and Ho, "Progressive distillation", 2022, arXiv 2202.00512 (v).
    Lin et al., "Common diffusion noise schedules and sample steps are flawed", 2023, arXiv 2305.08891
        (zero terminal signal-to-noise ratio).
    Karras et al., "Elucidating the design space" (EDM), 2022, arXiv 2206.00364.
    Esser et al., "Scaling rectified flow transformers", 2024, arXiv 2403.03206 (shifted times).
    Luo et al., "Latent consistency models", 2023, arXiv 2310.04378 (boundary scalings).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saltus.interpolants import VE, Interpolant, Linear
from saltus.predictions import Prediction
from saltus.teachers.diffusers.packages import part
from saltus.teachers.diffusers.tabulated import Tabulated
from saltus.teachers.foreign import teacher
from saltus.tensors import like, sg
from saltus.typing import Condition, Velocity

__all__ = ["Path", "Scalings", "path_of"]


Ask = Callable[[Tensor, Tensor, Condition | None], Tensor]
"""(x [B, ...], timestep [B], condition) -> the network's output [B, ...]."""


class Scalings(NamedTuple):
    """A prediction is c_skip x + c_out F(c_in x): each [B]."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor


@dataclass(frozen=True, eq=False)
class Path:
    """How a model is asked and what its answer means, in our times (t = 0 is noise).

    Attributes:
        interpolant: the path that it was trained on.
        prediction: what c_skip x + c_out F(c_in x) is.
        clock: our t [B] to the scheduler's timestep [B]: an index, 1000 sigma, or log(sigma)/4.
        when: the inverse of ``clock``.
        between: the times at which the model may be asked.
        scalings: our t [B] -> :class:`Scalings`; None is the model's output as it is.
        config: the scheduler's configuration.
        endpoint: whether the prediction is the end of the trajectory and not its mean (a consistency model):
            its velocity leads each state straight to that end, so it is u_{t,1}, not b_t.
    """

    interpolant: Interpolant
    prediction: Prediction
    clock: Callable[[Tensor], Tensor]
    when: Callable[[Tensor], Tensor]
    between: tuple[float, float] = (0.0, 1.0)
    scalings: Callable[[Tensor], Scalings] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    endpoint: bool = False

    def velocity(self, ask: Ask, onto: Interpolant = Linear()) -> Velocity:
        """The velocity along ``onto`` of a network on this path, exactly (:func:`saltus.teachers.teacher`).

        Args:
            ask: (x [B, ...], timestep [B], cond) -> the network's output, without any scaling.
            onto: the path that the velocity is wanted on.
        """
        scaled = ask if self.scalings is None else _Scaled(ask, self.clock, self.scalings)
        clock = self.clock if self.scalings is None else None
        return teacher(
            scaled, self.interpolant, self.prediction, onto=onto, clock=clock, between=self.between
        )

    def per_step(self, factor: float) -> Path:
        """The same for a network whose own time is ``factor`` times the scheduler's."""
        if factor == 1.0:
            return self
        clock, when = self.clock, self.when
        return replace(
            self, clock=lambda t: factor * clock(t), when=lambda timestep: when(timestep.double() / factor)
        )

    def grid(self, steps: int, tokens: int | None = None, from_one: bool = False) -> Tensor:
        """The times at which diffusers' own sampler asks the model in ``steps`` steps, and where it ends: our
        times, float64 [steps + 1]; DDIM's for models of discrete times.

        Args:
            steps: of the sampler.
            tokens: patches of an image, for schedulers that shift by it (``use_dynamic_shifting``).
            from_one: whether the levels of a flow-matching model are 1, ..., 1/steps before they are shifted,
                as Flux's pipeline has it; else 1, ..., 1/1000.
        """
        if isinstance(self.interpolant, Tabulated):
            return _discrete_grid(self.config, steps)
        if isinstance(self.interpolant, VE):
            sampler = part("EDMEulerScheduler").from_config(dict(self.config))
            sampler.set_timesteps(steps)
            return torch.cat([self.when(sampler.timesteps), torch.ones(1).double()])
        return _flow_grid(self.config, steps, tokens, from_one)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """c_skip x + c_out F(c_in x, timestep)."""

    ask: Ask
    clock: Callable[[Tensor], Tensor]
    scalings: Callable[[Tensor], Scalings]

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        c_in, c_skip, c_out = (like(c, x) for c in self.scalings(t))
        answer = self.ask((c_in * x).to(x.dtype), self.clock(t), cond)
        return (c_skip * x + c_out * answer).to(x.dtype)


def path_of(scheduler: Mapping[str, Any] | Any) -> Path:  # noqa: ANN401
    """The path of a scheduler of diffusers, or of its configuration as in ``scheduler_config.json``.

    Raises:
        ValueError: for a scheduler or a setting that says something else than is known here.
    """
    if isinstance(scheduler, Mapping):
        config = dict(scheduler)
    else:
        config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    name = str(config.get("_class_name", ""))
    kind = str(config.get("prediction_type", "epsilon"))
    if name in _FLOW or kind in _FLOW_PREDICTIONS:
        return _flow(config)
    if name in _EDM:
        return _edm(config, kind)
    if name in _TABLE or name in _CONSISTENCY:
        return _discrete(config, name, kind)
    known = ", ".join(sorted(_FLOW | _EDM | _TABLE | _CONSISTENCY))
    raise ValueError(
        f"scheduler: expected one of {known}, got {name!r}; give scheduler=Path(...) with the model's own "
        "interpolant, prediction and clock"
    )


_FLOW = frozenset({"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"})
_FLOW_PREDICTIONS = frozenset({"flow_prediction"})
_EDM = frozenset({"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"})
_CONSISTENCY = frozenset({"LCMScheduler"})
_TABLE = frozenset(
    {"DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler"}
    | {"DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"}
    | {"EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"}
    | {"KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler"}
    | {"PNDMScheduler", "UniPCMultistepScheduler"}
)
_KINDS = {"epsilon": Prediction.NOISE, "v_prediction": Prediction.V, "sample": Prediction.X1}
_CONTINUOUS = frozenset({"continuous"})
_NEAR = 2e-4
"""A time in float32 knows its index to about 6e-5: one so near to a whole number is taken to be it."""


def _flow(config: Mapping[str, Any]) -> Path:
    """x = (1 - sigma) data + sigma noise, sigma = 1 - t, and the model predicts noise - data at 1000 sigma.

    A shift moves the times that a sampler asks at, not the model's clock."""
    if config.get("invert_sigmas"):
        raise ValueError(
            "scheduler: expected sigmas that fall, got invert_sigmas=True, a model whose time runs the other "
            "way; give scheduler=Path(...) with its own clock"
        )
    n = float(config.get("num_train_timesteps", 1000))

    def backwards(t: Tensor) -> Scalings:
        return Scalings(torch.ones_like(t), torch.zeros_like(t), -torch.ones_like(t))

    return Path(
        Linear(),
        Prediction.VELOCITY,
        clock=lambda t: (n * (1.0 - t.double())).to(t.dtype),
        when=lambda timestep: 1.0 - timestep.double() / n,
        scalings=backwards,
        config=config,
    )


def _edm(config: Mapping[str, Any], kind: str) -> Path:
    """x = data + sigma noise, and the denoiser is c_skip x + c_out F(c_in x, log(sigma)/4)."""
    signs = {"epsilon": 1.0, "v_prediction": -1.0}
    if kind not in signs:
        raise ValueError(f"scheduler: expected prediction_type of {', '.join(signs)} with EDM, got {kind!r}")
    low, high = float(config.get("sigma_min", 0.002)), float(config.get("sigma_max", 80.0))
    rho, data = float(config.get("rho", 7.0)), float(config.get("sigma_data", 0.5))
    path = VE(low, high, rho)

    def scalings(t: Tensor) -> Scalings:
        sigma = path(t.double()).alpha
        length2 = sigma.square() + data * data
        length = length2.sqrt()
        of = (1.0 / length, data * data / length2, signs[kind] * sigma * data / length)
        return Scalings(*(c.to(t.dtype) for c in of))

    def when(timestep: Tensor) -> Tensor:
        root = torch.exp(4.0 * timestep.double() / rho)
        top, bottom = high ** (1.0 / rho), low ** (1.0 / rho)
        progress: Tensor = (top - root) / (top - bottom)
        return progress

    return Path(
        path,
        Prediction.X1,
        clock=lambda t: (0.25 * path(t.double()).alpha.log()).to(t.dtype),
        when=when,
        scalings=scalings,
        config=config,
    )


def _discrete(config: Mapping[str, Any], name: str, kind: str) -> Path:
    if kind not in _KINDS:
        raise ValueError(f"scheduler: expected prediction_type of {', '.join(_KINDS)}, got {kind!r}")
    if config.get("timestep_type") in _CONTINUOUS:
        raise ValueError(
            "scheduler: expected discrete timesteps, got timestep_type='continuous'; give "
            "scheduler=Path(...) with the model's own clock"
        )
    prediction = _KINDS[kind]
    if config.get("rescale_betas_zero_snr") and prediction is Prediction.NOISE:
        raise ValueError(
            "scheduler: expected v_prediction or sample with rescale_betas_zero_snr, got epsilon, which says "
            "nothing of the data where the state is pure noise; use the configuration that the model was "
            "trained with"
        )
    table = part(name).from_config(dict(config)).alphas_cumprod
    path = Tabulated(table)
    n = len(path)

    def clock(t: Tensor) -> Tensor:
        index = n * (1.0 - t.double()) - 1.0
        if t.dtype != torch.float64:
            gap = sg(index.round() - index)
            index = index + torch.where(gap.abs() < _NEAR * n / 1000.0, gap, torch.zeros_like(gap))
        return index.to(t.dtype)

    consistent = name in _CONSISTENCY
    return Path(
        path,
        Prediction.X1 if consistent else prediction,
        clock=clock,
        when=lambda timestep: 1.0 - (timestep.double() + 1.0) / n,
        between=(0.0, 1.0 - 1.0 / n),
        scalings=_boundary(config, path, clock, prediction) if consistent else None,
        config=config,
        endpoint=consistent,
    )


def _boundary(
    config: Mapping[str, Any], path: Tabulated, clock: Callable[[Tensor], Tensor], kind: Prediction
) -> Callable[[Tensor], Scalings]:
    """Those of a latent consistency model: b_skip x + b_out x1(x, F), x1 the data that F stands for."""
    factor, data = float(config.get("timestep_scaling", 10.0)), 0.5

    def scalings(t: Tensor) -> Scalings:
        scaled = factor * clock(t).double()
        length2 = scaled.square() + data * data
        skip, out = data * data / length2, scaled / length2.sqrt()
        c = path(t.double())
        p, q = kind.row(c)
        determinant = c.alpha * q - c.beta * p
        of = (torch.ones_like(skip), skip - out * p / determinant, out * c.alpha / determinant)
        return Scalings(*(v.to(t.dtype) for v in of))

    return scalings


def _discrete_grid(config: Mapping[str, Any], steps: int) -> Tensor:
    sampler = part("DDIMScheduler").from_config(dict(config))
    sampler.set_timesteps(steps)
    n = len(sampler.alphas_cumprod)
    to_data = bool(sampler.final_alpha_cumprod == 1.0)
    last = torch.tensor([1.0 if to_data else 1.0 - 1.0 / n], dtype=torch.float64)
    return torch.cat([1.0 - (sampler.timesteps.double() + 1.0) / n, last])


def _flow_grid(config: Mapping[str, Any], steps: int, tokens: int | None, from_one: bool) -> Tensor:
    given = dict(config)
    if "flow_shift" in given:  # a solver of another family on a flow-matching model
        given["shift"] = given["flow_shift"]
    sampler = part("FlowMatchEulerDiscreteScheduler").from_config(given)
    asked: dict[str, Any] = {"num_inference_steps": steps}
    if from_one:
        asked["sigmas"] = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).tolist()
    if given.get("use_dynamic_shifting"):
        if tokens is None:
            raise ValueError(
                "grid: expected the number of patches of an image for a scheduler with use_dynamic_shifting, "
                "got none; give tokens"
            )
        few, many = float(sampler.config.base_image_seq_len), float(sampler.config.max_image_seq_len)
        low, high = float(sampler.config.base_shift), float(sampler.config.max_shift)
        asked["mu"] = low + (high - low) * (tokens - few) / (many - few)
    sampler.set_timesteps(**asked)
    return torch.as_tensor(1.0 - sampler.sigmas.double())
