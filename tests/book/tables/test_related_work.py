"""The tables of features: they are complete, and nothing that nobody read."""

import re
from pathlib import Path

import pandas as pd
import pytest

from thesis_lib.book.tables import related_work
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
def write(tmp_path):
    """Writes a table and returns its folder."""

    def write(cells):
        features = pd.DataFrame(
            [["fast", "a", "x"], ["fair", "b", "y"], ["kind", "b", "z"]],
            columns=["feature", "group", "definition"],
        )
        rows, cells_name = related_work.files(related_work.PART_ONE)
        features.to_csv(tmp_path / rows, index=False)
        table = pd.DataFrame(cells, columns=COLUMNS)
        table.to_csv(tmp_path / cells_name, index=False)
        return tmp_path

    return write


def changed(row, column, value):
    cells = [list(cell) for cell in SMALL]
    cells[row][COLUMNS.index(column)] = value
    return cells


def test_every_source_of_another_system_is_in_the_references():
    others = [cell for cell in CELLS if cell.system != related_work.OURS]
    assert {cell.source for cell in others} <= set(KEYS)


def test_what_was_read_says_where():
    others = [cell for cell in CELLS if cell.system != related_work.OURS]
    assert not [c for c in others if c.status == related_work.VERIFIED and not c.place]


def test_every_source_of_this_work_exists_and_holds_the_name_that_the_cell_gives():
    for cell in (cell for cell in CELLS if cell.system == related_work.OURS):
        text = (ROOT / cell.source).read_text()
        assert re.search(rf"^(class|def) {cell.place}", text, re.MULTILINE), cell


@pytest.mark.parametrize("table", FIELDS.values(), ids=FIELDS)
def test_nothing_about_this_work_is_unknown(table):
    assert related_work.UNVERIFIED not in set(
        related_work.symbols(table)[related_work.OURS]
    )


@pytest.mark.parametrize("table", FIELDS.values(), ids=FIELDS)
def test_a_cell_that_nobody_read_is_a_question_and_no_other_is(table):
    shown = related_work.symbols(table)
    for cell in table.cells.itertuples():
        asked = shown.loc[cell.feature, cell.system] == related_work.UNVERIFIED
        assert asked == (cell.status != related_work.VERIFIED), cell


def test_a_cell_shows_the_symbol_of_its_value(write):
    shown = related_work.symbols(related_work.read_field(write(SMALL)))
    assert shown.to_dict("list") == {
        "other": ["●", "?", "◐"],
        "this work": ["○", "●", "●"],
    }


def test_sources_say_where_a_cell_was_read_and_that_another_was_not(write):
    told = related_work.evidence(related_work.read_field(write(SMALL)), "other")
    assert told["read in"].to_list() == ["key, section 1", "not read", "key, section 2"]
    assert told["value"].to_list() == ["●", "?", "◐"]


def test_counts_of_a_table_counted_by_hand(write):
    assert related_work.counts(related_work.read_field(write(SMALL))) == {
        "systems": 1, "features": 3, "cells": 6, "verified": 5, "this_work": 2,
        "ahead": 1, "alone": 1, "nearest": 0, "nearest_system": "other",
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
def test_what_nobody_can_stand_for_is_refused(write, cells, says):
    with pytest.raises(InvalidInput, match=re.escape(says)):
        related_work.read_field(write(cells))


def test_an_unknown_system_is_refused():
    with pytest.raises(InvalidInput, match="system='Atlantis' is unknown"):
        related_work.evidence(FIELDS[related_work.PART_ONE], "Atlantis")


@pytest.mark.parametrize("table", FIELDS.values(), ids=FIELDS)
def test_every_feature_has_a_definition_of_its_own(table):
    told = related_work.definitions(table)
    assert (told["definition"].str.len() > 0).all()
    assert told["definition"].is_unique
    assert told.index.is_unique
