"""The calculator of costs: its script says what Python says, on any screen."""

import itertools
import math

import pytest
from costs import MIX, RESIDENT, STREAMED, VALUES

from thesis_book.tables.calculator import SLIDERS, STEPS, calculator, results, shown
from thesis_lib.memory.cost.cost import Mix
from thesis_lib.memory.cost.deployment import Configuration

pytestmark = pytest.mark.browser

CHAPTER = "notebooks/06_evaluation_system_for_ml.html"


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.set_content(calculator(STREAMED, RESIDENT, MIX, VALUES))
    yield page
    page.close()


def test_the_script_computes_what_python_computes(page):
    grid = itertools.product((0.01, 0.39, 5.0), (0.01, 0.5, 1.0), (1.0, 25.5, 64.0))
    rows = [(each, None) for each in STREAMED] + RESIDENT
    for price, utilization, link in grid:
        values = {
            **VALUES, "usd_per_hour": price, "utilisation": utilization,
            "link_gb_per_s": link,
        }  # fmt: skip
        found = page.evaluate(
            """(values) => {
                const root = document.querySelector(".cost-calculator");
                return root.known.rows.map((row) => root.evaluate(row, values));
            }""",
            values,
        )
        for (each, hourly), script in zip(rows, found, strict=True):
            python = results(each, MIX, values, hourly)
            assert script.keys() == python.keys()
            for name, value in python.items():
                # infinity crosses the bridge as it is
                assert script[name] == pytest.approx(value, rel=1e-12), name


def test_numbers_are_written_alike(page):
    for value in (141.928, 0.012345, 1_234_567.0, 1.5, 999.5, 12.0, 3.14159e9):
        written = page.evaluate(
            "(x) => x.toLocaleString('en-GB', {maximumSignificantDigits: 3})", value
        )
        assert written == shown(value)


def test_before_anything_moves_the_table_is_that_without_scripts(page, browser):
    still = browser.new_context(java_script_enabled=False).new_page()
    still.set_content(calculator(STREAMED, RESIDENT, MIX, VALUES))
    assert page.locator("td").all_inner_texts() == (
        still.locator("td").all_inner_texts()
    )
    assert still.locator("form").is_hidden()
    assert page.locator("form").is_visible()
    still.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_in_the_book_a_slider_moves_the_numbers_to_what_python_says(
    browser, html, width
):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((html / CHAPTER).as_uri(), wait_until="load")
    root = page.locator(".cost-calculator")
    known = root.evaluate("(root) => root.known")
    for slider, steps in zip(SLIDERS, (-7, 9, -11), strict=True):
        control = root.locator(f"input[name={slider.name}]")
        control.focus()
        at = int(control.input_value())
        for _ in range(abs(steps)):
            control.press("ArrowRight" if steps > 0 else "ArrowLeft")
        assert int(control.input_value()) == min(max(at + steps, 0), STEPS)
    root.locator("select").select_option("1")
    values = dict(known["values"])
    for slider in SLIDERS:
        control = root.locator(f"input[name={slider.name}]")
        values[slider.name] = slider.value(int(control.input_value()))
        assert float(control.get_attribute("data-value")) == pytest.approx(
            values[slider.name], rel=1e-12
        )
    said = root.locator("output[name=result]").inner_text()
    mix = Mix(1, known["generated_tokens"])  # prompts are in the time of the first pass
    for i, row in enumerate(known["rows"]):
        each = Configuration(
            row["name"], "", row["count"], row["read_bytes"], 1.0, row["compute_s"],
            row["first_compute_s"], row["batch"], row["tokens_per_step"],
        )  # fmt: skip
        assert each.memory_gb == row["memory_gb"]
        python = results(each, mix, values, row["usd_per_hour"])
        cell = root.locator("tbody tr").nth(i).locator("td[data-cell=rented_usd]")
        assert cell.inner_text() == shown(python["rented_usd"])
        if i == 1:
            assert f"{shown(python['rented_usd'])} USD a million tokens rented" in said
            even = python["even_tokens"]
            assert (shown(even) if math.isfinite(even) else "never costs less") in said
    # The way back is a button.
    root.locator("button").click()
    page.wait_for_timeout(50)
    first = root.locator("input").first.get_attribute("data-value")
    assert float(first) == known["values"][SLIDERS[0].name]
    page.close()
