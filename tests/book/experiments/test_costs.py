"""Costs of the chapter: tables follow plans, draws stay in their ranges."""

from pathlib import Path

import numpy as np
import pytest

from thesis_book.experiments.memory.costs import (
    draw,
    evaluate,
    inputs,
    recorded_rates,
    table,
    tornado,
    values,
)
from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.files import read_record
from thesis_lib.memory.cost.cards import read_cards
from thesis_lib.memory.cost.cost import Mix, usd_per_million_tokens
from thesis_lib.memory.cost.deployment import Method, predict, workstation
from thesis_lib.memory.cost.prices import Quantity, read_prices, read_quantities
from thesis_lib.memory.model.spec import geometry

DATA = Path(__file__).parents[3] / "data"
PRICES = read_prices(DATA / "prices.csv")
QUANTITIES = read_quantities(DATA / "deployment.csv")
CARDS = read_cards(DATA)
SPEC, MIX = geometry("llama2-70b"), Mix(64, 16)
RANGES = {
    "price": Quantity(2.0, 1.0, 8.0),
    "rate": Quantity(10.0, 5.0, 20.0),
    "fixed": Quantity(3.0, 3.0, 3.0),
    "small": Quantity(1.0, 0.9, 1.1),
}
RECORDS = {
    name: read_record(name, DATA / "measurements") or {}
    for name in ("headline", "streaming")
}


@pytest.fixture(scope="module")
def dense():
    card = CARDS["GeForce RTX 3090"]
    return predict(SPEC, Method("bf16"), MIX, "rtx-3090", card, 1, 20e9)


def product(at):
    return at["price"] / at["rate"] * at["small"] + at["fixed"]


def test_bars_are_ordered_and_hold_the_ends_of_their_input():
    bars = tornado(product, RANGES)
    assert list(bars.index) == ["price", "rate", "small", "fixed"]
    assert bars.swing.is_monotonic_decreasing
    assert tuple(bars.loc["price", ["at_low", "at_high"]]) == pytest.approx((3.1, 3.8))
    assert bars.at_low["rate"] > product(values(RANGES)) > bars.at_high["rate"]
    assert bars.swing["fixed"] == 0


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


def test_table_prices_predicted_and_measured_methods(dense):
    crowd = predict(
        SPEC, Method("resident", batch=4), MIX, "h100", CARDS["H100 PCIe"], 2
    )
    name, rate = next(iter(recorded_rates(RECORDS["headline"]).items()))
    costs = table([dense, crowd], PRICES, MIX, 0.5, {name: ("cpu-2-cores", rate)})
    assert list(costs.index) == ["bf16", "resident", name]
    for each in (dense, crowd):
        assert costs.usd_per_million[each.name] == pytest.approx(
            usd_per_million_tokens(
                each.count * PRICES[each.item].value, each.timing.tokens_per_s(MIX), 0.5
            )
        )
    measured = costs.loc[name]
    assert measured.low <= measured.usd_per_million <= measured.high
    assert costs.usd_per_million["bf16"] > 10 * costs.usd_per_million["resident"]


def test_sensitivities_start_from_the_costs_of_the_tables(dense):
    ranges = inputs(PRICES, QUANTITIES, "rtx-3090", link_gb_per_s=20.0)
    at = values(ranges)
    costs = evaluate(dense, MIX, at)
    owned = workstation(PRICES, QUANTITIES, dense.memory_gb)
    rate = dense.timing.tokens_per_s(MIX)
    assert costs["tokens_per_s"] == pytest.approx(rate)
    assert costs["rented_usd"] == pytest.approx(
        usd_per_million_tokens(at["usd_per_hour"], rate, at["utilisation"])
    )
    assert costs["owned_usd"] == pytest.approx(
        owned.usd_per_million_tokens(rate, at["utilisation"])
    )
    assert costs["monthly_usd"] == pytest.approx(owned.bill(rate).fixed_usd)


def test_all_draws_are_evaluated_at_once(dense):
    drawn = draw(inputs(PRICES, QUANTITIES, "rtx-3090"), draws=20)
    together = evaluate(dense, MIX, drawn)["owned_usd"]
    one = {name: float(value[7]) for name, value in drawn.items()}
    assert together[7] == pytest.approx(evaluate(dense, MIX, one)["owned_usd"])
    assert np.all(together > 0)
    with pytest.raises(InvalidInput, match="input='links'"):
        inputs(PRICES, QUANTITIES, "rtx-3090", links=1.0)


def test_no_recorded_run_is_faster_than_its_link():
    for part in RECORDS["headline"]["parts"].values():
        # of the drains, the bytes are those of the plan
        link = part["planned_bytes_per_token"] / min(part["trial"]["drain_s"])
        floor_s = part["read_bytes_per_token"] / link
        assert 0.8 < floor_s / part["s_per_token"] <= 1
    summary = RECORDS["streaming"]["summary"]
    streamed = summary["systems"]["streamed"]
    link = streamed["read_bytes_per_token"] / summary["drain"]["interval_s"][0]
    for system in summary["systems"].values():
        assert system["median_s"] >= system["read_bytes_per_token"] / link
