"""Prices and other assumptions of a deployment, each with its range and its source.

No price is built in: both tables are data, and any price can be overridden.
"""

import csv
import datetime
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import data_folder
from thesis_lib.common.stats import Interval

UNITS = ("hour", "unit", "GB", "kWh")  # of what a price is
STATUSES = ("LOOKED-UP", "QUOTED", "ASSUMED")


@dataclass(frozen=True, slots=True)
class Quantity(Interval):
    """A positive number that a cost depends on, its range, and where it comes from.

    A price is in US dollars for a `unit` and has a date. QUOTED numbers
    come from a published page; ASSUMED numbers are examples to override.
    Raises InvalidInput for a value outside its range, an amount that is not positive
    and finite, and an unknown status or, of a price, unit.
    """

    name: str = ""
    unit: str = ""
    source: str = ""
    status: str = "ASSUMED"
    date: datetime.date | None = None

    def __post_init__(self) -> None:
        require(
            0 < self.low <= self.value <= self.high < math.inf,
            f"{self.name}={self.value:g} from {self.low:g} to {self.high:g}: expected "
            "positive numbers, the first between the others",
        )
        choice("status", self.status, STATUSES)
        if self.date is not None:
            choice("per", self.unit, UNITS)


def read_prices(
    path: Path | str | None = None, override: Mapping[str, float] | None = None
) -> dict[str, Quantity]:
    """The price table, `data/prices.csv` by default, by item.

    `override` replaces dollars item by item, and the replaced prices say so and have no
    range. Raises InvalidInput for other columns, a repeated item, an empty field, a
    date that is not ISO 8601, what `Quantity` rejects, and an override of an item that
    the table lacks.
    """
    columns = ("item", "usd", "low", "high", "per", "date", "source", "status")
    prices = _read(data_folder() / "prices.csv" if path is None else path, columns)
    for item, usd in (override or {}).items():
        choice("item", item, prices)
        prices[item] = replace(
            prices[item],
            **dict.fromkeys(("value", "low", "high"), usd),
            date=datetime.date.today(),
            source="given as an override",
            status="ASSUMED",
        )
    return prices


def read_quantities(path: Path | str | None = None) -> dict[str, Quantity]:
    """Return the inputs of a deployment by name, from `data/deployment.csv`.

    Raises InvalidInput as `read_prices` does.
    """
    columns = ("quantity", "value", "low", "high", "unit", "source", "status")
    return _read(data_folder() / "deployment.csv" if path is None else path, columns)


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


_FIELDS = {"item": "name", "quantity": "name", "usd": "value", "per": "unit"}


def _read(path: Path | str, columns: Sequence[str]) -> dict[str, Quantity]:
    """A table of quantities by name. Rejects a row by its line."""
    path = Path(path)
    require(path.is_file(), f"table {path} does not exist: expected a CSV file")
    prices: dict[str, Quantity] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path} is not UTF-8: expected a table of text; save it so"
        ) from error
    with io.StringIO(text, newline="") as file:
        rows = csv.DictReader(file)
        require(
            rows.fieldnames == list(columns),
            f"{path.name} has columns {rows.fieldnames}: expected {', '.join(columns)}",
        )
        for row in rows:
            try:
                price = _quantity(row)
                require(price.name not in prices, f"{price.name} is listed twice")
            except ValueError as error:  # of ours, of a number or of a date
                where = f"{path.name}, line {rows.line_num}"
                raise InvalidInput(f"{where}: {error}") from error
            prices[price.name] = price
    return prices


def _quantity(row: dict[str, Any]) -> Quantity:
    require(None not in row, "an extra field: expected quotes around what has a comma")
    fields = {_FIELDS.get(column, column): text for column, text in row.items()}
    empty = [column for column, text in fields.items() if not text]
    require(not empty, f"{', '.join(empty)}: expected no field to be empty")
    fields |= {name: float(fields[name]) for name in ("value", "low", "high")}
    if "date" in fields:
        fields["date"] = datetime.date.fromisoformat(fields["date"])
    return Quantity(**fields)
