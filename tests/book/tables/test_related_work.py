"""The tables of features: they are complete, and nothing that nobody read."""

import re
from pathlib import Path

import pandas as pd
import pytest

from thesis_book.tables import related_work
from thesis_lib.common.errors import InvalidInput

ROOT = Path(__file__).parents[3]
FIELDS = {
    name: related_work.read_field(ROOT / "data", name)
    for name in (related_work.PART_ONE, related_work.PART_TWO)
}
CELLS = [cell for table in FIELDS.values() for cell in table.cells.itertuples()]
KEYS = re.findall(
    r"^@\w+\{([^,\s]+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE
)
COLUMNS = ["feature", "system", "value", "status", "source", "place", "evidence"]
# three features, two systems: everything that counts can be counted by hand
SMALL = [
    ["fast", "other", "yes", "verified", "key", "section 1", "It is fast."],
    ["fast", "this work", "no", "verified", "a/path.py", "", "It is slow."],
    ["fair", "other", "", "not verified", "key", "", "Not read."],
    ["fair", "this work", "yes", "verified", "a/path.py", "", "It is fair."],
    ["kind", "other", "partly", "verified", "key", "section 2", "On Sundays."],
    ["kind", "this work", "yes", "verified", "a/path.py", "", "It is kind."],
]


@pytest.fixture
def read(tmp_path):
    """Writes cells and reads them as a table."""

    def read(cells):
        named = {"fast": ["a", "x"], "fair": ["b", "y"], "kind": ["b", "z"]}
        features = pd.DataFrame.from_dict(
            named, orient="index", columns=["group", "definition"]
        )
        path = tmp_path / f"{related_work.PART_ONE}_features.csv"
        features.to_csv(path, index_label="feature")
        table = pd.DataFrame(cells, columns=COLUMNS)
        table.to_csv(tmp_path / f"{related_work.PART_ONE}.csv", index=False)
        return related_work.read_field(tmp_path)

    return read


def changed(row, column, value):
    cells = [list(cell) for cell in SMALL]
    cells[row][COLUMNS.index(column)] = value
    return cells


def test_every_source_of_another_system_is_in_the_references_and_says_where():
    others = [cell for cell in CELLS if cell.system != related_work.OURS]
    assert {cell.source for cell in others} <= set(KEYS)
    assert not [c for c in others if c.status == related_work.VERIFIED and not c.place]


def test_every_source_of_this_work_exists_and_holds_the_name_that_the_cell_gives():
    for cell in (cell for cell in CELLS if cell.system == related_work.OURS):
        assert cell.status == related_work.VERIFIED
        text = (ROOT / cell.source).read_text()
        assert re.search(rf"^(class|def) {cell.place}", text, re.MULTILINE), cell


@pytest.mark.parametrize("table", FIELDS.values(), ids=FIELDS)
def test_a_cell_that_nobody_read_is_a_question_and_no_other_is(table):
    shown = table.wide("symbol")
    for cell in table.cells.itertuples():
        asked = shown.loc[cell.feature, cell.system] == related_work.UNVERIFIED
        assert asked == (cell.status != related_work.VERIFIED), cell
    assert (table.features["definition"].str.len() > 0).all()
    assert table.features["definition"].is_unique
    assert table.features.index.is_unique


def test_a_cell_shows_the_symbol_of_its_value_and_where_it_was_read(read):
    shown = {"other": ["●", "?", "◐"], "this work": ["○", "●", "●"]}
    assert read(SMALL).wide("symbol").to_dict("list") == shown
    told = related_work.evidence(read(SMALL), "other")
    assert told["read in"].to_list() == ["key, section 1", "not read", "key, section 2"]
    assert told["value"].to_list() == shown["other"]


def test_counts_of_a_table_counted_by_hand(read):
    assert related_work.counts(read(SMALL)) == {
        "systems": 1, "features": 3, "cells": 6, "verified": 5, "this_work": 2,
        "ahead": 1, "alone": 1, "alone_no": 0, "alone_moot": 0, "alone_unread": 1,
        "alone_wholly": 2, "nearest": 0, "nearest_system": "other",
    }  # fmt: skip
    cells = changed(4, "value", "moot")
    cells[0][2:4] = ["", "not verified"]  # of a feature that is not of this work
    found = related_work.counts(read(cells))
    alone = {name: n for name, n in found.items() if name.startswith("alone")}
    assert alone == {
        "alone": 2, "alone_no": 0, "alone_moot": 1, "alone_unread": 1,
        "alone_wholly": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (changed(2, "value", "yes"), "fair of other is not verified but has the value"),
        (changed(0, "value", "perhaps"), "value='perhaps' is unknown"),
        (changed(0, "value", ""), "value='' is unknown"),
        (changed(0, "status", "heard"), "status='heard' is unknown"),
        (changed(0, "source", ""), "fast of other has source ''"),
        (changed(0, "evidence", ""), "0 words of evidence"),
        (changed(0, "evidence", "word " * 26), "26 words of evidence"),
        (changed(0, "feature", "far"), "feature='far' is unknown"),
        (SMALL[:3] + SMALL[4:], "fair of this work is missing"),
        ([*SMALL, SMALL[0]], "fast of other stands twice"),
    ],
)
def test_what_nobody_can_stand_for_is_refused(read, cells, says):
    with pytest.raises(InvalidInput, match=re.escape(says)):
        read(cells)


def test_an_unknown_system_is_refused():
    with pytest.raises(InvalidInput, match="system='Atlantis' is unknown"):
        related_work.evidence(FIELDS[related_work.PART_ONE], "Atlantis")
