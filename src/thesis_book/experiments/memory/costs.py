"""Experiments of chapter 6: costs of methods, and how far each input moves them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.common.errors import choice
from thesis_lib.common.stats import F64, Interval, median_interval
from thesis_lib.memory.cost.cost import Mix, usd_per_million_tokens
from thesis_lib.memory.cost.deployment import PARTS, Configuration, owned_machine
from thesis_lib.memory.cost.prices import Quantity

LABELS = {  # of the inputs, for readers
    "card_usd": "used card (USD)",
    "host_usd": "host (USD)",
    "memory_usd_per_gb": "memory (USD/GB)",
    "storage_usd_per_gb": "storage (USD/GB)",
    "usd_per_kwh": "electricity (USD/kWh)",
    "usd_per_hour": "rent (USD/h)",
    "months": "writing off (months)",
    "watts": "power (W)",
    "pue": "power overhead (times)",
    "utilisation": "utilisation (share)",
    "link_gb_per_s": "link (GB/s)",
}
_COLUMNS = [
    "basis", "machine", "batch", "first_token_s", "token_s", "tokens_per_s",
    "usd_per_hour", "usd_per_million", "low", "high",
]  # fmt: skip


def inputs(
    prices: Mapping[str, Quantity],
    quantities: Mapping[str, Quantity],
    rented: str,
    **fixed: float,
) -> dict[str, Quantity]:
    """Return everything that `evaluate` reads, with its range, by name.

    `rented` is the item that pays for an hour of rent; `fixed` replaces the quantity of
    a table by a value without a range.
    """
    ranges = {
        name: prices[item] for name, item in (PARTS | {"usd_per_hour": rented}).items()
    } | dict(quantities)
    for name, value in fixed.items():
        ranges[choice("input", name, ranges)] = Quantity(value, value, value, name)
    return ranges


def values(ranges: Mapping[str, Quantity]) -> dict[str, float]:
    """Return the most likely value of each input."""
    return {name: each.value for name, each in ranges.items()}


def evaluate(
    configuration: Configuration, mix: Mix, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return times, rate and costs at `values`, the inputs: numbers or arrays (n,).

    `utilization` is of the hours paid for, those of rent and those of the owned machine
    alike.
    """
    timing = configuration.timing_over(values["link_gb_per_s"] * 1e9)
    rate, busy = timing.tokens_per_s(mix), values["utilisation"]
    owned = owned_machine(values, configuration.memory_gb)
    hourly_usd = configuration.count * values["usd_per_hour"]
    return {
        "token_s": timing.token_s,
        "tokens_per_s": rate,
        "rented_usd": usd_per_million_tokens(hourly_usd, rate, busy),
        "energy_usd": owned.energy_usd_per_million(rate),
        "owned_usd": owned.usd_per_million_tokens(rate, busy),
        "monthly_usd": owned.monthly_usd,
    }


def tornado(
    evaluate: Callable[[Mapping[str, Any]], Any], ranges: Mapping[str, Quantity]
) -> pd.DataFrame:
    """Return the result at both ends of each input, all others at their value.

    A row an input, the one that moves the result furthest first: low, high, at_low,
    at_high and swing, the distance of the last two.
    """
    base = values(ranges)
    table = pd.DataFrame.from_dict(
        {
            name: (
                each.low,
                each.high,
                float(evaluate(base | {name: each.low})),
                float(evaluate(base | {name: each.high})),
            )
            for name, each in ranges.items()
        },
        orient="index",
        columns=["low", "high", "at_low", "at_high"],
    )
    table["swing"] = (table.at_high - table.at_low).abs()
    return table.sort_values("swing", ascending=False, kind="stable")


def draw(
    ranges: Mapping[str, Quantity], draws: int = 10_000, seed: int = 0
) -> dict[str, F64]:
    """Draw independent random inputs, (draws,) each, for a result that takes arrays.

    The logarithm of an input has a triangular density over its range with the mode at
    its value: prices err by factors. An input without a range is a constant. Each
    input has a stream of its own, so that leaving one out does not move the others.
    """
    return {
        name: _draw(each, draws, [seed, *name.encode()])
        for name, each in ranges.items()
    }


def _draw(each: Quantity, draws: int, seed: list[int]) -> F64:
    if each.low == each.high:
        return np.full(draws, each.value)
    low, mode, high = np.log([each.low, each.value, each.high])
    return np.exp(np.random.default_rng(seed).triangular(low, mode, high, draws))


def recorded_rates(record: Mapping[str, Any]) -> dict[str, Interval]:
    """Return tokens a second of decoding, with their interval, by run of a record."""
    return {
        name: median_interval(part["trial"]["step_s"]).rate(1.0)
        for name, part in record["parts"].items()
    }


def table(
    configurations: Iterable[Configuration],
    prices: Mapping[str, Quantity],
    mix: Mix,
    utilization: float = 1.0,
    measured: Mapping[str, tuple[str, Interval]] | None = None,
) -> pd.DataFrame:
    """Return a row a configuration: its times, its rate and what a million tokens cost.

    `measured` holds, by name, the item that prices the machine and the rate of
    decoding: such a row has an interval, and no time to the first token.
    """

    def priced(basis: str, item: str, count: int, rate: float) -> dict[str, Any]:
        hourly = count * prices[item].value
        return {
            "basis": basis,
            "machine": f"{count} × {item}",
            "tokens_per_s": rate,
            "usd_per_hour": hourly,
            "usd_per_million": usd_per_million_tokens(hourly, rate, utilization),
        }

    rows: dict[str, dict[str, Any]] = {}
    for each in configurations:
        timing = each.timing
        row = priced("predicted", each.item, each.count, timing.tokens_per_s(mix))
        rows[each.name] = row | {
            "batch": each.batch,
            "first_token_s": timing.first_token_s,
            "token_s": timing.token_s,
        }
    for name, (item, rate) in (measured or {}).items():
        row = priced("measured", item, 1, rate.value)
        ends = {  # what costs least is the highest rate
            end: priced("measured", item, 1, per_s)["usd_per_million"]
            for end, per_s in (("low", rate.high), ("high", rate.low))
        }
        rows[name] = row | {"batch": 1, "token_s": 1 / rate.value} | ends
    return pd.DataFrame(list(rows.values()), list(rows), _COLUMNS)
