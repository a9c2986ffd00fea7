"""Closed forms and laws of the cost of a token."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.cost.cost import (
    HOURS_PER_MONTH,
    Bill,
    Mix,
    Owned,
    Timing,
    break_even_tokens,
    metered_bill,
    most_tokens,
    reserved_bill,
    usd_per_million_tokens,
)


@pytest.mark.parametrize(
    ("usd_per_hour", "tokens_per_s", "dollars"),
    [
        # 65.2 billion parameters of 2 bytes, all of them over 25.5 GB/s for a token
        (0.39, 25.5e9 / (65.2e9 * 2), 554),
        # the same in 4 bits, a byte of scale to 64 and 4 bytes to 256 of those
        (0.39, 25.5e9 / (65.2e9 * (4 + 8 / 64 + 32 / 64 / 256) / 8), 143),
        # a rate that others publish of four cards at 2.50 an hour each
        (4 * 2.50, 3400.0, 0.82),
        # ZeRO-Inference's OPT-66B at 8.08 tokens a second on a card at 0.80
        (0.80, 8.08, 27),
    ],
)
def test_the_figures_that_the_model_started_from(usd_per_hour, tokens_per_s, dollars):
    found = usd_per_million_tokens(usd_per_hour, tokens_per_s)
    assert found == pytest.approx(dollars, rel=0.02)
    if dollars != 27:  # that one was rounded down
        assert float(f"{found:.3g}") == pytest.approx(dollars, abs=0.005 * dollars)


def owned(**changes):
    values = {"months": 36, "watts": 350, "usd_per_kwh": 0.2, "pue": 1.2}
    return Owned(**{"capex_usd": 2000, **values, **changes})


def test_owning_is_capital_by_the_month_and_energy_by_the_token():
    machine, tokens_per_s, utilization = owned(), 4.0, 0.25
    tokens = tokens_per_s * 3600 * HOURS_PER_MONTH * utilization
    kwh = 0.35 * 1.2 * HOURS_PER_MONTH * utilization
    expected = (2000 / 36 + kwh * 0.2) / tokens * 1e6
    found = machine.usd_per_million_tokens(tokens_per_s, utilization)
    assert found == pytest.approx(expected)
    bill = machine.bill(tokens_per_s)
    assert bill.usd(tokens) == pytest.approx(expected * tokens / 1e6)


positive = st.floats(1e-3, 1e3)


@given(positive, positive, st.floats(0.01, 1), st.floats(1.01, 10))
def test_cost_falls_in_utilisation_and_in_throughput(usd, rate, utilization, factor):
    machine = owned(capex_usd=usd)
    for cost in (
        lambda r, u: usd_per_million_tokens(usd, r, u),
        machine.usd_per_million_tokens,
    ):
        assert cost(rate * factor, utilization) < cost(rate, utilization)
        assert cost(rate, utilization) < cost(rate, utilization / factor)


@pytest.mark.parametrize("tokens_per_s", [0.2, 5.0])
def test_at_break_even_owning_costs_the_rent(tokens_per_s):
    machine, rent = owned(), metered_bill(0.39, tokens_per_s)
    bill = machine.bill(tokens_per_s)
    tokens = break_even_tokens(bill, rent)
    assert bill.usd(tokens) == pytest.approx(rent.usd(tokens))
    busy = tokens / most_tokens(tokens_per_s)
    assert machine.usd_per_million_tokens(tokens_per_s, busy) == pytest.approx(
        rent.usd_per_million
    )


bills = st.builds(
    Bill, st.floats(0, 1e4), st.floats(0, 1e3), st.floats(1e4, 1e9) | st.just(math.inf)
)


@given(bills, bills)
def test_break_even_is_where_one_bill_meets_the_other(bill, other):
    tokens = break_even_tokens(bill, other)
    if 0 < tokens < math.inf:  # both make it, it solves the equation, dearer before
        assert bill.usd(tokens) == pytest.approx(other.usd(tokens))
        assert bill.usd(tokens * 0.99) >= other.usd(tokens * 0.99) * (1 - 1e-9)
    elif tokens == 0:
        assert bill.usd(0) <= other.usd(0)
    else:
        at = min(bill.most_tokens, other.most_tokens, 1e12)
        assert bill.usd(at) >= other.usd(at) * (1 - 1e-9)


def test_owning_never_pays_against_energy_or_beyond_a_month():
    machine = owned()
    bill = machine.bill(1.0)
    energy = machine.energy_usd_per_million(1.0)
    assert break_even_tokens(bill, Bill(0.0, energy)) == math.inf
    assert break_even_tokens(bill, Bill(0.0, energy * 1.01)) == math.inf  # > one month
    full = machine.usd_per_million_tokens(1.0, 1.0)
    assert break_even_tokens(bill, Bill(0.0, full * 1.001)) < math.inf


def test_a_reserved_machine_is_due_idle_or_not_and_costs_the_rent_when_full():
    bill, tokens = reserved_bill(2.0, 3.0), most_tokens(3.0)
    assert bill.usd(0) == bill.usd(tokens) == pytest.approx(2.0 * HOURS_PER_MONTH)
    assert bill.usd(tokens * 1.01) == math.inf
    assert bill.usd(tokens) / tokens * 1e6 == pytest.approx(
        usd_per_million_tokens(2.0, 3.0)
    )
    # A small machine is the cheaper one up to all that it makes, though that is little:
    # where the lines would cross, at 140 million tokens, it makes none.
    small = Bill(60.0, 10.0, 5e6)
    assert break_even_tokens(bill, small) == math.inf
    assert break_even_tokens(Bill(bill.fixed_usd, 0.0), small) == math.inf
    crossing = (bill.fixed_usd - small.fixed_usd) / 10.0 * 1e6
    grown = Bill(60.0, 10.0, crossing)
    assert break_even_tokens(Bill(bill.fixed_usd, 0.0), grown) == crossing


def test_prompts_are_charged_to_what_is_written():
    timing = Timing(first_token_s=5.0, step_s=1.0, batch=4, tokens_per_step=2.0)
    # four sequences, each one token after 5 s and eight more of half a second
    assert timing.tokens_per_s(Mix(100, 9)) == pytest.approx(4 * 9 / (5 + 8 * 0.5))
    assert timing.tokens_per_s(Mix(100, 10**9)) == pytest.approx(8.0)
    assert timing.token_s == 0.5


def test_an_array_of_inputs_costs_what_each_of_them_does():
    rates, shares = np.array([1.0, 4.0]), np.array([0.2, 1.0])
    machine = owned(capex_usd=np.array([2000, 3000]), pue=np.array([1.0, 1.2]))
    for together, one in (
        (
            usd_per_million_tokens(0.4, rates, shares),
            lambda i: usd_per_million_tokens(0.4, rates[i], shares[i]),
        ),
        (
            machine.usd_per_million_tokens(rates, shares),
            lambda i: owned(
                capex_usd=machine.capex_usd[i], pue=machine.pue[i]
            ).usd_per_million_tokens(rates[i], shares[i]),
        ),
    ):
        assert together.tolist() == [one(0), one(1)]
    with pytest.raises(InvalidInput, match=r"utilization=1\.1"):
        usd_per_million_tokens(0.4, rates, np.array([0.2, 1.1]))
    with pytest.raises(InvalidInput, match="months=0 "):
        owned(months=np.array([36.0, 0.0]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: usd_per_million_tokens(1.0, 0.0),
        lambda: usd_per_million_tokens(1.0, 1.0, 0.0),
        lambda: usd_per_million_tokens(1.0, 1.0, 1.1),
        lambda: usd_per_million_tokens(-1.0, 1.0),
        lambda: usd_per_million_tokens(math.inf, 1.0),
        lambda: owned(months=0),
        lambda: owned(pue=0.9),
        lambda: owned(watts=-1),
        lambda: Mix(0, 1),
        lambda: Timing(0.0, 1.0),
        lambda: Timing(1.0, 1.0, tokens_per_step=0.5),
        lambda: Bill(-1.0, 0.0),
        lambda: reserved_bill(0.0, 1.0),
    ],
)
def test_impossible_rates_are_rejected(call):
    with pytest.raises(InvalidInput):
        call()
