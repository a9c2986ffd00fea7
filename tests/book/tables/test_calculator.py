"""The page without its script; `tests/browser/test_sliders.py` runs the script."""

import json
import math
import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from costs import MIX, RESIDENT, STREAMED, VALUES

from thesis_book.tables import calculator
from thesis_book.tables.calculator import SLIDERS, results, shown


@pytest.fixture(scope="module")
def text():
    return calculator.calculator(STREAMED, RESIDENT, MIX, VALUES)


def test_without_scripts_the_table_says_what_python_says(text):
    _, *rows = (
        [cell.text for cell in row.find_all(["th", "td"])]
        for row in BeautifulSoup(text, "html.parser").find_all("tr")
    )
    assert [row[0] for row in rows] == ["bf16 </script>", "nf4, batch", "resident"]
    for row, each in zip(rows, STREAMED, strict=False):
        found = results(each, MIX, VALUES)
        assert row[1:] == [shown(found[name]) for name in calculator.COLUMNS]
    mine = results(RESIDENT[0][0], MIX, VALUES, usd_per_hour=2.5)
    assert rows[-1][3:] == [shown(mine["rented_usd"]), "–", "–"]


def test_every_control_has_a_label_and_nothing_reaches_outside(text):
    page = BeautifulSoup(text, "html.parser")
    labeled = {label["for"] for label in page.find_all("label")}
    controls = page.find_all(["input", "select"])
    assert len(controls) == len(SLIDERS) + 1
    assert all(control["id"] in labeled for control in controls)
    assert not re.search(r"https?://|\bsrc=|\bimport\b", text)


def test_the_data_cannot_end_its_script(text):
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert json.loads(data)["rows"][0]["name"] == "bf16 </script>"
    assert "@" not in re.sub(r"@media", "", text)  # no place was left open


def test_the_script_finds_everything_that_it_reads_of_a_row(text):
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    script = (Path(calculator.__file__).parent / "calculator.js").read_text()
    read = set(re.findall(r"\brow\.(\w+)", script))
    assert len(read) > 5
    for row in json.loads(data)["rows"]:
        assert read <= row.keys()


def test_a_slider_returns_to_the_value_of_its_position():
    for slider in SLIDERS:
        for position in (0, 1, 50, calculator.STEPS):
            assert slider.position(slider.value(position)) == position
        assert slider.value(0) == slider.low
        assert slider.value(calculator.STEPS) == pytest.approx(slider.high)


def test_break_even_is_where_owning_costs_the_rent():
    found = results(STREAMED[0], MIX, VALUES)
    even = found["even_tokens"] / 1e6
    owned = found["monthly_usd"] + found["energy_usd"] * even
    assert owned == pytest.approx(found["rented_usd"] * even)
    cheap = results(STREAMED[0], MIX, {**VALUES, "usd_per_hour": 0.01})
    assert cheap["even_tokens"] == math.inf


@pytest.mark.parametrize(
    ("value", "text"),
    [(141.928, "142"), (0.012345, "0.0123"), (1_234_567.0, "1,230,000"),
     (1.5, "1.5"), (math.inf, "never")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert shown(value) == text
