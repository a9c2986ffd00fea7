"""What other systems do: a table of features, each cell with where it was read.

A cell is *verified* if somebody read the passage that its evidence paraphrases, in the
place that it names of the source that it names. Only then it has a value. What was not
read has none and is shown as a question, never as a yes or a no.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from thesis_lib.common.errors import choice, require
from thesis_lib.common.files import data_folder

PART_ONE, PART_TWO = "field", "offloading_field"  # the tables of `data/`
VALUES = {"yes": "●", "partly": "◐", "no": "○", "moot": "–"}
UNVERIFIED = "?"
VERIFIED = "verified"
WORDS = 25  # of evidence, in our own words
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Feature:
    """A row of the table; a system has the feature if `definition` holds of it."""

    feature: str
    group: str
    definition: str


@dataclass(frozen=True, slots=True)
class Cell:
    """What one system has of one feature, and who says so."""

    feature: str
    system: str
    value: str  # one of VALUES; empty where not verified
    status: str  # VERIFIED or "not verified"
    source: str  # a key of the references, or for ours a path in this repository
    place: str  # in the source
    evidence: str  # what stands there, in our own words

    @property
    def symbol(self) -> str:
        """How the table shows it."""
        return VALUES[self.value] if self.status == VERIFIED else UNVERIFIED


@dataclass(frozen=True, slots=True)
class Field:
    """The whole table, rows and columns in the order of their files."""

    features: tuple[Feature, ...]
    cells: dict[tuple[str, str], Cell]  # by feature and system

    @property
    def systems(self) -> list[str]:
        """The systems, ours among them."""
        return list(dict.fromkeys(system for _, system in self.cells))

    def values(self, system: str) -> list[str]:
        """The value of each feature, empty where not verified."""
        return [self.cells[row.feature, system].value for row in self.features]


def files(name: str) -> tuple[str, str]:
    """The names of the files with the features and with the cells of a table."""
    return f"{name}_features.csv", f"{name}.csv"


def read_field(folder: Path | None = None, name: str = PART_ONE) -> Field:
    """The table `name` of `folder`, by default that of Part I in `data/`.

    Raises InvalidInput for a cell that is missing, twice, without source or evidence,
    with a value that is none of VALUES, or with a value that nobody verified.
    """
    folder = data_folder() if folder is None else folder
    rows, table = files(name)
    features = tuple(Feature(**row) for row in _rows(folder / rows))
    cells: dict[tuple[str, str], Cell] = {}
    for row in _rows(folder / table):
        cell = Cell(**row)
        where = f"{cell.feature} of {cell.system}"
        require(
            (cell.feature, cell.system) not in cells,
            f"{where} stands twice in {table}: expected one row for each feature and "
            "system; remove one",
        )
        _check(cell, where)
        cells[cell.feature, cell.system] = cell
    field = Field(features, cells)
    known = {row.feature for row in features}
    for feature in {feature for feature, _ in cells}:
        choice(f"{table}: feature", feature, known)
    for system in field.systems:
        for feature in known:
            require(
                (feature, system) in cells,
                f"{feature} of {system} is missing in {table}: expected a row for each "
                "feature and system; write it, not verified if it was not read",
            )
    return field


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _check(cell: Cell, where: str) -> None:
    choice(f"{where}: status", cell.status, (VERIFIED, f"not {VERIFIED}"))
    if cell.status == VERIFIED:
        choice(f"{where}: value", cell.value, VALUES)
    require(
        cell.status == VERIFIED or cell.value == "",
        f"{where} is not verified but has the value {cell.value!r}: expected none; "
        "read the source and mark it verified, or leave the value empty",
    )
    words = len(cell.evidence.split())
    require(
        cell.source != "" and 0 < words <= WORDS,
        f"{where} has source {cell.source!r} and {words} words of evidence: expected a "
        f"source and 1 to {WORDS} words; say where it was read, or would have to be",
    )


def symbols(field: Field) -> pd.DataFrame:
    """Features by systems, each cell as a symbol of VALUES, or UNVERIFIED."""
    rows = [row.feature for row in field.features]
    return pd.DataFrame(
        {s: [field.cells[row, s].symbol for row in rows] for s in field.systems},
        index=pd.Index(rows, name="feature"),
    )


def definitions(field: Field) -> pd.DataFrame:
    """Group and definition of each feature."""
    return pd.DataFrame(
        {
            "group": [row.group for row in field.features],
            "definition": [row.definition for row in field.features],
        },
        index=pd.Index([row.feature for row in field.features], name="feature"),
    )


def evidence(field: Field, system: str) -> pd.DataFrame:
    """What stands behind the cells of one system: symbol, evidence, where it was read.

    Raises InvalidInput for a system that is not in the table.
    """
    choice("system", system, field.systems)
    cells = [field.cells[row.feature, system] for row in field.features]
    return pd.DataFrame(
        {
            "value": [cell.symbol for cell in cells],
            "evidence": [cell.evidence for cell in cells],
            "read in": [
                ", ".join(filter(None, (cell.source, cell.place)))
                if cell.status == VERIFIED
                else "not read"
                for cell in cells
            ],
        },
        index=pd.Index([cell.feature for cell in cells], name="feature"),
    )


def counts(field: Field) -> dict[str, int | str]:
    """How many cells, systems and features there are, and how they fell out.

    `ahead` are the features that some other system has wholly and ours does not;
    `alone` those of ours for which no other system is known to have as much as a part;
    `nearest` of ours are with the system that has most of them wholly.
    """
    others = [system for system in field.systems if system != OURS]
    mine = field.values(OURS)
    rows = list(zip(*(field.values(system) for system in others), strict=True))
    both = {
        system: sum(a == b == "yes" for a, b in zip(mine, values, strict=True))
        for system, values in ((s, field.values(s)) for s in others)
    }
    nearest = max(both, key=lambda system: both[system])
    return {
        "systems": len(others),
        "features": len(field.features),
        "cells": len(field.cells),
        "verified": sum(cell.status == VERIFIED for cell in field.cells.values()),
        "ours": mine.count("yes"),
        "ahead": sum(
            own != "yes" and "yes" in row for own, row in zip(mine, rows, strict=True)
        ),
        "alone": sum(
            own == "yes" and not {"yes", "partly"} & set(row)
            for own, row in zip(mine, rows, strict=True)
        ),
        "nearest": both[nearest],
        "nearest_system": nearest,
    }
