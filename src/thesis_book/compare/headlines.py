"""Headline results of a run, with published values and limits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from thesis_book.execute.claims import Claim
from thesis_book.execute.records import Record
from thesis_lib.common.units import GiB

FEWER = "fewer violations than FIFO (%)"
MEMORY = "peak memory of the device (GiB)"
SPEED = "speed of a streamed token (% of reading alone)"
GB_PER_GIB = GiB / 1e9

# A bar: its axis; what it says, with numbers of the run; the name of its number, or of
# the claim with what the thesis published; its kind; whether the limit is its own.
BARS = (
    (FEWER, "thesis, setting not known", "reduction_hybrid", "published", False),
    (FEWER, "Hybrid as described, load {headline_load:.2f}",
     "reduction_hybrid", "simulated", True),
    (FEWER, "Hybrid, objective {published_slo_ms:.0f} ms, load {published_load:.2f}",
     "reduction_as_published_setting", "simulated", False),
    (FEWER, "bid-price, constant estimate, load {headline_load:.2f}",
     "reduction_constant", "simulated", True),
    (FEWER, "bid-price, learned estimates, load {headline_load:.2f}",
     "reduction_learned", "simulated", True),
    (FEWER, "bid-price, learned estimates, recorded times",
     "trace_reduction_bid_price", "simulated", False),
    (MEMORY, "thesis, 120 GB on a card of 8 GB",
     "headline_peak_gib", "published", False),
    (MEMORY, "{plan_65b_model_gb:.0f} GB of random weights on a processor",
     "headline_peak_gib", "measured", True),
    (SPEED, "{plan_65b_model_gb:.0f} GB in 16 bits",
     "headline_fraction_percent", "measured", True),
    (SPEED, "the same geometry in NF4",
     "headline_nf4_fraction_percent", "measured", True),
)  # fmt: skip


def headline_results(
    records: Sequence[Record], claims: Mapping[str, Claim]
) -> pd.DataFrame | None:
    """The bars of `figures.headlines`; None for a run without chapters 4 and 6.

    Memory is in GiB. No schedule violates less than the lower bound allows, no run
    takes more than its limit, and no token is faster than reading alone.
    """
    known = [r.numbers for r in records if r.number in (4, 6)]
    numbers: dict[str, Any] = {k: v for each in known for k, v in each.items()}
    needed = {key for _, _, key, _, _ in BARS} | {"headline_limit_gib"}
    if not needed <= numbers.keys():
        return None
    fifo, bound = numbers["fifo_violations_percent"], numbers["learned_bound_percent"]
    limits = {
        FEWER: 100 * (1 - bound / fifo) if fifo else math.nan,
        MEMORY: numbers["headline_limit_gib"],
        SPEED: 100.0,
    }
    rows = []
    for axis, says, key, kind, limited in BARS:
        ends = [numbers.get(f"{key}{end}", math.nan) for end in ("", "_low", "_high")]
        if kind == "published":
            theirs = (claims[key].published or {}).get("value", math.nan)
            ends = [theirs / (GB_PER_GIB if axis == MEMORY else 1), math.nan, math.nan]
        limit = limits[axis] if limited else math.nan
        rows.append([axis, says.format(**numbers), *ends, limit, kind])
    columns = ["axis", "says", "value", "low", "high", "limit", "kind"]
    return pd.DataFrame(rows, columns=columns)
