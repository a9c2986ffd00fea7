"""Graphics cards by their data sheets.

A link is its generation, its lanes and the packets that the standard prescribes.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.files import data_folder
from thesis_lib.memory.model.spec import Machine

CARDS = "offloading_cards.csv"

# Giga-transfers a second of one lane, a bit each, of which 128 in 130 are payload.
_TRANSFERS_PER_S = {3: 8e9, 4: 16e9, 5: 32e9}
_ENCODING = 128 / 130
# A completion carries at most the payload that the standard sets by default (PLX,
# PEX 8532, section 8.4.1.3) behind a header of three double words and two more of
# framing, sequence number and checksum (Intel, AN 456, Throughput for Posted Writes).
PAYLOAD_BYTES, OVERHEAD_BYTES = 128, 20
_HOST_BYTES = 2**50  # what does not fit on the card fits in host memory


def raw_bytes_per_s(generation: int, lanes: int) -> float:
    """Return the raw rate of the lanes of a PCIe generation, with packet headers."""
    return lanes * _TRANSFERS_PER_S[generation] * _ENCODING / 8


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card, or several that share one link, as the data sheets have it."""

    device: str
    memory_bytes: int
    memory_bytes_per_s: float
    flops_per_s: float | None  # 16-bit tensor products, dense; None if not looked up
    pcie_generation: int
    pcie_lanes: int
    source: str  # keys of the references, separated by semicolons

    @property
    def raw_bytes_per_s(self) -> float:
        """Return the raw rate of the link, with packet headers: an upper bound."""
        return raw_bytes_per_s(self.pcie_generation, self.pcie_lanes)

    @property
    def link_bytes_per_s(self) -> float:
        """Return the rate of data in packets of the standard's default size."""
        packet = PAYLOAD_BYTES + OVERHEAD_BYTES
        return self.raw_bytes_per_s * PAYLOAD_BYTES / packet

    def machine(self, count: int = 1, link_bytes_per_s: float | None = None) -> Machine:
        """Return several cards as one, with host memory for what does not fit on them.

        The link is that of the data sheet unless given; no disk is waited for.
        """
        return Machine(
            device_bytes=count * self.memory_bytes,
            disk_bytes_per_s=math.inf,
            host_bytes=_HOST_BYTES,
            link_bytes_per_s=link_bytes_per_s or self.link_bytes_per_s,
            weight_bytes_per_s=count * self.memory_bytes_per_s,
            flops_per_s=count * (self.flops_per_s or math.inf),
        )


def read_cards(folder: Path | None = None) -> dict[str, Card]:
    """The cards of `folder`, by default of `data/`, by name.

    Raises InvalidInput for a link that is not known and for a number that is none.
    """
    types = {int: "memory_bytes pcie_generation pcie_lanes",
             float: "memory_bytes_per_s flops_per_s"}  # fmt: skip
    table: Any = read_table(folder, CARDS, types)
    known = table.pcie_generation.isin(_TRANSFERS_PER_S) & (table.pcie_lanes > 0)
    require_none(
        CARDS,
        table[~known],
        "device pcie_generation pcie_lanes",
        f"lanes of a generation among {', '.join(map(str, _TRANSFERS_PER_S))}",
    )
    table = table.astype(object).where(table.notna(), None)
    cards = table[[field.name for field in fields(Card)]].to_dict("records")
    return {card["device"]: Card(**card) for card in cards}


def read_table(folder: Path | None, name: str, types: dict[type, str]) -> pd.DataFrame:
    """Read the table `name` of `folder`, by default of `data/`, with typed columns.

    `types` gives the columns of each type, separated by spaces. Raises InvalidInput for
    a missing column and for a value of another type.
    """
    path = (data_folder() if folder is None else folder) / name
    dtypes: dict[Any, Any] = {
        column: kind for kind, columns in types.items() for column in columns.split()
    }
    try:
        table = pd.read_csv(
            path, dtype=dtypes, true_values=["yes"], false_values=["no"]
        )
    except ValueError as error:
        raise InvalidInput(
            f"{name} cannot be read: {error}; expected numbers, and yes or no, where "
            "its other rows have them"
        ) from error
    missing = ", ".join(sorted(dtypes.keys() - set(table.columns)))
    require(not missing, f"{name} has no column {missing}: copy the table again")
    return table


def require_none(name: str, rows: pd.DataFrame, columns: str, expected: str) -> None:
    """Raise InvalidInput for the first of any `rows`, with what was `expected`."""
    for _, first in rows.head(1).iterrows():
        key = ", ".join(f"{column}={first[column]}" for column in columns.split())
        raise InvalidInput(f"{name}: {key}: expected {expected}")
