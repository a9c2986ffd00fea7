import math

import pytest

from thesis_lib.checks import InvalidInput
from thesis_lib.memory.cost import (
    HOURS_PER_MONTH,
    Owned,
    floor_s,
    owned_workstation,
    read_prices,
    summarise,
    usd_per_million_tokens,
    verify_above_floor,
)

HEADER = "item,usd,per,date,source,status\n"
ROW = "card,0.5,hour,2026-01-02,a page,LOOKED-UP\n"


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "prices.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_one_token_a_second_for_3600_s_at_one_dollar():
    assert usd_per_million_tokens(1.0, 1.0) == pytest.approx(1e6 / 3600)
    # 1000 tokens a second make 3.6 million tokens of a 3.6 dollar hour.
    assert usd_per_million_tokens(3.6, 1000) == pytest.approx(1.0)


@pytest.mark.parametrize("factor", [0.1, 2.0, 7.0])
def test_rent_scales_with_price_and_against_rate_and_utilisation(factor):
    base = usd_per_million_tokens(0.4, 5.0, 0.1)
    assert usd_per_million_tokens(0.4 * factor, 5.0, 0.1) == pytest.approx(
        base * factor
    )
    assert usd_per_million_tokens(0.4, 5.0 * factor, 0.1) == pytest.approx(
        base / factor
    )
    assert usd_per_million_tokens(0.4, 5.0, 0.1 * factor) == pytest.approx(
        base / factor
    )


def owned(**changes):
    values = {
        "capex_usd": 2000,
        "months": 36,
        "watts": 350,
        "usd_per_kwh": 0.2,
        "pue": 1.2,
    }
    return Owned(**{**values, **changes})


def test_owning_is_capital_by_the_month_and_energy_by_the_token():
    machine, tokens_per_s, utilisation = owned(), 4.0, 0.25
    tokens = tokens_per_s * 3600 * HOURS_PER_MONTH * utilisation
    kwh = 0.35 * 1.2 * HOURS_PER_MONTH * utilisation
    expected = (2000 / 36 + kwh * 0.2) / tokens * 1e6
    assert machine.usd_per_million_tokens(tokens_per_s, utilisation) == pytest.approx(
        expected
    )


def test_without_energy_owning_is_rent_at_the_capital_rate():
    machine = owned(watts=0)
    assert machine.usd_per_million_tokens(3.0, 0.5) == pytest.approx(
        usd_per_million_tokens(machine.capital_usd_per_hour, 3.0, 0.5)
    )


@pytest.mark.parametrize("tokens_per_s", [0.2, 5.0])
def test_at_break_even_owning_costs_the_rent(tokens_per_s):
    machine = owned()
    rent = usd_per_million_tokens(0.39, tokens_per_s)
    tokens = machine.break_even_tokens(tokens_per_s, rent)
    busy = tokens / (tokens_per_s * 3600 * HOURS_PER_MONTH)
    assert machine.usd_per_million_tokens(tokens_per_s, busy) == pytest.approx(rent)


def test_owning_never_pays_against_energy_or_beyond_a_month():
    machine = owned()
    energy = machine.energy_usd_per_hour / 3600 * 1e6
    assert machine.break_even_tokens(1.0, energy) == math.inf
    assert machine.break_even_tokens(1.0, energy * 1.01) == math.inf  # > one month
    full = machine.usd_per_million_tokens(1.0, 1.0)
    assert machine.break_even_tokens(1.0, full * 1.001) < math.inf


def test_time_is_at_least_bytes_over_the_link():
    assert floor_s(130e9, 26e9) == pytest.approx(5.0)
    assert verify_above_floor(6.25, 130e9, 26e9) == pytest.approx(0.8)
    assert verify_above_floor(5.0, 130e9, 26e9) == pytest.approx(1.0)
    with pytest.raises(InvalidInput, match="did not all cross"):
        verify_above_floor(4.9, 130e9, 26e9)


def test_a_table_is_read_with_its_dates_and_sources(table):
    price = read_prices(table(HEADER + ROW))["card"]
    assert (price.usd, price.per, price.status) == (0.5, "hour", "LOOKED-UP")
    assert price.date.isoformat() == "2026-01-02"
    assert price.source == "a page"


def test_an_override_replaces_the_amount_and_says_so(table):
    path = table(HEADER + ROW)
    price = read_prices(path, override={"card": 2.0})["card"]
    assert (price.usd, price.per, price.status) == (2.0, "hour", "ASSUMED")
    assert "override" in price.source
    with pytest.raises(InvalidInput, match="did you mean 'card'"):
        read_prices(path, override={"cart": 2.0})
    with pytest.raises(InvalidInput, match="positive"):
        read_prices(path, override={"card": 0.0})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item,usd\ncard,1\n", "expected item, usd, per"),
        (HEADER + ROW + ROW, "line 3: card is listed twice"),
        (HEADER + ROW.replace("0.5", "-1"), "line 2: usd=-1"),
        (HEADER + ROW.replace("0.5", "nan"), "usd=nan"),
        (HEADER + ROW.replace("0.5", "cheap"), "line 2"),
        (HEADER + ROW.replace("hour", "day"), "per='day'"),
        (HEADER + ROW.replace("2026-01-02", "January"), "line 2"),
        (HEADER + ROW.replace("a page", ""), "source"),
        (HEADER + ROW.replace("LOOKED-UP", "GUESSED"), "status='GUESSED'"),
        (HEADER + ROW.replace("a page", "a, page"), "extra field"),
    ],
)
def test_a_table_that_says_less_is_refused(table, text, words):
    with pytest.raises(InvalidInput, match=words):
        read_prices(table(text))


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="does not exist"):
        read_prices(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "call",
    [
        lambda: usd_per_million_tokens(1.0, 0.0),
        lambda: usd_per_million_tokens(1.0, 1.0, 0.0),
        lambda: usd_per_million_tokens(1.0, 1.0, 1.1),
        lambda: usd_per_million_tokens(-1.0, 1.0),
        lambda: owned(months=0),
        lambda: owned(pue=0.9),
        lambda: owned(watts=-1),
        lambda: floor_s(1.0, 0.0),
    ],
)
def test_impossible_rates_are_refused(call):
    with pytest.raises(InvalidInput):
        call()


@pytest.fixture
def shipped(monkeypatch):
    from pathlib import Path

    monkeypatch.setenv("THESIS_DATA", str(Path(__file__).parents[2] / "data"))


def test_every_shipped_price_has_a_date_and_a_status(shipped):
    for price in read_prices().values():
        assert price.status in ("LOOKED-UP", "ASSUMED")
        # Who looked a price up can say where: an assumption names its author.
        assert (price.status == "ASSUMED") == ("assumption" in price.source)


def test_the_summary_adds_up(shipped):
    found = summarise("rtx-3090", tokens_per_s=0.8, utilisation=0.5)
    prices = read_prices()
    assert found["usd_per_million_tokens"] == usd_per_million_tokens(
        prices["rtx-3090"].usd, 0.8, 0.5
    )
    assert found["break_even_tokens"] == owned_workstation(prices).break_even_tokens(
        0.8, found["usd_per_million_tokens"]
    )
    assert found["price_status"] == prices["rtx-3090"].status
    dear = summarise("rtx-3090", 0.8, 0.5, override={"rtx-3090": 39.0})
    assert dear["usd_per_million_tokens"] == pytest.approx(
        39.0 / prices["rtx-3090"].usd * found["usd_per_million_tokens"]
    )
    never = summarise("rtx-3090", 0.8, override={"rtx-3090": 0.01})
    assert never["break_even_tokens"] is None
    with pytest.raises(InvalidInput, match="gpu='electricity'"):
        summarise("electricity", 1.0)
