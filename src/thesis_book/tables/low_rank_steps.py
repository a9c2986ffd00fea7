"""Effect of each step of the low-rank method, from `benchmarks/lowrank.py`.

Every step includes those before it. The loss is the logarithm of the perplexity over
that of the dense model on the same windows. Texts without a score are left out, and so
are steps without a run.
"""

from typing import Any

import numpy as np
import pandas as pd

from thesis_book.tables.pareto import rounded, scores
from thesis_lib.memory.evaluate.perplexity import TEXTS, Perplexity, pooled_ratio

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
    intervals of these sets. `left` is the loss over that of plain whitening
    on the same sets; NaN without one.
    """
    rows = []
    for text, called in TEXTS.items():
        sets: dict[tuple[float, str], dict[int, Perplexity]] = {}
        for point, score in scores(record, text, record["points"]):
            at = point["ratio"], point["method"]
            sets.setdefault(at, {})[point["seed"]] = score
        order = [
            (ratio, step) for ratio in sorted({r for r, _ in sets}) for step in STEPS
        ]
        for ratio, method in filter(sets.__contains__, order):
            ((_, dense),) = scores(record, text, [record["dense"]])
            own, whitened = sets[ratio, method], sets.get((ratio, "whitened"), {})
            times = pooled_ratio(list(own.values()), dense)
            both = sorted(own.keys() & whitened.keys())
            lost, of = (
                np.array([np.log(each[number].value / dense.value) for number in both])
                for each in (own, whitened)
            )
            left = lost.mean() / of.mean() if both else np.nan
            ends = times.value, times.low, times.high
            value = dense.value * times.value
            rows.append([called, ratio, STEPS[method], len(own), value, *ends, left])
    return pd.DataFrame(rows, columns=CURVES)


def readable(table: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """A row a step at one ratio, as readers see it: for each text, in words.

    How many times the perplexity of the dense model, with its interval, and the
    percentage that is left of the loss of plain whitening.
    """
    at: Any = table[table.ratio == ratio]
    rows: dict[str, dict[str, str]] = {}
    for row in at.itertuples():
        times, low, high = map(rounded, (row.times, row.low, row.high))
        left = "" if np.isnan(row.left) else f"{100 * row.left:,.0f}"
        shown = rows.setdefault(row.step, {"calibration sets": f"{row.sets}"})
        shown[f"{row.text} (times)"] = f"{times} ({low} to {high})"
        shown[f"{row.text}, left (%)"] = left
    return pd.DataFrame.from_dict(rows, orient="index")


def numbers(table: pd.DataFrame, ratio: float) -> dict[str, float]:
    """Return the words that prose cites of the steps and of plain truncation.

    `dense` and a name of `STEPS` are perplexities on the first text; `left_…` and
    `other_left_…` the percentage left of the loss of plain whitening on the first text
    and on the second; `plain_least` the least of plain over whitened on any text at
    any ratio, and `ratios` at how many. A step that no text has is left out.
    """
    cells = table.set_index(["text", "ratio", "step"])
    one, other = TEXTS.values()
    first = cells.loc[one]
    values = {"dense": float((first.perplexity / first.times).mean())}
    for method, step in STEPS.items():
        if (one, ratio, step) in cells.index:
            values[method] = cells.perplexity[one, ratio, step]
            values[f"left_{method}"] = 100 * cells.left[one, ratio, step]
        if (other, ratio, step) in cells.index:
            values[f"other_left_{method}"] = 100 * cells.left[other, ratio, step]
    times = cells.times.unstack("step")
    least = float((times[STEPS["plain"]] / times[STEPS["whitened"]]).min())
    return values | {"plain_least": least, "ratios": table.ratio.nunique()}
