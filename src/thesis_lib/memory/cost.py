"""What a million tokens cost: rented by the hour, or on hardware of one's own.

Prices are data with a date, a source and a status; nobody's price is built in.
"""

import csv
import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thesis_lib.checks import InvalidInput, choice, require
from thesis_lib.paths import data_folder

COLUMNS = ("item", "usd", "per", "date", "source", "status")
UNITS = ("hour", "unit", "kWh")
STATUSES = ("LOOKED-UP", "ASSUMED")
HOURS_PER_MONTH = 365.25 * 24 / 12
HEADINGS = {  # of the columns that readers are shown, for `rename`
    "s_per_step": "s a step",
    "usd_per_hour": "USD an hour",
    "usd_per_million": "USD a million tokens",
}


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per hour, per unit or per kWh, and where they come from.

    ASSUMED says that nobody looked the price up: it is an example to override.
    """

    item: str
    usd: float
    per: str
    date: datetime.date
    source: str
    status: str


def read_prices(
    path: Path | str | None = None, override: Mapping[str, float] | None = None
) -> dict[str, Price]:
    """The price table, `data/prices.csv` by default, by item.

    `override` replaces dollars item by item, and the replaced prices say so. Raises
    InvalidInput for other columns, a repeated item, an amount that is not positive,
    an unknown unit or status, a date that is not ISO 8601, an empty source, and an
    override of an item that the table lacks.
    """
    path = data_folder() / "prices.csv" if path is None else Path(path)
    require(path.is_file(), f"price table {path} does not exist: expected a CSV file")
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        require(
            tuple(rows.fieldnames or ()) == COLUMNS,
            f"{path.name} has columns {', '.join(rows.fieldnames or ())}: expected "
            f"{', '.join(COLUMNS)}",
        )
        prices: dict[str, Price] = {}
        for line, row in enumerate(rows, start=2):
            try:
                price = _parse(row)
            except ValueError as error:
                raise InvalidInput(f"{path.name}, line {line}: {error}") from error
            require(
                price.item not in prices,
                f"{path.name}, line {line}: {price.item} is listed twice",
            )
            prices[price.item] = price
    for item, usd in (override or {}).items():
        choice("item", item, prices)
        require(usd > 0, f"{item}={usd:g} must be a positive number of dollars")
        prices[item] = Price(
            item,
            usd,
            prices[item].per,
            datetime.date.today(),
            "given as an override",
            "ASSUMED",
        )
    return prices


def _parse(row: dict[str, Any]) -> Price:
    missing = [name for name in COLUMNS if not row.get(name)]
    require(
        not missing and None not in row,
        f"{', '.join(missing) or 'an extra field'} does not fit the header: expected "
        f"{len(COLUMNS)} fields, none empty",
    )
    usd = float(row["usd"])
    require(
        math.isfinite(usd) and usd > 0, f"usd={row['usd']} must be a positive amount"
    )
    return Price(
        item=row["item"],
        usd=usd,
        per=choice("per", row["per"], UNITS),
        date=datetime.date.fromisoformat(row["date"]),
        source=row["source"],
        status=choice("status", row["status"], STATUSES),
    )


def usd_per_million_tokens(
    usd_per_hour: float, tokens_per_s: float, utilisation: float = 1.0
) -> float:
    """Dollars per million tokens on a machine that is paid by the hour.

    `utilisation` is the share of the paid hours in which tokens are made, at
    `tokens_per_s`. Raises InvalidInput for a utilisation outside (0, 1] and for a
    price or rate that is not positive.
    """
    _require_rate(tokens_per_s, utilisation)
    require(usd_per_hour > 0, f"usd_per_hour={usd_per_hour:g} must be positive")
    return usd_per_hour / (3600 * tokens_per_s * utilisation) * 1e6


@dataclass(frozen=True, slots=True)
class Owned:
    """A machine of one's own: bought once, written off, and fed with electricity."""

    capex_usd: float
    months: float  # over which the purchase is written off
    watts: float  # while it makes tokens; off or negligible otherwise
    usd_per_kwh: float
    pue: float = 1.0  # power drawn in all over power of the machine

    def __post_init__(self) -> None:
        for name in ("capex_usd", "months", "usd_per_kwh"):
            require(
                getattr(self, name) > 0,
                f"{name}={getattr(self, name):g} must be positive",
            )
        require(self.watts >= 0, f"watts={self.watts:g} must not be negative")
        require(self.pue >= 1, f"pue={self.pue:g} must be at least 1")

    @property
    def capital_usd_per_hour(self) -> float:
        """Dollars an hour whether it works or not."""
        return self.capex_usd / (self.months * HOURS_PER_MONTH)

    @property
    def energy_usd_per_hour(self) -> float:
        """Dollars an hour while it works."""
        return self.watts / 1000 * self.pue * self.usd_per_kwh

    def usd_per_million_tokens(
        self, tokens_per_s: float, utilisation: float = 1.0
    ) -> float:
        """Dollars per million tokens: capital by the month, energy by the token."""
        _require_rate(tokens_per_s, utilisation)
        per_hour = self.capital_usd_per_hour / utilisation + self.energy_usd_per_hour
        return per_hour / (3600 * tokens_per_s) * 1e6

    def break_even_tokens(
        self, tokens_per_s: float, rent_usd_per_million: float
    ) -> float:
        """Tokens a month from which owning costs less than renting.

        Infinite where it never does: where energy alone costs more than the rent, or
        where the machine cannot make that many tokens in a month.
        """
        _require_rate(tokens_per_s, 1.0)
        require(
            rent_usd_per_million > 0,
            f"rent_usd_per_million={rent_usd_per_million:g} must be positive",
        )
        energy = self.energy_usd_per_hour / (3600 * tokens_per_s)
        saved = rent_usd_per_million / 1e6 - energy
        if saved <= 0:
            return math.inf
        tokens = self.capex_usd / self.months / saved
        most = tokens_per_s * 3600 * HOURS_PER_MONTH
        return tokens if tokens <= most else math.inf


def floor_s(moved_bytes: float, link_bytes_per_s: float) -> float:
    """Seconds that moving `moved_bytes` over a link takes at the very least."""
    require(
        moved_bytes >= 0 and link_bytes_per_s > 0,
        f"moved_bytes={moved_bytes:g} and link_bytes_per_s={link_bytes_per_s:g}: "
        "expected none negative and a positive rate",
    )
    return moved_bytes / link_bytes_per_s


def verify_above_floor(
    seconds: float, moved_bytes: float, link_bytes_per_s: float
) -> float:
    """The share of the link that a measured time used, in (0, 1].

    `link_bytes_per_s` is the upper confidence limit of the measured link. Raises
    InvalidInput for a time below the floor: such a record counted bytes that were
    not moved, and must not become a price.
    """
    floor = floor_s(moved_bytes, link_bytes_per_s)
    require(
        seconds >= floor and seconds > 0,
        f"{seconds:.4g} s for {moved_bytes:.4g} bytes is less than the {floor:.4g} s "
        f"that a link of {link_bytes_per_s:.4g} bytes/s needs: the bytes did not all "
        "cross it; measure with cold caches",
    )
    return floor / seconds


def summarise(
    gpu: str,
    tokens_per_s: float,
    utilisation: float = 1.0,
    override: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What `thesis cost` prints: rent against owning a used card with its host.

    Keys `usd_per_million_tokens`, `break_even_tokens` (a month, None where owning
    never pays), and the price with its date, source and status. Owning is assumed
    to mean the table's used card and host over 36 months at 350 W.
    """
    prices = read_prices(override=override)
    rented = choice("gpu", gpu, [p.item for p in prices.values() if p.per == "hour"])
    rent = usd_per_million_tokens(prices[rented].usd, tokens_per_s, utilisation)
    owned = owned_workstation(prices)
    tokens = owned.break_even_tokens(tokens_per_s, rent)
    return {
        "usd_per_million_tokens": rent,
        "break_even_tokens": tokens if math.isfinite(tokens) else None,
        "gpu": rented,
        "tokens_per_s": tokens_per_s,
        "utilisation": utilisation,
        "usd_per_hour": prices[rented].usd,
        "owned_usd_per_million_tokens": owned.usd_per_million_tokens(
            tokens_per_s, utilisation
        ),
        "price_date": prices[rented].date.isoformat(),
        "price_source": prices[rented].source,
        "price_status": prices[rented].status,
    }


def owned_workstation(prices: Mapping[str, Price]) -> Owned:
    """The table's used card in its host, written off over 36 months, at 350 W."""
    return Owned(
        capex_usd=prices["rtx-3090-used"].usd + prices["host-64gb-nvme"].usd,
        months=36,
        watts=350,
        usd_per_kwh=prices["electricity"].usd,
    )


def _require_rate(tokens_per_s: float, utilisation: float) -> None:
    require(
        math.isfinite(tokens_per_s) and tokens_per_s > 0,
        f"tokens_per_s={tokens_per_s:g} must be positive and finite",
    )
    require(
        0 < utilisation <= 1,
        f"utilisation={utilisation:g} must lie in (0, 1]: the busy share of paid hours",
    )
