"""Runs too long for a chapter, as their records tell them.

`benchmarks/streaming.py`, `headline.py`, `gpu.py` and others write one record each. A
record that nobody has made yet is no error: its tables are empty, and what a chapter
says of it is that it has not been measured.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thesis_lib.common.stats import bootstrap, mean_interval
from thesis_lib.common.units import GiB, format_duration, format_size

# What readers call a system of a record.
SYSTEMS = {
    "ours": "ours",
    "ours-nf4": "ours, NF4",
    "ours-lossless": "ours, lossless code",
    "accelerate": "accelerate",
    "mmap": "mmap",
    "airllm": "AirLLM",
}
MISSING = "not measured yet"
PEERS = ["peak_bytes", "s_per_token", "low_s", "high_s", "read_bytes", "times_slower"]
HEADLINE = [
    "limit_bytes", "peak_bytes", "logical_bytes", "planned_bytes", "read_bytes",
    "planned_read_bytes", "s_per_token", "predicted_s", "fraction_of_drain",
]  # fmt: skip


def peers(record: dict[str, Any] | None) -> pd.DataFrame:
    """A row a system: peak and bytes read, seconds of a token with their interval.

    `times_slower` is over ours in bf16, NaN for ours. A system that was killed at the
    limit has its peak and no time.
    """
    systems = record["summary"]["systems"] if record else {}
    rows = {}
    for system, found in systems.items():
        low, high = found.get("interval_s", (np.nan, np.nan))
        rows[SYSTEMS.get(system, system)] = {
            "peak_bytes": found["peak_bytes"],
            "s_per_token": found.get("median_s", np.nan),
            "low_s": low,
            "high_s": high,
            "read_bytes": found.get("read_bytes_per_token", np.nan),
            "times_slower": found.get("ours_is_faster", {}).get("times", np.nan),
        }
    return pd.DataFrame.from_dict(rows, orient="index", columns=PEERS)


def use(record: dict[str, Any] | None) -> dict[str, NDArray]:
    """Of the first run of each system: seconds, bytes held, and those without cache.

    Arrays (n, 3), by the name that readers see.
    """
    runs: dict[str, NDArray] = {}
    for run in record["runs"] if record else []:
        name = SYSTEMS.get(run["system"]) or str(run["system"])
        if run.get("use") and name not in runs:
            runs[name] = np.asarray(run["use"], float)
    return runs


def headline(record: dict[str, Any] | None) -> pd.DataFrame:
    """A row a part: what was promised and what the kernel and the clock counted.

    `peak_bytes` is the kernel's, `logical_bytes` the meter's, `planned_bytes` the
    plan's, without the interpreter; bytes read are of one token, and the fraction is
    that of the same reads without computing.
    """
    rows = {}
    for part in (record["parts"] if record else {}).values():
        name = f"{part['weights']}, {part['distinct_layers']} distinct layers"
        rows[f"{name}, {format_size(part['limit_bytes'])}"] = {
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
    return pd.DataFrame.from_dict(rows, orient="index", columns=HEADLINE)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Sizes, times and shares as a reader wants them; columns without their units.

    What is read is told in 10^9 bytes, as rates are.
    """
    shown = pd.DataFrame(index=table.index)
    for column in table:
        name, values = str(column), table[column]
        if name.endswith("read_bytes"):
            shown[name.removesuffix("_bytes").replace("_", " ")] = [
                MISSING if pd.isna(value) else f"{value / 1e9:.1f} GB"
                for value in values
            ]
        elif name.endswith("_bytes"):
            shown[name.removesuffix("_bytes").replace("_", " ")] = [
                MISSING if pd.isna(value) else format_size(value) for value in values
            ]
        elif name.startswith("fraction"):
            shown[name.replace("_", " ")] = [f"{100 * value:.1f} %" for value in values]
        elif name.endswith(("_s", "s_per_token")):
            label = "time a token" if name == "s_per_token" else name[:-2]
            shown[label] = [
                MISSING if pd.isna(value) else format_duration(value)
                for value in values
            ]
        else:
            shown[name.replace("_", " ")] = [
                "" if pd.isna(value) else f"{value:.2f}" for value in values
            ]
    return shown


def gpu_sentence(record: dict[str, Any] | None) -> str:
    """What the run on a GPU found, in a sentence; that there was none yet, if so."""
    if record is None or record["device"] != "cuda":
        return (
            "Nobody has run it on a GPU for this book yet: make gpu writes the "
            "record that this sentence would tell."
        )
    name = record["machine"]["gpus"][0]["name"]
    whole = record["parts"].get("whole", {})
    if "s_per_token" not in whole:
        why = whole.get("skipped") or whole.get("failed") or "it ran out of memory"
        return f"On one {name} the run of the whole geometry has no result: {why}."
    return (
        f"On one {name}, within {format_size(whole['limit_bytes'])} of its memory, a "
        f"token of {record['geometry']} takes {format_duration(whole['s_per_token'])}, "
        f"{100 * whole['fraction_of_link']:.1f} % of the rate of pinned copies, where "
        f"{format_duration(whole['predicted_s_per_token'])} were predicted; "
        f"{format_size(whole['reserved_bytes'])} were reserved at most."
    )


def peers_sentence(record: dict[str, Any] | None) -> str:
    """What the comparison with other systems found; that there was none yet, if so."""
    if record is None:
        return "The comparison has not been recorded yet."
    systems = record["summary"]["systems"]
    ours = systems["ours"]
    told = [
        f"Ours takes {format_duration(ours['median_s'])} a token, "
        f"{100 * ours['fraction_of_drain']:.1f} % of what the drain allows."
    ]
    times = []
    for system, found in systems.items():
        faster = found.get("ours_is_faster")
        name = SYSTEMS.get(system, system)
        if found["killed"]:
            times.append(f"{name} was killed at the limit")
        elif faster and not system.startswith("ours-"):
            times.append(
                f"{name} {faster['times']:.2f} times as long "
                f"({faster['low']:.2f} to {faster['high']:.2f})"
            )
    told.append(f"Of the others, {', '.join(times)}.")
    bounds = [
        f"{SYSTEMS.get(system, system)} {found['drains_per_step']:.2f}"
        for system, found in systems.items()
        if not (found["killed"] or system.startswith("ours"))
    ]
    if bounds:
        told.append(
            "Their steps over the drain, which is as fast as these bytes can be read "
            f"here, bound every such factor: {', '.join(bounds)}."
        )
    same = "the same" if record["summary"]["tokens_identical"] else "NOT the same"
    told.append(f"All wrote {same} tokens.")
    ways = {
        "ours-lossless": "With the same weights in the lossless code",
        "ours-nf4": "Packed in NF4",
    }
    for system, way in ways.items():
        packed = systems.get(system, {})
        if faster := packed.get("is_faster_than_accelerate"):
            told.append(
                f"{way}, ours takes {format_duration(packed['median_s'])} a token and "
                f"is {faster['times']:.2f} times as fast as accelerate in 16 bits "
                f"({faster['low']:.2f} to {faster['high']:.2f})"
                + _over_mapped_files(systems, packed)
                + "."
            )
    return " ".join(told)


def _over_mapped_files(systems: dict[str, Any], packed: dict[str, Any]) -> str:
    mapped = systems.get("mmap", {}).get("median_s")
    if not mapped:
        return ""
    return f" and {mapped / packed['median_s']:.2f} times as fast as mmap"


def headline_sentence(record: dict[str, Any] | None, weights: str) -> str:
    """What the run of the claimed size found in its largest limit, or that none did."""
    parts = [
        part
        for part in (record["parts"] if record else {}).values()
        if part["weights"] == weights
    ]
    if not parts:
        return f"No run with {weights} weights has been recorded yet."
    part = max(parts, key=lambda each: each["limit_bytes"])
    read = part["read_bytes_per_token"]
    reads = f"{read / 1e9:.1f} GB were read for each, and " if read else ""
    return (
        f"Inside a hard limit of {format_size(part['limit_bytes'])} a token takes "
        f"{format_duration(part['s_per_token'])}, at "
        f"{100 * part['fraction_of_drain']:.1f} % of the drain; {reads}the kernel "
        f"counted at most {format_size(part['peak_bytes'])} ({part['label']})."
    )


def headline_numbers(record: dict[str, Any] | None) -> dict[str, float]:
    """The run of the claimed size in 16 bits, in its largest limit; {} without one.

    What its plan was and read is left out where the record lacks it.
    """
    parts = (record["parts"] if record else {}).values()
    mine = [part for part in parts if part["weights"] == "bf16"]
    if not mine:
        return {}
    part = max(mine, key=lambda each: each["limit_bytes"])
    told = {}
    if made := part.get("plan"):
        told = {
            "headline_context": made["context"],
            "headline_resident": made["tiers"]["device"],
            "headline_read_gb": made["bytes_per_token"] / 1e9,
            "headline_predicted_s": part["predicted_s_per_token"],
            "headline_link_gb_per_s": part["predicted_at_bytes_per_s"] / 1e9,
        }
    return told | {
        "headline_limit_gib": part["limit_bytes"] / GiB,
        "headline_peak_gib": part["peak_bytes"] / GiB,
        "headline_s_per_token": part["s_per_token"],
        "headline_fraction_percent": 100 * part["fraction_of_drain"],
        "headline_distinct_layers": part["distinct_layers"],
    }


def certificate_words(record: dict[str, Any] | None) -> dict[str, str]:
    """What prose says of the plans that were run at their limits.

    Steps and whole runs of transformers' generate apart: the first are rehearsed as
    they are run, the second for the greediest way to choose a token.
    """
    words = {}
    metered = record["logical"] if record else []
    for name, generating in (("steps", False), ("generated", True)):
        over = [
            (row["planned_bytes"] - row["metered_bytes"]) / row["device_bytes"]
            for row in metered
            if row["generating"] is generating
        ]
        words |= {
            name: str(len(over)) if over else MISSING,
            f"{name}_exceeded": str(sum(s < 0 for s in over)) if over else MISSING,
            f"{name}_over_median": _percent(over, 0.5),
            f"{name}_over_most": _percent(over, 1.0),
        }
    grouped = record["physical"] if record else []
    kept = [row for row in grouped if not row["killed"]]
    left = [1 - row["peak_bytes"] / row["limit_bytes"] for row in kept]
    return words | {
        "plans": str(len(metered)) if metered else MISSING,
        "groups": str(len(grouped)) if grouped else MISSING,
        "killed": str(len(grouped) - len(kept)) if grouped else MISSING,
        "left_median": _percent(left, 0.5),
        "left_least": _percent(left, 0.0),
        "left_most": _percent(left, 1.0),
    }


PREDICTION = ["batch", "tokens", "limit", "predicted_s", "measured_s", "error"]


def predictions(record: dict[str, Any] | None) -> pd.DataFrame:
    """A row a plan: its step, what bounds it, seconds predicted and measured.

    `error` is relative to the measured median.
    """
    rows = []
    for plan in record["prediction"]["plans"] if record else []:
        measured = float(np.median(plan["seconds"]))
        error = plan["predicted_s"] / measured - 1
        rows.append(
            [
                plan["batch"], plan["pass_tokens"], plan["limit"],
                plan["predicted_s"], measured, error,
            ]
        )  # fmt: skip
    return pd.DataFrame(rows, columns=PREDICTION)


def prediction_words(record: dict[str, Any] | None) -> dict[str, str]:
    """What prose says of predicted times and of the predicted crossover."""
    table = predictions(record)
    errors = table["error"].abs()
    cross = record["crossover"] if record else {}
    found = cross.get("measured_tokens")
    return {
        "plans": str(len(errors)) if len(errors) else MISSING,
        "most_sequences": str(table["batch"].max()) if len(errors) else MISSING,
        "error_median": _percent(errors, 0.5),
        "error_p95": _percent(errors, 0.95),
        "crossover": _worded(cross.get("predicted_tokens"), "{:.0f}"),
        "crossover_found": _worded(found, "{:.0f}"),
        "crossover_error": _worded(
            found and 100 * abs(cross["predicted_tokens"] / found - 1), "{:.0f}"
        ),
    }


def prediction_sentence(record: dict[str, Any] | None) -> str:
    """What was found of predicted times and of the predicted crossover, if anything."""
    if record is None:
        return "It has not been recorded yet."
    words = prediction_words(record)
    return (
        f"Over {words['plans']} plans with up to {words['most_sequences']} sequences "
        f"the error is {words['error_median']} % in the median and "
        f"{words['error_p95']} % at the 95th percentile. From the same rates the "
        f"crossover is predicted at {words['crossover']} tokens and found at "
        f"{words['crossover_found']}. The record is of {origin(record)}."
    )


def lossless_codecs(record: dict[str, Any] | None) -> pd.DataFrame:
    """A row a codec and origin of weights: bytes that remain, and decoded GB a second.

    Columns weights, codec, ratio, and one for each number of threads.
    """
    columns = ["weights", "codec", "ratio", "one thread", "two threads"]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for found in record["codecs"] if record else []:
        key = found["weights"], found["codec"]
        row = rows.setdefault(
            key, {"weights": key[0], "codec": key[1], "ratio": found["ratio"]}
        )
        rate = found["bytes"] / float(np.median(found["seconds"])) / 1e9
        row[columns[2 + found["threads"]]] = rate
    return pd.DataFrame([*rows.values()], columns=columns)


def lossless_sentence(record: dict[str, Any] | None) -> str:
    """What streaming in code gained over streaming the same weights, if measured."""
    if record is None:
        return f"How much faster the stream becomes is {MISSING}."
    stream = record["stream"]
    turns = {
        name: np.array([np.median(turn) for turn in seconds])
        for name, seconds in stream["seconds"].items()
    }
    medians = {name: float(np.median(of_turns)) for name, of_turns in turns.items()}
    drain, token = (
        _times_as_fast(turns[f"bf16 {kind}"], turns[f"lossless {kind}"])
        for kind in ("drain", "token")
    )
    share = stream["bytes_per_step"]["lossless"] / stream["bytes_per_step"]["bf16"]
    same = "the same" if stream["equal_logits"] else "NOT the same"
    decoding = stream["decoded_bytes_per_step"] / stream["decode_bytes_per_s"]
    busy = decoding + medians["lossless compute"]
    return (
        f"Of {stream['layers']} layers of the geometry {stream['geometry']} "
        f"{share:.3f} of the bytes are read in code, for which a disk alone could be "
        f"{1 / share:.2f} times as fast; in the same "
        f"{format_size(stream['device_bytes'])} and from the same disk the reads alone "
        f"are {drain} times as fast as in bf16, and tokens that follow one another "
        f"{token} times, with {same} logits. Alone, the decoders write "
        f"{stream['decode_bytes_per_s'] / 1e9:.1f} GB/s: decoding and computing take "
        f"the cores {busy:.2f} s a token, and the reads "
        f"{medians['lossless drain']:.2f} s. The record is of {origin(record)}."
    )


def _times_as_fast(slow: NDArray[np.float64], fast: NDArray[np.float64]) -> str:
    """The ratio of two medians over turns, (n,) seconds each, with its interval."""
    low, high = bootstrap(
        len(slow),
        lambda rows: np.median(slow[rows], axis=1) / np.median(fast[rows], axis=1),
    )
    return f"{np.median(slow) / np.median(fast):.2f} ({low:.2f} to {high:.2f})"


SPECULATION = [
    "prompts", "identical", "acceptance", "tokens_per_pass", "low", "high",
    "times_faster", "times_low", "times_high",
]  # fmt: skip
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
BASELINES = {"lookup": "plain", "draft": "plain beside"}  # in the same memory


def speculation(record: dict[str, Any] | None) -> pd.DataFrame:
    """A row for each domain and way to propose, means over prompts with intervals.

    `identical` counts prompts whose tokens are those of plain decoding, `low` and
    `high` belong to `tokens_per_pass`. `times_faster` is tokens a second over plain
    decoding in the same memory, which keeps more layers where a draft takes none of it.
    """
    rows = {}
    prompts = record["prompts"] if record else []
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
            tokens = mean_interval(
                np.array(
                    [
                        (row["tokens"] - 1) / run["passes"]
                        for row, run in zip(mine, took, strict=True)
                    ]
                )
            )
            times = mean_interval(
                np.array(
                    [
                        row["systems"][plain]["seconds"] / run["seconds"]
                        for row, run in zip(mine, took, strict=True)
                    ]
                )
            )
            rows[f"{domain}, {draft}"] = [
                len(mine), sum(row["identical"] for row in mine),
                float(np.mean([run["acceptance"] for run in took])),
                tokens.value, tokens.low, tokens.high,
                times.value, times.low, times.high,
            ]  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index", columns=SPECULATION)


def speculation_sentence(record: dict[str, Any] | None) -> str:
    """What speculation over streamed weights brought, if anybody measured it."""
    if record is None:
        return "It has not been measured yet."
    table = speculation(record)
    same = sum(row["identical"] for row in record["prompts"])
    all_ = len(record["prompts"])
    parts = [
        f"{row.tokens_per_pass:.2f} tokens a pass ({row.low:.2f} to {row.high:.2f}) "
        f"and {row.times_faster:.2f} times the tokens a second ({row.times_low:.2f} to "
        f"{row.times_high:.2f}) for {name}"
        for name, row in table.iterrows()
    ]
    return (
        f"The tokens were those of plain decoding in {same} of {all_} continuations. "
        f"In the mean over prompts, with 95 % intervals: {'; '.join(parts)}. "
        f"{sum(record['loops'].values())} continuations that ran into a loop were left "
        f"out. The record is of {origin(record)}."
    )


def batch_sentence(record: dict[str, Any] | None) -> str:
    """What a step of many sequences took over that of one, if anybody measured it."""
    if record is None:
        return "It has not been measured yet."
    parts = []
    for model, steps in record["steps"].items():
        seconds = {name: float(np.median(each)) for name, each in steps.items()}
        counts = sorted(
            (int(name) for name in seconds if name != "drain"), reverse=True
        )
        parts.append(
            f"a step of {model} takes "
            + " and ".join(
                f"{seconds[str(n)] / seconds['1']:.2f} times as long with {n} sequences"
                for n in counts[:-1]
            )
            + " as with one"
        )
    return f"In the median, {'; '.join(parts)}. The record is of {origin(record)}."


def _percent(shares: Any, q: float) -> str:
    values = np.asarray(shares, float)
    return f"{100 * float(np.quantile(values, q)):.2f}" if len(values) else MISSING


def _worded(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)


FEW_BITS = ["method", "bits", "perplexity", "low", "high", "ratio"]


def few_bits(record: dict[str, Any] | None) -> pd.DataFrame:
    """A row a system: bits a weight, and perplexity over its seeds.

    `perplexity` is their mean, `low` and `high` the least and the largest; `ratio` is
    over GPTQ of three bits with the same calibration sets, NaN for itself.
    """
    rows = {}
    for system, found in (record["summary"] if record else {}).items():
        values = found["perplexities"]
        ratios = [ratio for ratio, _, _ in found.get("ratio_to_gptq_3", [])]
        rows[system] = {
            "method": found["method"],
            "bits": found["bits"],
            "perplexity": float(np.mean(values)),
            "low": min(values),
            "high": max(values),
            "ratio": float(np.mean(ratios)) if ratios else np.nan,
        }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=FEW_BITS)
    return table.sort_values(["bits", "perplexity"], ascending=[True, False])


def few_bits_sentence(record: dict[str, Any] | None) -> str:
    """What the comparison at 3.25 bits found, if anything."""
    summary = record["summary"] if record else {}
    names = ("gptq 3", "mixed gptq 3.25", "corrected 3.25")
    if record is None or not all(name in summary for name in names):
        return "The comparison has not been recorded yet."
    plain, mixed, ours = (_seeds_worded(summary[name]) for name in names)
    ratios = summary["corrected 3.25"]["ratio_to_gptq_3"]
    low, high = min(r[1] for r in ratios), max(r[2] for r in ratios)
    over_mixed = np.mean(summary[names[2]]["perplexities"]) / np.mean(
        summary[names[1]]["perplexities"]
    )
    verdict = "beats" if high < 1 and over_mixed < 1 else "does not beat"
    seeds = len(summary["corrected 3.25"]["perplexities"])
    return (
        f"GPTQ with three bits everywhere has a perplexity of {plain}, GPTQ with "
        f"widths and groups shared out {mixed}, and with corrections {ours}: "
        f"{np.mean([r[0] for r in ratios]):.3f} times that of three bits, between "
        f"{low:.3f} and {high:.3f} with all windows and {_counted(seeds)} considered, "
        f"and {over_mixed:.3f} times that of the shared-out GPTQ. "
        f"{_elsewhere(summary)}"
        f"At equal bytes the correction {verdict} calibrated rounding here."
    )


def _elsewhere(summary: dict[str, Any]) -> str:
    """The same comparison on the text of the other domain, where it was scored."""
    means = {
        name: float(np.mean(found["other_perplexities"]))
        for name, found in summary.items()
        if "other_perplexities" in found
    }
    names = ("corrected 3.25", "gptq 3", "mixed gptq 3.25")
    if not all(name in means for name in names):
        return ""
    ours, plain, mixed = (means[name] for name in names)
    return (
        f"On The Jargon File, a text of another domain, these factors are "
        f"{ours / plain:.3f} and {ours / mixed:.3f}. "
    )


def _seeds_worded(found: dict[str, Any]) -> str:
    values = found["perplexities"]
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread} at {found['bits']:.3f} bits"


def _counted(seeds: int) -> str:
    return "one calibration set" if seeds == 1 else f"{seeds} calibration sets"


def origin(record: dict[str, Any] | None) -> str:
    """Where a record comes from: processor, cores and commit."""
    if record is None:
        return MISSING
    machine = record["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, commit {record['commit'][:7]}"
