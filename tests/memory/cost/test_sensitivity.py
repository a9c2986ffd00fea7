"""Bars in order, draws within their ranges, and both of the right sign."""

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.cost.deployment import draw, tornado, values
from thesis_lib.memory.cost.prices import Quantity

RANGES = {
    "price": Quantity(2.0, 1.0, 8.0),
    "rate": Quantity(10.0, 5.0, 20.0),
    "fixed": Quantity(3.0, 3.0, 3.0),
    "small": Quantity(1.0, 0.9, 1.1),
}


def cost(inputs):
    return inputs["price"] / inputs["rate"] * inputs["small"] + inputs["fixed"]


def test_bars_are_ordered_and_hold_the_ends_of_their_input():
    bars = tornado(cost, RANGES)
    assert [bar.name for bar in bars] == ["price", "rate", "small", "fixed"]
    swings = [bar.swing for bar in bars]
    assert swings == sorted(swings, reverse=True)
    assert (bars[0].at_low, bars[0].at_high) == pytest.approx((3.1, 3.8))
    assert bars[1].at_low > cost(values(RANGES)) > bars[1].at_high
    assert bars[-1].swing == 0


def test_draws_fill_their_ranges_around_their_value():
    drawn = draw(RANGES, draws=20_000, seed=1)
    for name, each in RANGES.items():
        assert drawn[name].shape == (20_000,)
        assert np.all(drawn[name] >= each.low * (1 - 1e-12))
        assert np.all(drawn[name] <= each.high * (1 + 1e-12))
    assert np.all(drawn["fixed"] == 3.0)
    # The mean logarithm of a triangular density is that of its three corners.
    for name in ("price", "rate"):
        each = RANGES[name]
        corners = np.log([each.low, each.value, each.high])
        error = np.std(np.log(drawn[name])) / np.sqrt(20_000)
        assert abs(np.log(drawn[name]).mean() - corners.mean()) < 4 * error


def test_draws_depend_on_the_seed_and_on_nothing_else():
    one, again, other = (draw(RANGES, 100, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], again[name]) for name in RANGES)
    assert not np.array_equal(one["price"], other["price"])
    alone = draw({"price": RANGES["price"]}, 100, 1)
    assert np.array_equal(alone["price"], one["price"])
    assert abs(np.corrcoef(one["price"], one["rate"])[0, 1]) < 0.4


def test_no_draws_and_a_range_without_its_value_are_refused():
    with pytest.raises(InvalidInput, match="draws=0"):
        draw(RANGES, 0)
    for ends in ((1, 2, 3), (1, 0, 2), (-1, -2, 1), (2, 1, np.inf)):
        with pytest.raises(InvalidInput, match="the first between"):
            Quantity(*ends)
