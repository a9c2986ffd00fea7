"""Prices and other assumptions of a deployment, each with its range and its source.

Nobody's price is built in: both tables are data, and any price can be overridden.
"""

import csv
import datetime
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import data_folder

COLUMNS = ("item", "usd", "low", "high", "per", "date", "source", "status")
QUANTITY_COLUMNS = ("quantity", "value", "low", "high", "unit", "source", "status")
UNITS = ("hour", "unit", "GB", "kWh")
STATUSES = ("LOOKED-UP", "QUOTED", "ASSUMED")

Row = TypeVar("Row")


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
    prices = _read(path, COLUMNS, _price)
    for item, usd in (override or {}).items():
        choice("item", item, prices)
        require(
            math.isfinite(usd) and usd > 0,
            f"{item}={usd:g} must be a positive number of dollars",
        )
        prices[item] = Price(
            item,
            usd,
            usd,
            usd,
            prices[item].per,
            datetime.date.today(),
            "given as an override",
            "ASSUMED",
        )
    return prices


def read_quantities(path: Path | str | None = None) -> dict[str, Quantity]:
    """What a deployment needs beside prices, `data/deployment.csv` by default, by name.

    Raises InvalidInput as `read_prices` does.
    """
    path = data_folder() / "deployment.csv" if path is None else Path(path)
    return _read(path, QUANTITY_COLUMNS, _quantity)


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


def _read(
    path: Path, columns: tuple[str, ...], parse: Callable[[dict[str, Any]], Row]
) -> dict[str, Row]:
    require(path.is_file(), f"table {path} does not exist: expected a CSV file")
    found: dict[str, Row] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        require(
            tuple(rows.fieldnames or ()) == columns,
            f"{path.name} has columns {', '.join(rows.fieldnames or ())}: expected "
            f"{', '.join(columns)}",
        )
        for line, row in enumerate(rows, start=2):
            try:
                missing = [name for name in columns if not row.get(name)]
                require(
                    not missing and None not in row,
                    f"{', '.join(missing) or 'an extra field'} does not fit the "
                    f"header: expected {len(columns)} fields, none empty",
                )
                parsed = parse(row)
            except ValueError as error:
                raise InvalidInput(f"{path.name}, line {line}: {error}") from error
            name = row[columns[0]]
            require(
                name not in found, f"{path.name}, line {line}: {name} is listed twice"
            )
            found[name] = parsed
    return found


def _price(row: dict[str, Any]) -> Price:
    usd, low, high = _range(row, "usd")
    return Price(
        item=row["item"],
        usd=usd,
        low=low,
        high=high,
        per=choice("per", row["per"], UNITS),
        date=datetime.date.fromisoformat(row["date"]),
        source=row["source"],
        status=choice("status", row["status"], STATUSES),
    )


def _quantity(row: dict[str, Any]) -> Quantity:
    value, low, high = _range(row, "value")
    return Quantity(
        name=row["quantity"],
        value=value,
        low=low,
        high=high,
        unit=row["unit"],
        source=row["source"],
        status=choice("status", row["status"], STATUSES),
    )


def _range(row: dict[str, Any], name: str) -> tuple[float, float, float]:
    value, low, high = (float(row[column]) for column in (name, "low", "high"))
    require(
        math.isfinite(high) and 0 < low <= value <= high,
        f"{name}={row[name]} between low={row['low']} and high={row['high']}: expected "
        "positive amounts in that order",
    )
    return value, low, high
