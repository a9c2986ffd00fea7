import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.stats import bootstrap, mean_interval


def test_intervals_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(3)
    made = [mean_interval(random.exponential(1.0, 40)) for _ in range(300)]
    assert 0.88 < np.mean([i.low <= 1.0 <= i.high for i in made]) < 0.98


def test_the_interval_of_a_mean_has_the_width_of_the_normal_theory():
    values = np.random.default_rng(5).standard_normal(400)
    made = mean_interval(values)
    assert made.value == values.mean()
    theory = 2 * 1.96 * values.std() / np.sqrt(400)
    assert made.high - made.low == pytest.approx(theory, rel=0.05)


def test_equal_seeds_give_equal_intervals_and_a_constant_has_none():
    values = np.arange(10.0)

    def means(rows):
        return values[rows].mean(axis=1)

    assert bootstrap(10, means, seed=1) == bootstrap(10, means, seed=1)
    assert bootstrap(10, means, seed=1) != bootstrap(10, means, seed=2)
    low, high = bootstrap(10, means, level=0.5)
    wide_low, wide_high = bootstrap(10, means, level=0.99)
    assert wide_low < low < high < wide_high
    assert mean_interval(np.ones(7)).low == mean_interval(np.ones(7)).high == 1.0


@pytest.mark.parametrize(("n", "level"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_an_interval_of_nothing_is_refused(n, level):
    with pytest.raises(InvalidInput):
        bootstrap(n, lambda rows: rows.mean(axis=1), level)
