"""From the options of training to an optimiser and the schedule of its rate, and what they do in words."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from saltus.recipes.averages import averages
from saltus.recipes.options import Training
from saltus.training import (
    AdamW,
    Constant,
    Cosine,
    Fit,
    InverseSqrt,
    Muon,
    OptimizerFactory,
    PowerProfile,
    RAdam,
    described,
)
from saltus.typing import Schedule

__all__ = ["OPTIMIZERS", "SCHEDULES", "check_training", "optimizer_of", "planned", "schedule_of"]


def _adamw(t: Training) -> AdamW:
    return AdamW(t.lr, t.betas, weight_decay=t.weight_decay, decay_vectors=False)


def _radam(t: Training) -> RAdam:
    return RAdam(t.lr, t.betas, weight_decay=t.weight_decay, decay_vectors=False)


def _muon(t: Training) -> Muon:
    return Muon(t.lr, weight_decay=t.weight_decay, others=_adamw(t))


OPTIMIZERS: dict[str, Callable[[Training], OptimizerFactory]] = {
    "adamw": _adamw,
    "radam": _radam,
    "muon": _muon,
}
"""Optimisers by the name of the option."""


def _cosine(t: Training) -> Cosine:
    return Cosine(t.warmup / t.steps, t.floor or 0.0)


def _constant(t: Training) -> Constant:
    return Constant(t.warmup / t.steps)


def _inverse_sqrt(t: Training) -> InverseSqrt:
    return InverseSqrt(0.1 if t.hold is None else t.hold / t.steps, t.warmup / t.steps)


SCHEDULES: dict[str, Callable[[Training], Schedule]] = {
    "cosine": _cosine,
    "constant": _constant,
    "inverse-sqrt": _inverse_sqrt,
}
"""Schedules by the name of the option; of a method with stages, each stage plays it in proportion."""


def optimizer_of(training: Training) -> OptimizerFactory:
    """The optimiser that the options ask for."""
    return OPTIMIZERS[training.optimizer](training)


def schedule_of(training: Training) -> Schedule:
    """The schedule of the rate that the options ask for."""
    return SCHEDULES[training.schedule](training)


def check_training(t: Training) -> None:
    """Raise a ValueError for options that are impossible, alone or together."""
    if t.steps < 1 or t.batch < 1:
        raise ValueError(
            f"training: expected steps and batch of at least 1, got steps={t.steps}, batch={t.batch}; "
            "give more"
        )
    if not -(2**63) <= t.seed < 2**63:
        raise ValueError(f"seed: expected a number of at most 64 bits, got {t.seed}; give a smaller one")
    if not 0 <= t.warmup < t.steps:
        raise ValueError(
            f"warmup: expected at least 0 and fewer steps than the run's {t.steps:,}, got {t.warmup:,}; "
            "train longer or warm up for less"
        )
    if t.hold is not None and SCHEDULES[t.schedule] is not _inverse_sqrt:
        raise ValueError(f"hold {t.hold}: {t.schedule} does not hold; use --schedule inverse-sqrt or drop it")
    if t.hold is not None and not max(1, t.warmup) <= t.hold:
        raise ValueError(
            f"hold: expected a step above 0 and not before the warm-up's end at {t.warmup:,}, got {t.hold}; "
            "hold for longer"
        )
    if t.floor is not None and SCHEDULES[t.schedule] is not _cosine:
        raise ValueError(f"floor {t.floor:g}: {t.schedule} has none; use --schedule cosine or drop it")
    if t.clip is not None and not 0.0 < t.clip < math.inf:
        raise ValueError(f"clip: expected a norm above 0, got {t.clip}; None does not clip")
    if not math.isfinite(t.lr) or not math.isfinite(t.weight_decay):
        raise ValueError(f"training: expected finite numbers, got lr={t.lr}, weight_decay={t.weight_decay}")
    optimizer_of(t), schedule_of(t)  # they check their own numbers
    _check_averages(t)


def _check_averages(t: Training) -> None:
    if not t.ema or len(set(t.ema)) < len(t.ema) or not all(0.0 <= decay < 1.0 for decay in t.ema):
        got = " ".join(f"{decay:g}" for decay in t.ema) or "none"
        raise ValueError(
            f"ema: expected different decays from 0 to below 1, at least one, got {got}; 0.999 is usual, and "
            "0 the last weights"
        )
    for width in t.power_ema:
        PowerProfile(width)  # checks it
    if len(set(t.power_ema)) < len(t.power_ema):
        got = " ".join(f"{width:g}" for width in t.power_ema)
        raise ValueError(f"power ema: expected different widths, got {got}; 0.05 0.1 is usual")
    if t.power_snapshots < 1:
        raise ValueError(f"power snapshots: expected at least 1, got {t.power_snapshots}; 20 is usual")


def planned(training: Training, run: Fit) -> list[tuple[str, str]]:
    """What trains which parameters, at which rates, and the averages, in words: (what, how) a line.

    The groups are read off the players' optimisers before their first step; the rates are those of the
    first, the highest and the last step.
    """
    factors = _factors(schedule_of(training), run.length)
    peak = int(factors.argmax())
    staged = f"; anew in each stage, the first of {run.length:,} steps" if run.length < training.steps else ""
    lines: list[str] = []
    rates: list[tuple[str, str]] = []
    for player in run.players:
        who = f"{player.move.name}: " if len(run.players) > 1 else ""
        for group, text in described(player.optimizer):
            lines.append(f"{who}{text}")
            first, most, last = (f"{float(group['lr']) * float(factors[k]):.3g}" for k in (0, peak, -1))
            rates.append((who, f"{first} at first, {most} in step {peak + 1:,}, {last} in the last{staged}"))
    alike = len({text for _, text in rates}) == 1
    clip = "not clipped" if training.clip is None else f"clipped to norm {training.clip:g}"
    columns = {
        "optimiser": lines,
        "rate": [rates[0][1]] if alike else [who + text for who, text in rates],
        "schedule": [_in_words(training)],
        "gradient": [clip],
        "averages": _averages(training),
    }
    return [("" if k else name, line) for name, lines in columns.items() for k, line in enumerate(lines)]


def _in_words(t: Training) -> str:
    """The schedule that the options ask for."""
    rule = schedule_of(t)
    held = f", held to step {round(rule.hold * t.steps):,}" if isinstance(rule, InverseSqrt) else ""
    low = f", down to {rule.floor:g} of the peak" if isinstance(rule, Cosine) and rule.floor else ""
    return f"{t.schedule}{held}{low}" + (f", after a rise over {t.warmup:,} steps" if t.warmup else "")


def _factors(schedule: Schedule, steps: int) -> torch.Tensor:
    """The schedule at every step, float64 [steps]."""
    return schedule(torch.arange(steps, dtype=torch.float64) / steps)


def _averages(training: Training) -> list[str]:
    """Each average and how many steps it is over, with the shares that the run gives them."""
    lines = []
    for average in averages(training, nn.Identity()).values():
        back = f"over about {1.0 + average.lookback(training.steps):,.0f} steps at the end"
        if isinstance(average.decay, PowerProfile):
            width = average.decay.sigma_rel
            often = f"stored {min(training.power_snapshots, training.steps)} times"
            lines.append(f"power {width:g}: {back}, {width * training.steps:,.4g} wide, {often}")
        else:
            lines.append(f"ema {average.decay:g}: {back}" + ("" if lines else "; this one is evaluated"))
    return lines
