"""The tables of features: they are complete, and nothing that nobody read."""

import itertools
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


@pytest.mark.parametrize("table", FIELDS.values(), ids=FIELDS)
def test_each_feature_of_each_system_has_one_cell(table):
    features, systems = table.features.index, table.cells.system.unique()
    stand = [*zip(table.cells.feature, table.cells.system, strict=True)]
    assert sorted(stand) == sorted(itertools.product(features, systems))


def test_cell_has_a_value_only_if_its_source_was_read():
    for cell in CELLS:
        if cell.status == related_work.VERIFIED:
            assert cell.value in related_work.VALUES, cell
        else:
            assert (cell.status, cell.value) == ("not verified", ""), cell
        assert cell.source, cell
        assert 1 <= len(cell.evidence.split()) <= 25, cell  # words, and our own


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
def test_unread_cells_alone_are_questions(table):
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


def test_an_unknown_system_is_rejected():
    with pytest.raises(InvalidInput, match="system='Atlantis' is unknown"):
        related_work.evidence(FIELDS[related_work.PART_ONE], "Atlantis")
