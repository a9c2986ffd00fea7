"""Compare methods of compression, from the record of `benchmarks/pareto.py`.

A method is Pareto-optimal if no other one is at least as good in both quantities and
better in one. All perplexities are relative to the 16-bit model on the same windows.
Texts without its score are left out, and so are methods without a score.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from thesis_book.tables.measurements import origin
from thesis_lib.common.units import MiB
from thesis_lib.memory.evaluate.perplexity import (
    TEXTS,
    Perplexity,
    pooled_ratio,
    window_tokens,
)

DENSE = "bf16"  # what all others are held against

FAMILIES = {  # by the first words of a name
    "bf16": "16 bits",
    "lossless": "16 bits",
    "int8": "bitsandbytes",
    "NF4": "bitsandbytes",
    "FP4": "bitsandbytes",
    "GPTQ": "GPTQ",
    "low rank": "low rank",
    "plain SVD": "low rank",
    "nearest": "rounding",
}
PRINTED = {DENSE: "bfloat16"}  # instead of the name in the record
LOW_RANK, CORRECTED = "low rank", "GPTQ + low rank"


def pareto_front(first: ArrayLike, second: ArrayLike) -> NDArray[np.bool_]:
    """Return which of n points are Pareto-optimal, with less better in both, (n,).

    A point dominates another if it is at most as large in both quantities and less in
    one; equal points do not dominate each other. A point that is not finite in both is
    never Pareto-optimal, and a NaN dominates no point.
    """
    costs = np.column_stack([np.asarray(first, float), np.asarray(second, float)])
    as_good = (costs[:, None] <= costs[None]).all(axis=-1)
    better = (costs[:, None] < costs[None]).any(axis=-1)
    beaten = (as_good & better).any(axis=0)
    return np.logical_and(~beaten, np.isfinite(costs).all(axis=1))


def family(name: str) -> str:
    """Return the kind of a method, for its colour; an unknown name is its own kind."""
    if name.startswith("GPTQ") and "+" in name:
        return CORRECTED
    kinds = (kind for word, kind in FAMILIES.items() if name.startswith(word))
    return next(kinds, name)


def printed(name: str) -> str:
    """The name of a way as readers see it; a list of such names has its commas."""
    return PRINTED.get(name, name).replace(", double", " (double)")


def scores(
    record: dict[str, Any], text: str, entries: Iterable[dict[str, Any]]
) -> list[tuple[dict[str, Any], Perplexity]]:
    """The entries of a record that were scored on a text, with their perplexities."""
    settings = record["settings"]
    tokens = settings["evaluation_tokens"].get(text, 0)
    counts = window_tokens(tokens, settings["context"])
    return [
        (entry, Perplexity(np.array(nll, float), counts))
        for entry in entries
        if tokens and (nll := entry.get("nll", {}).get(text))
    ]


def ways(record: dict[str, Any]) -> pd.DataFrame:
    """A row a way and text: its name, text, family and number of calibration `sets`.

    `bytes` and `bits` are of the decoder layers, in all and a parameter. `perplexity`
    and its `ratio` to the 16-bit model are geometric means over calibration sets; `low`
    and `high` are the outermost ends of the paired 95 % intervals of these sets, so
    that they cover windows and sets. `token_s` is a median, NaN without one.
    `front` marks Pareto-optimal methods in bytes and perplexity on its text,
    `time_front` in seconds and perplexity.
    """
    timed = timing(record).token_s if "timing" in record else pd.Series(dtype=float)
    tables = [_ways_on(record, text, timed) for text in TEXTS]
    table = pd.concat([each for each in tables if not each.empty] or tables[:1])
    return table.reset_index(drop=True)


def _ways_on(record: dict[str, Any], text: str, timed: pd.Series) -> pd.DataFrame:
    """The rows of `ways` on one text; none where the 16-bit model was not scored."""
    sets: dict[str, list[tuple[dict[str, Any], Perplexity]]] = {}
    for entry, score in scores(record, text, record["points"]):
        sets.setdefault(entry["name"], []).append((entry, score))
    if DENSE not in sets:
        return pd.DataFrame()
    ((_, dense),) = sets[DENSE]
    rows = []
    for name, own_scores in sets.items():
        times = pooled_ratio([score for _, score in own_scores], dense)
        row = {
            "name": printed(name),
            "text": TEXTS[text],
            "family": family(name),
            "sets": len(own_scores),
            "bytes": float(np.mean([entry["layer_bytes"] for entry, _ in own_scores])),
            "bits": float(np.mean([entry["layer_bits"] for entry, _ in own_scores])),
            "perplexity": dense.value * times.value,
            "low": dense.value * times.low,
            "high": dense.value * times.high,
            "ratio": times.value,
            "token_s": timed.get(name, np.nan),
        }
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(
        front=pareto_front(table["bytes"], table["perplexity"]),
        time_front=pareto_front(table["token_s"], table["perplexity"]),
    )


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A row a way, from many bytes to few, as readers see it: in words.

    For each text the perplexity and how many times that of the 16-bit model it is, and
    at the end the texts whose front of bytes and perplexity the way belongs to.
    """
    texts = [f"{text}{of}" for text in TEXTS.values() for of in ("", " (times)")]
    columns = ["bits a weight", "layers (MB)", *texts, "ms a token", "front"]
    rows: dict[str, dict[str, str]] = {}
    for row in _each(table.sort_values("bytes", ascending=False, kind="stable")):
        shown = rows.setdefault(str(row.name), dict.fromkeys(columns, ""))
        shown["bits a weight"] = f"{row.bits:.2f}"
        shown["layers (MB)"] = f"{row.bytes / 1e6:.1f}"
        shown[row.text] = rounded(row.perplexity)
        shown[f"{row.text} (times)"] = rounded(row.ratio, 3)
        if np.isfinite(row.token_s):
            shown["ms a token"] = f"{1e3 * row.token_s:.1f}"
        if row.front:
            shown["front"] = ", ".join(filter(None, [shown["front"], row.text]))
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    """Return the words that prose cites of the sweep: flat, and lists as text.

    `front_…` and `time_front_…` name the ways of each text's front, from low cost to
    high, and `…_ways` counts them; of low rank and of corrections how many there are
    and how many belong to a front; the ways whose streamed token is nearest to its
    reads alone, and farthest from them.
    """
    table: Any = ways(record)
    timed: Any = timing(record)
    calibrated = [
        entry["name"]
        for entry in record["points"]
        if entry["wish"] and "weights" not in entry["wish"] and entry.get("nll")
    ]
    sets: Any = pd.Series(calibrated).value_counts(sort=False)
    settings, systems = record["settings"], record["timing"]["systems"]
    near, far = timed.over_drain.idxmin(), timed.over_drain.idxmax()
    result: dict[str, Any] = {
        "origin": origin(record),
        "context": settings["context"],
        "ways": table["name"].nunique(),
        "sets": settings["calibration"]["parts"],
        "sets_least": int(sets.min()),
        "sets_most": int(sets.max()),
        "sets_alone": ", ".join(sets.index[sets == 1]) or "none",
        "sets_alone_ways": int((sets == 1).sum()),
        "device_mib": record["timing"]["device_bytes"] / MiB,
        "nearest": printed(near),
        "nearest_times": timed.over_drain[near],
        "farthest": printed(far),
        "farthest_times": timed.over_drain[far],
        "farthest_layers": int(timed.resident_layers[far]),
        "farthest_reads_ms": 1e3 * timed.drain_s[far],
        "farthest_ms": 1e3 * timed.token_s[far],
        "bf16_ms": 1e3 * timed.token_s[DENSE],
        "unfit_ways": int(timed.token_s.isna().sum()),
        "tokens_equal": systems[DENSE]["tokens"] == systems["lossless"]["tokens"],
        "time_origin": origin(record["timing"]),
    }
    for text, count in settings["evaluation_tokens"].items():
        result[f"tokens_{text}"] = count
        for front, cost in (("front", "bytes"), ("time_front", "token_s")):
            best = table[(table.text == TEXTS[text]) & table[front]]
            names = best.sort_values(cost, kind="stable")["name"]
            result[f"{front}_{text}"] = ", ".join(names)
            result[f"{front}_{text}_ways"] = len(names)
    for kind, family in (("low_rank", LOW_RANK), ("corrected", CORRECTED)):
        of_a_front = table[table.family == family].groupby("name").front.any()
        result[f"{kind}_ways"] = len(of_a_front)
        result[f"{kind}_front"] = int(of_a_front.sum())
    return result


def beaten(table: Any, *families: str) -> pd.DataFrame:
    """The ways of some families that belong to no front, each with whom it loses to.

    A row a way: its bits a weight and how many times the perplexity of 16 bits it has
    on each text, and the same `of the winner`. Of those that beat it on every text on
    which it was scored, the one with the fewest bytes is named; a way that no other one
    beats on all texts has no row.
    """
    rows = {}
    of_families = table[table.family.isin(families)]
    for name, mine in of_families.groupby("name", sort=False):
        winners = table[table["name"].isin(_beating(table, mine))]
        if mine.front.any() or winners.empty:
            continue
        winner = winners.sort_values("bytes")["name"].iloc[0]
        by = table[table["name"] == winner]
        rows[name] = {
            "bits a weight": f"{mine.bits.iloc[0]:.2f}",
            "times the perplexity": ", ".join(map(rounded, mine.ratio)),
            "loses to": winner,
            "bits of the winner": f"{by.bits.iloc[0]:.2f}",
            "times of the winner": ", ".join(map(rounded, by.ratio)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _beating(table: Any, mine: pd.DataFrame) -> set[str]:
    """The names of the ways that beat this one on each of its texts."""
    beating = []
    for row in _each(mine):
        rows = table[table.text == row.text]
        as_good = (rows.bytes <= row.bytes) & (rows.perplexity <= row.perplexity)
        better = (rows.bytes < row.bytes) | (rows.perplexity < row.perplexity)
        beating.append(set(rows[as_good & better]["name"]))
    return set.intersection(*beating)


def timing(record: dict[str, Any]) -> pd.DataFrame:
    """A row a way that was timed: seconds of a streamed token and of its reads alone.

    Medians; `over_drain` is the first over the second. NaN in a row is a way that did
    not fit. `resident_layers` stay on the device.
    """
    table = pd.DataFrame.from_dict(record["timing"]["systems"], orient="index")
    table = table.reindex(columns=["token_s", "drain_s", "resident_layers"])
    table = table.assign(
        token_s=table.token_s.map(np.median),
        drain_s=table.drain_s.map(np.median),
        resident_layers=table.resident_layers.fillna(0).astype(int),
    )
    return table.assign(over_drain=table.token_s / table.drain_s)


def rounded(value: float, digits: int = 2) -> str:
    """Format a perplexity, without decimals above 1,000."""
    return f"{value:,.{digits if value < 100 else 0}f}"


def _each(table: Any) -> list[Any]:
    """Rows with columns as attributes, which pandas does not declare."""
    return list(table.itertuples())
