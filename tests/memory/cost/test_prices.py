import datetime
import re
from pathlib import Path

import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.cost.prices import (
    Quantity,
    parse_override,
    read_prices,
    read_quantities,
)

DATA = Path(__file__).parents[3] / "data"
HEADER = "item,usd,low,high,per,date,source,status\n"
ROW = "card,0.5,0.4,0.7,hour,2026-01-02,a page,LOOKED-UP\n"


@pytest.fixture
def table(tmp_path):
    def write(text):
        (tmp_path / "prices.csv").write_text(text, encoding="utf-8")
        return tmp_path / "prices.csv"

    return write


def test_a_table_is_read_with_its_ranges_dates_and_sources(table):
    date = datetime.date(2026, 1, 2)
    told = "card", "hour", "a page", "LOOKED-UP", date
    assert read_prices(table(HEADER + ROW)) == {"card": Quantity(0.5, 0.4, 0.7, *told)}


def test_an_override_replaces_the_amount_and_its_range_and_says_so(table):
    path = table(HEADER + ROW)
    price = read_prices(path, override={"card": 2.0})["card"]
    assert (price.value, price.low, price.high) == (2.0, 2.0, 2.0)
    assert (price.unit, price.status) == ("hour", "ASSUMED")
    assert "override" in price.source
    with pytest.raises(InvalidInput, match="did you mean 'card'"):
        read_prices(path, override={"cart": 2.0})
    for usd in (0.0, float("inf"), float("nan")):
        with pytest.raises(InvalidInput, match="positive"):
            read_prices(path, override={"card": usd})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item,usd\ncard,1\n", "expected item, usd, low"),
        (HEADER + ROW + ROW, "line 3: card is listed twice"),
        (HEADER + ROW.replace("0.5", "-1"), "line 2: card=-1 from 0.4"),
        (HEADER + ROW.replace("0.5", "nan"), "card=nan"),
        (HEADER + ROW.replace("0.5", "0.8"), "card=0.8 from 0.4 to 0.7"),
        (HEADER + ROW.replace("0.7", "inf"), "to inf"),
        (HEADER + ROW.replace("0.4", "0.6"), "the first between the others"),
        (HEADER + ROW.replace("0.5", "cheap"), "line 2: .*'cheap'"),
        (HEADER + ROW.replace("hour", "day"), "line 2: per='day'"),
        (HEADER + ROW.replace("2026-01-02", "January"), "line 2: .*'January'"),
        (HEADER + ROW.replace("a page", ""), "line 2: source: expected no field"),
        (HEADER + ROW.replace("LOOKED-UP", "GUESSED"), "line 2: status='GUESSED'"),
        (HEADER + ROW + ROW.replace("a page", "a, page"), "line 3: an extra field"),
    ],
)
def test_a_table_that_says_less_is_rejected(table, text, words):
    with pytest.raises(InvalidInput, match=words):
        read_prices(table(text))


def test_a_table_in_another_encoding_is_rejected(tmp_path):
    (tmp_path / "prices.csv").write_bytes((HEADER + ROW).encode() + b"caf\xe9")
    with pytest.raises(InvalidInput, match="is not UTF-8"):
        read_prices(tmp_path / "prices.csv")


def test_a_missing_table_is_rejected(tmp_path):
    with pytest.raises(InvalidInput, match="does not exist"):
        read_prices(tmp_path / "none.csv")


def test_overrides_are_read_from_words():
    assert parse_override(["h100=1.5", "memory=4"]) == {"h100": 1.5, "memory": 4.0}
    for word in ("h100", "h100=", "=2", "h100=cheap", "h100=nan"):
        with pytest.raises(InvalidInput, match="expected ITEM=USD"):
            parse_override([word])
    with pytest.raises(InvalidInput, match="twice"):
        parse_override(["h100=1", "h100=2"])


def test_every_shipped_number_says_where_it_is_from():
    rows = [
        *read_prices(DATA / "prices.csv").values(),
        *read_quantities(DATA / "deployment.csv").values(),
    ]
    for row in rows:
        # Who read a price can say where: an address, or else an author who assumed it.
        assumed = row.source.startswith("author's assumption")
        assert (row.status == "ASSUMED") == assumed
        assert assumed or re.search(r"https://\S+\.\w", row.source)
