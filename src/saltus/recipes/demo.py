"""``saltus demo``: one-step digits from real data on this machine, in four minutes, and the proof."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

from saltus.recipes.digits import AGREEMENT, FRECHET, digits
from saltus.recipes.evaluate import EULERS, ODE_STEPS, OWN, SOLVER, Measured
from saltus.recipes.execute import execute
from saltus.recipes.experiment import Experiment
from saltus.recipes.options import Output, Training
from saltus.recipes.run import clock

__all__ = ["Criterion", "criteria", "demo"]

MOST_STEPS = 4000
JUMP_WEIGHT = 7.0
"""With the paper's weights, 0.75 and 0.25, the velocity learns faster than the jumps can follow."""


@dataclasses.dataclass(frozen=True)
class Criterion:
    """Something that the demo must reach."""

    text: str
    holds: bool


def demo(seconds: float = 150.0, seed: int = 0, out: Path = Path("runs/demo")) -> int:
    """Train a flow map on 1,797 real handwritten digits with lsd, then judge it.

    The same as saltus run digits-lsd --jump-weight 7 --lr 0.003 with as many steps as this machine makes
    in the given time. The last lines say whether one jump is as good as it should be; the exit status is
    1 if it is not.

    Args:
        seconds: Time for training.
        seed: Decides every random number.
        out: Run folder; a demo that is there is replaced.
    """
    if not 0.0 < seconds < math.inf:
        raise ValueError(f"seconds: expected a time above 0, got {seconds}; 150 is usual")
    begin = time.perf_counter()
    training = Training(steps=MOST_STEPS, batch=512, lr=3e-3, seed=seed)
    made = digits(jump_weight=JUMP_WEIGHT, training=training, output=Output(out=out, overwrite=True))
    steps = affordable(made, seconds)
    made = dataclasses.replace(made, training=dataclasses.replace(made.training, steps=steps))
    print(f"Learning 1,797 real digits with lsd: {steps:,} steps of 512, at most some {clock(seconds)}.")
    lines = execute(made)
    found = criteria(lines)
    for c in found:
        print(f"{'holds ' if c.holds else 'MISSED'}  {c.text}")
    print(f"took     {clock(time.perf_counter() - begin)}")
    return int(not all(c.holds for c in found))


def affordable(made: Experiment, seconds: float) -> int:
    """How many steps this machine makes in that time, measured on a copy, at most MOST_STEPS."""
    steps = made.fit(made.model())
    for _ in range(5):
        next(steps)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < min(2.0, 0.05 * seconds) or count < 3:
        next(steps)
        count += 1
    return max(50, min(MOST_STEPS, int(seconds * count / (time.perf_counter() - begin))))


def criteria(lines: Sequence[Measured]) -> list[Criterion]:
    """What the demo must reach, from the lines of its evaluation."""
    by = {(m.group, m.steps): m.figures for m in lines}
    one, euler = by[OWN, 1], by[EULERS, 1]
    ode = by[SOLVER, ODE_STEPS]
    d, d_ode, d_euler = one[FRECHET], ode[FRECHET], euler[FRECHET]
    agree = one[AGREEMENT]
    return [
        Criterion(
            f"Fréchet distance of one jump, {d:.3f}: {d / d_ode:.2f} × its own 64-step ODE's, at most 1.4 ×",
            d <= 1.4 * d_ode,
        ),
        Criterion(f"and 1/{d_euler / d:.0f} of that of one Euler step, at most 1/15", d <= d_euler / 15),
        Criterion(f"{agree:.1f} % of one-jump samples are the digit asked for, at least 97 %", agree >= 97.0),
    ]
