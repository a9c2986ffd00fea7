"""The table of goals at the length that it is meant for, as a record.

FIFO, bid-price and the lower bound in scenarios A (without and with a lag) and B, at
five loads, 20 paired seeds of 100,000 transactions each, on the seeds of chapter 4.

    python benchmarks/goals.py [SEEDS [TRANSACTIONS]]
"""

import json
from pathlib import Path

from record import Record, benchmark

from thesis_book.experiments.sequencer.goals import against_goals, run_goals

SEED = 2024
KEPT = ["row", "load", "seed", "policy", "violations", "late", "dropped",
        "goodput_per_s", "throughput_per_s"]  # fmt: skip


@benchmark
def main(out: Path, seeds: int = 20, transactions: int = 100_000) -> None:
    record = Record(out)
    runs = run_goals(seeds=seeds, transactions=transactions, seed=SEED)
    print(against_goals(runs).round(2).to_string())
    rows = runs[KEPT].to_json(orient="records", double_precision=8)
    record.write(
        seeds=seeds, transactions=transactions, seed=SEED,
        runs=json.loads(rows or "[]"),
    )  # fmt: skip
