"""Planted differences have the verdicts that they deserve, and chance seldom has one."""

import math

import numpy as np
import pytest
from scipy import stats

from vqgan_jax.studies import verdict


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def outcome(better, than, **options) -> verdict.Outcome:
    return verdict.compare(by_seed(*better), by_seed(*than), direction="lower", **options)


@pytest.mark.parametrize(
    ("better", "than", "expected"),
    [
        ((1.0, 1.1, 1.05), (2.0, 2.1, 2.06), "holds"),
        ((2.0, 2.1, 2.06), (1.0, 1.1, 1.05), "does not hold"),
        ((1.0, 2.0, 1.5), (1.1, 1.8, 1.7), "not decided by 3 seeds"),
        ((1.0, 1.001), (2.0, 2.002), "holds"),  # two seeds: the mean is 9 times the spread, and more
        ((1.0, 1.1), (1.2, 1.5), "not decided by 2 seeds"),  # all seeds in favour, and still
        ((1.0,), (9.0,), "not decided by 1 seed"),
        ((), (), "not decided by 0 seeds"),
        ((1.0, 1.0), (1.0, 1.0), "does not hold"),  # the same run twice
    ],
)
def test_planted_advantages(better, than, expected):
    assert outcome(better, than).verdict == expected


def test_it_is_the_paired_t_test_of_scipy():
    better, than = (1.0, 1.4, 0.9, 1.2), (1.3, 1.5, 1.3, 1.4)
    found = outcome(better, than)
    reference = stats.ttest_rel(than, better)
    interval = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(np.mean(than) - np.mean(better))


def test_the_direction_turns_the_sign():
    up = verdict.compare(by_seed(3.0, 3.1), by_seed(1.0, 1.1), direction="higher")
    assert up.advantages == pytest.approx((2.0, 2.0))
    assert outcome((3.0, 3.1), (1.0, 1.1)).advantages == pytest.approx((-2.0, -2.0))


def test_only_seeds_of_both_count():
    found = verdict.compare({0: 1.0, 2: 1.0, 5: 1.0}, {2: 2.0, 5: 2.1, 7: 0.0}, direction="lower")
    assert found.seeds == (2, 5)
    assert len(found.advantages) == 2


def test_a_small_advantage_is_none_where_the_margin_says_so():
    better, than = (1.000, 1.001, 1.000), (1.010, 1.012, 1.010)
    assert outcome(better, than).verdict == "holds"
    assert outcome(better, than, margin=0.1).verdict == "does not hold"
    assert outcome((1.0, 1.2, 1.1), (1.05, 1.25, 1.3), margin=0.05).verdict == "not decided by 3 seeds"


def test_one_seed_has_no_spread():
    assert all(math.isnan(value) for value in (outcome((1.0,), (2.0,)).spread, outcome((1.0,), (2.0,)).p))


@pytest.mark.parametrize("seeds", [2, 3])
def test_chance_is_decided_in_one_of_twenty(seeds):
    """Without any difference, each of the two wrong verdicts comes in 2.5% of all cases."""
    draws = np.random.default_rng(0).normal(size=(1_000, 2, seeds))
    verdicts = [outcome(*pair).verdict for pair in draws]
    for wrong in (verdict.HOLDS, verdict.FAILS):
        assert verdicts.count(wrong) / len(verdicts) == pytest.approx(0.025, abs=0.015)


def test_several_statements_refuse_no_true_claim_more_often():
    draws = np.random.default_rng(1).normal(size=(200, 5, 2, 3))
    claims = [[outcome(*pair, statements=5) for pair in claim] for claim in draws]
    refused = sum(verdict.overall(claim) == verdict.FAILS for claim in claims) / len(claims)
    assert refused < 0.05


def test_a_claim_holds_if_all_of_it_does():
    low, high = (1.0, 1.1, 1.0), (2.0, 2.1, 2.1)
    held, failed, open_ = outcome(low, high), outcome(high, low), outcome((1.0,), (2.0,))
    assert verdict.overall([held, held]) == "holds"
    assert verdict.overall([held, open_]) == "not decided by 1 seed"
    assert verdict.overall([held, open_, failed]) == "does not hold"
