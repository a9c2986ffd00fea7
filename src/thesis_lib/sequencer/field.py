"""What other systems do: a table of features, each cell with where it was read.

A cell is *verified* if somebody read the passage that its evidence paraphrases, in the
place that it names of the source that it names. Only then it has a value. What was not
read has none and is shown as a question, never as a yes or a no.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from thesis_lib.checks import choice, require
from thesis_lib.paths import data_folder

FEATURES, CELLS = "field_features.csv", "field.csv"
VALUES = {"yes": "●", "partly": "◐", "no": "○", "moot": "–"}
UNVERIFIED = "?"
STATES = ("verified", "not verified")
WORDS = 25  # of evidence, in our own words
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Field:
    """Features and cells as read; rows of both in the order of their files.

    `features` has an index `feature` and the columns group, definition. `cells` has a
    row for each feature and system: value (empty where not verified), status, source (a
    key of the references, or for ours a path in this repository), place, evidence.
    """

    features: pd.DataFrame
    cells: pd.DataFrame

    @property
    def systems(self) -> list[str]:
        """The systems, ours last."""
        return list(dict.fromkeys(self.cells["system"]))


def read_field(folder: Path | None = None) -> Field:
    """The table of `folder`, by default of `data/`.

    Raises InvalidInput for a cell that is missing, twice, without source or evidence,
    with a value that is none of VALUES, or with a value that nobody verified.
    """
    folder = data_folder() if folder is None else folder
    features = pd.read_csv(folder / FEATURES, dtype=str, keep_default_na=False)
    cells = pd.read_csv(folder / CELLS, dtype=str, keep_default_na=False)
    field = Field(features.set_index("feature"), cells)
    _check(field)
    return field


def _check(field: Field) -> None:
    cells = field.cells
    twice = cells[cells.duplicated(["feature", "system"])]
    require(
        twice.empty,
        f"{CELLS} has {' of '.join(twice.iloc[0, :2]) if len(twice) else ''} twice: "
        "expected one row for each feature and system; remove one",
    )
    have = set(zip(cells["feature"], cells["system"], strict=True))
    want = {(f, s) for f in field.features.index for s in field.systems}
    for odd in sorted(have ^ want):
        is_missing = "is missing in" if odd in want else f"is unknown to {FEATURES} in"
        require(
            False,
            f"{' of '.join(odd)} {is_missing} {CELLS}: expected a row for each feature "
            f"of {FEATURES} and system; write it, not verified if it was not read",
        )
    for cell in cells.itertuples(index=False):
        where = f"{cell.feature} of {cell.system}"
        choice(f"{where}: status", cell.status, STATES)
        if cell.status == "verified":
            choice(f"{where}: value", cell.value, VALUES)
        require(
            cell.status == "verified" or cell.value == "",
            f"{where} is not verified but has the value {cell.value!r}: expected none; "
            "read the source and mark it verified, or leave the value empty",
        )
        words = len(cell.evidence.split())
        require(
            cell.source != "" and 0 < words <= WORDS,
            f"{where} has source {cell.source!r} and {words} words of evidence: "
            f"expected a source and 1 to {WORDS} words; say where it was read, or "
            "would have to be",
        )


def symbols(field: Field, group: str | None = None) -> pd.DataFrame:
    """Features by systems, each cell as a symbol of VALUES, or UNVERIFIED.

    With `group` only the features of that group. Raises InvalidInput for another one.
    """
    features = field.features
    if group is not None:
        choice("group", group, features["group"].unique())
        features = features[features["group"] == group]
    shown = field.cells["value"].map(VALUES).fillna(UNVERIFIED)
    table = field.cells.assign(shown=shown).pivot(
        index="feature", columns="system", values="shown"
    )
    return table.loc[features.index, field.systems].rename_axis(columns=None)


def sources(field: Field, system: str) -> pd.DataFrame:
    """What stands behind the cells of one system: features by value, source, evidence.

    Raises InvalidInput for a system that is not in the table.
    """
    choice("system", system, field.systems)
    cells = field.cells[field.cells["system"] == system]
    read_in = cells["source"] + (", " + cells["place"]).where(cells["place"] != "", "")
    return pd.DataFrame(
        {
            "value": cells["value"].map(VALUES).fillna(UNVERIFIED),
            "evidence": cells["evidence"],
            "read in": read_in.where(cells["status"] == "verified", "not read"),
        }
    ).set_axis(cells["feature"])


def counts(field: Field) -> dict[str, int | str]:
    """How many cells, systems and features there are, and how they fell out.

    `ahead` are the features that some other system has wholly and ours does not;
    `alone` those of ours for which no other system is known to have as much as a part;
    `nearest` of ours are with the system that has most of them wholly.
    """
    value = field.cells.pivot(index="feature", columns="system", values="value")
    mine, others = value[OURS], value.drop(columns=OURS)
    shared = (others[mine == "yes"] == "yes").sum()
    return {
        "systems": len(others.columns),
        "features": len(value),
        "cells": len(field.cells),
        "verified": int((field.cells["status"] == "verified").sum()),
        "ours": int((mine == "yes").sum()),
        "ahead": int(((mine != "yes") & (others == "yes").any(axis=1)).sum()),
        "alone": int(
            ((mine == "yes") & ~others.isin(["yes", "partly"]).any(axis=1)).sum()
        ),
        "nearest": int(shared.max()),
        "nearest_system": str(shared.idxmax()),
    }
