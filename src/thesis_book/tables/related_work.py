"""Features of other systems, each cell with its source.

A cell is *verified* if its author read the passage that its evidence paraphrases, at
the named place of the named source. Only verified cells have a value; others are shown
as a question mark, never as a yes or a no.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from thesis_lib.common.errors import choice
from thesis_lib.common.files import data_folder

PART_ONE, PART_TWO = "field", "offloading_field"  # the tables of `data/`
VALUES = {"yes": "●", "partly": "◐", "no": "○", "moot": "–"}
UNVERIFIED = "?"
VERIFIED = "verified"
OURS = "this work"


@dataclass(frozen=True, slots=True)
class Field:
    """The whole table, rows and columns in the order of their files.

    `features` has an index feature and columns group and definition: a system has the
    feature if the definition holds of it. `cells` has a row for each feature and
    system: value, one of VALUES, or empty where not verified; status; source, a key of
    the references, or for this work a path in this repository; the place in it;
    evidence, what stands there in our own words; and the symbol that the table shows.
    """

    features: pd.DataFrame
    cells: pd.DataFrame

    @property
    def systems(self) -> list[str]:
        """The systems, this work first."""
        return list(dict.fromkeys([OURS, *self.cells.system]))

    def wide(self, column: str) -> pd.DataFrame:
        """A column of the cells, features by systems."""
        table = self.cells.pivot(index="feature", columns="system", values=column)
        return table.loc[self.features.index, self.systems].rename_axis(columns=None)


def read_field(folder: Path | None = None, name: str = PART_ONE) -> Field:
    """The table `name` of `folder`, by default that of Part I in `data/`.

    Its files are NAME_features.csv and NAME.csv.
    """
    folder = data_folder() if folder is None else folder
    features, cells = (
        pd.read_csv(folder / file, dtype=str, keep_default_na=False)
        for file in (f"{name}_features.csv", f"{name}.csv")
    )
    values: Any = cells["value"]
    symbols = values.map(VALUES).where(cells.status == VERIFIED, UNVERIFIED)
    return Field(features.set_index("feature"), cells.assign(symbol=symbols))


def evidence(field: Field, system: str) -> pd.DataFrame:
    """Return the evidence of one system's cells: symbol, evidence, source.

    Raises InvalidInput for a system that is not in the table.
    """
    choice("system", system, field.systems)
    cells: Any = field.cells[field.cells.system == system].set_index("feature")
    cells = cells.loc[field.features.index]
    read_in = (cells.source + ", " + cells.place).str.removesuffix(", ")
    read_in = read_in.where(cells.status == VERIFIED, "not read")
    columns = {"value": cells.symbol, "evidence": cells.evidence, "read in": read_in}
    return pd.DataFrame(columns)


def counts(field: Field) -> dict[str, int | str]:
    """Count cells, systems and features, and the outcomes of the comparison.

    `ahead` are the features that some other system has wholly and this work does not;
    `alone` those of this work for which no other system is known to have as much as a
    part, `alone_wholly` those that no other one has wholly; of the cells of others in
    the `alone` rows, `alone_no` say no, in `alone_moot` the question does not arise,
    and `alone_unread` are not verified; `nearest` of this work are with the system, or
    the systems, that have most of them wholly.
    """
    values: Any = field.wide("value")
    mine, others = values[OURS] == "yes", values.drop(columns=OURS)
    wholly = others == "yes"
    both = wholly[mine].sum()
    alone = mine & ~others.isin(["yes", "partly"]).any(axis=1)
    words = {"no": "no", "moot": "moot", "unread": ""}
    return {
        "systems": others.shape[1],
        "features": len(field.features),
        "cells": len(field.cells),
        "verified": int((field.cells.status == VERIFIED).sum()),
        "this_work": int(mine.sum()),
        "ahead": int((~mine & wholly.any(axis=1)).sum()),
        "alone": int(alone.sum()),
        **{
            f"alone_{word}": int((others[alone] == value).sum().sum())
            for word, value in words.items()
        },
        "alone_wholly": int((mine & ~wholly.any(axis=1)).sum()),
        "nearest": int(both.max()),
        "nearest_system": " and ".join(both.index[both == both.max()]),
    }
