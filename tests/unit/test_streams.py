"""Random numbers that belong to a sample and a step, whatever surrounds them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from saltus.streams import Streams, _key

MANY = Streams(seed=3, step=5, index=torch.arange(20_000), dtype=torch.float64)


def draws(rng: Streams) -> dict[str, Tensor]:
    return {
        "uniform": rng.uniform("a", 3),
        "normal": rng.normal("b", 2, 5),
        "odd": rng.normal("c"),
        "integers": rng.integers("d", 10, 2),
        "stratified": rng.stratified("e"),
    }


@settings(max_examples=60, deadline=None)
@given(
    index=st.lists(st.integers(0, 2**40), min_size=1, max_size=12),
    cut=st.integers(0, 12),
    seed=st.integers(0, 2**63),
    step=st.integers(0, 10**9),
)
def test_a_sample_has_its_numbers_in_any_partition_and_order(
    index: list[int], cut: int, seed: int, step: int
) -> None:
    rows = torch.tensor(index)
    whole = draws(Streams(seed, step, rows))
    order = torch.argsort(rows % 7)
    turned = draws(Streams(seed, step, rows[order]))
    parts = [draws(Streams(seed, step, part)) for part in (rows[:cut], rows[cut:])]
    alone = draws(Streams(seed).at(step).rows(torch.zeros(len(rows), dtype=torch.int64)))
    for name, value in whole.items():
        assert torch.equal(value[order], turned[name]), name
        assert torch.equal(value, torch.cat([part[name] for part in parts])), name
        if 0 in index:
            assert torch.equal(value[index.index(0)], alone[name][0]), name


def test_rows_keep_their_numbers_and_masks_select() -> None:
    rng = Streams(seed=1, index=torch.arange(10, 16))
    mask = torch.tensor([True, False, True, False, False, True])
    for name, value in draws(rng).items():
        assert torch.equal(draws(rng.rows(mask))[name], value[mask])


def test_far_apart_indices_cost_no_memory() -> None:
    far = torch.tensor([2**45, 3, 2**52])
    together = Streams(seed=1, index=far).normal("z", 4)
    for i in range(3):
        assert torch.equal(Streams(seed=1, index=far[i : i + 1]).normal("z", 4)[0], together[i])


def test_nothing_is_drawn_for_no_rows_and_no_numbers() -> None:
    none = Streams(seed=0, index=torch.arange(0))
    assert none.normal("z", 3, 2).shape == (0, 3, 2) and none.stratified("s").shape == (0,)
    assert none.integers("i", 5, 2).shape == (0, 2) and none.permutation("p").shape == (0,)
    assert Streams(seed=0, index=torch.arange(4)).normal("z", 0).shape == (4, 0)


def test_the_generator_is_numpys_philox_advanced_by_whole_blocks() -> None:
    """Row i of a stream of count numbers is where i times ceil(count/4) blocks of one long run are."""
    rng = Streams(seed=11, step=2, index=torch.tensor([0, 1, 7]), dtype=torch.float64)
    run = np.random.Philox(key=_key(11, 2, "u")).random_raw(8 * 8).reshape(8, 8)  # 5 numbers: 2 blocks
    want = ((run[[0, 1, 7], :5] >> np.uint64(12)) + 0.5) / 2.0**52
    assert np.array_equal(rng.uniform("u", 5).numpy(), want)


def test_names_steps_seeds_and_prefixes_are_unrelated() -> None:
    base = MANY.normal("z")
    others = {
        "name": MANY.normal("y"),
        "step": MANY.at(6).normal("z"),
        "seed": Streams(4, 5, MANY.index, dtype=torch.float64).normal("z"),
        "prefix": MANY.named("p").normal("z"),
        "neighbour": base.roll(1),
        "digits": Streams(35, 0, MANY.index, dtype=torch.float64).normal("z"),
    }
    for name, other in others.items():
        assert abs(float(torch.corrcoef(torch.stack([base, other]))[0, 1])) < 4.0 / math.sqrt(20_000), name
        assert not torch.equal(base, other)
    assert torch.equal(base, MANY.at(9).at(5).normal("z"))
    assert torch.equal(MANY.named("p").named("q").uniform("z"), MANY.uniform("p/q/z"))


def test_normals_are_normal_and_independent_within_a_sample() -> None:
    z = MANY.normal("z", 3)
    assert abs(float(z.mean())) < 4 / math.sqrt(60_000)
    assert abs(float(z.square().mean()) - 1.0) < 4 * math.sqrt(2 / 60_000)
    assert abs(float((z**3).mean())) < 4 * math.sqrt(15 / 60_000)
    assert abs(float((z**4).mean()) - 3.0) < 4 * math.sqrt(96 / 60_000)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    assert float((z.T.cov() - torch.eye(3)).abs().max()) < 5 / math.sqrt(20_000)
    radius = z[:, [0, 2]].square().sum(1)  # a Box-Muller pair
    assert stats.kstest(radius.numpy(), stats.chi2(2).cdf).pvalue > 0.01


def test_uniforms_and_integers_are_uniform() -> None:
    u = MANY.uniform("u", 2)
    assert 0.0 < float(u.min()) and float(u.max()) < 1.0
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.01
    k = MANY.integers("k", 7)
    assert k.dtype == torch.int64
    assert set(k.tolist()) == set(range(7))
    assert stats.chisquare(torch.bincount(k).numpy()).pvalue > 0.01


def test_both_dtypes_are_the_same_numbers() -> None:
    single = Streams(MANY.seed, MANY.step, MANY.index)
    for name, value in draws(MANY).items():
        other = draws(single)[name]
        assert other.dtype == (torch.int64 if name == "integers" else torch.float32)
        assert torch.allclose(value.double(), other.double(), atol=3e-6), name
    assert torch.equal(MANY.normal_like("b", torch.zeros(20_000, 2, 5)), draws(MANY)["normal"])


@pytest.mark.parametrize("start", [0, 12_345, 10**12])
def test_stratified_numbers_are_even_over_the_batch_and_uniform_over_steps(start: int) -> None:
    n = 1024
    index = torch.arange(start, start + n)
    for step in range(3):
        u = Streams(0, step, index, dtype=torch.float64).stratified("t").sort().values
        assert 0.0 <= float(u[0]) and float(u[-1]) < 1.0
        ideal = (torch.arange(n) + 0.5) / n
        assert float((u - ideal).abs().max()) < 4.0 / n  # independent draws: about 1.2/sqrt(n) = 38/n
    first = torch.cat([Streams(0, k, index[:1], dtype=torch.float64).stratified("t") for k in range(500)])
    assert stats.kstest(first.numpy(), "uniform").pvalue > 0.01


def test_a_permutation_is_one_and_is_random() -> None:
    order = Streams(0, index=torch.arange(200)).permutation("p")
    assert torch.equal(order.sort().values, torch.arange(200)) and not torch.equal(order, torch.arange(200))
    first = torch.stack([Streams(0, k, torch.arange(5)).permutation("p")[0] for k in range(1000)])
    assert stats.chisquare(torch.bincount(first, minlength=5).numpy()).pvalue > 0.01


def test_rounding_to_float32_makes_no_number_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """At t = 1 dalpha of the variance-preserving interpolants is infinite: a row in 3e7 would stop a run."""
    top = 1.0 - 2.0**-53
    monkeypatch.setattr(
        Streams, "_unit", lambda self, name, shape: torch.full((4, *shape), top, dtype=torch.float64)
    )
    for dtype, below in ((torch.float32, 1.0 - 2.0**-24), (torch.float64, top)):
        rng = Streams(0, index=torch.arange(4), dtype=dtype)
        assert float(rng.uniform("t").max()) == below < 1.0
    single = Streams(0, index=torch.zeros(4, dtype=torch.int64))
    monkeypatch.setattr(
        Streams, "_unit", lambda self, name, shape: torch.full((1,), top, dtype=torch.float64)
    )
    assert float(single.stratified("t").max()) == 1.0 - 2.0**-24
