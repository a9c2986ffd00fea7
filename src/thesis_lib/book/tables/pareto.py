"""Every way to make a model smaller on one scale, as `benchmarks/pareto.py` found it.

A way loses where another one is as good in two quantities and better in one of them;
the ways that do not are the front. All perplexities are held against those of the
16-bit model on the same windows: a text on which it was not scored is left out, as are
ways that nobody has scored yet.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from thesis_lib.book.tables.measurements import origin
from thesis_lib.common.units import format_size
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
LOW_RANK, CORRECTED = "low rank", "GPTQ, corrected"
WAYS = [
    "name", "text", "family", "sets", "bytes", "bits", "perplexity", "low", "high",
    "ratio", "token_s", "front", "time_front",
]  # fmt: skip


def pareto_front(first: ArrayLike, second: ArrayLike) -> NDArray[np.bool_]:
    """Which of n points no other one beats, where less is better in both, (n,).

    A point is beaten by one that is at most as large in both quantities and less in one
    of them; equal points do not beat each other. One that is not finite in both is
    never of the front, and beats nobody where it is NaN.
    """
    costs = np.column_stack([np.asarray(first, float), np.asarray(second, float)])
    as_good = (costs[:, None] <= costs[None]).all(axis=-1)
    better = (costs[:, None] < costs[None]).any(axis=-1)
    beaten = (as_good & better).any(axis=0)
    return np.logical_and(~beaten, np.isfinite(costs).all(axis=1))


def family(name: str) -> str:
    """The kind of a way, for its colour; a name that nobody foresaw is its own kind."""
    if name.startswith("GPTQ") and "+" in name:
        return CORRECTED
    return next(
        (kind for word, kind in FAMILIES.items() if name.startswith(word)), name
    )


def ways(record: dict[str, Any] | None) -> pd.DataFrame:
    """A row a way and text, with the columns of `WAYS`.

    `bytes` and `bits` are of the decoder layers, in all and a parameter. `perplexity`
    and its `ratio` to the 16-bit model are geometric means over calibration sets; `low`
    and `high` are the outermost ends of the paired 95 % bootstrap intervals of these
    sets, so that they cover windows and sets. `token_s` is a median, NaN without one.
    `front` says who is beaten by nobody in bytes and perplexity on its text,
    `time_front` in seconds and perplexity.
    """
    table = pd.DataFrame(_rows(record) if record else [], columns=WAYS)
    for _, rows in table.groupby("text", sort=False):
        for cost, column in (("bytes", "front"), ("token_s", "time_front")):
            front = pareto_front(rows[cost], rows["perplexity"])
            table.loc[rows.index, column] = front
    return table.astype({"front": bool, "time_front": bool})


def _rows(record: dict[str, Any]) -> list[list[Any]]:
    timed = record.get("timing", {}).get("systems", {})
    rows = []
    for text, called in TEXTS.items():
        scores = _scores(record, text)
        if DENSE not in scores:
            continue
        ((_, dense),) = scores[DENSE]
        for name, found in scores.items():
            ratio, low, high = pooled_ratio([score for _, score in found], dense)
            tokens_s = timed.get(name, {}).get("token_s", [])
            rows.append(
                [
                    name.replace(", double", " (double)"),  # lists have commas
                    called, family(name), len(found),
                    float(np.mean([entry["layer_bytes"] for entry, _ in found])),
                    float(np.mean([entry["layer_bits"] for entry, _ in found])),
                    dense.value * ratio, dense.value * low, dense.value * high,
                    ratio, float(np.median(tokens_s)) if tokens_s else np.nan,
                    False, False,
                ]
            )  # fmt: skip
    return rows


def _scores(
    record: dict[str, Any], text: str
) -> dict[str, list[tuple[dict[str, Any], Perplexity]]]:
    """Entries of each way with their scores on one text, a calibration set each."""
    settings = record["settings"]
    counts = window_tokens(settings["evaluation_tokens"][text], settings["context"])
    found: dict[str, list[tuple[dict[str, Any], Perplexity]]] = {}
    for entry in record["points"]:
        if nll := entry.get("nll", {}).get(text):
            score = Perplexity(np.array(nll, float), counts)
            found.setdefault(entry["name"], []).append((entry, score))
    return found


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


def words(record: dict[str, Any] | None) -> dict[str, str]:
    """What prose says: what was run, the front, who loses to whom, and the time."""
    table = ways(record)
    return {
        "scored": scored_sentence(record),
        "sets": sets_sentence(record),
        "front": front_sentence(table),
        "low_rank": family_sentence(table, LOW_RANK),
        "corrected": family_sentence(table, CORRECTED),
        "time": time_sentence(record),
    }


def scored_sentence(record: dict[str, Any] | None) -> str:
    """On how many tokens, in what windows, and where and from what the record is."""
    if record is None:
        return "Nobody has run it yet."
    settings = record["settings"]
    tokens = [f"{count:,}" for count in settings["evaluation_tokens"].values()]
    return (
        f"The texts have {_listed(tokens)} tokens, scored in windows of "
        f"{settings['context']} without overlap. The record is of {origin(record)}."
    )


def front_sentence(table: pd.DataFrame) -> str:
    """Who is of the front of each text, from few bytes to many."""
    if table.empty:
        return "The front has not been measured yet."
    parts = []
    for text, rows in table.groupby("text", sort=False):
        names = _chosen(rows, rows.front).sort_values("bytes")["name"]
        parts.append(
            f"On {text} {len(names)} of {len(rows)} are of the front, from few bytes "
            f"to many: {_listed(names)}."
        )
    return " ".join(parts)


def sets_sentence(record: dict[str, Any] | None) -> str:
    """How many calibration sets stand behind what is calibrated."""
    counts: dict[str, int] = {}
    for entry in record["points"] if record else []:
        if entry["wish"] and "weights" not in entry["wish"] and entry.get("nll"):
            counts[entry["name"]] = counts.get(entry["name"], 0) + 1
    if record is None or not counts:
        return "Nothing that is calibrated has been scored yet."
    least, most = min(counts.values()), max(counts.values())
    parts = record["settings"]["calibration"]["parts"]
    if least == most == parts:
        return f"Every calibrated way stands on all {parts} of them."
    seen = f"{least}" if least == most else f"{least} to {most}"
    alone = [name for name, count in counts.items() if count == 1]
    luck = f"; of {_listed(alone)} that luck is unknown" if alone else ""
    return f"A calibrated way stands on {seen} of these {parts}{luck}."


def family_sentence(table: pd.DataFrame, kind: str) -> str:
    """Where a family of ways is of the front; else whom each loses to, if one says all.

    Of those that beat a way on every text on which it was scored, the one with the
    fewest bytes is named.
    """
    mine = table[table.family == kind]
    if mine.empty:
        return "It has not been measured yet."
    names = list(dict.fromkeys(mine["name"]))
    won = [name for name in names if mine.front[mine["name"] == name].any()]
    lost = [
        f"{name} ({_priced(table, name)}) by {winner} ({_priced(table, winner)})"
        for name in names
        if name not in won and (winner := _winner(table, name))
    ]
    found = f"Of {len(names)} such ways {len(won)} {_is(len(won))} of a front"
    found += f": {_listed(won)}." if won else "."
    return f"{found} Beaten on all texts: {'; '.join(lost)}." if lost else found


def _winner(table: pd.DataFrame, name: str) -> str | None:
    """The way with the fewest bytes that beats this one on each of its texts."""
    beating: set[str] | None = None
    for row in _each(table[table["name"] == name]):
        rows = _chosen(table, table.text == row.text)
        as_good = (rows.bytes <= row.bytes) & (rows.perplexity <= row.perplexity)
        better = (rows.bytes < row.bytes) | (rows.perplexity < row.perplexity)
        these = set(rows[as_good & better]["name"])
        beating = these if beating is None else beating & these
    least = _chosen(table, table["name"].isin(list(beating or ()))).sort_values("bytes")
    return None if least.empty else str(least["name"].iloc[0])


def _priced(table: pd.DataFrame, name: str) -> str:
    rows = table[table["name"] == name]
    times = _listed([rounded(ratio) for ratio in rows.ratio])
    return f"{rows.bits.iloc[0]:.2f} bits a weight, {times} times the perplexity"


def rounded(value: float, digits: int = 2) -> str:
    """Without decimals that nobody needs where a model is destroyed."""
    return f"{value:,.{digits if value < 100 else 0}f}"


def time_sentence(record: dict[str, Any] | None) -> str:
    """What a streamed token takes, of whom the front of time consists, and who reads.

    The share of a drain is the median of a token over that of the same reads alone.
    """
    if record is None or "timing" not in record:
        return "The time of a streamed token has not been measured yet."
    timing, table = record["timing"], ways(record)
    runs = {n: run for n, run in timing["systems"].items() if "token_s" in run}
    token_s, drain_s = (
        {name: float(np.median(run[column])) for name, run in runs.items()}
        for column in ("token_s", "drain_s")
    )
    found = [f"The device has {format_size(timing['device_bytes'])}."]
    for text, rows in table.groupby("text", sort=False):
        front = _chosen(rows, rows.time_front).sort_values("token_s")
        parts = [
            f"{row.name} ({1e3 * row.token_s:.0f} ms, {rounded(row.ratio)} "
            "times the perplexity)"
            for row in _each(front)
        ]
        if parts:
            found.append(f"On {text} the front of time is {_listed(parts)}.")
    if DENSE in token_s:
        found.append(f"The 16-bit model takes {1e3 * token_s[DENSE]:.0f} ms a token.")
    if token_s:
        over = {name: token_s[name] / drain_s[name] for name in token_s}
        least, most = (pick(over, key=lambda n: over[n]) for pick in (min, max))
        kept = runs[most].get("resident_layers")
        place = f"with {kept} of its layers on the device " if kept else ""
        found.append(
            f"A token of {least} takes {over[least]:.2f} times what the same reads "
            f"take alone, one of {most} {over[most]:.1f} times: {place}"
            f"{1e3 * drain_s[most]:.0f} ms of its {1e3 * token_s[most]:.0f} are reads."
        )
    if {DENSE, "lossless"} <= runs.keys():
        same = runs[DENSE]["tokens"] == runs["lossless"]["tokens"]
        found.append(
            f"The lossless code wrote {'the' if same else 'NOT the'} tokens of the "
            "16-bit model."
        )
    refused = [name for name in timing["systems"] if name not in runs]
    if refused:
        found.append(f"{_listed(refused)} {_does(len(refused))} not fit.")
    return " ".join([*found, f"These times are of {origin(timing)}."])


def _each(table: Any) -> list[Any]:
    """Rows with columns as attributes, which pandas does not declare."""
    return list(table.itertuples())


def _chosen(table: pd.DataFrame, which: Any) -> pd.DataFrame:
    """The rows of a mask: pandas does not declare that these are a table."""
    return table.loc[which, :]


def _listed(names: Any) -> str:
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else str(last)


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _does(count: int) -> str:
    return "does" if count == 1 else "do"
