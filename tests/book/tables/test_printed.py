"""A table as it is printed: names, numbers and spans."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from thesis_book.tables.printed import table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.25, "1.2"),
        (-2.0, "−2.0"),
        (-0.04, "0.0"),
        (12345.678, "12,345.7"),
        (8000, "8,000"),
        (-3, "−3"),
        (np.inf, "∞"),
        (-np.inf, "−∞"),
        (np.nan, "–"),
        (None, "–"),
        (True, "yes"),
        (np.False_, "no"),
        ("hybrid-corrected", "Hybrid, corrected"),
        ("in_vain", "in vain"),
        ("two, or more", "two, or more"),
        ("data/a_b.csv", "data/a_b.csv"),
    ],
)
def test_each_kind_of_value_has_one_printed_form(value, text):
    frame = pd.DataFrame({"x": pd.Series([value], dtype=object)})
    assert table(frame).frame.iloc[0, 0] == text


def test_digits_are_of_a_column_by_any_of_its_labels():
    frame = pd.DataFrame([[1.0, 2.0, 3.0]], columns=pd.MultiIndex.from_tuples(
        [("a", "x"), ("a", "y"), ("b", "y")]
    ))  # fmt: skip
    printed = table(frame, {"y": 0, ("b", "y"): 3}).frame
    assert printed.iloc[0].tolist() == ["1.0", "2", "3.000"]


def test_a_claim_is_noted_where_its_number_stands():
    rows = pd.MultiIndex.from_tuples([("a", "x"), ("a", ""), ("b", "x")])
    frame = pd.DataFrame([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], rows, ["n", "m"])
    at = {"four": (("a", ""), "m"), "five": (("b", "x"), "n")}
    shown, noted = table(frame, claims=at)._repr_mimebundle_()
    assert noted == {"text/html": {"claims": {"four": (1, -1), "five": (2, -2)}}}
    rows = shown["text/html"].partition("<tbody>\n")[2].split("\n")
    for text, (row, column) in [("4.0", (1, -1)), ("5.0", (2, -2))]:
        assert rows[row].split("<td")[column].startswith(f">{text}<")
    assert table(frame)._repr_mimebundle_()[1] == {}


def test_labels_are_printed_names_and_given_ones_come_first():
    frame = pd.DataFrame({"late_share": [1]}, index=pd.Index(["fifo"], name="policy"))
    printed = table(frame, names={"fifo": "in order"}).frame
    assert printed.index.tolist() == ["in order"]
    assert printed.columns.tolist() == ["late share"]


def test_ends_of_an_interval_and_formats_have_one_printed_name():
    frame = pd.DataFrame({"x_low": [1.0], "high": [2.0]}, index=["nf4"])
    printed = table(frame, names={"high": "most"}).frame
    assert printed.columns.tolist() == ["from", "most"]
    assert printed.index.tolist() == ["NF4"]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_has_a_cell_for_every_column(seed):
    """Spans of headings add up, whatever labels repeat: the grid has no hole."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(1, 7, 2)
    levels = rng.integers(1, 4, 2)

    def labels(size, depth):
        tuples = [tuple(map(str, rng.integers(0, 2, depth))) for _ in range(size)]
        names = [f"n{k}" if rng.random() < 0.5 else None for k in range(depth)]
        return pd.MultiIndex.from_tuples(tuples, names=names)

    frame = pd.DataFrame(
        rng.normal(size=(rows, columns)),
        index=labels(rows, levels[0]),
        columns=labels(columns, levels[1]),
    )
    html = table(frame)._repr_html_()
    width = levels[0] + columns
    for part in ET.fromstring(html):
        taken = set()
        for y, row in enumerate(part):
            x = 0
            for cell in row:
                while (y, x) in taken:
                    x += 1
                assert cell.tag == "td" or cell.get("scope")
                tall, wide = (int(cell.get(n, 1)) for n in ("rowspan", "colspan"))
                for place in np.ndindex(tall, wide):
                    at = (y + place[0], x + place[1])
                    assert at not in taken
                    taken.add(at)
        assert taken == set(np.ndindex(len(part), width))


def test_markup_in_a_label_is_text():
    html = table(pd.DataFrame({"<b>": ["a & b"]}))._repr_html_()
    assert "&lt;b&gt;" in html
    assert re.search(r"<td class=.text.>a &amp; b</td>", html)
