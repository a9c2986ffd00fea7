"""Runs too long for a chapter: the tables and numbers of their records.

`benchmarks/streaming.py`, `headline.py` and others write one record each. Here a record
becomes a table or a flat dict of numbers; what they mean is said by the chapter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from itertools import groupby, permutations, product
from operator import itemgetter
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.files import read_record
from thesis_lib.common.stats import RANGE, Interval, mean_interval, median_interval
from thesis_lib.common.units import GiB

# What readers call a system of a record.
SYSTEMS = {
    "streamed": "streamed",
    "streamed-nf4": "streamed, NF4",
    "streamed-lossless": "streamed, lossless code",
    "accelerate": "accelerate",
    "mmap": "mmap",
    "airllm": "AirLLM",
    "accelerate-auto": "Accelerate, a map of its own",
    "accelerate-copied": "Accelerate, files of its own",
    "mmap-sequential": "mmap, told of the order",
    "mmap-ahead": "mmap, told of the next layer",
    "airllm-waiting": "AirLLM, without prefetching",
    "airllm-float32": "AirLLM, in float32",
    "streamed-q4": "streamed, 4 bits",
    "llama.cpp-q4": "llama.cpp, 4 bits",
    "llama.cpp-q4-read": "llama.cpp, 4 bits, not mapped",
    "llama.cpp-q4-plain": "llama.cpp, 4 bits, blocks as they are",
}
HEADINGS = {  # of the columns that readers are shown, for `rename`
    "one thread": "one thread (GB/s)",
    "two threads": "two threads (GB/s)",
    "tokens_per_pass": "tokens a pass",
    "low": "from",
    "high": "to",
    "times_faster": "times faster",
    "times_low": "from",
    "times_high": "to",
}


def read(name: str) -> dict[str, Any]:
    """Return the record `name` of `data/measurements`, which every checkout holds.

    Raises InvalidInput if the file is missing or is no JSON object.
    """
    record = read_record(name)
    if record is None:
        raise InvalidInput(
            f"data/measurements/{name}.json must be the record of this checkout, got "
            "no file. Restore it, or run its script in benchmarks/."
        )
    return record


def origin(record: dict[str, Any]) -> str:
    """Return the origin of a record: processor, cores and commit."""
    machine = record["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, commit {record['commit'][:7]}"


# --- Streaming -----------------------------------------------------------------------
_PEERS = {  # columns of `peers` by their places in a record
    "peak_bytes": "peak_bytes",
    "median_s": "s_per_token",
    "low_s": "low_s",
    "high_s": "high_s",
    "read_bytes_per_token": "read_bytes",
    "streamed_is_faster.times": "times_slower",
    "streamed_is_faster.low": "times_low",
    "streamed_is_faster.high": "times_high",
    "fraction_of_drain": "fraction_percent",
    "drains_per_step": "drains_per_step",
} | {
    f"{place}.{end}": f"{name}{suffix}"
    for place, name in {
        "is_faster_than_accelerate": "over_accelerate",
        "is_faster_than_default": "over_default",
        "streamed_q4_is_faster": "times_as_blocks",
    }.items()
    for end, suffix in {"times": "", "low": "_low", "high": "_high"}.items()
}


def peers(record: dict[str, Any]) -> pd.DataFrame:
    """A row a system: peak and bytes read, seconds of a token with their interval.

    `times_slower` is over the streamed model in bf16, with `times_low` and
    `times_high`; `drains_per_step` a step over the reads of the same bytes;
    `over_accelerate` and `over_mmap` how many times as fast as these, in 16 bits,
    `over_default` as the same system in its first configuration, and `times_as_blocks`
    over the streamed model in the same 4-bit blocks. NaN where that was not measured: a
    system that was killed at the limit has its peak alone.
    """
    systems = record["summary"]["systems"]
    table = pd.json_normalize(
        [
            each
            | dict(zip(("low_s", "high_s"), each.get("interval_s", ()), strict=False))
            for each in systems.values()
        ]
    )
    table.index = pd.Index([SYSTEMS.get(name) or name for name in systems])
    table = table.reindex(columns=[*_PEERS]).rename(columns=_PEERS)
    mapped_s = table.s_per_token.get("mmap", np.nan)
    return table.assign(
        fraction_percent=100 * table.fraction_percent,
        over_mmap=mapped_s / table.s_per_token,
    )


def beside(table: pd.DataFrame, over: str = "times_slower") -> pd.DataFrame:
    """Return the time of a token of each of the `peers`, as printed."""
    columns = {
        "peak (GiB)": table.peak_bytes / GiB,
        "s a token": table.s_per_token,
        "from": table.low_s,
        "to": table.high_s,
        "read (GB)": table.read_bytes / 1e9,
        "times as long": table[over],
    }
    printed = {
        "streamed": "streamed, bfloat16",
        "accelerate": "Accelerate",
        "llama.cpp": "llama.cpp, bfloat16",
    }
    return pd.DataFrame(columns).rename(printed).rename_axis("system")


def use(record: dict[str, Any]) -> dict[str, NDArray]:
    """Return seconds and bytes of the first run of each system.

    Arrays (n, 3), by the name that readers see.
    """
    runs: dict[str, NDArray] = {}
    for run in record["runs"]:
        if run.get("use"):
            name = SYSTEMS.get(run["system"]) or str(run["system"])
            runs.setdefault(name, np.asarray(run["use"], float))
    return runs


def headline(record: dict[str, Any]) -> pd.DataFrame:
    """A row a part: what was promised and what the kernel and the clock counted.

    `peak_bytes` is the kernel's, `logical_bytes` the meter's, `planned_bytes` the
    plan's, without the interpreter; bytes read are of one token, NaN where the kernel
    did not tell, and the fraction is that of the same reads without computing, with
    the range of all steps.
    """
    names = {
        "logical_peak_bytes": "logical_bytes",
        "planned_peak_bytes": "planned_bytes",
        "read_bytes_per_token": "read_bytes",
        "planned_bytes_per_token": "planned_read_bytes",
        "s_per_token": "s_per_token",
        "predicted_s_per_token": "predicted_s",
    }
    columns = ["limit_bytes", "peak_bytes", *names, "fraction_of_drain"]
    parts = pd.DataFrame([*record["parts"].values()]).set_index("weights")
    return (
        parts.filter(columns)
        .astype({"read_bytes_per_token": float})
        .rename(columns=names)
        .assign(
            fraction_low=parts.fractions.map(min),
            fraction_high=parts.fractions.map(max),
        )
    )


def headline_numbers(record: dict[str, Any], weights: str) -> dict[str, Any]:
    """The run of the claimed size with these weights, in its largest limit.

    `measured_read_gb` is what the kernel counted for a token, and missing where it did
    not; `read_gb` what the plan reads. Steps of one process depend on each other: n
    counts processes, and ends are those of the range of all their `steps`.
    """
    parts = [part for part in record["parts"].values() if part["weights"] == weights]
    part = max(parts, key=lambda part: part["limit_bytes"])
    plan, read = part["plan"], part["read_bytes_per_token"]
    steps, drains = part["trial"]["step_s"], part["trial"]["drain_s"]
    time, fraction = (
        Interval(
            median(each), min(each), max(each), n=len(part["processes"]), method=RANGE
        )
        for each in (steps, part["fractions"])
    )
    return {
        "context": plan["context"],
        "resident": plan["tiers"]["device"],
        "read_gb": plan["bytes_per_token"] / 1e9,
        "predicted_s": part["predicted_s_per_token"],
        "link_gb_per_s": part["predicted_at_bytes_per_s"] / 1e9,
        "limit_gib": part["limit_bytes"] / GiB,
        "peak_gib": part["peak_bytes"] / GiB,
        "drain_gb_per_s": plan["bytes_per_token"] / median(drains) / 1e9,
        "distinct_layers": part["distinct_layers"],
        "origin": origin(record),
        "steps": len(steps),
        **time.numbers("s_per_token"),
        **fraction.numbers("fraction_percent", 100),
    } | ({"measured_read_gb": read / 1e9} if read else {})


def headline_noise(record: dict[str, Any]) -> dict[str, float]:
    """Return the difference between the processes of all parts, in per cent.

    By how much the tokens of one took longer and shorter than was predicted before it,
    at most, and by how much the drains around them differ.
    """
    late, drift = [], []
    for part in record["parts"].values():
        runs = part["processes"]
        late += [run["s_per_token"] / run["predicted_s_per_token"] for run in runs]
        drains = np.reshape(part["trial"]["drain_s"], (len(runs), -1))
        drift += (drains.max(axis=1) / drains.min(axis=1)).tolist()
    return {
        "late_percent": 100 * (max(late) - 1),
        "early_percent": 100 * (1 - min(late)),
        "drift_percent": 100 * (max(drift) - 1),
    }


def gpu(record: dict[str, Any] | None) -> pd.DataFrame:
    """The run of the whole geometry on a GPU, a row by the name of the card.

    Empty without a record and for a record of a processor. `no result` says why there
    is none, and is empty where there is one.
    """
    columns = {
        "limit_bytes": "limit (GiB)",
        "reserved_bytes": "reserved (GiB)",
        "s_per_token": "s a token",
        "predicted_s_per_token": "predicted (s)",
        "fraction_of_link": "of the link (%)",
        "why": "no result",
    }
    rows = {}
    if record is not None and record["device"] == "cuda":
        whole = record["parts"].get("whole", {})
        why = whole.get("skipped") or whole.get("failed") or "out of memory"
        name = record["machine"]["gpus"][0]["name"]
        rows[name] = whole | {"why": "" if "s_per_token" in whole else why}
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=[*columns])
    units = {"limit_bytes": GiB, "reserved_bytes": GiB, "fraction_of_link": 0.01}
    table = table.assign(**{name: table[name] / unit for name, unit in units.items()})
    return table.rename(columns=columns)


# --- Plans ---------------------------------------------------------------------------
def certificate(record: dict[str, Any]) -> dict[str, Any]:
    """Return the results of plans that were run at their limits, in per cent.

    Steps and whole runs of transformers' generate apart: the first are rehearsed as
    they are run, the second for the greediest way to choose a token.
    """
    metered, grouped = pd.DataFrame(record["logical"]), pd.DataFrame(record["physical"])
    spare_bytes = metered.planned_bytes - metered.metered_bytes
    values: dict[str, Any] = {"plans": len(metered), "origin": origin(record)}
    for name, generating in (("steps", False), ("generated", True)):
        over = (spare_bytes / metered.device_bytes)[metered.generating == generating]
        values |= {
            name: len(over),
            f"{name}_exceeded": int((over < 0).sum()),
            f"{name}_over_median": 100 * float(over.median()),
            f"{name}_over_most": 100 * float(over.max()),
        }
    alive = grouped[~grouped.killed]
    left = 1 - alive.peak_bytes / alive.limit_bytes
    return values | {
        "groups": len(grouped),
        "killed": len(grouped) - len(alive),
        "left_median": 100 * float(left.median()),
        "left_least": 100 * float(left.min()),
        "left_most": 100 * float(left.max()),
    }


def predictions(record: dict[str, Any]) -> pd.DataFrame:
    """A row a plan: its step, what bounds it, seconds predicted and measured.

    `error` is relative to the measured median.
    """
    plans: Any = pd.DataFrame(record["prediction"]["plans"])
    plans["measured_s"] = plans.seconds.map(np.median)
    plans["error"] = plans.predicted_s / plans.measured_s - 1
    return plans[["batch", "limit", "predicted_s", "measured_s", "error"]]


def prediction_numbers(record: dict[str, Any]) -> dict[str, Any]:
    """Errors of predicted times, in per cent, and the crossover, in tokens."""
    from thesis_lib.memory.offload.measure import crossing  # waits for torch

    plans: Any = predictions(record)
    cross, errors = record["crossover"], 100 * plans["error"].abs()
    counts = [*map(int, cross["computing_s"])]
    seconds = [*cross["computing_s"].values()]
    crossed = crossing(counts, seconds, cross["drain_s"])
    return {
        "plans": len(plans),
        "most_sequences": int(plans["batch"].max()),
        "error_median": float(errors.quantile(0.5)),
        "error_p95": float(errors.quantile(0.95)),
        "crossover": cross["predicted_tokens"],
        "crossover_found": crossover_text(crossed, counts),
        "origin": origin(record),
    }


# --- Rates ---------------------------------------------------------------------------
SURE = 3.0  # the ends of a measured crossover differ by this factor at most


def crossover_text(tokens: float, counts: Sequence[int]) -> str:
    """Return '41 tokens', or how far `counts` reach where none of them is it.

    `tokens` is a result of `crossing` between `counts` (n,).
    """
    if math.isinf(tokens):
        return f"more than {counts[-1]:,} tokens"
    name = f"at most {counts[0]:,}" if tokens < counts[0] else f"{tokens:,.0f}"
    return f"{name} token{'s' * (name.split()[-1] != '1')}"


def is_measured(value: Interval, counts: Sequence[int]) -> bool:
    """Return whether an interval of a crossover is within `counts` and narrow."""
    return counts[0] <= value.low <= value.high <= min(SURE * value.low, counts[-1])


def crossover_says(found: Interval, counts: Sequence[int]) -> str:
    """Return what a run says of its crossover, to follow 'it is'.

    `found` is `crossing_interval` between `counts` (n,).
    """
    value, low, high = (
        crossover_text(end, counts) for end in (found.value, found.low, found.high)
    )
    if is_measured(found, counts):
        return f"measured at {value} ({found.low:,.0f} to {found.high:,.0f})"
    if low == high and found.low in (0, math.inf):
        return low.replace("more than", "not reached up to")
    return f"not measurable in so restless a run, whose times allow {low} and {high}"


def rates(
    measured: Mapping[tuple[str, str], Interval], n_bytes: Mapping[str, float]
) -> pd.DataFrame:
    """Return a row for each rate that a run measured: milliseconds and GB/s.

    `measured` has the seconds of a step by what was done and by the instrument,
    `n_bytes` what such a step moves or passes over. A single look has no ends.
    """
    rows = {
        at: [1e3 * rate.value, *(1e3 * end if rate.n > 1 else np.nan for end in ends)]
        for at, rate in measured.items()
        for ends in [(rate.low, rate.high)]
    }
    table = pd.DataFrame.from_dict(rows, "index", columns=["ms a step", "from", "to"])
    table.index = pd.MultiIndex.from_tuples(rows, names=["time of", "measured in"])
    table["GB/s"] = [
        n_bytes[what] / rate.value / 1e9 for (what, _), rate in measured.items()
    ]
    return table


def rate_numbers(measured: Mapping[tuple[str, str], Interval]) -> dict[str, Any]:
    """Return the ends of all times of `rates` that are of reading, and of all others.

    `apart` says which two intervals for one thing exclude each other, if any do; of
    several such pairs the one that is furthest apart.
    """
    numbers: dict[str, Any] = {}
    for kind in ("reading", "computing"):
        sides = [
            interval
            for (what, _), interval in measured.items()
            if (what == "reading") == (kind == "reading")
        ]
        numbers[f"{kind}_low_ms"] = 1e3 * min(each.low for each in sides)
        numbers[f"{kind}_high_ms"] = 1e3 * max(each.high for each in sides)
    pairs = [
        (1e3 * (slow.low - fast.high), what, (how, slow), (by, fast))
        for ((what, how), slow), ((other, by), fast) in permutations(
            measured.items(), 2
        )
        if what == other and min(slow.n, fast.n) > 1 and slow.low > fast.high
    ]
    if not pairs:
        return numbers | {"apart": ""}
    _, what, *both = max(pairs, key=itemgetter(0))
    texts = [f"{1e3 * x.low:.0f} to {1e3 * x.high:.0f} ms in {how}" for how, x in both]
    return numbers | {"apart": f"{what} took {' and '.join(texts)}"}


# --- Compression and speculation -----------------------------------------------------
def lossless_codecs(record: dict[str, Any]) -> pd.DataFrame:
    """A row a codec and origin of weights: bytes that remain, and decoded GB a second.

    Index weights and codec; columns ratio, and one for each number of threads.
    """
    runs = pd.DataFrame(record["codecs"])
    runs["rate"] = runs["bytes"] / runs.seconds.map(np.median) / 1e9
    threads = {1: "one thread", 2: "two threads"}
    key = ["weights", "codec"]
    rates = runs.pivot(index=key, columns="threads", values="rate")
    ratio = runs.groupby(key, sort=False).ratio.first()
    return ratio.to_frame().join(rates.rename(columns=threads))


def lossless(record: dict[str, Any]) -> dict[str, float | str]:
    """Return the gain of streaming in code over streaming the same weights.

    `drain_times` and `token_times` are ratios of medians over turns, with intervals;
    `busy_s` is decoding and computing of a token alone, `reads_s` its reads.
    """
    stream = record["stream"]
    turns = _turns(stream)
    decoding_s = stream["decoded_bytes_per_step"] / stream["decode_bytes_per_s"]
    return _gained(stream, "lossless") | {
        "origin": origin(record),
        "layers": stream["layers"],
        "decode_gb_per_s": stream["decode_bytes_per_s"] / 1e9,
        "busy_s": decoding_s + float(np.median(turns["lossless compute"])),
        "reads_s": float(np.median(turns["lossless drain"])),
    }


def blocks(record: dict[str, Any]) -> dict[str, float | str]:
    """Return the gain of streaming blocks of a GGUF file over bfloat16.

    By the first word of the model, as `lossless` says it; `…_compute_times` is how
    much longer a token computes that restores its matrices, `…_resident` how many
    layers the same memory keeps, and `…_resident_dense` in bfloat16.
    """
    values: dict[str, float | str] = {
        "origin": origin(record), "layers": record["layers"],
    }  # fmt: skip
    for name, stream in record["streams"].items():
        slow, fast = (_turns(stream)[f"{how} compute"] for how in ("bf16", "blocks"))
        numbers = _gained(stream, "blocks")
        numbers |= {"compute_times": float(np.median(fast / slow))}
        stay = stream["resident_layers"]
        numbers |= {"resident": stay["blocks"], "resident_dense": stay["bf16"]}
        short = name.lower().partition("-")[0]
        values |= {f"{short}_{key}": value for key, value in numbers.items()}
    return values


def _turns(stream: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """The medians of each turn, by what was timed."""
    return {
        name: np.array([np.median(turn) for turn in seconds])
        for name, seconds in stream["seconds"].items()
    }


def _gained(stream: Mapping[str, Any], way: str) -> dict[str, float | str]:
    """The share of the bytes of bfloat16 that are read, and how many times as fast."""
    turns = _turns(stream)
    share = stream["bytes_per_step"][way] / stream["bytes_per_step"]["bf16"]
    values: dict[str, float | str] = {
        "share": share,
        "disk_times": 1 / share,
        "device_gib": stream["device_bytes"] / GiB,
        "equal_logits": stream["equal_logits"],
    }
    for kind in ("drain", "token"):
        times = median_interval(turns[f"bf16 {kind}"] / turns[f"{way} {kind}"])
        values[f"{kind}_times"] = times.value
        values |= {f"{kind}_times_low": times.low, f"{kind}_times_high": times.high}
    return values


BASELINES = {"lookup": "plain", "draft": "plain beside"}  # in the same memory


def speculation(record: dict[str, Any]) -> pd.DataFrame:
    """A row for each domain and way to propose, means over prompts with intervals.

    `identical` counts prompts whose tokens are those of plain decoding, `low` and
    `high` belong to `tokens_per_pass`. `times_faster` is tokens a second over plain
    decoding in the same memory, which keeps more layers where a draft takes none of it.
    """
    runs: Any = pd.DataFrame(
        {
            "name": f"{row['domain']}, {draft}",
            "identical": row["identical"],
            "acceptance": row["systems"][draft]["acceptance"],
            "tokens": (row["tokens"] - 1) / row["systems"][draft]["passes"],
            "times": row["systems"][plain]["seconds"]
            / row["systems"][draft]["seconds"],
        }
        for row in record["prompts"]
        for draft, plain in BASELINES.items()
        if draft in row["systems"]
    )
    columns = ["prompts", "identical", "acceptance", "tokens_per_pass", "low", "high"]
    columns += ["times_faster", "times_low", "times_high"]
    rows = {}
    for name, mine in runs.groupby("name", sort=False):
        counts = len(mine), int(mine.identical.sum()), float(np.mean(mine.acceptance))
        tokens, times = mine.tokens.to_numpy(), mine.times.to_numpy()
        ends = astuple(mean_interval(tokens))[:3] + astuple(mean_interval(times))[:3]
        rows[name] = [*counts, *ends]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def passes(record: dict[str, Any]) -> pd.DataFrame:
    """Return milliseconds of a pass by place, texts and way, and its growth."""
    runs: Any = pd.DataFrame(record["runs"]).set_index(["place", "texts", "way"])
    rows = {}
    for (place, texts, way), samples in runs["samples_s"].items():
        ratios = np.divide(samples, runs["samples_s"][place, 1, way])
        grown = astuple(median_interval(ratios))[:3] if texts > 1 else [np.nan] * 3
        rows[place, texts, way] = [1e3 * median(samples), *grown]
    names = ["ms", "times one sequence", "from", "to"]
    table = pd.DataFrame.from_dict(rows, "index", columns=names)
    table.index = pd.MultiIndex.from_tuples(rows, names=runs.index.names)
    wide: Any = table.unstack(sort=False)
    ways = runs.index.unique("way")
    return wide.swaplevel(axis=1)[[*product(ways, names)]]


def batches(record: dict[str, Any]) -> pd.DataFrame:
    """A row a model: by number of sequences, a step's median time over that of one."""
    medians = pd.DataFrame(record["steps"]).T.drop(columns="drain").map(np.median)
    medians.columns = medians.columns.astype(int)
    alone = medians.pop(1)
    return medians.div(alone, axis=0).sort_index(axis=1)


def few_bits(record: dict[str, Any]) -> pd.DataFrame:
    """A row a system: bits a weight, and perplexity over its `seeds`.

    `perplexity` is their mean, `low` and `high` the least and the largest; `ratio` is
    over GPTQ of three bits with the same calibration sets, `ratio_low` and
    `ratio_high` the outermost ends of its intervals, NaN for itself; `other` is the
    mean perplexity on the text of another domain.
    """
    rows = {}
    for system, entry in record["summary"].items():
        values = entry["perplexities"]
        nothing = [[np.nan, np.nan, np.nan]]  # the baseline has no ratio to itself
        ratio, low, high = np.transpose(entry.get("ratio_to_gptq_3", nothing))
        rows[system] = {
            "method": entry["method"].replace("corrected", "GPTQ + low rank"),
            "bits": entry["bits"],
            "seeds": len(values),
            "perplexity": float(np.mean(values)),
            "low": min(values),
            "high": max(values),
            "ratio": ratio.mean(),
            "ratio_low": low.min(),
            "ratio_high": high.max(),
            "other": float(np.mean(entry.get("other_perplexities", [np.nan]))),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.sort_values(["bits", "perplexity"], ascending=[True, False])


CONSTANTS = {  # as printed
    "least_p": "chance", "confidence_threshold": "confidence", "max_wait": "max wait",
    "deadline_weight": "deadline weight", "sum_gain": "gain of the sum",
}  # fmt: skip


TUNED_BID_PRICE = "bid-price, tuned for each"  # `bid-price` has one configuration


def _best(record: dict[str, Any]) -> pd.DataFrame:
    """Return a row for each policy and setting: the best `constants`, their `mean`.

    The mean is in percent of violations; of equal means the first counts. `bid-price`
    has the constants of the least score in all settings, TUNED_BID_PRICE those of each.
    """
    settings = [*record["settings"]["settings"]]
    tried = pd.DataFrame(
        {**point, "at": at, "setting": setting, "mean": np.mean(percents)}
        for at, point in enumerate(record["points"])
        for setting, percents in zip(
            settings, np.reshape(point["percent"], (len(settings), -1)), strict=True
        )
    )
    own = tried.query("policy == 'bid-price'")
    least = own["at"][own["score"].idxmin()]
    shipped = own.groupby("at").get_group(least)
    each = own.assign(policy=TUNED_BID_PRICE)
    others = tried.drop(own.index)
    tried = pd.concat([others, shipped, each], ignore_index=True)
    first = tried.groupby(["policy", "setting"], sort=False)["mean"].idxmin()
    return tried.loc[first, ["policy", "setting", "constants", "mean"]]


def tuned(record: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by setting, the `constants` of a SimulationConfig for every rule.

    A setting is a scenario, or "A, lag" for A with a dispatch delay. Each rule has the
    constants with the fewest violations there, the mean over loads and estimates.
    """
    best = _best(record)
    rules = best[~best.policy.isin(["bid-price", TUNED_BID_PRICE])]
    return {
        str(setting): dict(zip(rows.policy, rows.constants, strict=True))
        for setting, rows in rules.groupby("setting", sort=False)
    }


def rivals(record: dict[str, Any]) -> pd.DataFrame:
    """Return a row for each policy: its constants, and the best of them by setting.

    Each constant has the least and the most that was tried. `tried` counts the
    combinations.
    """
    best = _best(record).pivot(index="policy", columns="setting", values="constants")
    rows = {}
    for name, points in groupby(record["points"], key=itemgetter("policy")):
        tried = pd.DataFrame([point["constants"] for point in points])
        ranges = [
            f"{CONSTANTS.get(of, of)} ({tried[of].min():g}–{tried[of].max():g})"
            for of in tried
        ]
        rows[name] = {"constants": ", ".join(ranges), "tried": len(tried)} | {
            setting: ", ".join(
                f"{value:g}" for value in dict(best.at[name, setting]).values()
            )
            for setting in record["settings"]["settings"]
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def rivals_by_setting(record: dict[str, Any]) -> pd.DataFrame:
    """Return the mean percents of the best of each policy: a column for each setting.

    `all` is the mean of a row, by which rows are sorted.
    """
    table = _best(record).pivot(index="policy", columns="setting", values="mean")
    table = table.rename_axis(index=None, columns=None)[
        [*record["settings"]["settings"]]
    ]
    return table.assign(all=table.mean(axis=1)).sort_values("all")
