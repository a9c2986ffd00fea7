"""The large grids of chapters 4 and 6, run once, and what the profile `full` took.

A grid goes on where it was stopped, as `thesis sweep` does; times are summed over its
points, whichever call executed them. `full` tells the times of an executed profile.

    python benchmarks/grids.py [04_evaluation] [06_evaluation] [full]
"""

import json
from pathlib import Path

import pandas as pd
from record import benchmark, checkout, renew

from thesis_book.execute import chapters, sweep
from thesis_book.execute.provenance import identity
from thesis_lib.common.stats import mean_interval

SHOWN_4 = {
    "fifo_violations_percent": "FIFO, violations (%)",
    "bid_price_violations_percent": "bid-price (%)",
    "lower_bound_percent": "lower bound (%)",
}
SHOWN_6 = {
    "stream_peak_mib": "peak (MiB)",
    "stream_s_per_token": "streamed token (s)",
    "stream_slowdown": "times a resident one",
}
# By grid: the chapter, how many workers (None: one a core), and what is shown of it.
GRIDS: dict[str, tuple[str, int | None, dict[str, str]]] = {
    "04_evaluation": ("4", None, SHOWN_4),
    "06_evaluation": ("6", 1, SHOWN_6),
}


def rows(grid: sweep.Grid, done: pd.DataFrame, shown: dict[str, str]) -> list[dict]:
    """Return the means of the numbers shown, for each value of the axes but the seed.

    Each mean has its interval if there is more than one point.
    """
    axes = [name for name in grid.varied if name != sweep.SEED]
    by = done.groupby([f"parameter.{name}" for name in axes], sort=False)
    found = []
    for _, points in by:
        row: dict = {name: float(points[f"parameter.{name}"].iloc[0]) for name in axes}
        row["points"] = len(points)
        for name, label in shown.items():
            of = mean_interval(points[f"number.{name}"].to_numpy())
            row[label] = [of.value, of.low, of.high]
        found.append(row)
    return found


def run(name: str) -> dict:
    """Execute what is left of a grid; the record of all of it."""
    number, workers, shown = GRIDS[name]
    (chapter,) = chapters.select([number])
    grid = sweep.read_grid(checkout() / "data" / "grids" / f"{name}.yml", chapter)
    results, _ = sweep.run(
        grid,
        checkout() / "build" / "sweeps" / f"{chapter.name}-{name}",
        workers,
        progress=lambda ended, total: print(name, ended, "of", total),
    )
    failed = results[results["status"] == "failed"]
    done = results.drop(failed.index)
    seconds = pd.Series(done["seconds"].to_numpy(float))
    return {
        "chapter": chapter.number,
        "points": len(grid.points),
        "failed": dict(zip(failed["point"], failed["error"], strict=True)),
        "workers": workers or identity()["cores"],
        "point_s": {
            "sum": float(seconds.sum()),
            "median": float(seconds.median()),
            "most": float(seconds.max()),
        },
        "rows": rows(grid, done, shown),
    }


def full() -> dict:
    """What the chapters of the executed profile `full` took."""
    records = chapters.read_records(checkout() / "build" / "chapters" / "full")
    return {
        "seconds": {record.chapter: record.seconds for record in records},
        "peak_memory_bytes": max(record.peak_memory_bytes for record in records),
    }


@benchmark
def main(out: Path, names: list[str] | None = None) -> None:
    for name in names or [*GRIDS, "full"]:
        found = full() if name == "full" else run(name)
        renew(out, name, **found)
        print(json.dumps(found, indent=1))
