"""Why a number was not finite: a run plays the steps before it once more, and looks.

A step waits for nothing, so a fault is noticed late, when the weights are lost. But a step's randomness is a
function of the seed and the step, and a checkpoint from before the fault is on disk: so the run is put back
to it and played, in silence, up to the faulty step. There each turn's terms are taken row by row with the
weights as they are at that moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saltus.streams import Streams
from saltus.training.loop import Arrested, Fit, Turn
from saltus.training.parallel import World
from saltus.training.sharding import local
from saltus.training.step import NonFiniteLoss
from saltus.typing import Draws, Term

__all__ = ["Cause", "cause"]

SHOWN = 4
"""Rows and parameters that a message names."""
LARGE = 1e4
"""Weights above this size are told."""


class Cause(NamedTuple):
    """Why a step was not finite.

    Attributes:
        words: in a line: the term, how many of its values, at which times, for which rows of the global
            batch; or that all terms are finite and the gradient of which parameters is not.
        weights: whether the weights before the step were out of all proportion.
    """

    words: str
    weights: bool


def cause(fit: Fit, fault: NonFiniteLoss, world: World) -> Cause:
    """Why a step was not finite. All processes of the run call this, and get the same answer.

    Args:
        fit: stands before the faulty step, such as where a checkpoint is; is played up to it, and of no use
            after that.
        fault: as :meth:`Step.fetch` told it.
        world: of the run.
    """
    fit.prompt = True
    try:
        while fit.index <= fault.step:
            next(fit)
    except Arrested as found:
        turn, size = found.turn, max(world.collect(_largest(fit)))
        words = _in_terms(turn, world) or _in_gradient(turn, world)
        if not size <= LARGE:
            words += f"; the largest weight before it is {size:.1e}"
        return Cause(f"step {fit.index:,}: {words}", not size <= LARGE)
    return Cause(
        f"step {fault.step:,}: {fault.what} of move {fault.player!r} was not finite, but was when the steps "
        "since the last checkpoint were played again: this device does not always compute the same numbers",
        False,
    )


def _in_terms(turn: Turn, world: World) -> str:
    """What is wrong with a turn's terms; empty if they are finite."""
    here: dict[str, dict[str, Any]] = {}
    for batch, rng in turn.parts:
        draws, terms = turn.player.look(batch, rng)
        for name, term in terms.items():
            known = here.setdefault(name, {"count": 0, "bad": 0, "nan": 0, "rows": []})
            bad = ~torch.isfinite(term.value)
            known["count"] += term.value.numel()
            known["bad"] += int(bad.sum())
            known["nan"] += int(term.value.isnan().sum())
            if bool(bad.any()):
                known["rows"] += _rows(term, draws, rng, bad.nonzero().flatten().cpu())
    processes = world.collect(here)
    for name in here:
        of_all = [process[name] for process in processes]
        count, bad, nan = (sum(part[key] for part in of_all) for key in ("count", "bad", "nan"))
        if bad:
            kind = "NaN" if nan == bad else "infinite" if not nan else "NaN or infinite"
            rows = sorted((row for part in of_all for row in part["rows"]), key=lambda row: int(row[0]))
            many = f"all of its {count:,} values" if bad == count else f"{bad:,} of its {count:,} values"
            return f"term {name!r} of move {turn.player.move.name!r} is {kind} in {many}{_where(rows)}"
    return ""


def _where(rows: list[tuple[int, dict[str, float]]]) -> str:
    """Batch indices, and the times of each."""
    if not rows:
        return ""
    shown = rows[:SHOWN]
    names = ", ".join(shown[0][1])
    indices = ", ".join(f"{index:,}" for index, _ in shown) + (", ..." if len(rows) > SHOWN else "")
    many = "index" if len(rows) == 1 else "indices"
    if not names:
        return f", batch {many} {indices}"
    single = len(shown[0][1]) == 1
    told = (", ".join(_time(t) for t in times.values()) for _, times in shown)
    times = ", ".join(t if single else f"({t})" for t in told) + (", ..." if len(rows) > SHOWN else "")
    return f", batch {many} {indices} at {names if single else f'({names})'} = {times}"


def _time(t: float) -> str:
    """A time to six digits, and all of them next to 1, where they matter.

    >>> _time(0.25), _time(0.9999999403953552)
    ('0.25', '0.9999999403953552')
    """
    return repr(t) if 0.0 < abs(t - 1.0) < 5e-6 else f"{t:.6g}"


def _rows(term: Term, draws: Draws, rng: Streams, bad: Tensor) -> list[tuple[int, dict[str, float]]]:
    """The global index of each bad value of a term, and the times drawn for it; nothing where a value is of a
    group of rows."""
    index, mine = rng.index, draws
    for name in term.part:
        inner = mine.get(name)
        if not isinstance(inner, dict):
            return []
        rows, of = inner.get("rows"), inner.get("of")
        if isinstance(rows, Tensor) and isinstance(of, dict):
            index, inner = index[rows.cpu()], of
        mine = inner
    if len(index) != term.value.numel():
        return []
    times = {name: x.cpu() for name, x in _times(mine, len(index))}
    shown = bad[:SHOWN].tolist()
    return [(int(index[k]), {name: float(x[k]) for name, x in times.items()}) for k in shown] + [
        (int(index[k]), {}) for k in bad[SHOWN:].tolist()
    ]


def _times(draws: Draws, count: int) -> Iterator[tuple[str, Tensor]]:
    """What was drawn as one number a row, by name: times."""
    for name, value in draws.items():
        if isinstance(value, dict):
            yield from _times(value, count)
        elif value.shape == (count,) and value.is_floating_point():
            yield name, value


def _in_gradient(turn: Turn, world: World) -> str:
    """What is wrong with a turn's gradient, whose terms are finite."""
    module = turn.player.move.module
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    # one answer for all names: a process may hold nothing of a parameter
    wrong = torch.stack([(~torch.isfinite(local(g))).any() for g in gradients.values()]).float()
    names = [name for name, bad in zip(gradients, world.sum(wrong).tolist(), strict=True) if bad]
    what = f"all values of the terms of move {turn.player.move.name!r} are finite, but"
    if not names:
        return f"{what} their mean or the norm of its gradient overflows"
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{what} its gradient is not, in {len(names):,} of {len(gradients):,} parameters: {shown}"


def _largest(fit: Fit) -> float:
    """The size of the largest weight that this process holds, or NaN."""
    held = [local(p).detach() for player in fit.players for p in player.parameters]
    sizes = [p.abs().max() for p in held if p.numel()]
    return float(torch.stack(sizes).max()) if sizes else 0.0
