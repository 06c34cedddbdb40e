"""Best-of-N search over the prior: draw N noises a sample, keep the one whose sample a reward likes best.

A flow map makes it cheap: one evaluation a candidate, where its teacher needs dozens. And since both are
maps of the same noise, the noise that is good for the student is good for the teacher: hand it over,

    best = best_of(16, student, reward, rng, shape)
    x1 = integrate(teacher, best.noise, 64).

The score is the largest of N independent rewards: with cumulative distribution F of one, F^N.

References:
    Ma et al., "Inference-time scaling for diffusion models beyond scaling denoising steps", 2025,
        arXiv 2501.09732 (random search over noises, with any verifier).
    Tong et al., "Flow map distillation without data", 2025, arXiv 2511.19428 (the student as a proxy of its
        teacher).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from saltus.interpolants import Interpolant, Linear
from saltus.samplers.draw import batched, prior
from saltus.samplers.jumps import jumps
from saltus.streams import Streams
from saltus.tensors import like
from saltus.typing import Condition, FlowMap

__all__ = ["Best", "Reward", "best_of"]

Reward = Callable[[Tensor, Condition | None], Tensor]
"""(samples x1 [n, ...], their condition) -> a number for each, larger is better, [n]; -inf refuses one."""

_LINEAR = Linear()


class Best(NamedTuple):
    """What a search found for each of B samples.

    Attributes:
        noise: the state at t = 0, [B, ...].
        sample: where the map takes it, [B, ...].
        score: its reward, [B].
    """

    noise: Tensor
    sample: Tensor
    score: Tensor


@torch.no_grad()
def best_of(
    n: int,
    flow_map: FlowMap,
    reward: Reward,
    rng: Streams,
    shape: tuple[int, ...],
    cond: Condition | None = None,
    *,
    interpolant: Interpolant = _LINEAR,
    grid: Tensor | int = 1,
    size: int = 1024,
) -> Best:
    """The best of n noises for each row of rng: n evaluations a sample (times the steps of the grid).

    Candidates are functions of the row's own streams: the first is the noise of :func:`prior`, so n = 1 is
    plain sampling, and the best of 8 looks at the first 8 of the best of 16, so that a score only grows
    with n. Of equal scores the first counts.

    Args:
        n: candidates a sample.
        flow_map: X_{s,t}(x), as a cheap proxy of what will be sampled.
        reward: any function or verifier of samples.
        rng: one row for each sample wanted.
        shape: of one sample.
        cond: of the B samples; all candidates of a sample share its row.
        interpolant: whose prior it is.
        grid: of the jumps from 0 to 1: times, or a number of equal steps.
        size: the most candidates in memory at a time.

    Raises:
        ValueError: for n or size below 1, or a reward that is not one floating number a candidate, or NaN.

    >>> from saltus.exact import Gaussian
    >>> exact = Gaussian(torch.zeros(2), 1.0).flow_map()
    >>> rng = Streams(0, index=torch.arange(3))
    >>> one, many = (best_of(n, exact, lambda x, cond: x[:, 0], rng, (2,)) for n in (1, 8))
    >>> bool((many.score >= one.score).all()), bool((one.noise == prior(rng, (2,))).all())
    (True, True)
    """
    if n < 1:
        raise ValueError(f"n: expected at least one candidate a sample, got {n}; 1 is plain sampling")

    def jumped(rng: Streams, cond: Condition | None, which: range) -> Best:
        """The best of some candidates of some rows, all in memory at once."""
        rows = torch.arange(len(rng.index))
        streams = (rng.named(f"candidate/{i}") if i else rng for i in which)
        noise = torch.cat([prior(own, shape, interpolant) for own in streams])
        own = None if cond is None else cond.rows(rows.repeat(len(which)))
        sample = jumps(flow_map, noise, grid, own)
        score = _scored(reward, sample, own)
        best = score.reshape(len(which), -1).argmax(dim=0) * len(rows) + rows.to(score.device)
        return Best(noise[best], sample[best], score[best])

    found = []
    for places in batched(lambda _, places: places, rng, size):
        most = max(1, size // len(places))
        own = None if cond is None else cond.rows(places)
        slices = (range(start, min(start + most, n)) for start in range(0, n, most))
        found.append(reduce(_better, (jumped(rng.rows(places), own, which) for which in slices)))
    return Best(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _scored(reward: Reward, sample: Tensor, cond: Condition | None) -> Tensor:
    score = reward(sample, cond)
    if not isinstance(score, Tensor) or score.shape != sample.shape[:1] or not score.is_floating_point():
        got = type(score).__name__
        if isinstance(score, Tensor):
            got = f"{score.dtype} of shape {list(score.shape)}"
        raise ValueError(
            f"reward: expected floating numbers of shape [{len(sample)}], one a sample, got {got}; "
            "reduce over everything but the first axis"
        )
    if bool(score.isnan().any()):
        raise ValueError(
            f"reward: expected numbers, got NaN for {int(score.isnan().sum())} of {len(score)} samples; "
            "return -inf for a sample that must not be taken"
        )
    return score


def _better(old: Best, new: Best) -> Best:
    take = new.score > old.score
    mixed = (torch.where(like(take, a), b, a) for a, b in zip(old, new, strict=True))
    return Best(*mixed)
