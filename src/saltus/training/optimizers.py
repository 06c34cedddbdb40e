"""PyTorch's optimisers as values: options first, parameters later.

A move or a run takes any function parameters -> optimiser; these are the usual ones with the
fastest implementation that the parameters allow.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from saltus.typing import Schedule

__all__ = ["AdamW", "Joint", "Muon", "OptimizerFactory", "RAdam", "describe", "described", "is_matrix"]

_FUSED = frozenset({"cpu", "cuda"})
"""Devices on which PyTorch updates all parameters in one kernel."""

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Parameters -> optimiser."""


def _check(lr: float, weight_decay: float, betas: tuple[float, float], eps: float) -> None:
    if not lr > 0.0:
        raise ValueError(f"lr: expected a rate above 0, got {lr}; 1e-3 suits a small network")
    if not weight_decay >= 0.0:
        raise ValueError(f"weight_decay: expected at least 0, got {weight_decay}; 0 turns it off")
    if not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas: expected two numbers in [0, 1), got {betas}; (0.9, 0.999) is usual")
    if not eps >= 0.0:
        raise ValueError(f"eps: expected at least 0, got {eps}; 1e-8 is usual")


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter has two dimensions, both above one."""
    return parameter.ndim == 2 and min(parameter.shape) > 1


def _groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, decay_vectors: bool
) -> list[dict[str, Any]]:
    """One group, or two of which that of the parameters of fewer than two dimensions has no decay."""
    ours = list(parameters)
    if decay_vectors or not weight_decay:
        return [{"params": ours}]
    decayed = {"params": [p for p in ours if p.ndim >= 2]}
    spared = {"params": [p for p in ours if p.ndim < 2], "weight_decay": 0.0}
    return [group for group in (decayed, spared) if group["params"]]


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, which is off by default (then it is plain Adam).

    Loshchilov and Hutter, 2019 (arXiv 1711.05101).

    Attributes:
        lr: the rate that the schedule multiplies.
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: weights shrink by lr * weight_decay a step.
        decay_vectors: whether parameters of fewer than two dimensions, biases and the scales of
            norms, shrink too; transformers are usually trained without.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_vectors: bool = True

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay, self.betas, self.eps)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters, fused into one kernel where PyTorch has one."""
        ours = list(parameters)
        fused = all(p.device.type in _FUSED and p.is_floating_point() for p in ours)
        groups = _groups(ours, self.weight_decay, self.decay_vectors)
        return torch.optim.AdamW(groups, self.lr, self.betas, self.eps, self.weight_decay, fused=fused)


@dataclass(frozen=True)
class RAdam:
    """Rectified Adam, the choice of consistency training: it needs no warm-up.

    Liu et al., 2020 (arXiv 1908.03265). Attributes as for :class:`AdamW`.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_vectors: bool = True

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay, self.betas, self.eps)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters; weight decay is decoupled."""
        groups = _groups(parameters, self.weight_decay, self.decay_vectors)
        return torch.optim.RAdam(
            groups, self.lr, self.betas, self.eps, self.weight_decay, decoupled_weight_decay=True
        )


@dataclass(frozen=True)
class Muon:
    """Momentum whose matrices are made orthogonal before each step, and another optimiser for the rest.

    W <- (1 - lr weight_decay) W - 0.2 lr sqrt(max(m, n)) O for a matrix W of m x n numbers, where O is U V^T
    of the Nesterov momentum U S V^T, nearly, by five Newton-Schulz iterations in bfloat16. With that factor
    the step is as large as AdamW's, whose rate and decay fit, and one rate serves for both.

    Vectors and the kernels of convolutions go to ``others``. An embedding table is a matrix too, and with
    the first and last layers better left to ``others``: give a function ``takes`` that says no to it, as
    ``lambda p: is_matrix(p) and p is not net.table.weight``.

    Attributes:
        lr: the rate that the schedule multiplies.
        momentum: decay of the momentum.
        weight_decay: of the matrices, as for :class:`AdamW`.
        others: makes the optimiser of the rest; None is AdamW with this lr and decay, vectors spared.
        takes: whether a parameter is one of the matrices; it must have two dimensions.

    References:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024 (a web page);
        Liu et al., "Muon is scalable for LLM training", 2025, arXiv 2502.16982, for the factor.
    """

    lr: float = 1e-3
    momentum: float = 0.95
    weight_decay: float = 0.0
    others: OptimizerFactory | None = None
    takes: Callable[[nn.Parameter], bool] = is_matrix

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay, (self.momentum, 0.0), 0.0)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters: a :class:`Joint` of two, or the one that has any.

        Raises:
            ValueError: if ``takes`` accepts a parameter that is no matrix.
        """
        ours = list(parameters)
        taken = [self.takes(p) for p in ours]
        matrices = [p for p, take in zip(ours, taken, strict=True) if take]
        rest = [p for p, take in zip(ours, taken, strict=True) if not take]
        for p in matrices:
            if p.ndim != 2:
                raise ValueError(
                    f"takes: expected parameters of two dimensions, got {list(p.shape)}; refuse others"
                )
        others = self.others or AdamW(self.lr, weight_decay=self.weight_decay, decay_vectors=False)
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            options: dict[str, Any] = {"momentum": self.momentum, "adjust_lr_fn": "match_rms_adamw"}
            parts.append(torch.optim.Muon(matrices, self.lr, self.weight_decay, **options))
        if rest:
            parts.append(others(rest))
        return parts[0] if len(parts) == 1 else Joint(parts)


class Joint(torch.optim.Optimizer):
    """Optimisers of different parameters as one: their groups in a row, their state in one table.

    Attributes:
        parts: the optimisers, which share their groups and state with this one.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        """Of optimisers that have made no step yet.

        Raises:
            ValueError: if there is none, or a parameter is in two.
        """
        if not parts:
            raise ValueError("parts: expected at least one optimiser, got none; give one")
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Step every part; the value of ``closure``, if given, is returned."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for part in self.parts:
            part.step()
        return value

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for any optimiser; PyTorch makes new groups, which the parts then share."""
        super().load_state_dict(state_dict)
        self._share()


_SHOWN = ("lr", "betas", "momentum", "eps", "weight_decay")


def describe(optimizer: torch.optim.Optimizer, schedule: Schedule, clip: float | None) -> str:
    """How weights are trained, in one line, read off the optimiser itself: any factory's will do.

    >>> net = nn.Linear(3, 2)
    >>> describe(AdamW(1e-3)(net.parameters()), lambda progress: 1.0 - progress, clip=None)
    'AdamW of 8 numbers in 2 tensors (lr 0.001, betas 0.9 0.999, eps 1e-08, weight_decay 0); rate times 1 at
    the start, 0.75, 0.5, 0.25, 0 at the end (<lambda>); gradients are not clipped'
    """
    makers = [text for _, text in described(optimizer)]
    factors = [f"{float(schedule(torch.tensor(q / 4, dtype=torch.float64))):.3g}" for q in range(5)]
    rate = f"rate times {factors[0]} at the start, {', '.join(factors[1:4])}, {factors[4]} at the end"
    clipped = "gradients are not clipped" if clip is None else f"gradients are clipped to norm {clip:g}"
    return f"{' and '.join(makers)}; {rate} ({_name(schedule)}); {clipped}"


def described(optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], str]]:
    """Each group of parameters with what trains it, in words.

    >>> net = nn.Linear(3, 2)
    >>> [text for _, text in described(Muon(1e-2)(net.parameters()))]  # doctest: +NORMALIZE_WHITESPACE
    ['Muon of 6 numbers in 1 tensors (lr 0.01, momentum 0.95, eps 1e-07, weight_decay 0)',
     'AdamW of 2 numbers in 1 tensors (lr 0.01, betas 0.9 0.999, eps 1e-08, weight_decay 0)']
    """
    parts = optimizer.parts if isinstance(optimizer, Joint) else (optimizer,)
    return [(group, _described(type(part).__name__, group)) for part in parts for group in part.param_groups]


def _described(name: str, group: dict[str, Any]) -> str:
    def text(value: object) -> str:
        return " ".join(f"{v:g}" for v in (value if isinstance(value, tuple) else (value,)))

    options = ", ".join(f"{key} {text(group[key])}" for key in _SHOWN if key in group)
    tensors = group["params"]
    return f"{name} of {sum(p.numel() for p in tensors):,} numbers in {len(tensors)} tensors ({options})"


def _name(schedule: Schedule) -> str:
    if dataclasses.is_dataclass(schedule):
        return repr(schedule)
    return schedule.__name__ if inspect.isfunction(schedule) else type(schedule).__name__
