"""How near a clairvoyant schedule comes to the bound, with more effort than a chapter.

Runs FIFO, bid-price, a long local search and the bound on scenarios A, B, C and T, and
lets CP-SAT work on bursts of 40 transactions; those of A have no violations. The same
commit gives the same numbers on every machine.

    python benchmarks/optimum.py
"""

from functools import partial
from pathlib import Path

import ortools
from record import Record, benchmark

from thesis_book.experiments.sequencer.goals import (
    distance,
    distances,
    summarize_windows,
    windows,
)
from thesis_lib.common.files import data_folder
from thesis_lib.common.provenance import seconds_of
from thesis_lib.sequencer.core.trace import Trace
from thesis_lib.sequencer.experiments.configuration import SimulationConfig

TRACE = "sqlite-tpcc-2w.parquet"
TRANSACTIONS = 10_000
LOADS = (0.9, 0.95, 0.99, 1.1, 1.5)
SEEDS, SEED = 3, 2024
SWEEPS = 40
WINDOWS = {"B": 3.0, "C": 8.0, "T": 4.0}  # scenario to load of the burst
NUMBER, EFFORT = 40, 2.0


def places() -> dict[str, SimulationConfig]:
    """The four reference scenarios."""
    past = Trace.read(data_folder() / "traces" / TRACE)
    cells = {
        name: SimulationConfig.of_scenario(name, transactions=TRANSACTIONS)
        for name in ("A", "B", "C")
    }
    return cells | {"T": SimulationConfig.of_trace(past, transactions=TRANSACTIONS)}


@benchmark
def main(out: Path) -> None:
    record = Record(out)
    seconds, runs, solved = {}, {}, {}

    def search(name: str, cell: SimulationConfig) -> None:
        found = distances(cell, LOADS, seeds=SEEDS, seed=SEED, sweeps=SWEEPS)
        runs[name] = found.astype({"seed": int})

    def solve(name: str, cell: SimulationConfig) -> None:
        solved[name] = windows(
            cell, WINDOWS[name], number=NUMBER, seed=SEED, effort=EFFORT
        )

    for name, cell in places().items():
        seconds[f"{name} search"] = seconds_of(partial(search, name, cell))
        if name in WINDOWS:
            seconds[f"{name} windows"] = seconds_of(partial(solve, name, cell))
        print(name, distance(runs[name]).round(3), flush=True)
    totals = summarize_windows(solved)
    print(totals)
    record.write(
        ortools=ortools.__version__,
        trace=TRACE,
        transactions=TRANSACTIONS,
        seeds=SEEDS,
        seed=SEED,
        sweeps=SWEEPS,
        distance={
            name: distance(rows).reset_index().to_dict("records")
            for name, rows in runs.items()
        },
        window_loads=WINDOWS,
        effort=EFFORT,
        windows=totals.rename_axis("scenario").reset_index().to_dict("records"),
        runs={
            name: rows.astype(object).where(rows.notna(), None).to_dict("records")
            for name, rows in runs.items()
        },
        solved={name: rows.to_dict("records") for name, rows in solved.items()},
        seconds=seconds,
    )
