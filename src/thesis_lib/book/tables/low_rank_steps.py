"""What each step of the low-rank method buys, as `benchmarks/lowrank.py` found it.

Every step contains those before it. All is told by the loss: the logarithm of the
perplexity over that of the dense model on the same windows. A text on which nothing was
scored is left out, as are steps that nobody has run yet.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.book.tables.pareto import rounded
from thesis_lib.memory.evaluate.perplexity import (
    TEXTS,
    Perplexity,
    pooled_ratio,
    window_tokens,
)

STEPS = {  # what readers call the methods of a record
    "plain": "plain",
    "whitened": "whitened",
    "weighted": "+ sensitivity",
    "allocated": "+ allocation",
    "sequential": "+ sequential",
    "refined": "+ refinement",
}
CURVES = ["text", "ratio", "step", "sets", "perplexity", "times", "low", "high", "left"]


def curves(record: dict[str, Any]) -> pd.DataFrame:
    """A row a text, ratio and step, with the columns of `CURVES`.

    `times` is the perplexity over that of the dense model, a geometric mean over
    calibration sets; `low` and `high` are the outermost ends of the paired 95 %
    bootstrap intervals of these sets. `left` is the loss over that of plain whitening
    on the same sets; NaN without one.
    """
    rows = []
    for text, called in TEXTS.items():
        dense, found = _scores(record, text)
        if dense is None:
            continue
        for ratio in sorted({ratio for ratio, _ in found}):
            whitened = found.get((ratio, "whitened"), {})
            for method, step in STEPS.items():
                sets = found.get((ratio, method), {})
                if not sets:
                    continue
                times = pooled_ratio(list(sets.values()), dense)
                value = dense.value * times[0]
                both = sorted(sets.keys() & whitened.keys())
                left = _loss(sets, both, dense) / _loss(whitened, both, dense)
                rows.append([called, ratio, step, len(sets), value, *times, left])
    return pd.DataFrame(rows, columns=CURVES)


def _scores(
    record: Any, text: str
) -> tuple[Perplexity | None, dict[tuple[float, str], dict[int, Perplexity]]]:
    """Of the dense model, and of each ratio and method by calibration set."""
    if text not in record["settings"]["evaluation_tokens"]:
        return None, {}
    settings = record["settings"]
    counts = window_tokens(settings["evaluation_tokens"][text], settings["context"])
    found: dict[tuple[float, str], dict[int, Perplexity]] = {}
    for point in record["points"]:
        of_method = found.setdefault((point["ratio"], point["method"]), {})
        of_method[point["seed"]] = Perplexity(np.array(point["nll"][text]), counts)
    return Perplexity(np.array(record["dense"]["nll"][text]), counts), found


def _loss(
    scores: Mapping[int, Perplexity], sets: list[int], dense: Perplexity
) -> float:
    """The mean over sets, in nats a token; NaN without any."""
    lost = [np.log(scores[number].value / dense.value) for number in sets]
    return float(np.mean(lost)) if lost else np.nan


def readable(table: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """A row a step at one ratio, as readers see it: for each text, in words.

    How many times the perplexity of the dense model, with its interval, and the
    percentage that is left of the loss of plain whitening.
    """
    at: Any = table[table.ratio == ratio]
    rows: dict[str, dict[str, str]] = {}
    for row in at.itertuples():
        shown = rows.setdefault(row.step, {"calibration sets": f"{row.sets}"})
        shown[f"{row.text} (times)"] = (
            f"{rounded(row.times)} ({rounded(row.low)} to {rounded(row.high)})"
        )
        shown[f"{row.text}, left (%)"] = (
            "" if np.isnan(row.left) else f"{100 * row.left:,.0f}"
        )
    return pd.DataFrame.from_dict(rows, orient="index")


def numbers(table: pd.DataFrame, ratio: float) -> dict[str, float]:
    """What prose says of the steps at one ratio, and of plain truncation at any.

    `dense` and a name of `STEPS` are perplexities on the first text; `left_…` and
    `other_left_…` the percentage left of the loss of plain whitening on the first text
    and on the second; `plain_least` the least of plain over whitened on any text at
    any ratio, and `ratios` at how many. A step that no text has is left out.
    """
    cells = table.set_index(["text", "ratio", "step"])
    one, other = TEXTS.values()
    first = cells.loc[one]
    found = {"dense": float((first.perplexity / first.times).mean())}
    for method, step in STEPS.items():
        if (one, ratio, step) in cells.index:
            found[method] = cells.perplexity[one, ratio, step]
            found[f"left_{method}"] = 100 * cells.left[one, ratio, step]
        if (other, ratio, step) in cells.index:
            found[f"other_left_{method}"] = 100 * cells.left[other, ratio, step]
    times = cells.times.unstack("step")
    return found | {
        "plain_least": float((times[STEPS["plain"]] / times[STEPS["whitened"]]).min()),
        "ratios": table.ratio.nunique(),
    }
