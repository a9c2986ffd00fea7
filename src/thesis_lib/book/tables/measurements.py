"""Runs too long for a chapter: the tables and numbers of their records.

`benchmarks/streaming.py`, `headline.py` and others write one record each. Here a record
becomes a table or a flat dict of numbers; what they mean is said by the chapter.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.files import read_record
from thesis_lib.common.stats import bootstrap, mean_interval
from thesis_lib.common.units import GiB, format_duration, format_size

# What readers call a system of a record.
SYSTEMS = {
    "streamed": "streamed",
    "streamed-nf4": "streamed, NF4",
    "streamed-lossless": "streamed, lossless code",
    "accelerate": "accelerate",
    "mmap": "mmap",
    "airllm": "AirLLM",
}
MISSING = "not measured yet"
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
    """The record `name` of `data/measurements`, which every checkout holds.

    Raises InvalidInput where it is missing.
    """
    record = read_record(name)
    if record is None:
        raise InvalidInput(
            f"data/measurements/{name}.json is missing: expected the record that "
            "belongs to this checkout; restore it, or make it with its script in "
            "benchmarks/"
        )
    return record


def origin(record: dict[str, Any]) -> str:
    """Where a record comes from: processor, cores and commit."""
    machine = record["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, commit {record['commit'][:7]}"


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Sizes, times and shares as a reader wants them; columns without their units.

    What is read is told in 10^9 bytes, as rates are.
    """

    def heading(column: str) -> str:
        if column.endswith("s_per_token"):
            return column.replace("s_per_token", "time a token")
        return column.removesuffix("_bytes").removesuffix("_s").replace("_", " ")

    def cell(column: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        if pd.isna(value):
            return "" if column.startswith("times") else MISSING
        if column.endswith("read_bytes"):
            return f"{value / 1e9:.1f} GB"
        if column.endswith("_bytes"):
            return format_size(value)
        if column.startswith("fraction"):
            return f"{100 * value:.1f} %"
        if column.endswith(("_s", "s_per_token")):
            return format_duration(value)
        return f"{value:.2f}"

    return pd.DataFrame(
        {
            heading(column): [cell(column, value) for value in table[column]]
            for column in map(str, table)
        },
        index=table.index,
    )


PEERS = ["peak_bytes", "s_per_token", "low_s", "high_s", "read_bytes", "times_slower"]


def peers(record: dict[str, Any]) -> pd.DataFrame:
    """A row a system: peak and bytes read, seconds of a token with their interval.

    `times_slower` is over the streamed model in bf16, with `times_low` and
    `times_high`; `drains_per_step` a step over the reads of the same bytes;
    `over_accelerate` and `over_mmap` how many times as fast as these, in 16 bits. NaN
    where that was not measured: a system that was killed at the limit has its peak
    alone.
    """
    rows = {}
    for system, found in record["summary"]["systems"].items():
        low, high = found.get("interval_s", (np.nan, np.nan))
        slower = found.get("streamed_is_faster", {})
        faster = found.get("is_faster_than_accelerate", {})
        rows[SYSTEMS.get(system, system)] = {
            "peak_bytes": found["peak_bytes"],
            "s_per_token": found.get("median_s", np.nan),
            "low_s": low,
            "high_s": high,
            "read_bytes": found.get("read_bytes_per_token", np.nan),
            "times_slower": slower.get("times", np.nan),
            "times_low": slower.get("low", np.nan),
            "times_high": slower.get("high", np.nan),
            "fraction_percent": 100 * found.get("fraction_of_drain", np.nan),
            "drains_per_step": found.get("drains_per_step", np.nan),
            "over_accelerate": faster.get("times", np.nan),
            "over_accelerate_low": faster.get("low", np.nan),
            "over_accelerate_high": faster.get("high", np.nan),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    mapped_s = table.s_per_token.get("mmap", np.nan)
    return table.assign(over_mmap=mapped_s / table.s_per_token)


def use(record: dict[str, Any]) -> dict[str, NDArray]:
    """Of the first run of each system: seconds, bytes held, and those without cache.

    Arrays (n, 3), by the name that readers see.
    """
    runs: dict[str, NDArray] = {}
    for run in record["runs"]:
        name = SYSTEMS.get(run["system"]) or str(run["system"])
        if run.get("use") and name not in runs:
            runs[name] = np.asarray(run["use"], float)
    return runs


def headline(record: dict[str, Any]) -> pd.DataFrame:
    """A row a part: what was promised and what the kernel and the clock counted.

    `peak_bytes` is the kernel's, `logical_bytes` the meter's, `planned_bytes` the
    plan's, without the interpreter; bytes read are of one token, NaN where the kernel
    did not tell, and the fraction is that of the same reads without computing.
    """
    rows = {
        f"{part['weights']}, {part['distinct_layers']} distinct layers, "
        f"{format_size(part['limit_bytes'])}": {
            "limit_bytes": part["limit_bytes"],
            "peak_bytes": part["peak_bytes"],
            "logical_bytes": part["logical_peak_bytes"],
            "planned_bytes": part["planned_peak_bytes"],
            "read_bytes": part["read_bytes_per_token"] or np.nan,
            "planned_read_bytes": part["planned_bytes_per_token"],
            "s_per_token": part["s_per_token"],
            "predicted_s": part["predicted_s_per_token"],
            "fraction_of_drain": part["fraction_of_drain"],
        }
        for part in record["parts"].values()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def headline_numbers(record: dict[str, Any], weights: str) -> dict[str, Any]:
    """The run of the claimed size with these weights, in its largest limit.

    `measured_read_gb` is what the kernel counted for a token, and missing where it did
    not; `read_gb` what the plan reads.
    """
    part = max(
        (each for each in record["parts"].values() if each["weights"] == weights),
        key=lambda each: each["limit_bytes"],
    )
    plan, read = part["plan"], part["read_bytes_per_token"]
    return {
        "context": plan["context"],
        "resident": plan["tiers"]["device"],
        "read_gb": plan["bytes_per_token"] / 1e9,
        "predicted_s": part["predicted_s_per_token"],
        "link_gb_per_s": part["predicted_at_bytes_per_s"] / 1e9,
        "limit_gib": part["limit_bytes"] / GiB,
        "peak_gib": part["peak_bytes"] / GiB,
        "s_per_token": part["s_per_token"],
        "fraction_percent": 100 * part["fraction_of_drain"],
        "distinct_layers": part["distinct_layers"],
        "origin": origin(record),
    } | ({"measured_read_gb": read / 1e9} if read else {})


GPU = [
    "limit_bytes", "reserved_bytes", "s_per_token", "predicted_s", "fraction_of_link",
    "no result",
]  # fmt: skip


def gpu(record: dict[str, Any] | None) -> pd.DataFrame:
    """The run of the whole geometry on a GPU, a row by the name of the card.

    Empty without a record and for a record of a processor. `no result` says why there
    is none, and is empty where there is one.
    """
    rows = {}
    if record is not None and record["device"] == "cuda":
        whole = record["parts"].get("whole", {})
        why = whole.get("skipped") or whole.get("failed") or "out of memory"
        rows[record["machine"]["gpus"][0]["name"]] = {
            "limit_bytes": whole.get("limit_bytes", np.nan),
            "reserved_bytes": whole.get("reserved_bytes", np.nan),
            "s_per_token": whole.get("s_per_token", np.nan),
            "predicted_s": whole.get("predicted_s_per_token", np.nan),
            "fraction_of_link": whole.get("fraction_of_link", np.nan),
            "no result": "" if "s_per_token" in whole else why,
        }
    return pd.DataFrame.from_dict(rows, orient="index", columns=GPU)


def certificate(record: dict[str, Any]) -> dict[str, Any]:
    """How the plans that were run at their limits fared: counts, and per cent.

    Steps and whole runs of transformers' generate apart: the first are rehearsed as
    they are run, the second for the greediest way to choose a token.
    """
    metered, grouped = record["logical"], record["physical"]
    found: dict[str, Any] = {"plans": len(metered), "origin": origin(record)}
    for name, generating in (("steps", False), ("generated", True)):
        over = np.array(
            [
                (row["planned_bytes"] - row["metered_bytes"]) / row["device_bytes"]
                for row in metered
                if row["generating"] is generating
            ]
        )
        found |= {
            name: len(over),
            f"{name}_exceeded": int((over < 0).sum()),
            f"{name}_over_median": 100 * float(np.median(over)),
            f"{name}_over_most": 100 * float(over.max()),
        }
    kept = [row for row in grouped if not row["killed"]]
    left = np.array([1 - row["peak_bytes"] / row["limit_bytes"] for row in kept])
    return found | {
        "groups": len(grouped),
        "killed": len(grouped) - len(kept),
        "left_median": 100 * float(np.median(left)),
        "left_least": 100 * float(left.min()),
        "left_most": 100 * float(left.max()),
    }


def predictions(record: dict[str, Any]) -> pd.DataFrame:
    """A row a plan: its step, what bounds it, seconds predicted and measured.

    `error` is relative to the measured median.
    """
    table: Any = pd.DataFrame(record["prediction"]["plans"])
    table = table.rename(columns={"pass_tokens": "tokens"})
    table["measured_s"] = table.seconds.map(np.median)
    table["error"] = table.predicted_s / table.measured_s - 1
    return table[["batch", "tokens", "limit", "predicted_s", "measured_s", "error"]]


def prediction_numbers(record: dict[str, Any]) -> dict[str, Any]:
    """Errors of predicted times, in per cent, and the crossover, in tokens."""
    table: Any = predictions(record)
    cross = record["crossover"]
    errors = 100 * table["error"].abs()
    return {
        "plans": len(table),
        "most_sequences": int(table["batch"].max()),
        "error_median": float(errors.quantile(0.5)),
        "error_p95": float(errors.quantile(0.95)),
        "crossover": cross["predicted_tokens"],
        "crossover_found": cross["measured_tokens"],
        "origin": origin(record),
    }


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
    """What streaming in code gained over streaming the same weights.

    `drain_times` and `token_times` are ratios of medians over turns, with intervals;
    `busy_s` is decoding and computing of a token alone, `reads_s` its reads.
    """
    stream = record["stream"]
    turns = {
        name: np.array([np.median(turn) for turn in seconds])
        for name, seconds in stream["seconds"].items()
    }
    share = stream["bytes_per_step"]["lossless"] / stream["bytes_per_step"]["bf16"]
    decoding_s = stream["decoded_bytes_per_step"] / stream["decode_bytes_per_s"]
    found: dict[str, float | str] = {
        "origin": origin(record),
        "geometry": stream["geometry"],
        "layers": stream["layers"],
        "share": share,
        "disk_times": 1 / share,
        "device_gib": stream["device_bytes"] / GiB,
        "equal_logits": stream["equal_logits"],
        "decode_gb_per_s": stream["decode_bytes_per_s"] / 1e9,
        "busy_s": decoding_s + float(np.median(turns["lossless compute"])),
        "reads_s": float(np.median(turns["lossless drain"])),
    }
    for kind in ("drain", "token"):
        slow, fast = turns[f"bf16 {kind}"], turns[f"lossless {kind}"]
        low, high = _ratio_interval(slow, fast)
        found[f"{kind}_times"] = float(np.median(slow) / np.median(fast))
        found |= {f"{kind}_times_low": low, f"{kind}_times_high": high}
    return found


def _ratio_interval(
    slow: NDArray[np.float64], fast: NDArray[np.float64]
) -> tuple[float, float]:
    """The bootstrap interval of a ratio of medians of paired turns, (n,) seconds."""
    return bootstrap(
        len(slow),
        lambda rows: np.median(slow[rows], axis=1) / np.median(fast[rows], axis=1),
    )


BASELINES = {"lookup": "plain", "draft": "plain beside"}  # in the same memory


def speculation(record: dict[str, Any]) -> pd.DataFrame:
    """A row for each domain and way to propose, means over prompts with intervals.

    `identical` counts prompts whose tokens are those of plain decoding, `low` and
    `high` belong to `tokens_per_pass`. `times_faster` is tokens a second over plain
    decoding in the same memory, which keeps more layers where a draft takes none of it.
    """
    rows = {}
    prompts = record["prompts"]
    for domain in dict.fromkeys(row["domain"] for row in prompts):
        for draft, plain in BASELINES.items():
            mine = [
                row
                for row in prompts
                if row["domain"] == domain and draft in row["systems"]
            ]
            if not mine:
                continue
            took = [row["systems"][draft] for row in mine]
            pairs = list(zip(mine, took, strict=True))
            tokens = mean_interval(
                np.array([(row["tokens"] - 1) / run["passes"] for row, run in pairs])
            )
            plain_s = np.array([row["systems"][plain]["seconds"] for row in mine])
            times = mean_interval(plain_s / [run["seconds"] for run in took])
            rows[f"{domain}, {draft}"] = {
                "prompts": len(mine),
                "identical": sum(row["identical"] for row in mine),
                "acceptance": float(np.mean([run["acceptance"] for run in took])),
                "tokens_per_pass": tokens.value,
                "low": tokens.low,
                "high": tokens.high,
                "times_faster": times.value,
                "times_low": times.low,
                "times_high": times.high,
            }
    return pd.DataFrame.from_dict(rows, orient="index")


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
    for system, found in record["summary"].items():
        values = found["perplexities"]
        ratios = np.array(found.get("ratio_to_gptq_3", [])).reshape(-1, 3)
        rows[system] = {
            "method": found["method"],
            "bits": found["bits"],
            "seeds": len(values),
            "perplexity": float(np.mean(values)),
            "low": min(values),
            "high": max(values),
            "ratio": ratios[:, 0].mean() if len(ratios) else np.nan,
            "ratio_low": ratios[:, 1].min() if len(ratios) else np.nan,
            "ratio_high": ratios[:, 2].max() if len(ratios) else np.nan,
            "other": float(np.mean(found.get("other_perplexities", [np.nan]))),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.sort_values(["bits", "perplexity"], ascending=[True, False])
