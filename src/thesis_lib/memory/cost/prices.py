"""Prices and other assumptions of a deployment, each with its range and its source.

Nobody's price is built in: both tables are data, and any price can be overridden.
"""

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import data_folder

COLUMNS = ("item", "usd", "low", "high", "per", "date", "source", "status")
QUANTITY_COLUMNS = ("quantity", "value", "low", "high", "unit", "source", "status")
UNITS = ("hour", "unit", "GB", "kWh")
STATUSES = ("LOOKED-UP", "QUOTED", "ASSUMED")


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per hour, unit, GB or kWh, their range, and where they come from.

    QUOTED says that somebody else's page named it; ASSUMED that nobody looked: it is an
    example to override.
    """

    item: str
    usd: float
    low: float
    high: float
    per: str
    date: datetime.date
    source: str
    status: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something beside prices that a cost depends on, with its range."""

    name: str
    value: float
    low: float
    high: float
    unit: str
    source: str
    status: str


def read_prices(
    path: Path | str | None = None, override: Mapping[str, float] | None = None
) -> dict[str, Price]:
    """The price table, `data/prices.csv` by default, by item.

    `override` replaces dollars item by item, and the replaced prices say so and have no
    range. Raises InvalidInput for other columns, a repeated item, an amount that is not
    positive or outside its range, an unknown unit or status, a date that is not ISO
    8601, an empty source, and an override of an item that the table lacks.
    """
    path = data_folder() / "prices.csv" if path is None else Path(path)
    table = _read(path, COLUMNS)
    _refuse(path, ~table.per.isin(UNITS), table.per, f"per to be one of {UNITS}")
    dates: Any = pd.to_datetime(table.date, format="%Y-%m-%d", errors="coerce")
    _refuse(path, dates.isna(), table.date, "date to be of the form 2026-01-31")
    table["date"] = dates.dt.date
    prices = {row["item"]: Price(**row) for row in table.to_dict("records")}
    for item, usd in (override or {}).items():
        choice("item", item, prices)
        require(
            math.isfinite(usd) and usd > 0,
            f"{item}={usd:g} must be a positive number of dollars",
        )
        prices[item] = replace(
            prices[item],
            usd=usd,
            low=usd,
            high=usd,
            date=datetime.date.today(),
            source="given as an override",
            status="ASSUMED",
        )
    return prices


def read_quantities(path: Path | str | None = None) -> dict[str, Quantity]:
    """What a deployment needs beside prices, `data/deployment.csv` by default, by name.

    Raises InvalidInput as `read_prices` does.
    """
    path = data_folder() / "deployment.csv" if path is None else Path(path)
    table = _read(path, QUANTITY_COLUMNS).rename(columns={"quantity": "name"})
    return {row["name"]: Quantity(**row) for row in table.to_dict("records")}


def parse_override(words: list[str]) -> dict[str, float]:
    """Dollars by item from words of the form ITEM=USD.

    Raises InvalidInput for a word of another form and for an item that is named twice.
    """
    override: dict[str, float] = {}
    for word in words:
        item, equals, text = word.partition("=")
        try:
            usd = float(text)
        except ValueError:
            usd = math.nan
        require(
            bool(item and equals) and math.isfinite(usd),
            f"price {word!r} cannot be read: expected ITEM=USD, such as rtx-3090=0.35",
        )
        require(item not in override, f"the price of {item} is given twice")
        override[item] = usd
    return override


def _read(path: Path, columns: tuple[str, ...]) -> Any:
    """A table of amounts: name, value between low and high, unit, origin, status."""
    require(path.is_file(), f"table {path} does not exist: expected a CSV file")
    try:
        table: Any = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.ParserError as error:
        raise InvalidInput(
            f"{path.name} cannot be read: {error}; expected {len(columns)} fields in "
            "each line, with quotes around what has a comma"
        ) from error
    require(
        tuple(table.columns) == columns and isinstance(table.index, pd.RangeIndex),
        f"{path.name} has columns {', '.join(table.columns)} or an extra field: "
        f"expected {', '.join(columns)}",
    )
    name, amount, *_ = columns
    empty = table.isin([""])
    _refuse(path, empty.any(axis=1), empty.idxmax(axis=1), "no field to be empty")
    _refuse(path, table[name].duplicated(), table[name], "each to be listed once")
    texts = table[[amount, "low", "high"]]
    amounts: Any = texts.apply(pd.to_numeric, errors="coerce")
    value, low, high = (amounts[column] for column in amounts)
    _refuse(
        path,
        ~((low > 0) & (low <= value) & (value <= high) & (high < np.inf)),
        texts.agg(" between ".join, axis=1),
        f"positive amounts, {amount} between low and high",
    )
    _refuse(path, ~table.status.isin(STATUSES), table.status, f"status in {STATUSES}")
    return table.assign(**amounts)


def _refuse(path: Path, wrong: Any, found: Any, expected: str) -> None:
    """Refuse a table with a wrong row, by the line of the first one."""
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InvalidInput(
            f"{path.name}, line {at + 2}: {found.iloc[at]}: expected {expected}"
        )
