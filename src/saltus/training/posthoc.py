"""Averages whose length is chosen after training.

An average over a part of the run has a best length that nobody knows before: it depends on the network,
the rate, the guidance and the number of sampling steps. So a run tracks two averages of fixed shape,
stores both now and then, and any other is a linear combination of what was stored:

    power = PowerEMA(net, sigma_rel=(0.05, 0.10))
    for step in fit(...):
        power.update()
        if (step.index + 1) % 1000 == 0:
            power.save(folder / f"power-{step.index + 1}.safetensors")
    snapshots = [s for path in paths for s in load_snapshots(path)]
    net.load_state_dict(reconstruct(snapshots, sigma_rel=0.13))

The average with exponent gamma over the weights w(1), ..., w(t) of t steps is that of the profile
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t], each w(i) standing for tau in (i - 1, i]. Its
width grows with the run: sigma_rel is the standard deviation of p divided by t.

References:
    Karras, Aittala, Lehtinen, Hellsten, Aila and Laine, "Analyzing and improving the training dynamics
    of diffusion models", 2024, arXiv 2312.02696, section 3 and appendix C. The constraint of the fit,
    that its shares sum to one, is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saltus.training.ema import EMA
from saltus.training.single_file import load_weights, read_header, save_weights

__all__ = [
    "Blend",
    "PowerEMA",
    "PowerProfile",
    "Snapshot",
    "blend",
    "load_snapshots",
    "reconstruct",
    "reconstruct_files",
    "save_snapshots",
    "stored_in",
]

WIDEST = 12**-0.5
"""sigma_rel of the plain mean of all weights, gamma = 0."""

_META = "power_ema"


@dataclass(frozen=True)
class PowerProfile:
    """Shares of update k = t - 1 such that the average has the profile tau^gamma: 1 - (1 - 1/t)^(gamma + 1).

    The first update copies the weights, so nothing is left of those that the average began with. After
    update t, w(i) has the share (i^(gamma + 1) - (i - 1)^(gamma + 1)) / t^(gamma + 1).

    Attributes:
        sigma_rel: standard deviation of the profile as a part of the run so far, in (0, 12^(-1/2)].

    >>> [round(PowerProfile.of_gamma(1.0)(k), 4) for k in range(3)]
    [1.0, 0.75, 0.5556]
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_rel <= WIDEST:
            raise ValueError(
                f"sigma_rel: expected a width in (0, 0.2887], got {self.sigma_rel}; 0.05 to 0.25 is usual, "
                "and 0.2887 the mean of all weights"
            )

    @classmethod
    def of_gamma(cls, gamma: float) -> PowerProfile:
        """sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), for gamma >= 0."""
        if not 0.0 <= gamma < math.inf:
            raise ValueError(f"gamma: expected an exponent of at least 0, got {gamma}; 7 averages a tenth")
        return cls(min(WIDEST, math.sqrt((gamma + 1.0) / (gamma + 3.0)) / (gamma + 2.0)))

    @cached_property
    def gamma(self) -> float:
        """The exponent: g - 1 for the largest root g of (g + 1)^2 (g + 2) = r g, r = sigma_rel^-2.

        For r >= 12 the three roots are real, so the cubic y^3 + p y + q = 0 in y = g + 4/3 has the
        trigonometric solution y = 2 sqrt(-p/3) cos(acos(3q/(2p) sqrt(-3/p)) / 3).
        """
        r = self.sigma_rel**-2
        p, q = -(r + 1.0 / 3.0), 2.0 / 27.0 + 4.0 * r / 3.0
        angle = math.acos(1.5 * q / p * math.sqrt(-3.0 / p))
        return max(0.0, 2.0 * math.sqrt(-p / 3.0) * math.cos(angle / 3.0) - 4.0 / 3.0 - 1.0)

    def __call__(self, k: int) -> float:
        return -math.expm1((self.gamma + 1.0) * math.log1p(-1.0 / (k + 1.0))) if k else 1.0


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One average at one step, on the CPU.

    Attributes:
        sigma_rel: of its profile.
        step: the updates that it has seen, t.
        weights: the averaged parameters by name.
        buffers: of the module at that step.
    """

    sigma_rel: float
    step: int
    weights: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]


class PowerEMA:
    """Power-function averages of one module, of several widths at once.

    Attributes:
        averages: the :class:`EMA` of each sigma_rel; ``averages[0.05].module`` is ready for evaluation.
    """

    averages: dict[float, EMA]

    def __init__(self, module: nn.Module, sigma_rel: Sequence[float] = (0.05, 0.10)) -> None:
        """Start before the first step; two widths are what a reconstruction needs.

        Raises:
            ValueError: for no width, one twice, or one outside (0, 12^(-1/2)].
        """
        if not sigma_rel or len(set(sigma_rel)) < len(sigma_rel):
            raise ValueError(
                f"sigma_rel: expected different widths, got {list(sigma_rel)}; (0.05, 0.10) is usual"
            )
        self.averages = {s: EMA(module, PowerProfile(s)) for s in sigma_rel}

    def update(self) -> None:
        """Take in the weights as they are now: one fused call for each width."""
        for average in self.averages.values():
            average.update()

    def snapshot(self) -> list[Snapshot]:
        """A copy of every average, on the CPU."""
        step = self._step()
        return [Snapshot(s, step, *_copied(average.module)) for s, average in self.averages.items()]

    def save(self, path: str | Path) -> None:
        """Write what :meth:`snapshot` holds to one safetensors file; :func:`load_snapshots` reads it.

        Raises:
            ValueError: before the first update, and as :func:`saltus.training.save_weights`.
        """
        save_snapshots(path, {s: average.module for s, average in self.averages.items()}, self._step())

    def _step(self) -> int:
        step = min(int(average.count) for average in self.averages.values())
        if step < 1:
            raise ValueError("snapshot: expected at least one update, got none; call update() after a step")
        return step


def save_snapshots(path: str | Path, averages: Mapping[float, nn.Module], step: int) -> None:
    """Write power-function averages by sigma_rel to one safetensors file; :func:`load_snapshots` reads it.

    Raises:
        ValueError: as :func:`saltus.training.save_weights`.
    """
    modules = {f"average{i}": module for i, module in enumerate(averages.values())}
    buffers = sorted(_buffer_names(modules["average0"]))
    save_weights(path, modules, {_META: {"step": step, "sigma_rel": list(averages), "buffers": buffers}})


def _buffer_names(module: nn.Module) -> set[str]:
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return set(module.state_dict()) - parameters


def _copied(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters and the persistent buffers of a module, copied to the CPU."""
    state = {name: t.detach().to("cpu", copy=True) for name, t in module.state_dict().items()}
    buffers = _buffer_names(module)
    return {n: t for n, t in state.items() if n not in buffers}, {n: state[n] for n in sorted(buffers)}


def load_snapshots(path: str | Path) -> list[Snapshot]:
    """The snapshots of a file that :meth:`PowerEMA.save` wrote.

    Raises:
        ValueError: for a damaged file or one of another kind.
    """
    tensors, meta = load_weights(path)
    step, widths, names = _stored(path, meta)
    snapshots = []
    for i, sigma_rel in enumerate(widths):
        prefix = f"average{i}."
        state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        buffers = {n: t for n, t in state.items() if n in names}
        weights = {n: t for n, t in state.items() if n not in names}
        snapshots.append(Snapshot(sigma_rel, step, weights, buffers))
    return snapshots


def _stored(path: str | Path, meta: Mapping[str, Any]) -> tuple[int, list[float], set[str]]:
    """The step and the widths of the averages in a file, and the names of the buffers."""
    try:
        found = meta[_META]
        step, widths = int(found["step"]), [PowerProfile(float(s)).sigma_rel for s in found["sigma_rel"]]
        names = {str(name) for name in found["buffers"]}
        if step < 1 or not widths:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{path}: expected snapshots of a PowerEMA, got other weights; give a file of PowerEMA.save"
        ) from None
    return step, widths, names


class Blend(NamedTuple):
    """The linear combination of stored averages that comes closest to a profile.

    Attributes:
        shares: of each stored average, float64, [n]; they sum to one.
        mismatch: the L2 norm of what the profile lacks, relative to that of the profile.
    """

    shares: Tensor
    mismatch: float


def blend(stored: Sequence[tuple[float, int]], sigma_rel: float, step: int) -> Blend:
    """Least squares in float64: min over x of |p - sum_j x_j p_j|^2 subject to sum_j x_j = 1.

    The constraint keeps the part of the weights that does not change in training exact; without it a
    fit of few averages loses a part 1 - sum_j x_j of it. Only widths and steps are needed, so a caller
    whose snapshots do not fit in memory can add them up one at a time.

    Args:
        stored: (sigma_rel, step) of each stored average.
        sigma_rel: width of the wanted profile.
        step: where it ends.

    Raises:
        ValueError: for no stored average, or a step outside [1, the last stored one].

    >>> blend([(0.05, 100), (0.10, 100)], 0.10, 100).shares.round(decimals=6).abs()
    tensor([0., 1.], dtype=torch.float64)
    """
    last = max((t for _, t in stored), default=0)
    if not 1 <= step <= last:
        raise ValueError(
            f"step: expected one from 1 to {last}, the last stored, got {step}; store averages up to the "
            "step that is wanted"
        )
    wanted = PowerProfile(sigma_rel)
    g = torch.tensor([*(PowerProfile(s).gamma for s, _ in stored), wanted.gamma], dtype=torch.float64)
    t = torch.tensor([*(float(t) for _, t in stored), float(step)], dtype=torch.float64) / step
    products = _inner(t[:, None], g[:, None], t[None], g[None])
    norm = products.diagonal().sqrt()  # profiles of norm one: their sizes differ by orders of magnitude
    products = products / (norm[:, None] * norm[None])
    n = len(stored)
    ones = 1.0 / norm[:n]
    scale = ones.norm()
    system = torch.zeros(n + 1, n + 1, dtype=torch.float64)  # of the Lagrange function
    system[:n, :n], system[:n, n], system[n, :n] = products[:n, :n], ones / scale, ones / scale
    right = torch.cat([products[:n, n], (norm[n].reciprocal() / scale)[None]])
    # of the least norm: an average that was stored twice makes the system singular
    x = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:n, 0]
    square = 1.0 - 2.0 * (x @ products[:n, n]) + x @ products[:n, :n] @ x
    return Blend(x * norm[n] / norm[:n], math.sqrt(max(0.0, float(square))))


def _inner(ta: Tensor, ga: Tensor, tb: Tensor, gb: Tensor) -> Tensor:
    """The integral of p_a p_b over [0, min(ta, tb)], by logarithms since powers overflow."""
    total = ga + gb + 1.0
    power = total * torch.minimum(ta, tb).log() - (ga + 1.0) * ta.log() - (gb + 1.0) * tb.log()
    return (ga + 1.0) * (gb + 1.0) / total * power.exp()


def reconstruct(
    snapshots: Sequence[Snapshot], sigma_rel: float, step: int | None = None, tolerance: float = 0.1
) -> dict[str, Tensor]:
    """The average of width ``sigma_rel`` over the first ``step`` steps, as a state dict.

    Sums are in float64. Buffers are those of the last snapshot up to ``step``, or of the first if all are
    later.

    Args:
        snapshots: of one run, of any widths and steps; 20 steps of the widths 0.05 and 0.10 give the
            profiles from 0.03 to 0.2 to 3 %.
        sigma_rel: width of the wanted average.
        step: where it ends; None is the last stored step. It should be a stored one: profiles end with a
            jump, which those that end elsewhere cannot form (off by 20 % in the middle between 20).
        tolerance: largest mismatch (:class:`Blend`) of the profile.

    Raises:
        ValueError: for snapshots that lack or differ in a tensor, a step beyond them, or a profile that
            they cannot form.
    """
    at, shares = _shares([(s.sigma_rel, s.step) for s in snapshots], sigma_rel, step, tolerance)
    total = _Sum()
    for share, s in zip(shares, snapshots, strict=True):
        total.add(share, s)
    return total.state() | _nearest(snapshots, at)


def reconstruct_files(
    paths: Sequence[str | Path], sigma_rel: float, step: int | None = None, tolerance: float = 0.1
) -> dict[str, Tensor]:
    """As :func:`reconstruct`, of files of :func:`save_snapshots`, with one of them in memory at a time.

    Raises:
        ValueError: as there, and for a damaged file or one of another kind.
    """
    at, shares = _shares(stored_in(paths), sigma_rel, step, tolerance)
    total, left = _Sum(), iter(shares)
    nearest: list[Snapshot] = []
    for path in paths:
        for s in load_snapshots(path):
            total.add(next(left), s)
            nearest.append(replace(s, weights={}))
    return total.state() | _nearest(nearest, at)


def stored_in(paths: Sequence[str | Path]) -> list[tuple[float, int]]:
    """(sigma_rel, step) of every average in files of :func:`save_snapshots`, as :func:`blend` takes them."""
    found = [_stored(path, read_header(path).meta) for path in paths]
    return [(width, step) for step, widths, _ in found for width in widths]


def _shares(
    stored: Sequence[tuple[float, int]], sigma_rel: float, step: int | None, tolerance: float
) -> tuple[int, list[float]]:
    """The step of the wanted average, and the share of each stored one in it."""
    at = max((t for _, t in stored), default=0) if step is None else step
    shares, mismatch = blend(stored, sigma_rel, at)
    if mismatch > tolerance:
        raise ValueError(
            f"sigma_rel: expected a profile that {len(stored)} snapshots form to {tolerance:.0%}, got "
            f"{sigma_rel} at step {at}, which they miss by {mismatch:.0%}; store more of them, ask for one "
            "of their steps and a width nearer to theirs, or raise the tolerance"
        )
    return at, shares.tolist()


class _Sum:
    """A sum of snapshots in float64."""

    def __init__(self) -> None:
        self._totals: dict[str, tuple[Tensor, torch.dtype]] = {}

    def add(self, share: float, s: Snapshot) -> None:
        if not self._totals:
            zeros = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in s.weights.items()}
            self._totals = {n: (zeros[n], t.dtype) for n, t in s.weights.items()}
        if {n: t.shape for n, t in s.weights.items()} != {n: t.shape for n, (t, _) in self._totals.items()}:
            raise ValueError(
                "snapshots: expected the same tensors in all, got different ones; give those of one run"
            )
        for name, (total, _) in self._totals.items():
            total.add_(s.weights[name], alpha=share)

    def state(self) -> dict[str, Tensor]:
        return {name: total.to(dtype) for name, (total, dtype) in self._totals.items()}


def _nearest(snapshots: Sequence[Snapshot], at: int) -> dict[str, Tensor]:
    """The buffers of the last snapshot up to a step, or of the first if all are later."""
    nearest = min(snapshots, key=lambda s: (s.step > at, abs(s.step - at)))
    return {name: tensor.clone() for name, tensor in nearest.buffers.items()}
