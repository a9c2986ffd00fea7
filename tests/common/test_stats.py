import math
from functools import partial

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.stats import (
    LEAST,
    RANGE,
    Interval,
    holm,
    least_samples,
    mean_interval,
    median_interval,
    p_value,
    pool,
    ratio_interval,
    share_interval,
)


def mean_of_normals(random, n):
    return mean_interval(random.normal(3.0, 2.0, n)), 3.0


def mean_of_shares(random, n):
    """What a seed reports is a share of many transactions."""
    return mean_interval(random.binomial(2_000, 0.03, n) / 2_000), 0.03


def ratio_of_means(random, n):
    """Violations beside those of a baseline that differ by a factor of two and more."""
    below = random.gamma(4.0, 0.05, n)
    return ratio_interval(below * random.gamma(20.0, 0.015, n), below), 0.3


def median_of_times(random, n):
    return median_interval(random.lognormal(0.0, 1.0, n)), 1.0


def share_of_trials(random, n):
    return share_interval(int(random.binomial(10 * n, 0.2)), 10 * n), 0.2


METHODS = [
    mean_of_normals, mean_of_shares, ratio_of_means, median_of_times, share_of_trials,
]  # fmt: skip


PROOF = [(n, 20_000, 2) for n in (8, 10, 15, 20, 50, 100)]


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize(
    ("n", "draws", "points"),
    [(8, 1_500, 3), (20, 1_500, 3)]
    + [pytest.param(*each, marks=pytest.mark.proof) for each in PROOF],
)
def test_interval_covers_the_truth_as_often_as_it_says(make, n, draws, points):
    random = np.random.default_rng(n)
    made = [make(random, n) for _ in range(draws)]
    share = np.mean([each.low <= truth <= each.high for each, truth in made])
    assert 95 - points <= 100 * share <= 95 + points


@pytest.mark.parametrize("n", [2, 7, 8, 30])
def test_the_interval_of_a_mean_is_students(n):
    from scipy.stats import t

    values = np.random.default_rng(n).exponential(1.0, n)
    made = mean_interval(values)
    assert (made.value, made.n) == (values.mean(), n)
    if n < LEAST:
        expected = values.min(), values.max()
    else:
        error = values.std(ddof=1) / math.sqrt(n)
        expected = t.interval(0.95, n - 1, values.mean(), error)
    assert (made.low, made.high) == pytest.approx(expected)
    assert made.method == (RANGE if n < LEAST else "Student")


def test_at_an_end_of_a_ratio_the_difference_is_just_not_told_from_zero():
    random = np.random.default_rng(1)
    below = random.gamma(4.0, 1.0, 20)
    above = below * random.normal(0.4, 0.1, 20)
    made = ratio_interval(above, below)
    assert mean_interval(above - made.low * below).low == pytest.approx(0, abs=1e-9)
    assert mean_interval(above - made.high * below).high == pytest.approx(0, abs=1e-9)
    assert made.low < made.value < made.high


def test_a_baseline_that_may_be_zero_gives_a_ratio_no_ends_but_a_range():
    below = np.array([1.0] + [0.0] * 19)
    made = ratio_interval(0.5 * below, below)
    assert made == Interval(0.5, 0.5, 0.5, n=20, method=RANGE)


def test_the_median_of_many_lies_between_the_order_statistics_of_the_binomial():
    values = np.arange(1.0, 102.0)
    made = median_interval(values)
    # P(Binomial(101, 1/2) < 41) = 0.023 and that of 42 is 0.037: between 41 and 42.
    assert made.value == 51
    assert 41 < made.low < 42
    assert made.low + made.high == 102


@pytest.mark.parametrize(("count", "n"), [(0, 20), (3, 20), (20, 20), (500, 1_000)])
def test_the_ends_of_a_share_solve_its_score_equation(count, n):
    made = share_interval(count, n)
    for end in (made.low, made.high):
        off = abs(made.value - end) / math.sqrt(max(end * (1 - end), 1e-300) / n)
        assert off == pytest.approx(1.96, abs=1e-3) or end == made.value
    assert 0 <= made.low <= made.value <= made.high <= 1


def test_what_cannot_spread_has_no_width_and_ends_stop_where_they_must():
    for made in (mean_interval(np.ones(9)), median_interval(np.ones(9))):
        assert made.low == made.value == made.high == 1
    assert ratio_interval(np.arange(9.0), 2 * np.arange(9.0)).high == pytest.approx(0.5)
    wide = mean_interval([0.0] * 8 + [1.0])
    assert wide.low < 0
    assert wide.within(0.0, 0.2) == Interval(1 / 9, 0.0, 0.2, n=9, method="Student")


def test_a_high_percentile_needs_so_many_samples():
    assert least_samples(0.99) == 459
    assert least_samples(0.999) == 4603
    assert 0.99**459 < 0.01 < 0.99**458


def test_eight_observations_are_the_fewest_of_the_interval_of_a_median():
    seven = median_interval(np.arange(7.0))
    assert (seven.method, seven.low, seven.high) == ("range", 0.0, 6.0)
    assert median_interval(np.arange(8.0)).method != "range"


def test_a_p_value_is_small_where_the_interval_leaves_zero_out():
    random = np.random.default_rng(5)
    for n in (8, 9, 30):
        for values in random.normal(0.5, 1.0, (60, n)):
            found = mean_interval(values)
            assert (p_value(values) < 0.05) == (found.low > 0 or found.high < 0)
    assert p_value([1.0] * 8) == 0
    assert p_value([0.0] * 8) == p_value([1.0] * (LEAST - 1)) == 1


def test_holm_rejects_step_by_step_and_rarely_wrongly():
    # Sorted: 0.005 <= 0.05/4, 0.01 <= 0.05/3, 0.03 > 0.05/2, which ends it.
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == [True, False, False, True]
    assert holm([0.04, 0.04]).tolist() == [False, False]
    assert holm([0.025, 0.05]).tolist() == [True, True]
    random, trials, m = np.random.default_rng(6), 4_000, 15
    wrong = np.mean([holm(each).any() for each in random.random((trials, m))])
    share = 1 - (1 - 0.05 / m) ** m  # that the least of so many is below its bound
    assert wrong == pytest.approx(share, abs=4 * math.sqrt(share / trials))


def test_pool_reaches_over_all_estimates_and_their_ends():
    parts = [Interval(v, v - 1, v + 2, n=4) for v in (5.0, 1.0, 3.0)]
    assert pool(parts) == Interval(3.0, 0.0, 7.0, n=12, method=RANGE)
    assert pool(parts[:1]) == Interval(5.0, 4.0, 7.0, n=4, method=RANGE)


@pytest.mark.parametrize(
    ("says", "of"),
    [
        *(
            ("one at least, each finite", partial(interval, values))
            for interval in (mean_interval, median_interval)
            for values in ([], [1.0, math.nan], [[1.0, 2.0]])
        ),
        ("mean below is zero", partial(ratio_interval, np.ones(20), np.zeros(20))),
        ("expected pairs", partial(ratio_interval, [1.0, 2.0], [1.0])),
        ("3 of 2", partial(share_interval, 3, 2)),
        ("quantile=1", partial(least_samples, 1.0)),
    ],
)
def test_what_is_no_sample_is_rejected(says, of):
    with pytest.raises(InvalidInput, match=says):
        of()
